"""Lanes: runs of one lane go one after the other, in the order of their start, as many at a time as the lane is wide."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest
from actlab import doer
from corelab import Lab, in_threads, step

from flowstone_celery import faults
from flowstone_celery.core import acts, lanes, runs
from flowstone_celery.core.model import Done, NewRun
from flowstone_celery.core.statements import SQL
from flowstone_celery.faults import FaultInjectedError
from flowstone_celery.outcomes import Fail

if TYPE_CHECKING:
    from uuid import UUID

    from flowstone_celery.core.model import Claim
    from flowstone_celery.db.database import Tx


def inside(lab: Lab, *runs: UUID) -> list[bool]:
    """Which of these runs are let in."""
    return [lab.run(run)["admitted"] for run in runs]


def by_start(lab: Lab, lane: str) -> list[UUID]:
    """The lane's runs in the order in which they began to work."""
    rows = lab.sql(
        "SELECT h.run_id FROM flowstone.history h JOIN flowstone.runs r ON r.id = h.run_id "
        "WHERE h.event = 'run.running' AND r.lane = %(lane)s ORDER BY h.id",
        lane=lane,
    )
    return [row["run_id"] for row in rows]


def most_at_once(lab: Lab, lane: str) -> int:
    """How many runs of the lane were at work at the same time, at most: from their first start to their end."""
    return int(
        lab.scalar(
            "SELECT max(open) FROM (SELECT sum(CASE h.event WHEN 'run.running' THEN 1 ELSE -1 END) OVER (ORDER BY h.id) AS open "
            "FROM flowstone.history h JOIN flowstone.runs r ON r.id = h.run_id WHERE r.lane = %(lane)s "
            "AND h.event IN ('run.running', 'run.succeeded', 'run.failed', 'run.cancelled')) o",
            lane=lane,
        )
    )


def test_the_second_run_waits_for_the_end_of_the_first(lab: Lab) -> None:
    first, second = (lab.start(step("a"), step("b", 0), lane="l") for _ in range(2))
    assert inside(lab, first, second) == [True, False]
    assert lab.steps(second)["a"]["parked"] == "lane"
    executor = lab.executor()
    executor.work(None, "lab", going_on=False)
    assert inside(lab, first, second) == [True, False]
    lab.drain()
    assert [lab.run(run)["status"] for run in (first, second)] == ["succeeded"] * 2
    assert by_start(lab, "l") == [first, second]
    assert most_at_once(lab, "l") == 1


def test_whoever_ends_the_first_wakes_the_second_at_once(lab: Lab) -> None:
    first, second = (lab.start(step("a"), lane="l") for _ in range(2))
    lab.postbox.take()
    lab.executor().work(lab.id_of(first, "a"), "lab", going_on=False)
    assert [each.run for each in lab.postbox.take()] == [second]


def test_lanes_and_tenants_do_not_hold_each_other(lab: Lab) -> None:
    runs = [
        lab.start(step("a"), lane="l"),
        lab.start(step("a"), lane="m"),
        lab.start(step("a"), lane="l", tenant="other"),
        lab.start(step("a")),
    ]
    assert inside(lab, *runs) == [True] * 4


@pytest.mark.parametrize("ends", ["succeeded", "failed", "cancelled", "late"])
def test_however_a_run_ends_the_next_is_let_in(lab: Lab, ends: str) -> None:
    lab.answers["a"] = Fail("no") if ends == "failed" else Done()
    first = lab.start(step("a"), lane="l", deadline_in=60.0 if ends == "late" else None)
    second = lab.start(step("b"), lane="l")
    if ends == "cancelled":
        lab.cancel(first)
    if ends == "late":
        lab.clock.advance(seconds=61)
    lab.pacer().step()
    lab.drain()
    lab.clock.advance(seconds=4)
    lab.pacer().step()
    lab.drain()
    assert lab.run(first)["status"] == {"late": "failed"}.get(ends, ends)
    assert lab.run(second)["status"] == "succeeded"


def test_a_run_that_is_cancelled_while_it_waits_lets_nobody_in_early(lab: Lab) -> None:
    first, second, third = (lab.start(step("a"), lane="l") for _ in range(3))
    lab.cancel(second)
    lab.pacer().step()
    assert inside(lab, first, second, third) == [True, False, False]
    lab.drain()
    assert by_start(lab, "l") == [first, third]


def test_a_wider_lane_lets_in_as_many(lab: Lab) -> None:
    runs = [lab.start(step("a"), lane="l", lane_width=3) for _ in range(5)]
    assert inside(lab, *runs) == [True, True, True, False, False]
    lab.drain()
    assert by_start(lab, "l") == runs


def test_a_retried_run_takes_its_turn_in_the_lane_again(lab: Lab) -> None:
    lab.answers["bad"] = lambda claim: Fail("no") if claim.round == 1 else Done()
    first, second, third = (
        lab.start(step("bad"), lane="l"),
        lab.start(step("a"), lane="l"),
        lab.start(step("a"), lane="l"),
    )
    lab.executor().work(None, "lab", going_on=False)
    assert inside(lab, first, second, third) == [True, True, False]
    acts.retry(doer(lab), first, actor="tester")
    assert inside(lab, first, second, third) == [False, True, False]
    lab.drain()
    assert by_start(lab, "l") == [first, second, first, third]
    assert most_at_once(lab, "l") == 1


def test_a_paused_run_keeps_its_place(lab: Lab) -> None:
    first, second = (lab.start(step("a"), lane="l") for _ in range(2))
    acts.pause(doer(lab), first, actor="tester")
    acts.pause(doer(lab), second, actor="tester")
    assert lab.drain() == 0
    acts.resume(doer(lab), second, actor="tester")
    assert lab.drain() == 0
    acts.resume(doer(lab), first, actor="tester")
    lab.drain()
    assert by_start(lab, "l") == [first, second]


def test_who_dies_before_it_lets_the_next_in_is_replaced_by_the_sweep(lab: Lab) -> None:
    first, second = (lab.start(step("a"), lane="l") for _ in range(2))
    with faults.arm("settle.after_commit"), pytest.raises(FaultInjectedError):
        lab.executor().work(lab.id_of(first, "a"), "lab", going_on=False)
    lab.sql("UPDATE flowstone.runs SET admitted = false WHERE id = %(run)s", run=second)
    lab.sql("UPDATE flowstone.steps SET parked = 'lane', sent_at = NULL WHERE run_id = %(run)s", run=second)
    lab.pacer().step()
    assert inside(lab, second) == [True]
    lab.drain()
    assert lab.run(second)["status"] == "succeeded"


def test_of_many_that_let_in_at_once_none_is_too_many(lab: Lab) -> None:
    runs = [lab.start(step("a"), promise=False, lane="l", lane_width=2) for _ in range(8)]
    lab.sql("UPDATE flowstone.runs SET admitted = false")
    lab.sql("UPDATE flowstone.steps SET parked = 'lane', sent_at = NULL")
    let = in_threads(*[partial(lanes.admit, lab.database, lab.postbox, lab.settings, "", "l")] * 6)
    assert sum(let) == 2
    assert inside(lab, *runs) == [True, True, *[False] * 6]


def test_two_who_let_runs_in_at_the_same_moment_let_in_no_more_than_the_lane_is_wide(lab: Lab) -> None:
    """Each sees another run at the head: an older one becomes visible between their looks."""
    older, newer = (NewRun("plain", "lab", [step("a")], lane="l") for _ in range(2))

    def let_in(tx: Tx) -> list[UUID]:
        tx.rows(SQL["lane_lock"], tenant="", lane="l")
        return [row["id"] for row in tx.rows(SQL["admit"], tenant="", lane="l")]

    def is_there(second: Future[list[UUID]]) -> bool:
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return second.done() or bool(lab.scalar(waiting))

    with ThreadPoolExecutor(1) as elsewhere:
        with lab.database.transaction() as first:
            with lab.database.transaction() as slow:
                runs.start(slow, older, settings=lab.settings)
                lab.database.attempt(lambda tx: runs.start(tx, newer, settings=lab.settings))
                assert let_in(first) == [newer.id]
            second = elsewhere.submit(lambda: lab.database.attempt(let_in))
            lab.wait_until(lambda: is_there(second))
        assert second.result() == []
    assert inside(lab, older.id, newer.id) == [False, True]


def test_hundreds_of_runs_from_several_threads_go_in_order_and_never_too_many_at_once(lab: Lab) -> None:
    """Two start runs, three work, over connections of their own."""
    busy, most, lock, begun = 0, 0, threading.Lock(), threading.Event()

    def count(claim: Claim) -> Done:
        nonlocal busy, most
        with lock:
            busy += claim.name == "a"
            most = max(most, busy)
        if claim.name == "b":
            with lock:
                busy -= 1
        return Done()

    lab.answers = {"a": count, "b": count}
    made: list[list[UUID]] = [[], []]

    def start(mine: list[UUID]) -> None:
        mine.extend(lab.start(step("a"), step("b", 0), lane="l", lane_width=2) for _ in range(100))
        begun.set()

    def work() -> None:
        executor = lab.executor()
        while not begun.is_set() or lab.scalar(
            "SELECT count(*) FROM flowstone.runs WHERE finished_at IS NULL"
        ):
            if not executor.work(None, "lab"):
                begun.wait(0.002)

    in_threads(*(partial(start, mine) for mine in made), work, work, work, timeout=150)
    assert most <= 2
    assert most_at_once(lab, "l") <= 2
    assert lab.scalar("SELECT count(*) FROM flowstone.runs WHERE status = 'succeeded'") == 200
    rows = lab.sql("SELECT run_id FROM flowstone.history WHERE event = 'run.admitted' ORDER BY id")
    let_in = [row["run_id"] for row in rows]
    assert len(let_in) == 200
    for mine in (
        made
    ):  # what one thread starts is told apart by its order; of two at the same moment either may be the first
        assert [run for run in let_in if run in set(mine)] == mine
