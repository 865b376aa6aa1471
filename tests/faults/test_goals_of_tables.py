"""Goal G19: tables under load. Deadlocks, counters and heartbeats that stay where they are, and no bloat while a snapshot stays open."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from faults.cluster import Cluster, Measured
from faults.figures import Noted
from faults.load import begin

pytestmark = [pytest.mark.worker, pytest.mark.goals]

FAR_BEYOND = 4
RUN = 100
"""Steps of each run: small enough for several runs at a time, large enough for their counters to be met by all."""


@pytest.mark.parametrize(
    "seconds", [4.0, pytest.param(180.0, marks=[pytest.mark.faults, pytest.mark.timeout(1_800)])]
)
def test_tables_stay_lean_under_load_and_an_open_snapshot(
    fleet: Cluster, seconds: float, figure: Noted, measured: Measured
) -> None:
    for _ in range(2):
        fleet.worker(slots=2)
    _load(fleet, 1)
    empty, lean = _size(fleet), _load(fleet, seconds)
    steady = lean.bytes_of_a_step(empty)
    with _open_snapshot(fleet):
        held = _load(fleet, seconds)
    measured("bytes of a step", round(steady))
    measured("bytes of a step under the open snapshot", round(held.bytes_of_a_step(lean)))
    times = held.bytes_of_a_step(empty) / steady
    shares = _hot_shares(fleet)
    deadlocks = fleet.sql("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")[0][
        "deadlocks"
    ]
    figure("G19", "deadlocks", deadlocks, 0)
    for table, share in shares.items():
        figure("G19", f"updates of {table} that moved no index entry, %", share, 95, at_least=True)
    figure(
        "G19",
        "size of the steps' table and its indexes, half of the load under an open snapshot, times its steady size",
        times,
        2,
    )
    assert deadlocks == 0
    assert times < 2 * FAR_BEYOND


@dataclass(frozen=True, slots=True)
class _Size:
    """The steps' table with its indexes."""

    bytes: int
    steps: int

    def bytes_of_a_step(self, before: _Size) -> float:
        """By how much it grew since then for each step that came."""
        return (self.bytes - before.bytes) / (self.steps - before.steps)


def _size(fleet: Cluster) -> _Size:
    return _Size(**fleet.sql(_SIZE)[0])


def _load(fleet: Cluster, seconds: float) -> _Size:
    """Several runs at a time for so long; answers the size that is reached."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        fleet.finish(*(begin(fleet, RUN) for _ in range(4)), within=60)
    return _size(fleet)


def _hot_shares(fleet: Cluster) -> dict[str, float]:
    """For each of these tables, in percent; backends tell what they did within seconds."""
    rows = fleet.until(lambda: _told(fleet.sql(_UPDATES)), what="the statistics are told")
    return {row["table"]: 100.0 * row["hot"] / row["updates"] for row in rows}


def _told(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return rows if len(rows) == len(_TABLES) and all(row["updates"] > 1 for row in rows) else []


@contextmanager
def _open_snapshot(fleet: Cluster) -> Iterator[None]:
    """A transaction that sees what was true when the block began, and lets nothing be cleared away that ended since."""
    with fleet.fs.database.engine.connect() as connection:
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.exec_driver_sql("SELECT 1 FROM flowstone.runs LIMIT 1")
        yield
        connection.rollback()


_TABLES = ["runs", "workers", "nodes", "pacer"]
_SIZE = """
SELECT pg_total_relation_size('flowstone.steps') AS bytes, (SELECT count(*) FROM flowstone.steps) AS steps
"""
_UPDATES = f"""
SELECT relname AS table, n_tup_upd AS updates, n_tup_hot_upd AS hot FROM pg_stat_user_tables
 WHERE schemaname = 'flowstone' AND relname IN ({", ".join(f"'{each}'" for each in _TABLES)}) ORDER BY relname
"""
