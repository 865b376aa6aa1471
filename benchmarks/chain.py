"""A chain of no-op steps in one run, each taking the value of the one before: milliseconds for each step.

Ours: every step a durable row with its value, history and lineage. Celery: a raw chain, its last result fetched with `.get()`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from benchmarks.report import OURS, Result
from benchmarks.rounds import interleaved
from benchmarks.sides import Side, sides

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from benchmarks.rounds import Figures


def arguments(parser: ArgumentParser) -> None:
    """How long the chain is."""
    parser.add_argument("--steps", type=int, default=100, help="steps of the chain (default: 100)")


def measure(options: Namespace) -> Result:
    """Both sides, in turn."""
    with sides(options, BENCHMARK_STEPS=str(options.steps)) as both:
        turns = {
            OURS: partial(_turn, both.ours, options.steps),
            "celery": partial(_turn, both.peers["celery"], options.steps),
        }
        interleaved(1, turns)
        return Result("chain", interleaved(options.rounds, turns), "ms_per_step", both.machine)


def _turn(side: Side, steps: int) -> Figures:
    return {"ms_per_step": side.ask("chain", steps=steps) * 1000 / steps}
