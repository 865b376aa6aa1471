"""Resources in real workers: one for each process, made after the fork, torn down with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from worker.conftest import Site, until

pytestmark = pytest.mark.worker


@pytest.fixture(autouse=True)
def fresh(site: Site) -> Iterator[None]:
    """No notes of other tests, whose workers are gone, and nothing that hangs afterwards."""
    (site.scratch / "warehouse").unlink(missing_ok=True)
    yield
    for name in ("warehouse-hangs", "warehouse-away"):
        (site.scratch / name).unlink(missing_ok=True)


def stocked(site: Site, *partitions: str) -> list[list[int]]:
    """Each step's answer: the process that set its resource up, and the one that it ran in."""
    runs = [site.fs.run("stocked", partition=each, force=True) for each in partitions]
    return [run.get(timeout=20) for run in runs]


def turns(site: Site, sign: str) -> list[int]:
    """The processes that set the resource up (+) or tore it down (-), in order."""
    return [int(each[1:]) for each in site.notes("warehouse") if each.startswith(sign)]


def test_each_child_sets_up_its_own_once_and_tears_it_down_at_the_stop(site: Site) -> None:
    worker = site.start(slots=2)
    answers: list[list[int]] = []
    until(
        lambda: answers.extend(stocked(site, *"abcdefgh")) or len({pid for _, pid in answers}) == 2,
        seconds=30,
        what="both children to have had a step",
    )
    assert all(made == pid for made, pid in answers), "no child uses another's, or its parent's"
    assert worker.process.pid not in turns(site, "+")
    assert sorted(turns(site, "+")) == sorted({pid for _, pid in answers}), "once in each child"
    assert turns(site, "-") == []
    worker.stop()
    assert sorted(turns(site, "-")) == sorted(turns(site, "+"))
    assert worker.said("Traceback") == 0


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_worker_of_one_process_has_one_and_tears_it_down_at_the_stop(site: Site, pool: str) -> None:
    worker = site.start(pool=pool, slots=4)
    answers = stocked(site, *"abcdefgh")
    assert {tuple(each) for each in answers} == {(worker.process.pid, worker.process.pid)}
    assert turns(site, "+") == [worker.process.pid]
    worker.stop()
    assert turns(site, "-") == [worker.process.pid]
    assert worker.said("Traceback") == 0


def test_a_recycled_child_tears_down_its_own_and_the_next_sets_up_anew(site: Site) -> None:
    site.start("--max-tasks-per-child", "1")
    ((first, _),) = stocked(site, "a")
    until(lambda: turns(site, "-") == [first], what="the recycled child to tear down")
    ((second, ran_in),) = stocked(site, "b")
    assert second == ran_in != first


def test_a_child_that_replaces_a_dead_one_sets_up_anew(site: Site) -> None:
    site.start()
    ((first, _),) = stocked(site, "a")
    os.kill(first, signal.SIGKILL)
    ((second, ran_in),) = stocked(site, "b")
    assert second == ran_in != first
    assert turns(site, "+") == [first, second]
    assert turns(site, "-") == []


def test_a_failed_set_up_kills_no_worker_and_is_tried_again_by_the_next_step(site: Site) -> None:
    site.start()
    (site.scratch / "warehouse-away").touch()
    run = site.fs.run("stocked", partition="away")
    until(run.ready)
    (step,) = site.steps(run)
    assert step["status"] == "failed"
    error: dict[str, Any] = step["error"]
    assert (error["code"], error["facts"]["resource"], error["facts"]["asset"]) == (
        "FS-5008",
        "warehouse",
        "shop.stocked",
    )
    assert "no route to host" in error["message"]
    (site.scratch / "warehouse-away").unlink()
    ((made, pid),) = stocked(site, "back")
    assert [made] * 2 == turns(site, "+"), "the same process, which lives"
    assert made == pid


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_timeout_reaches_a_step_that_waits_for_its_resource(site: Site, pool: str) -> None:
    site.start(pool=pool)
    (site.scratch / "warehouse-hangs").touch()
    run = site.fs.run("patient")
    until(run.ready, seconds=20)
    (step,) = site.steps(run)
    assert (step["status"], step["error"]["code"], step["crashes"]) == ("failed", "FS-2005", 0)
    (site.scratch / "warehouse-hangs").unlink()
    ((made, pid),) = stocked(site, "afterwards")
    assert made == pid
    assert turns(site, "+") == [made], "the set-up that it waited for serves the next"


def test_a_cancel_reaches_a_step_that_waits_for_its_resource(site: Site) -> None:
    site.start()
    (site.scratch / "warehouse-hangs").touch()
    run = site.fs.run("stocked", partition="cancelled")
    until(lambda: turns(site, "+"))
    run.cancel()
    until(run.ready)
    assert run.state == "cancelled"
