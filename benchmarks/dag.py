"""One step, as many as asked for beside each other that take its value, and one that takes all of theirs: milliseconds for the whole.

Ours: a run of assets, every value durable with its lineage. Celery: a chain of a task, a group and a task, which Celery makes a chord.
DBOS: a workflow that enqueues the one, then the many, then the last.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from benchmarks.report import OURS, Result
from benchmarks.rounds import interleaved, known_peers
from benchmarks.sides import Side, sides

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from benchmarks.rounds import Figures


def arguments(parser: ArgumentParser) -> None:
    """How many stand beside each other, and who else does them."""
    parser.add_argument("--width", type=int, default=50, help="steps beside each other (default: 50)")
    parser.add_argument(
        "--against",
        type=known_peers,
        default=("celery",),
        help="peers, with a comma between them: celery, dbos; or none (default: celery)",
    )


def measure(options: Namespace) -> Result:
    """All sides, in turn."""
    width = options.width
    with sides(options, peers=options.against, absent_is_told=True, BENCHMARK_WIDTH=str(width)) as all_sides:
        turns = {
            OURS: partial(_turn, all_sides.ours, width),
            **{peer: partial(_turn, side, width) for peer, side in all_sides.peers.items()},
        }
        for _ in range(3):
            interleaved(1, turns)
        rounds: dict[str, list[Figures]] = {OURS: [], **{peer: [] for peer in options.against}}
        rounds.update(interleaved(options.rounds, turns))
        return Result("dag", rounds, "ms", machine=all_sides.machine, notes=[*all_sides.absent.values()])


def _turn(side: Side, width: int) -> Figures:
    return {"ms": side.ask("dag", width=width) * 1000}
