"""Goals G2, G6, G17 and G18: workers that die, step by step or as a whole, a step that kills whoever runs it, and stops that everybody survives.

Rules are asserted; times are figures (`figures.py`), and fail a test only far beyond their bar.
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress

import pytest
from faults.cluster import LEASE, Cluster, Measured, Worker
from faults.figures import Noted, p99
from faults.load import begin

from flowstone_celery import Run

pytestmark = [pytest.mark.worker, pytest.mark.goals]

FAR_BEYOND = 4
LONG = pytest.mark.faults
DEFAULT_LEASE = 30.0

_LEDGER = "CREATE TABLE ledger (key text, fence bigint, pid int, PRIMARY KEY (key, fence))"


# --- G2: commits ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "kills"),
    [
        pytest.param(500, 5, id="500"),
        pytest.param(6_000, 60, id="6000", marks=[LONG, pytest.mark.timeout(1_800)]),
    ],
)
def test_nothing_is_committed_twice_while_children_are_killed(
    fleet: Cluster, steps: int, kills: int, figure: Noted
) -> None:
    fleet.sql(_LEDGER)
    workers = [fleet.worker(slots=2, FLOWSTONE_CRASH_LIMIT=50) for _ in range(2)]
    run = begin(fleet, steps, asset="ledger", metadata={"pause": 0.01})
    chance, killed = random.Random(steps), 0
    while not run.ready():
        if len(fleet.sink(event="end")) > (killed + 1) * steps // (kills + 1) and killed < kills:
            killed += _kill_one(workers, chance)
        time.sleep(0.05)
    fleet.finish(run)
    starts = len(fleet.sink(asset="ledger"))
    twice = fleet.sql(_COMMITS_OF_A_STEP, run=run.uuid)
    assert killed >= kills / 2, "the run was over too soon"
    assert len(fleet.sql("SELECT DISTINCT key FROM ledger")) == steps
    assert twice == [], "a step was committed more or less than once, or under a fence that left nothing"
    assert starts <= steps + killed, "a start that no death explains"
    figure("G2", "commits that stand twice", len(twice), 0)
    figure("G2", "starts that were doubled, %", 100 * (starts - steps) / steps, 1)


def _kill_one(workers: list[Worker], chance: random.Random) -> int:
    """A pool child dies, whatever it does just now; answers how many did."""
    children = chance.choice(workers).children
    with suppress(ProcessLookupError, IndexError):
        os.kill(chance.choice(children), signal.SIGKILL)
        return 1
    return 0


_COMMITS_OF_A_STEP = """
SELECT s.id FROM flowstone.steps s
  LEFT JOIN flowstone.asset_values v ON v.step_id = s.id AND v.settled_at IS NOT NULL
 WHERE s.run_id = %(run)s GROUP BY s.id HAVING count(v.id) <> 1 OR bool_or(v.fence <> s.fence)
UNION ALL
SELECT h.step_id FROM flowstone.history h WHERE h.run_id = %(run)s AND h.event = 'step.succeeded' GROUP BY h.step_id HAVING count(*) <> 1
"""


# --- G6: recovery -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tries", [4, pytest.param(60, marks=[LONG, pytest.mark.timeout(1_800)])])
def test_a_step_begins_again_soon_after_its_process_was_killed(
    fleet: Cluster, tries: int, figure: Noted
) -> None:
    fleet.worker(slots=2)
    seconds = []
    for _ in range(tries):
        run, at = _held(fleet), time.time()
        os.kill(fleet.running(run)["pid"], signal.SIGKILL)
        seconds.append(fleet.running(run, attempt=2)["at"] - at)
        fleet.finish(run)
    figure("G6", "p99 seconds from SIGKILL of a child to the next attempt", p99(seconds), 15)
    assert max(seconds) < 15 * FAR_BEYOND


@pytest.mark.parametrize("tries", [1, pytest.param(12, marks=[LONG, pytest.mark.timeout(1_800)])])
def test_a_step_begins_again_soon_after_its_whole_node_was_killed(
    fleet: Cluster, tries: int, figure: Noted
) -> None:
    beyond = []
    held = fleet.worker(slots=1)
    for _ in range(tries):
        run = _held(fleet)
        fleet.running(run)
        heir = fleet.worker(slots=1)
        at = time.time()
        held.fall()
        beyond.append(fleet.running(run, attempt=2)["at"] - at - LEASE)
        fleet.finish(run)
        held = heir
    figure(
        "G6",
        "p99 seconds from SIGKILL of a node to the next attempt, for a lease of 30 s",
        p99(beyond) + DEFAULT_LEASE,
        45,
    )
    assert max(beyond) < 15 * FAR_BEYOND


def _held(fleet: Cluster) -> Run:
    """A run whose first attempt ends only with its process."""
    return fleet.start(metadata={"work": {"wait": str(fleet.file("never")), "first": True}})


# --- G17: poison ------------------------------------------------------------------------------------------------------------------------


def test_poison_begins_no_more_often_than_the_limit(fleet: Cluster, figure: Noted) -> None:
    fleet.worker(slots=2)
    poison = fleet.start(metadata={"work": {"die": True}})
    others = begin(fleet, 200)
    fleet.finish(others, within=60)
    fleet.until(poison.ready, run=poison, within=30)
    starts, limit = len(fleet.sink(run=poison)), fleet.settings.crash_limit
    assert (poison.state, starts) == ("failed", limit)
    assert (
        fleet.sql("SELECT 1 FROM flowstone.steps WHERE run_id = %(run)s AND failures > 0", run=others.uuid)
        == []
    )
    figure("G17", f"starts of a poison step (limit {limit})", starts, limit)


@LONG
@pytest.mark.timeout(900)
def test_poison_slows_its_siblings_little(fleet: Cluster, figure: Noted, measured: Measured) -> None:
    for _ in range(2):
        fleet.worker(slots=2)

    def seconds() -> float:
        begun = time.monotonic()
        fleet.finish(begin(fleet, 2_000, metadata={"pause": 0.05}), within=300)
        return time.monotonic() - begun

    seconds()  # warm
    before = seconds()
    poison = fleet.start(metadata={"work": {"die": True}})
    beside = seconds()
    after = seconds()
    fleet.until(poison.ready, run=poison, within=30)
    assert poison.state == "failed"
    measured(
        "seconds without, beside it, without again", [round(each, 1) for each in (before, beside, after)]
    )
    drop = 100 * (1 - (before + after) / 2 / beside)
    figure("G17", "throughput that siblings of a poison step lose, %", drop, 10)
    assert drop < 10 * FAR_BEYOND


# --- G18: stops -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rounds", "each"), [(1, 3), pytest.param(20, 5, marks=[LONG, pytest.mark.timeout(3_600)])]
)
def test_stops_are_graceful_whether_a_worker_is_idle_or_busy(
    fleet: Cluster, rounds: int, each: int, figure: Noted
) -> None:
    """In each round so many workers have nothing to do, and as many are at a step, when they are told to stop, one after the other."""
    idle, busy, runs = [], [], []
    for _ in range(rounds):
        idlers = [fleet.worker(slots=1, queues="nobody", ready=False) for _ in range(each)]
        hands = {f"hand-{n}": fleet.worker(slots=1, queues=f"hand-{n}", ready=False) for n in range(each)}
        for worker in (*idlers, *hands.values()):
            fleet.await_ready(worker, within=60)
        for worker in idlers:
            worker.signal(signal.SIGTERM)
            idle.append(worker.ended(60))
        for queue, worker in hands.items():
            run = fleet.start("timed", queue=queue, metadata={"timed": {"sleep": 0.7}})
            fleet.running(run, "timed")
            worker.signal(signal.SIGTERM)
            busy.append(worker.ended(60))
            runs.append(run)
    assert {run.state for run in runs} == {"succeeded"}
    assert {(row["attempt"], row["failures"]) for run in runs for row in run.steps()} == {(1, 0)}
    figure("G18", "seconds until an idle worker has stopped, the slowest", max(idle), 3)
    figure("G18", "seconds until a busy worker has stopped (timeout 1 s), the slowest", max(busy), 6)
    assert max(*idle, *busy) < 6 * FAR_BEYOND
