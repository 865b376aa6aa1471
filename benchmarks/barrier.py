"""Single arrivals on one barrier from many connections: how many in a second, and how long the slowest take. No worker runs, and there is no peer.

Each settler is a hand with a connection of its own. It claims a range of items and settles them one at a time, each in a transaction
that is durable before it returns. Beside it stands what the same connections reach with a bare insert of one row for each commit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.report import OURS, Result
from benchmarks.rounds import percentiles
from benchmarks.sides import Side, alone

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from benchmarks.rounds import Figures

_SETTLERS = "benchmarks.apps.settlers"


def arguments(parser: ArgumentParser) -> None:
    """How many settle, and how much."""
    parser.add_argument("--settlers", type=int, default=64, help="connections that settle (default: 64)")
    parser.add_argument("--items", type=int, default=100, help="items of each settler (default: 100)")
    parser.add_argument(
        "--range", dest="ranged", type=int, default=8, help="items that are claimed at once (default: 8)"
    )
    parser.add_argument(
        "--processes", type=int, default=2, help="processes that the settlers are threads of (default: 2)"
    )


def measure(options: Namespace) -> Result:
    """Our side alone."""
    with alone(_SETTLERS) as servers, servers.client() as client:
        _turn(client, options)
        rounds = [_turn(client, options) for _ in range(options.rounds)]
        return Result("barrier", {OURS: rounds}, machine={**servers.versions, **client.ask("about")})


def _turn(client: Side, options: Namespace) -> Figures:
    many = {"settlers": options.settlers, "items": options.items, "processes": options.processes}
    settled = client.ask("settled", ranged=options.ranged, **many)
    bare = client.ask("inserted", **many)
    single = client.ask("settled", ranged=options.ranged, settlers=1, items=options.items, processes=1)
    per_s, bare_per_s = _per_second(settled), _per_second(bare)
    return {
        "per_s": per_s,
        **percentiles(settled["times"]),
        "one_settler_per_s": _per_second(single),
        "bare_per_s": bare_per_s,
        "of_bare": per_s / bare_per_s,
    }


def _per_second(answer: dict[str, list[float] | float]) -> float:
    times, seconds = answer["times"], answer["seconds"]
    assert isinstance(times, list)
    assert isinstance(seconds, float)
    return len(times) / seconds
