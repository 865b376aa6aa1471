"""From the call to the first line of user code on an idle worker, one at a time.

Ours: the run and the claim are durable rows by then. Celery: a bare task.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from benchmarks.report import OURS, Result
from benchmarks.rounds import interleaved, percentiles
from benchmarks.sides import Side, sides

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from benchmarks.rounds import Figures


def arguments(parser: ArgumentParser) -> None:
    """How many calls."""
    parser.add_argument("--samples", type=int, default=100, help="calls in each round (default: 100)")


def measure(options: Namespace) -> Result:
    """Both sides, in turn."""
    with sides(options) as both:
        turns = {
            OURS: partial(_turn, both.ours, options.samples),
            "celery": partial(_turn, both.peers["celery"], options.samples),
        }
        interleaved(1, turns)
        return Result("latency", interleaved(options.rounds, turns), "p50_ms", both.machine)


def _turn(side: Side, samples: int) -> Figures:
    return percentiles(side.ask("latency", samples=samples))
