"""Pause: a run begins nothing more until it is resumed, and does not stand in the way of others."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from actlab import doer, starts
from corelab import AT_ONCE, Lab, in_threads, step

from flowstone_celery.core import acts, steps
from flowstone_celery.core.model import Done
from flowstone_celery.core.statements import SQL

if TYPE_CHECKING:
    from uuid import UUID


def pause(lab: Lab, run: UUID) -> bool:
    return acts.pause(doer(lab), run, actor="tester")


def resume(lab: Lab, run: UUID) -> bool:
    return acts.resume(doer(lab), run, actor="tester")


def test_nothing_of_a_paused_run_starts_and_what_runs_goes_on(lab: Lab) -> None:
    run = lab.start(step("a"), step("b"), step("c", 0))
    claim = lab.claim(lab.worker(), lab.id_of(run, "a"))
    assert claim is not None
    assert pause(lab, run)
    assert lab.succeed(claim.held)
    assert lab.drain() == 0
    assert lab.statuses(run) == {"a": "succeeded", "b": "ready", "c": "ready"}
    assert set(lab.reasons(run).values()) == {"its run is paused"}
    assert resume(lab, run)
    assert lab.drain() == 2
    assert lab.run(run)["status"] == "succeeded"


def test_a_wake_up_that_comes_after_the_pause_finds_nothing(lab: Lab) -> None:
    run = lab.start(step("a"))
    pause(lab, run)
    [hint] = lab.postbox.take()
    assert lab.executor().work(hint.step, "lab") == 0


def test_both_are_done_once_and_audited(lab: Lab) -> None:
    run = lab.start(step("a"))
    assert sum(in_threads(*[partial(pause, lab, run)] * 4)) == 1
    assert sum(in_threads(*[partial(resume, lab, run)] * 4)) == 1
    assert not resume(lab, run)
    acts_ = [row["action"] for row in lab.sql("SELECT action FROM flowstone.audit ORDER BY id")]
    assert acts_ == ["run.pause", "run.resume"]


def test_a_resumed_run_is_woken(lab: Lab) -> None:
    run = lab.start(step("a"), step("b"))
    pause(lab, run)
    lab.postbox.take()
    resume(lab, run)
    assert {each.name for each in lab.postbox.take()} == {"a", "b"}


def test_ten_thousand_ready_rows_of_a_paused_run_are_not_in_the_way_of_claims(lab: Lab) -> None:
    """The claim of another run's step reads a handful of pages, as if they were not there."""
    paused = lab.start(*[step(f"s{n}") for n in range(10_000)], promise=False)
    pause(lab, paused)
    lab.start(step("x"))
    values = {"queue": "lab", "worker": lab.worker(), "knows": ["lab.work"], "protocol": 1, "relaxed": True}
    unset = dict.fromkeys(re.findall(r"%\((\w+)\)s", SQL["claim"].sql("flowstone")))
    with lab.database.connection() as connection:
        before = _entries_read(connection)
        claimed = connection.execute(
            SQL["claim"].sql("flowstone"), {**unset, **values}, prepare=False
        ).fetchall()
        read = _entries_read(connection) - before
        connection.rollback()
    assert len(claimed) == 1
    assert read < 500
    assert lab.drain() == 1
    assert lab.run(paused)["status"] == "pending"


def _entries_read(connection: psycopg.Connection[Any]) -> int:
    """Entries of the indexes of steps that this transaction has read, as the server counts them."""
    row = connection.execute(
        "SELECT sum(pg_stat_get_xact_tuples_returned(indexrelid))::int FROM pg_stat_user_indexes WHERE relid = 'flowstone.steps'::regclass",
        prepare=False,
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_a_retry_that_falls_due_during_the_pause_waits_for_the_resume(lab: Lab) -> None:
    tries: list[int] = []

    def shaky(claim: object) -> Done:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("again")
        return Done()

    lab.answers["a"] = shaky
    run = lab.start(step("a", max_failures=3))
    lab.executor().work(None, "lab", going_on=False)
    pause(lab, run)
    lab.clock.advance(minutes=10)
    lab.pacer().step()
    assert lab.drain() == 0
    assert lab.steps(run)["a"]["parked"] == "paused"
    resume(lab, run)
    lab.drain()
    assert (lab.run(run)["status"], len(tries)) == ("succeeded", 2)


def test_a_resume_does_not_call_what_is_not_due(lab: Lab) -> None:
    run = lab.start(step("a", due_in=600.0))
    pause(lab, run)
    resume(lab, run)
    lab.pacer().step()
    assert lab.drain(advance=False) == 0
    lab.clock.advance(minutes=11)
    assert lab.drain() == 1


def test_a_paused_run_is_cancelled_like_any_other(lab: Lab) -> None:
    run = lab.start(step("a"), step("b", 0))
    pause(lab, run)
    assert lab.cancel(run)
    assert lab.run(run)["status"] == "cancelled"
    assert not pause(lab, run)
    assert not resume(lab, run)


def test_a_paused_run_is_not_spared_its_deadline(lab: Lab) -> None:
    run = lab.start(step("a"), deadline_in=60.0)
    pause(lab, run)
    lab.clock.advance(seconds=61)
    lab.pacer().step()
    assert (lab.run(run)["status"], lab.run(run)["error"]["code"]) == ("failed", "FS-2012")


def test_a_run_that_is_being_cancelled_is_neither_paused_nor_resumed(lab: Lab) -> None:
    claim = lab.running(lab.worker())
    lab.cancel(claim.run_id)
    assert not pause(lab, claim.run_id)
    lab.succeed(claim.held)


def test_the_next_round_of_a_paused_run_is_not_paused(lab: Lab) -> None:
    run = lab.start(step("a"), step("b"))
    pause(lab, run)
    lab.cancel(run)
    acts.retry(doer(lab), run, actor="tester")
    assert lab.drain() == 2
    assert starts(lab, run, 2) == 2


def test_rows_that_come_back_into_the_line_of_a_paused_run_are_set_aside_by_the_sweep(lab: Lab) -> None:
    """A step fails at once and is ready again without a pause, after the run was paused."""
    run = lab.start(step("a", max_failures=3, retry=AT_ONCE))
    claim = lab.claim(lab.worker(), lab.id_of(run, "a"))
    assert claim is not None
    pause(lab, run)
    lab.database.attempt(lambda tx: steps.give_back(tx, claim.held, "the worker stops"))
    lab.pacer().step()
    assert lab.steps(run)["a"]["parked"] == "paused"
    assert lab.steps(run)["a"]["sent_at"] is None


@pytest.mark.parametrize("how", ["pause", "resume"])
def test_what_crashes_after_the_runs_row_changes_nothing_for_claims(lab: Lab, how: str) -> None:
    run = lab.start(step("a"))
    if how == "resume":
        pause(lab, run)
    lab.database.once(SQL[how], run=run, actor="tester", actor_type="user")
    if how == "pause":
        assert lab.drain() == 0
    lab.pacer().step()
    assert lab.drain() == (0 if how == "pause" else 1)
