"""Scatter over many items and gather: items in a second, from the call to the end of the run as its client sees it.

Ours: every item ends as a durable row with its result. Celery: a raw chord, `.get()` of its body's result. DBOS: a workflow that puts as
many on a queue and waits for all of their results. Two children on every side.
"""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.memory import forget_peak, peak_mb
from benchmarks.processes import cpu_seconds, family, is_keeper
from benchmarks.report import OURS, Result
from benchmarks.rounds import interleaved, known_peers
from benchmarks.sides import Side, sides
from benchmarks.workers import CHILDREN
from flowstone_celery.config import Settings
from flowstone_celery.db.database import Database

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator

    import psycopg

    from benchmarks.rounds import Figures

_WARM_ITEMS = 1_000


def arguments(parser: ArgumentParser) -> None:
    """How many items of which kind, and who else does them."""
    parser.add_argument("--items", type=int, default=10_000, help="items of each round (default: 10000)")
    parser.add_argument(
        "--item-ms", type=float, default=0.0, help="milliseconds that each item waits (default: 0)"
    )
    parser.add_argument("--async", dest="awaited", action="store_true", help="our items are `async def`")
    parser.add_argument("--width", type=int, help="our items side by side in one child, with --async")
    parser.add_argument("--max-concurrent", type=int, help="our items at work at once")
    parser.add_argument("--dispatch", choices=("auto", "item"), default="auto", help="how our items travel")
    parser.add_argument(
        "--against",
        type=known_peers,
        default=("celery",),
        help="peers, with a comma between them: celery, dbos; or none (default: celery)",
    )
    parser.add_argument(
        "--dbos-gather",
        choices=("workflow", "client"),
        default="workflow",
        help="who waits for DBOS's results: a workflow, which outlives whoever called it, or the client (default: workflow)",
    )
    parser.add_argument(
        "--peer-items",
        type=int,
        default=10_000,
        help="items of a peer's round at most; its items in a second are compared all the same (default: 10000)",
    )


def measure(options: Namespace) -> Result:
    """All sides, in turn."""
    ours = {
        "async": options.awaited,
        "dispatch": options.dispatch,
        "max_concurrent": options.max_concurrent,
        "width": options.width,
    }
    given = json.dumps({name: value for name, value in ours.items() if value is not None})
    environment = {"BENCHMARK_SCATTER": given, "BENCHMARK_ITEM_MS": str(options.item_ms)}
    with (
        sides(options, peers=options.against, absent_is_told=True, **environment) as all_sides,
        _watching(all_sides.database_url, all_sides.ours) as watch,
    ):
        fewer = min(options.items, options.peer_items)

        by_client = options.dbos_gather == "client"
        deeds = {"celery": "scatter", "dbos": "scatter_by_client" if by_client else "scatter"}

        def turns(most: int) -> dict[str, Any]:
            theirs = {
                peer: partial(_turn, side, deeds[peer], min(fewer, most))
                for peer, side in all_sides.peers.items()
            }
            return {OURS: partial(_our_turn, watch, options, min(options.items, most)), **theirs}

        interleaved(1, turns(_WARM_ITEMS))
        rounds: dict[str, list[Figures]] = {OURS: [], **{peer: [] for peer in options.against}}
        rounds.update(interleaved(options.rounds, turns(options.items)))
        notes = list(all_sides.absent.values())
        if "dbos" in all_sides.peers:
            notes.append(f"dbos: a {options.dbos_gather} waits for the results")
        if fewer < options.items and all_sides.peers:
            notes.append(f"peers ran {fewer:,} items in each round, ours {options.items:,}")
        machine = all_sides.machine
        return Result("scatter", rounds, "items_per_s", machine, more_is_better=True, notes=notes)


def _turn(side: Side, deed: str, items: int) -> Figures:
    seconds = side.ask(deed, items=items)
    return {"seconds": seconds, "items_per_s": items / seconds}


def _our_turn(watch: _Watch, options: Namespace, items: int) -> Figures:
    figures = watch.look(items)
    if options.item_ms:
        width = _width(options)
        ideal = math.ceil(items / width) * options.item_ms / 1000
        figures["of_ideal"] = ideal / figures["seconds"]
    return figures


def _width(options: Namespace) -> int:
    """Items that can be at work at once."""
    each = (options.width or Settings().async_width) if options.awaited else 1
    return min(CHILDREN * each, options.max_concurrent or CHILDREN * each)


# --- what it costs --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Watch:
    """Looks at our side from outside, by one connection of its own."""

    connection: psycopg.Connection[Any]
    side: Side

    def look(self, items: int) -> Figures:
        """One round, and what it took."""
        assert self.side.worker_pid is not None
        worker = [pid for pid in family(self.side.worker_pid) if not is_keeper(pid)]
        children = [pid for pid in worker if pid != self.side.worker_pid]
        for pid in (*children, self.side.client_pid):
            forget_peak(pid)
        size, backends = self._size(), self._backends()
        used = {"worker": worker, "client": [self.side.client_pid], "postgres": backends}
        before = {name: cpu_seconds(pids) for name, pids in used.items()}
        seconds = self.side.ask("scatter", items=items)
        after = {name: cpu_seconds(pids) for name, pids in used.items()}
        return {
            "seconds": seconds,
            "items_per_s": items / seconds,
            "coordinator_mb": peak_mb(self.side.client_pid),
            "worker_mb": max(map(peak_mb, children)),
            "bytes_per_item": (self._size() - size) / items,
            **{f"{name}_cpu_us": 1e6 * (after[name] - before[name]) / items for name in used},
        }

    def _size(self) -> int:
        """Bytes of the files that hold items and pages, indexes included, each as far as it is filled."""
        row = self.connection.execute(_SIZE).fetchone()
        assert row is not None
        return int(row[0])

    def _backends(self) -> list[int]:
        return [pid for (pid,) in self.connection.execute(_BACKENDS)]


@contextmanager
def _watching(url: str, side: Side) -> Iterator[_Watch]:
    database = Database(url, pool_size=1)
    try:
        with database.connection(autocommit=True) as connection:
            yield _Watch(connection, side)
    finally:
        database.dispose()


_SIZE = """
SELECT pg_total_relation_size('flowstone.items') + pg_total_relation_size('flowstone.barrier_pages')
     + pg_total_relation_size('flowstone.barrier_keys')
"""
_BACKENDS = """
SELECT a.pid FROM pg_stat_activity a WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.backend_type = 'client backend'
"""
