"""Children, keepers and parents die, tasks are unknown, queues come and go: the rows reach their right end by themselves."""

from __future__ import annotations

import os
import signal
import time

import pytest

from flowstone_celery.core.model import WakeUp
from flowstone_celery.errors import RunFailed, StepTimeout
from worker.conftest import Site, Worker, until

pytestmark = pytest.mark.worker


@pytest.fixture(scope="module", autouse=True)
def worker(module_site: Site) -> Worker:
    """One worker for the tests that leave their worker alive."""
    return module_site.start(slots=2)


def test_a_killed_child_is_released_and_its_step_runs_again_within_seconds(
    site: Site, worker: Worker
) -> None:
    begun = time.monotonic()
    run = site.fs.run("deadly", partition="child")
    assert run.get(timeout=10) == "survived"
    assert time.monotonic() - begun < 4
    (step,) = site.steps(run)
    assert (step["attempt"], step["crashes"], step["failures"]) == (2, 1, 0)
    assert "step.released" in site.events(run)
    until(lambda: worker.said("ready.") and site.broker.hlen("unacked") == 0, what="the dead child's message")


def test_a_killed_keeper_is_replaced_and_keeps_the_same_node(site: Site, worker: Worker) -> None:
    old, node = worker.keeper().pid, site.node(worker)
    os.kill(old, signal.SIGKILL)
    fresh = until(
        lambda: (found := site.node(worker)) and found["keeper_pid"] != old and found, what="a new keeper"
    )
    assert node is not None
    assert fresh["key"] == node["key"]
    assert site.fs.run("quick", partition="kept").get(timeout=10) == "kept"


def test_a_timeout_interrupts_user_code_and_kills_what_swallows_it(site: Site, worker: Worker) -> None:
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


def test_a_cancelled_run_interrupts_its_step(site: Site, worker: Worker) -> None:
    run = site.fs.run("slow", partition="cancelled")
    until(lambda: site.notes("slow-cancelled"))
    run.cancel()
    until(lambda: run.status == "cancelled")
    assert site.steps(run)[0]["status"] == "cancelled"


def test_an_unknown_task_keeps_its_row_and_says_so(site: Site, worker: Worker) -> None:
    tracebacks = worker.said("Traceback")  # Celery's own, of children that were killed before
    run = site.fs.run("quick", partition="unknown", delay=3600)
    site.rows(
        "UPDATE flowstone.steps SET task = 'shop.unheard', due_at = now(), parked = NULL, sent_at = now() WHERE run_id = %(run)s RETURNING id",
        run=run.uuid,
    )
    step = site.steps(run)[0]
    # Promised before its worker was replaced by one that does not know it: the message is on its way.
    site.fs.carrier.send([WakeUp(step["id"], run.uuid, step["name"], "", "shop.unheard", step["queue"])])
    note = until(lambda: site.steps(run)[0]["note"], what="the note")
    assert "shop.unheard" in note
    assert worker.name in note
    assert site.steps(run)[0]["status"] == "ready"
    assert site.steps(run)[0]["sent_at"] is None, "its place among the promised is free again"
    assert worker.said("does not know task shop.unheard") == 1
    assert worker.said("Traceback") == tracebacks
    assert site.broker.hlen("unacked") == 0
    assert site.fs.run("quick", partition="known").get(timeout=10) == "known"
    run.cancel()


def test_queue_changes_reach_the_nodes_row(site: Site, worker: Worker) -> None:
    control = site.fs.app.control
    run = site.fs.run("late")
    control.add_consumer("late", destination=[worker.name], reply=True, timeout=5)
    assert run.get(timeout=10) == "late"
    until(lambda: site.node(worker)["queues"] == ["celery", "late"])
    control.cancel_consumer("late", destination=[worker.name], reply=True, timeout=5)
    until(lambda: site.node(worker)["queues"] == ["celery"])


def test_many_steps_that_nobody_here_knows_do_not_stop_the_others(site: Site, worker: Worker) -> None:
    strangers = [site.fs.run("quick", partition=f"stranger{number}", delay=3600) for number in range(12)]
    site.rows(
        "UPDATE flowstone.steps SET task = 'shop.unheard', due_at = now() WHERE run_id = ANY (%(runs)s) RETURNING id",
        runs=[run.uuid for run in strangers],
    )
    until(lambda: all("knows the task" in run.why()[0]["reason"] for run in strangers), what="the reasons")
    assert site.fs.run("quick", partition="native").get(timeout=4) == "native"
    for run in strangers:
        run.cancel()
