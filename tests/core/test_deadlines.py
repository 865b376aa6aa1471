"""Deadlines: what has not ended by then ends as failed, and says why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actlab import doer
from corelab import Lab, step

from flowstone_celery.core import acts
from flowstone_celery.errors import DeadlineExceeded

if TYPE_CHECKING:
    from uuid import UUID


def late(lab: Lab, seconds: float = 61) -> None:
    lab.clock.advance(seconds=seconds)
    lab.pacer().step()


def ended(lab: Lab, run: UUID) -> tuple[str, str | None]:
    row = lab.run(run)
    return row["status"], (row["error"] or {}).get("code")


LATE = ("failed", DeadlineExceeded.code)


def test_a_run_that_has_not_begun_fails_at_its_deadline(lab: Lab) -> None:
    run = lab.start(step("a"), step("b", 0), deadline_in=60.0)
    late(lab, 59)
    assert lab.run(run)["status"] == "pending"
    lab.clock.advance(seconds=2)
    late(lab, 4)
    assert ended(lab, run) == LATE
    assert set(lab.statuses(run).values()) == {"cancelled"}


def test_what_is_done_stays_done_and_what_runs_is_interrupted(lab: Lab) -> None:
    run = lab.start(step("a"), step("b", 0), step("c", 1), deadline_in=60.0)
    executor = lab.executor()
    executor.work(None, "lab", going_on=False)
    claim = lab.claim(lab.worker(), lab.id_of(run, "b"))
    assert claim is not None
    late(lab)
    assert lab.run(run)["status"] == "cancelling"
    assert lab.statuses(run) == {"a": "succeeded", "b": "running", "c": "cancelled"}
    lab.succeed(claim.held)  # too late to be interrupted: it counts
    assert ended(lab, run) == LATE
    assert lab.statuses(run)["b"] == "succeeded"


def test_a_run_that_ended_in_time_is_left_alone(lab: Lab) -> None:
    run = lab.start(step("a"), deadline_in=60.0)
    lab.drain()
    late(lab)
    assert ended(lab, run) == ("succeeded", None)


def test_a_deadline_during_the_cancel_leaves_it_a_cancel(lab: Lab) -> None:
    run = lab.start(step("a"), deadline_in=60.0)
    claim = lab.claim(lab.worker(), lab.id_of(run, "a"))
    assert claim is not None
    lab.cancel(run, reason="wrong day")
    late(lab)
    lab.succeed(claim.held)
    assert ended(lab, run) == ("cancelled", "FS-2006")


def test_the_next_round_keeps_what_was_done_and_has_a_deadline_of_its_own(lab: Lab) -> None:
    run = lab.start(step("a"), step("b", 0), deadline_in=60.0)
    lab.executor().work(None, "lab", going_on=False)
    late(lab)
    assert ended(lab, run) == LATE
    acts.retry(doer(lab), run, actor="tester", deadline_in=30.0)
    late(lab, 31)
    assert ended(lab, run) == LATE
    acts.retry(doer(lab), run, actor="tester")
    late(lab, 4_000)
    assert lab.drain() == 1
    assert ended(lab, run) == ("succeeded", None)


def test_a_run_that_waits_for_its_lane_has_its_deadline_too(lab: Lab) -> None:
    first = lab.start(step("a"), lane="l")
    second = lab.start(step("a"), lane="l", deadline_in=60.0)
    late(lab)
    assert ended(lab, second) == LATE
    lab.drain()
    assert ended(lab, first) == ("succeeded", None)


def test_hundreds_that_are_late_at_once_all_end(lab: Lab) -> None:
    runs = [lab.start(step("a"), promise=False, deadline_in=60.0) for _ in range(250)]
    lab.clock.advance(seconds=61)
    pacer = lab.pacer()
    lab.wait_until(lambda: pacer.step() >= 0 and all(ended(lab, run) == LATE for run in runs[-1:] + runs[:1]))
    assert lab.scalar("SELECT count(*) FROM flowstone.runs WHERE status <> 'failed'") == 0


def test_a_passed_deadline_is_audited_as_nobodys_act(lab: Lab) -> None:
    run = lab.start(step("a"), deadline_in=60.0)
    late(lab)
    [row] = lab.sql("SELECT * FROM flowstone.audit WHERE resource_id = %(run)s", run=str(run))
    assert (row["actor"], row["actor_type"], row["action"]) == ("deadline", "system", "run.expire")
