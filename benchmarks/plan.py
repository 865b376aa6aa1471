"""A graph of many assets in layers: seconds to plan a run of all, to judge what is fresh, and to start runs. No worker runs, and there is no peer.

Each round is a client process of its own, as the command line is: nothing that a former round looked up helps it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.report import OURS, Result
from benchmarks.sides import Side, alone

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from benchmarks.rounds import Figures

_GRAPH = "benchmarks.apps.graph"


def arguments(parser: ArgumentParser) -> None:
    """How large the graph is, and the largest run."""
    parser.add_argument("--assets", type=int, default=5_000, help="assets in layers (default: 5000)")
    parser.add_argument(
        "--partitions",
        type=int,
        default=1_000,
        help="partitions of an asset on a chain of ten (default: 1000)",
    )
    parser.add_argument(
        "--steps", type=int, default=100_000, help="steps of the largest run (default: 100000)"
    )
    parser.set_defaults(rounds=3)


def measure(options: Namespace) -> Result:
    """Our side alone, without workers."""
    size = {"BENCHMARK_ASSETS": str(options.assets), "BENCHMARK_PARTITIONS": str(options.partitions)}
    with alone(_GRAPH, **size) as servers:
        with servers.client() as first:
            first.ask("fill")
            machine = {**servers.versions, **first.ask("about")}
        rounds: list[Figures] = []
        for _ in range(options.rounds):
            with servers.client() as client:
                rounds.append(_turn(client, options.steps))
        return Result("plan", {OURS: rounds}, machine=machine)


def _turn(client: Side, steps: int) -> Figures:
    client.ask("ping")
    figures = {
        "declare_s": client.ask("declared"),
        "plan_s": client.ask("planned"),
        "fresh_all_s": client.ask("fresh_layers"),
        "fresh_partitions_s": client.ask("fresh_partitions"),
        "start_all_s": client.ask("started_layers"),
    }
    seconds, peak = client.ask("started_many", steps=steps)
    return {**figures, "start_many_s": seconds, "start_many_peak_mb": peak}
