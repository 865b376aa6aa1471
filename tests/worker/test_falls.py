"""A whole worker falls: somebody else goes on. And a message that a broker would deliver twice."""

from __future__ import annotations

import os
import signal

import pytest

from worker.conftest import Site, until

pytestmark = pytest.mark.worker


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


def test_a_long_steps_message_is_acknowledged_before_the_broker_delivers_it_again(site: Site) -> None:
    site.start(SHOP_VISIBILITY="4")
    run = site.fs.run("slow", partition="long")
    until(lambda: site.notes("slow-long"))
    until(lambda: site.broker.hlen("unacked") == 0, seconds=4, what="the early acknowledgement")
    assert site.steps(run)[0]["status"] == "running"
    site.go("long")
    assert run.get(timeout=10) == "long"
    assert len(site.notes("slow-long")) == 1
