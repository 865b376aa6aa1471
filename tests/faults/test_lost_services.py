"""Redis and Postgres away, emptied, restarted: no work is lost to it, and no attempt."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from faults.cluster import LEASE, Cluster, Measured
from faults.figures import Noted

from flowstone_celery import Run
from flowstone_celery.embedded import servers

pytestmark = pytest.mark.worker

AWAY = 2 * LEASE


def all_first_attempts(*runs: Run) -> bool:
    return all(
        (row["attempt"], row["crashes"], row["losses"], row["failures"]) == (1, 0, 0, 0)
        for run in runs
        for row in run.steps()
    )


def test_a_broker_that_is_emptied_again_and_again_loses_nothing(fleet: Cluster) -> None:
    fleet.worker(slots=1)
    redis = fleet.redis
    runs = [fleet.diamond(left={"sleep": 0.05}, join={"sleep": 0.05}) for _ in range(10)]
    flushed = 0
    for _ in range(3):
        flushed += fleet.until(lambda: redis.llen("celery"), what="messages wait in Redis")
        redis.flushall()
    fleet.finish(*runs, within=40)
    assert flushed > 3
    assert all_first_attempts(*runs)


@pytest.mark.goals
@pytest.mark.parametrize(
    "away", [2.0, pytest.param(60.0, marks=[pytest.mark.faults, pytest.mark.timeout(300)])]
)
def test_a_broker_that_comes_back_empty_loses_nothing_and_holds_no_client_up(
    fleet: Cluster, away: float, measured: Measured, figure: Noted
) -> None:
    home = fleet.databases.home
    assert home is not None
    fleet.worker(slots=1)
    before = [fleet.diamond(seed={"sleep": 0.1}) for _ in range(4)]
    fleet.running(before[0], "seed")
    servers.stop_redis(home)
    try:
        meanwhile, waits = [], []

        def begin_some() -> None:
            for _ in range(4):
                begun = time.monotonic()
                meanwhile.append(fleet.diamond())
                waits.append(time.monotonic() - begun)

        begin_some()
        # The absence itself is what is tested: long enough for a worker to give up its connection and try again.
        time.sleep(away)
        # By now it has done what it knew of, and hears of nothing more.
        begin_some()
    finally:
        servers.start_redis(home)
    begun = time.monotonic()
    fleet.finish(*before, *meanwhile, within=120)
    figure(
        "G7",
        f"seconds until all had run once Redis was back, empty, after {away:g} s",
        time.monotonic() - begun,
        30,
    )
    figure("G7", "steps that an absence of Redis lost", 0, 0)
    measured("slowest_start", round(max(waits), 3))
    assert max(waits) < 1, waits
    assert all_first_attempts(*before, *meanwhile)


class Echo:
    """Sends each message that it sees in Redis, waiting or taken, once more."""

    def __init__(self, fleet: Cluster) -> None:
        self._redis = fleet.redis
        self.said: set[str] = set()

    def look(self) -> None:
        waiting = self._redis.lrange("celery", 0, -1)
        taken = [json.dumps(json.loads(each)[0]).encode() for each in self._redis.hvals("unacked")]
        for message in (*waiting, *taken):
            task = json.loads(message)["headers"]["id"]
            if task not in self.said:
                self.said.add(task)
                self._redis.lpush("celery", message)

    @contextmanager
    def answering(self) -> Iterator[None]:
        over = threading.Event()

        def repeat() -> None:
            while not over.wait(0.005):
                self.look()

        thread = threading.Thread(target=repeat)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(10)


def test_every_message_twice_and_each_step_once(fleet: Cluster) -> None:
    fleet.worker(module="doubleshop", slots=2)
    echo = Echo(fleet)
    with fleet.traffic() as wakeups, echo.answering():
        runs = [fleet.diamond(left={"sleep": 0.05}, right={"sleep": 0.05}) for _ in range(10)]
        fleet.finish(*runs)
    assert len(echo.said) >= len(runs)
    assert sum(wakeups.values()) >= 2 * len(wakeups)
    assert len(fleet.sink()) == 4 * len(runs)
    assert all_first_attempts(*runs)


@pytest.mark.goals
def test_a_database_that_crashes_mid_run_costs_no_attempt(fleet: Cluster, figure: Noted) -> None:
    home = fleet.databases.home
    assert home is not None
    fleet.server_crashes = True
    fleet.worker(slots=2)
    runs = [fleet.diamond(left={"sleep": 1}, right={"sleep": 0.2}) for _ in range(3)]
    fleet.running(runs[0], "left")
    fleet.await_flushed()
    servers.restart_postgres(home)
    begun = time.monotonic()
    fleet.finish(*runs, within=60)
    figure(
        "G7", "seconds until all had run once Postgres was back from a crash", time.monotonic() - begun, 15
    )
    assert all_first_attempts(*runs)


@pytest.mark.parametrize("seconds", [1.0, 1.5 * AWAY], ids=["ends while it is away", "ends after it is back"])
def test_leases_do_not_run_while_the_database_is_away(
    fleet: Cluster, seconds: float, measured: Measured
) -> None:
    home = fleet.databases.home
    assert home is not None
    fleet.server_crashes = True
    fleet.worker(slots=1)
    fleet.worker(slots=1)
    run = fleet.diamond(left={"sleep": seconds})
    fleet.running(run, "left")
    fleet.await_flushed()
    servers.stop_postgres(home)
    # The absence itself is what is tested: twice as long as a lease.
    time.sleep(AWAY)
    servers.start_postgres(home)
    begun = time.monotonic()
    fleet.finish(run, within=40)
    measured("recovery_seconds", round(time.monotonic() - begun, 2))
    assert [row["attempt"] for row in run.steps() if row["name"].endswith("left")] == [1]
    assert all(row["losses"] == 0 and row["crashes"] == 0 for row in run.steps())
    assert len(fleet.sink(asset="left")) == 1


def test_a_database_that_forgot_its_workers_meets_them_anew(fleet: Cluster) -> None:
    """As after a failover to a server that had not heard the last."""
    fleet.worker(slots=1)
    fleet.finish(fleet.start())
    fleet.sql("DELETE FROM flowstone.workers")
    fleet.sql("DELETE FROM flowstone.nodes")
    run = fleet.diamond()
    fleet.finish(run)
    fleet.until(
        lambda: fleet.sql("SELECT 1 FROM flowstone.nodes WHERE status = 'live'"), what="the node is back"
    )
    assert all_first_attempts(run)
