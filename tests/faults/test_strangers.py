"""Steps that no worker can run: they are kept, they say why, and they run as soon as somebody comes who can."""

from __future__ import annotations

import pytest
from faults.cluster import Cluster

from flowstone_celery.errors import WaitTimeout

pytestmark = pytest.mark.worker


def test_a_step_that_a_worker_does_not_know_waits_for_one_that_does(fleet: Cluster) -> None:
    old = fleet.worker(module="oldshop", slots=1)
    run = fleet.start()
    fleet.until(
        lambda: any("knows the task 'faultshop.work'" in row["reason"] for row in run.why()),
        run=run,
        what="the row says why it waits",
    )
    known = fleet.start("tick")
    fleet.finish(known)
    assert fleet.step(run, "work")["status"] == "ready"
    fleet.worker(slots=1)
    fleet.finish(run)
    assert fleet.step(run, "work")["attempt"] == 1
    assert old.process.poll() is None
    assert "Traceback" not in old.text()


def test_an_old_worker_in_between_refuses_and_the_right_one_gets_it(fleet: Cluster) -> None:
    fleet.worker(module="oldshop", slots=2)
    fleet.worker(slots=1)
    runs = [fleet.diamond() for _ in range(10)]
    fleet.finish(*runs, within=60)
    assert {row["attempt"] for run in runs for row in run.steps()} == {1}


def test_a_queue_without_a_worker_is_told_while_waiting(fleet: Cluster) -> None:
    fleet.worker(queues="another")
    run, told = fleet.start(), []
    with pytest.raises(WaitTimeout, match="no worker listens on queue 'celery'"):
        run.wait(6, on_stall=told.append)
    assert "FS-2101" in told[0]
    fleet.worker(queues="celery")
    fleet.finish(run)
