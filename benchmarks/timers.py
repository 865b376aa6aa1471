"""From the due time of a run to the first line of its code, while many others wait and no beat runs.

There is no peer: a Celery task with an `eta` waits inside a worker and is lost with it.
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
    """How many wait, how many come due."""
    parser.add_argument(
        "--waiting", type=int, default=10_000, help="runs due in an hour or later (default: 10000)"
    )
    parser.add_argument(
        "--samples", type=int, default=100, help="runs that come due in each round (default: 100)"
    )
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="the span over which they come due, at random (default: 5)"
    )


def measure(options: Namespace) -> Result:
    """Our side alone."""
    with sides(options, peers=()) as side:
        side.ours.ask("wait_far", count=options.waiting)
        turns = {OURS: partial(_turn, side.ours, options.samples, options.seconds)}
        interleaved(1, turns)
        return Result("timers", interleaved(options.rounds, turns), machine=side.machine)


def _turn(side: Side, samples: int, seconds: float) -> Figures:
    return percentiles(side.ask("timers", samples=samples, seconds=seconds))
