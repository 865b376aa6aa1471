"""Steps that only wait, many in one run: how near they come to the ideal, in which every place of both children is always taken.

One worker, two children, each with a window of the default width. Every step is a durable row with its value and history; there is no peer.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.report import OURS, Result
from benchmarks.rounds import interleaved
from benchmarks.sides import Side, sides
from benchmarks.workers import CHILDREN
from flowstone_celery.config import Settings

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from benchmarks.rounds import Figures


def arguments(parser: ArgumentParser) -> None:
    """How many steps, and how long each waits."""
    parser.add_argument("--steps", type=int, default=1000, help="steps of the run (default: 1000)")
    parser.add_argument("--wait", type=float, default=1.0, help="seconds that each awaits (default: 1)")


def measure(options: Namespace) -> Result:
    """Our side alone."""
    with sides(options, peers=(), BENCHMARK_WAIT=str(options.wait)) as side:
        turns = {OURS: partial(_turn, side.ours, options.steps, options.wait)}
        interleaved(1, turns)
        return Result("async", interleaved(options.rounds, turns), machine=side.machine)


def _turn(side: Side, steps: int, wait: float) -> Figures:
    seconds = side.ask("side_by_side", steps=steps)
    ideal = math.ceil(steps / (CHILDREN * Settings().async_width)) * wait
    return {"seconds": seconds, "ideal_percent": 100 * ideal / seconds, "steps_per_second": steps / seconds}
