"""Processes die at any moment; the rows reach their right end, soon and by themselves."""

from __future__ import annotations

import os
import signal
import time

import pytest

from flowstone_celery.errors import RunFailed, StepTimeout
from worker.conftest import Site, until

pytestmark = pytest.mark.worker


def test_a_killed_child_is_released_and_its_step_runs_again_within_seconds(site: Site) -> None:
    worker = site.start(slots=2)
    begun = time.monotonic()
    run = site.fs.run("deadly", partition="child")
    assert run.get(timeout=10) == "survived"
    assert time.monotonic() - begun < 4
    (step,) = site.steps(run)
    assert (step["attempt"], step["crashes"], step["failures"]) == (2, 1, 0)
    assert "step.released" in site.events(run)
    until(lambda: worker.said("ready.") and site.broker.hlen("unacked") == 0, what="the dead child's message")


def test_a_new_worker_takes_over_when_parent_and_keeper_are_killed(site: Site) -> None:
    worker = site.start()
    run = site.fs.run("slow", partition="orphan")
    until(lambda: site.notes("slow-orphan"))
    for pid in (worker.keeper().pid, worker.process.pid):
        os.kill(pid, signal.SIGKILL)
    worker.process.wait(5)
    until(lambda: not worker.processes(), what="the children to follow their parent")
    site.go("orphan")
    site.start()
    assert run.get(timeout=15) == "orphan"
    (step,) = site.steps(run)
    assert (step["attempt"], step["crashes"], step["losses"]) == (2, 0, 1)


def test_a_keeper_outlives_its_parent_just_long_enough_to_release_its_work(site: Site) -> None:
    worker = site.start()
    run = site.fs.run("slow", partition="parentless")
    until(lambda: site.notes("slow-parentless"))
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.process.wait(5)
    until(lambda: not worker.processes(), what="the keeper to leave")
    (step,) = site.steps(run)
    assert (step["status"], step["crashes"]) == ("ready", 0)
    assert site.node(worker) is None
    run.cancel()


def test_a_killed_keeper_is_replaced_and_keeps_the_same_node(site: Site) -> None:
    worker = site.start()
    old, node = worker.keeper().pid, site.node(worker)
    os.kill(old, signal.SIGKILL)
    fresh = until(
        lambda: (found := site.node(worker)) and found["keeper_pid"] != old and found, what="a new keeper"
    )
    assert node is not None
    assert fresh["key"] == node["key"]
    assert site.fs.run("quick", partition="kept").get(timeout=10) == "kept"


def test_a_timeout_interrupts_user_code_and_kills_what_swallows_it(site: Site) -> None:
    worker = site.start(slots=2)
    soft, hard = site.fs.run("soft"), site.fs.run("hard")
    for run in (soft, hard):
        with pytest.raises(RunFailed) as failure:
            run.get(timeout=15)
        assert StepTimeout.code in str(failure.value.to_dict())
    living = {str(each.pid) for each in worker.processes()}
    assert site.notes("soft")[0] in living, "the interrupted process lives on"
    until(
        lambda: site.notes("hard")[0] not in {str(each.pid) for each in worker.processes()}, what="the kill"
    )
    assert site.notes("swallowed")


def test_a_cancelled_run_interrupts_its_step(site: Site) -> None:
    site.start()
    run = site.fs.run("slow", partition="cancelled")
    until(lambda: site.notes("slow-cancelled"))
    run.cancel()
    until(lambda: run.status == "cancelled")
    assert site.steps(run)[0]["status"] == "cancelled"


def test_an_unknown_task_keeps_its_row_and_says_so(site: Site) -> None:
    worker = site.start()
    run = site.fs.run("quick", partition="unknown", delay=3600)
    site.rows(
        "UPDATE flowstone.steps SET task = 'shop.unheard', due_at = now(), sent_at = NULL WHERE run_id = %(run)s RETURNING id",
        run=run.uuid,
    )
    note = until(lambda: site.steps(run)[0]["note"], what="the note")
    assert "shop.unheard" in note
    assert worker.name in note
    assert site.steps(run)[0]["status"] == "ready"
    assert worker.said("shop.unheard") == 1
    assert worker.said("Traceback") == 0
    assert site.broker.hlen("unacked") == 0
    assert site.fs.run("quick", partition="known").get(timeout=10) == "known"
    run.cancel()


def test_queue_changes_reach_the_nodes_row(site: Site) -> None:
    worker = site.start()
    control = site.fs.app.control
    run = site.fs.run("late")
    control.add_consumer("late", destination=[worker.name], reply=True, timeout=5)
    assert run.get(timeout=10) == "late"
    until(lambda: site.node(worker)["queues"] == ["celery", "late"])
    control.cancel_consumer("late", destination=[worker.name], reply=True, timeout=5)
    until(lambda: site.node(worker)["queues"] == ["celery"])


def test_a_long_steps_message_is_acknowledged_before_the_broker_delivers_it_again(site: Site) -> None:
    site.start(SHOP_VISIBILITY="4")
    run = site.fs.run("slow", partition="long")
    until(lambda: site.notes("slow-long"))
    until(lambda: site.broker.hlen("unacked") == 0, seconds=4, what="the early acknowledgement")
    assert site.steps(run)[0]["status"] == "running"
    site.go("long")
    assert run.get(timeout=10) == "long"
    assert len(site.notes("slow-long")) == 1
