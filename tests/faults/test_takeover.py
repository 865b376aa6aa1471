"""Workers that fall, stop or hold their breath: another takes over exactly what was lost, and nothing else."""

from __future__ import annotations

import os
import signal
import threading
import time
from uuid import uuid4

import pytest
from faults.cluster import LEASE, Cluster, Measured

from flowstone_celery import Run
from flowstone_celery.core.pacer import Pacer

pytestmark = pytest.mark.worker


def counters(fleet: Cluster, run: Run, name: str = "work") -> dict[str, int]:
    row = fleet.step(run, name)
    return {key: row[key] for key in ("attempt", "crashes", "losses", "failures")}


def test_a_whole_node_falls_and_another_takes_over(fleet: Cluster, measured: Measured) -> None:
    fallen = fleet.worker()
    gate = fleet.file("gate")
    run = fleet.start(metadata={"work": {"wait": str(gate), "first": True}})
    fleet.running(run)
    waiting = [fleet.diamond() for _ in range(3)]
    fallen.fall()
    begun = time.monotonic()
    fleet.worker()
    fleet.finish(run, *waiting)
    measured("recovery_seconds", round(time.monotonic() - begun, 2))
    assert counters(fleet, run) == {"attempt": 2, "crashes": 0, "losses": 1, "failures": 0}
    first, second = fleet.sink(run=run)
    assert first["key"] == second["key"]


def test_a_lost_child_is_replaced_at_once_and_its_step_with_it(fleet: Cluster, measured: Measured) -> None:
    fleet.worker(slots=1)
    gate, recoveries = fleet.file("gate"), []
    for _ in range(3):
        run = fleet.start(metadata={"work": {"wait": str(gate), "first": True}})
        began = fleet.running(run)
        killed_at = time.time()
        os.kill(began["pid"], signal.SIGKILL)
        fleet.finish(run)
        recoveries.append(fleet.sink(run=run)[-1]["at"] - killed_at)
        assert counters(fleet, run) == {"attempt": 2, "crashes": 1, "losses": 0, "failures": 0}
    measured("recovery_seconds", [round(each, 2) for each in recoveries])
    # billiard alone would look every 5 s for a dead child.
    assert max(recoveries) < 2.5, recoveries


def test_a_lost_keeper_is_replaced_and_costs_no_attempt(fleet: Cluster) -> None:
    worker = fleet.worker()
    gate = fleet.file("gate")
    run = fleet.start(metadata={"work": {"wait": str(gate)}})
    fleet.running(run)
    former = worker.keeper
    assert former is not None
    os.kill(former, signal.SIGKILL)
    fleet.until(lambda: worker.keeper not in (None, former), what="a new keeper runs")
    beat = "SELECT 1 FROM flowstone.workers w WHERE w.alive_until > flowstone.now() + make_interval(secs => %(left)s)"
    fleet.until(lambda: fleet.sql(beat, left=LEASE / 2), what="the new keeper extends the lease")
    gate.touch()
    fleet.finish(run)
    assert counters(fleet, run) == {"attempt": 1, "crashes": 0, "losses": 0, "failures": 0}


def test_a_stopped_process_loses_its_lease_and_its_late_answer_is_refused(
    fleet: Cluster, measured: Measured
) -> None:
    fleet.worker(slots=2)
    gate = fleet.file("gate")
    run = fleet.diamond(left={"wait": str(gate), "first": True})
    stopped = fleet.running(run, "left")
    os.kill(stopped["pid"], signal.SIGSTOP)
    begun = time.time()
    winner = fleet.running(run, "left", attempt=2)
    measured("recovery_seconds", round(winner["at"] - begun, 2))
    fleet.finish(run)
    gate.touch()
    os.kill(stopped["pid"], signal.SIGCONT)
    fleet.until(lambda: len(fleet.sink(event="end", asset="left")) == 2, what="the stopped one ends too")
    fleet.until(lambda: fleet.redis.hlen("unacked") == 0, what="its message is done with")
    assert winner["pid"] != stopped["pid"]
    assert fleet.fs.get("faultshop.left") == winner["pid"]
    rows = fleet.sql("SELECT id, fence FROM flowstone.asset_values WHERE asset = 'faultshop.left'")
    assert [row["fence"] for row in rows] == [winner["fence"]]
    traced = fleet.sql(
        "SELECT upstream_value_id AS id FROM flowstone.lineage WHERE upstream_asset = 'faultshop.left'"
    )
    assert traced == [{"id": rows[0]["id"]}]
    assert counters(fleet, run, "left") == {"attempt": 2, "crashes": 0, "losses": 1, "failures": 0}


def test_the_sweep_of_a_lost_lease_survives_its_own_death(fleet: Cluster) -> None:
    once = fleet.file("sweep")
    fleet.worker(slots=2, FLOWSTONE_FAULT=f"sweep.before_commit:1:kill9:{once}")
    gate = fleet.file("gate")
    run = fleet.start(metadata={"work": {"wait": str(gate), "first": True}})
    os.kill(fleet.running(run)["pid"], signal.SIGSTOP)
    fleet.finish(run)
    assert once.exists()
    assert counters(fleet, run) == {"attempt": 2, "crashes": 0, "losses": 1, "failures": 0}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_code_that_holds_the_interpreter_lock_keeps_its_lease(fleet: Cluster, pool: str) -> None:
    fleet.worker(pool=pool)
    run = fleet.start(metadata={"work": {"hold_lock": 2.5 * LEASE}})
    fleet.finish(run, within=30)
    (began,), (ended,) = fleet.sink(run=run), fleet.sink(run=run, event="end")
    assert ended["at"] - began["at"] > 2 * LEASE
    assert counters(fleet, run) == {"attempt": 1, "crashes": 0, "losses": 0, "failures": 0}


def test_poison_ends_at_the_crash_limit_and_harms_no_sibling(fleet: Cluster) -> None:
    fleet.worker(slots=2)
    poison = fleet.start(metadata={"work": {"die": True}})
    siblings = [fleet.start(metadata={"work": {"sleep": 0.2}}) for _ in range(8)]
    fleet.finish(*siblings)
    fleet.until(poison.ready, run=poison)
    row = fleet.step(poison, "work")
    assert (poison.state, row["error"]["code"]) == ("failed", "FS-2010")
    assert len(fleet.sink(run=poison)) == fleet.settings.crash_limit
    assert [counters(fleet, run)["attempt"] for run in siblings] == [1] * 8


class Usurper(Pacer):
    """A ticker that never asks whether another ticks."""

    def _pace(self) -> bool:
        return True


def test_tickers_at_once_double_nothing(fleet: Cluster) -> None:
    fleet.worker(slots=2)
    fleet.worker(slots=2)
    over = threading.Event()
    usurper = Usurper(fleet.fs.database, fleet.settings, fleet.fs.carrier, uuid4())

    def hammer() -> None:
        while not over.is_set():
            usurper.step()

    thread = threading.Thread(target=hammer)
    with fleet.traffic() as wakeups:
        thread.start()
        try:
            # Partitions of their own: runs that meet at a slice wait for its maker, and are woken again.
            runs = [
                fleet.start("join", partition=f"p{n}", delay=0.1 * n, metadata={"left": {"sleep": 0.1}})
                for n in range(12)
            ]
            fleet.finish(*runs)
        finally:
            over.set()
            thread.join(10)
    assert len(fleet.sink()) == 4 * len(runs)
    assert {row["attempt"] for run in runs for row in run.steps()} == {1}
    assert max(wakeups.values()) == 1, wakeups
