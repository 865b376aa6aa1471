"""Stops, timeouts and cancels of workers at work: in time, and nobody is blamed who is not to blame."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from faults import faultshop
from faults.cluster import GRACE, Cluster, Measured

from flowstone_celery import Run

pytestmark = pytest.mark.worker

POOLS = ["prefork", "threads", "solo"]


def blamed(*runs: Run) -> list[str]:
    return [
        f"{row['name']} {key}={row[key]}"
        for run in runs
        for row in run.steps()
        for key in ("crashes", "losses", "failures")
        if row[key]
    ]


@pytest.mark.parametrize("pool", POOLS)
def test_a_warm_stop_finishes_what_runs_and_ends_in_time(
    fleet: Cluster, pool: str, measured: Measured
) -> None:
    worker = fleet.worker(pool=pool, slots=2)
    runs = [fleet.diamond(seed={"sleep": 0.5}) for _ in range(4)]
    fleet.running(runs[0], "seed")
    worker.signal(signal.SIGTERM)
    seconds = worker.ended(15)
    measured("stopped_after_seconds", round(seconds, 2))
    begun = fleet.sink()
    assert len(begun) == len(fleet.sink(event="end")), "what had begun was ended"
    assert seconds < 8
    fleet.worker(slots=2)
    fleet.finish(*runs)
    assert not blamed(*runs)
    assert len(fleet.sink()) == 4 * len(runs)


@pytest.mark.parametrize("pool", POOLS)
def test_a_cold_stop_blames_nobody_and_ends_in_time(fleet: Cluster, pool: str, measured: Measured) -> None:
    worker = fleet.worker(pool=pool, slots=2)
    # Code in the main thread is interrupted; in other threads it hears by `ctx.check()`, which this deed calls.
    run = fleet.start(metadata={"work": {"wait": str(fleet.file("never")), "first": True}})
    fleet.running(run)
    worker.signal(signal.SIGQUIT)
    seconds = worker.ended(15)
    measured("stopped_after_seconds", round(seconds, 2))
    assert seconds < 8
    fleet.until(lambda: fleet.step(run, "work")["status"] == "ready", run=run, what="the step is given back")
    fleet.worker()
    fleet.finish(run)
    assert not blamed(run)
    assert len(fleet.sink(run=run)) == 2


@pytest.mark.faults
@pytest.mark.parametrize("pool", POOLS)
def test_twenty_stops_under_load_lose_nothing(fleet: Cluster, pool: str, measured: Measured) -> None:
    runs = [fleet.diamond(left={"sleep": 0.02}) for _ in range(400)]
    stops = []
    for _ in range(20):
        worker = fleet.worker(pool=pool, slots=2)
        enough = len(fleet.sink()) + 5
        fleet.until(
            lambda enough=enough: len(fleet.sink()) > enough or all(run.ready() for run in runs),
            what="work goes on",
        )
        worker.signal(signal.SIGTERM)
        stops.append(round(worker.ended(45), 2))
    measured("stopped_after_seconds", sorted(stops))
    fleet.worker()
    fleet.finish(*runs, within=120)
    assert not blamed(*runs)
    assert max(stops) < 25, stops


def test_a_timeout_ends_user_code_and_spares_its_process(fleet: Cluster) -> None:
    fleet.worker(slots=1)
    run = fleet.start("timed", metadata={"timed": {"sleep": 30}})
    fleet.until(run.ready, run=run)
    row = fleet.step(run, "timed")
    assert (run.state, row["error"]["code"], row["attempt"], row["failures"]) == ("failed", "FS-2005", 2, 2)
    first, second = fleet.sink(run=run)
    assert first["pid"] == second["pid"]
    assert row["crashes"] == 0
    assert second["at"] - first["at"] < 1.0 + GRACE


def test_code_that_does_not_hear_its_timeout_is_killed_after_the_grace(
    fleet: Cluster, measured: Measured
) -> None:
    worker = fleet.worker(slots=1)
    run = fleet.start("stubborn", metadata={"stubborn": {"deaf": 20}})
    held = fleet.running(run, "stubborn")
    after = fleet.start()
    fleet.until(run.ready, run=run)
    row = fleet.step(run, "stubborn")
    measured("ended_after_seconds", round(time.time() - held["at"], 2))
    assert (run.state, row["error"]["code"], row["attempt"], row["crashes"]) == ("failed", "FS-2005", 1, 0)
    fleet.finish(after)
    assert held["pid"] not in worker.children


def test_a_cancel_interrupts_code_that_runs(fleet: Cluster, measured: Measured) -> None:
    fleet.worker(slots=1)
    run = fleet.diamond(left={"sleep": 30}, right={"sleep": 30})
    pid = fleet.until(lambda: next(iter(fleet.sink(asset="left") + fleet.sink(asset="right")), None))["pid"]
    begun = time.monotonic()
    assert run.cancel(actor="tester")
    fleet.until(run.ready, run=run)
    measured("cancelled_after_seconds", round(time.monotonic() - begun, 2))
    assert time.monotonic() - begun < 5
    assert run.state == "cancelled"
    after = fleet.start()
    fleet.finish(after)
    assert fleet.sink(run=after)[0]["pid"] == pid, "the process was spared"


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_step_longer_than_the_patience_of_the_broker_runs_once(fleet: Cluster, pool: str) -> None:
    patience = {"visibility_timeout": 2, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
    options = {faultshop.OPTIONS: json.dumps(patience)}
    for _ in range(2):
        fleet.worker(pool=pool, slots=1, **options)
    run = fleet.start(metadata={"work": {"sleep": 6}})
    with fleet.traffic() as sent:
        fleet.finish(run)
    assert len(fleet.sink(run=run)) == 1
    assert fleet.step(run, "work")["attempt"] == 1
    assert not sent, "no message came back"


def test_a_parent_that_is_killed_leaves_nobody_behind(fleet: Cluster, measured: Measured) -> None:
    worker = fleet.worker(slots=2)
    run = fleet.start(metadata={"work": {"sleep": 30, "first": True}})
    child = fleet.running(run)["pid"]
    os.kill(worker.pid, signal.SIGKILL)
    begun = time.monotonic()
    fleet.until(lambda: not fleet.processes(), what="keeper and children are gone")
    measured("gone_after_seconds", round(time.monotonic() - begun, 2))
    assert child not in [each.pid for each in fleet.processes()]
    fleet.worker()
    fleet.finish(run)
    assert fleet.step(run, "work")["failures"] == 0
