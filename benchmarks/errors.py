"""What ends a benchmark: one sentence, and the way out."""

from __future__ import annotations


class BenchmarkError(Exception):
    """The benchmark cannot be run, or one of its sides failed."""
