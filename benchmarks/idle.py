"""What a worker node costs while it has nothing to do: queries in a second, and processor time, with many steps that wait.

Half of the steps are due in an hour and later, each of the others waits for one of them. One worker, two children, its keeper. There is no peer.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.errors import BenchmarkError
from benchmarks.processes import cpu_seconds, family, is_keeper
from benchmarks.report import OURS, Result
from benchmarks.sides import Side, sides
from flowstone_celery.db.database import Database

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator

    import psycopg

    from benchmarks.rounds import Figures

_CALM_SECONDS = 5.0
"""After the last of the work: what follows it is no idleness."""


def arguments(parser: ArgumentParser) -> None:
    """How many wait, and how long is looked."""
    parser.add_argument("--waiting", type=int, default=10_000, help="steps that wait (default: 10000)")
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds of each round (default: 20)")
    parser.set_defaults(rounds=1)


def measure(options: Namespace) -> Result:
    """Our side alone."""
    with sides(options, peers=()) as side, _watching(side.database_url, side.ours) as watch:
        side.ours.ask("wait_blocked", count=options.waiting)
        watch.analyze()
        time.sleep(min(_CALM_SECONDS, options.seconds))
        rounds = [watch.look(options.seconds) for _ in range(options.rounds)]
        return Result("idle", {OURS: rounds}, machine=side.machine)


@dataclass(frozen=True, slots=True)
class _Used:
    """What had been used by a moment."""

    at: float
    transactions: int
    worker: float
    keeper: float
    postgres: float


class _Watch:
    """Looks from outside, by one connection of its own."""

    def __init__(self, connection: psycopg.Connection[Any], side: Side) -> None:
        assert side.worker_pid is not None
        self._connection = connection
        self._worker_pid = side.worker_pid

    def analyze(self) -> None:
        """The planner knows what the tables hold, and the autovacuum has nothing to do for now."""
        self._connection.execute("VACUUM ANALYZE")

    def look(self, seconds: float) -> Figures:
        """The cost of so many seconds."""
        before = self._used()
        time.sleep(seconds)
        after = self._used()
        passed = after.at - before.at

        def percent(name: str) -> float:
            return 100 * (getattr(after, name) - getattr(before, name)) / passed

        parts = {f"{name}_cpu_percent": percent(name) for name in ("worker", "keeper", "postgres")}
        # Each statement of ours that is not part of a transaction commits by itself; one of those between is the watch's.
        queries = (after.transactions - before.transactions - 1) / passed
        return {"queries_per_second": queries, "cpu_percent": sum(parts.values()), **parts}

    def _used(self) -> _Used:
        transactions, backends = self._connection.execute(_LOOK).fetchone() or (0, [])
        processes = family(self._worker_pid)
        keepers = [pid for pid in processes if is_keeper(pid)]
        if not keepers:
            raise BenchmarkError("the worker has no keeper")
        return _Used(
            time.monotonic(),
            transactions,
            cpu_seconds(set(processes) - set(keepers)),
            cpu_seconds(keepers),
            cpu_seconds(backends),
        )


@contextmanager
def _watching(url: str, side: Side) -> Iterator[_Watch]:
    database = Database(url, pool_size=1)
    try:
        with database.connection(autocommit=True) as connection:
            yield _Watch(connection, side)
    finally:
        database.dispose()


_LOOK = """
SELECT d.xact_commit + d.xact_rollback, array(SELECT a.pid FROM pg_stat_activity a WHERE a.datid = d.datid AND a.pid <> pg_backend_pid()
                                                AND a.backend_type = 'client backend')
  FROM pg_stat_database d WHERE d.datname = current_database()
"""
