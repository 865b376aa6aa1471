"""Rounds: a run that has ended is begun again without what succeeded, and nothing of an earlier round can write into the next."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from actlab import BROKEN, doer, starts
from corelab import AT_ONCE, Lab, in_threads, laboratory, step
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowstone_celery.core import acts, steps
from flowstone_celery.core.model import Done
from flowstone_celery.errors import RunNotFound
from flowstone_celery.outcomes import Skip
from flowstone_celery.states import STEP_TERMINAL, StepStatus

if TYPE_CHECKING:
    from uuid import UUID

    from flowstone_celery.core.acts import Reopened
    from flowstone_celery.core.model import Claim

DIAMOND = (step("a"), step("b", 0), step("c", 0), step("d", 1, 2))


def again(lab: Lab, run: UUID, **options: Any) -> Reopened | None:
    return acts.retry(doer(lab), run, actor="tester", **options)


def calls(lab: Lab, name: str, *answers: Any) -> list[Claim]:
    """The step of this name gives these answers in turn, the last one for ever; its claims are kept."""
    seen: list[Claim] = []

    def answer(claim: Claim) -> Any:
        seen.append(claim)
        return answers[min(len(seen), len(answers)) - 1]

    lab.answers[name] = answer
    return seen


# --- what is done again, and what is kept ---------------------------------------------------------------------------------------------


def test_what_succeeded_is_kept_and_not_called_again(lab: Lab) -> None:
    kept, broken = calls(lab, "b", Done({"n": 1})), calls(lab, "c", BROKEN, Done({"n": 2}))
    run = lab.start(*DIAMOND)
    lab.drain()
    assert lab.statuses(run) == {"a": "succeeded", "b": "succeeded", "c": "failed", "d": "failed"}
    opened = again(lab, run)
    assert opened is not None
    assert (opened.round, opened.steps) == (2, 2)
    assert lab.drain() == 2
    assert (lab.run(run)["status"], lab.run(run)["round"]) == ("succeeded", 2)
    assert (len(kept), len(broken)) == (1, 2)
    assert lab.steps(run)["b"]["output"] == {"n": 1}
    assert {name: row["round"] for name, row in lab.steps(run).items()} == {"a": 1, "b": 1, "c": 2, "d": 2}


def test_a_named_step_is_done_again_with_all_that_stands_on_it(lab: Lab) -> None:
    run = lab.start(*DIAMOND)
    lab.drain()
    assert again(lab, run) is None
    again(lab, run, begin_at=["c"])
    assert lab.statuses(run) == {"a": "succeeded", "b": "succeeded", "c": "ready", "d": "blocked"}
    lab.drain()
    assert lab.run(run)["status"] == "succeeded"
    assert starts(lab, run, 2) == 2


def test_everything_is_done_again_where_it_is_asked_for(lab: Lab) -> None:
    run = lab.start(*DIAMOND)
    lab.drain()
    again(lab, run, everything=True)
    assert lab.drain() == 4
    assert lab.run(run)["status"] == "succeeded"


def test_attempts_failures_and_idempotency_keys_begin_anew(lab: Lab) -> None:
    claims = calls(lab, "a", *[BROKEN] * 9)
    lab.answers["a"] = lambda claim: claims.append(claim) or (_ for _ in ()).throw(ValueError("again"))
    run = lab.start(step("a", max_failures=2, retry=AT_ONCE))
    lab.drain()
    again(lab, run)
    lab.drain()
    assert [(claim.round, claim.attempt, claim.failures) for claim in claims] == [
        (1, 1, 0),
        (1, 2, 1),
        (2, 1, 0),
        (2, 2, 1),
    ]
    assert len({claim.idempotency_key for claim in claims}) == 4
    assert [claim.fence for claim in claims] == [1, 2, 3, 4]
    row = lab.run(run)
    assert (row["status"], row["failed_steps"], row["round"]) == ("failed", 1, 2)


def test_a_cancelled_run_goes_on_where_it_stood(lab: Lab) -> None:
    """Half of it was done when it was cancelled: the other half is done by the retry."""
    run = lab.start(*[step(f"s{n}") for n in range(10)])
    executor = lab.executor()
    for _ in range(5):
        executor.work(None, "lab", going_on=False)
    lab.cancel(run)
    assert sorted(lab.statuses(run).values()) == ["cancelled"] * 5 + ["succeeded"] * 5
    again(lab, run)
    assert lab.drain() == 5
    row = lab.run(run)
    assert (row["status"], row["cancelled_steps"], row["error"], row["cancelled_at"]) == (
        "succeeded",
        0,
        None,
        None,
    )


def test_a_run_that_was_cancelled_when_all_was_done_has_nothing_to_do_again(lab: Lab) -> None:
    claim = lab.running(lab.worker())
    lab.cancel(claim.run_id)
    lab.succeed(claim.held)
    assert lab.run(claim.run_id)["status"] == "cancelled"
    assert again(lab, claim.run_id) is None


def test_a_dependency_that_was_skipped_is_asked_again_with_what_needs_it(lab: Lab) -> None:
    """c needs a, which skipped, and b, which is named: without a it must not run."""
    asked = calls(lab, "a", Skip("nothing new"), Done())
    run = lab.start(step("a"), step("b"), step("c", 0, 1), step("e", 0))
    lab.drain()
    assert lab.statuses(run) == {"a": "skipped", "b": "succeeded", "c": "skipped", "e": "skipped"}
    again(lab, run, begin_at=["b"])
    lab.drain()
    assert set(lab.statuses(run).values()) == {"succeeded"}
    assert len(asked) == 2


def test_what_could_do_without_a_failed_step_is_kept(lab: Lab) -> None:
    calls(lab, "a", BROKEN, Done())
    can_do_without = calls(lab, "b", Done())
    run = lab.start(step("a"), step("b", optional=[0]))
    lab.drain()
    assert lab.statuses(run) == {"a": "failed", "b": "succeeded"}
    again(lab, run)
    assert lab.findings() == []
    lab.drain()
    assert set(lab.statuses(run).values()) == {"succeeded"}
    assert len(can_do_without) == 1


def test_a_run_that_has_not_ended_has_no_next_round(lab: Lab) -> None:
    run = lab.start(*DIAMOND)
    assert again(lab, run) is None
    assert again(lab, run, everything=True) is None
    lab.executor().work(None, "lab", going_on=False)
    assert again(lab, run, everything=True) is None
    assert lab.run(run)["round"] == 1


def test_a_run_that_is_not_there_is_told(lab: Lab) -> None:
    with pytest.raises(RunNotFound):
        again(lab, uuid4())


def test_the_act_stands_in_the_history_and_in_the_audit(lab: Lab) -> None:
    calls(lab, "a", BROKEN)
    run = lab.start(step("a"))
    lab.drain()
    again(lab, run)
    assert "run.reopened" in lab.events(run)
    [row] = lab.sql("SELECT actor, details FROM flowstone.audit WHERE action = 'run.retry'")
    assert (row["actor"], row["details"]["round"]) == ("tester", 2)


def _done_in_bulk(lab: Lab, run: UUID, bad: set[str]) -> None:
    """All other steps have succeeded, each with one start, as if workers had done it; those are left to be done."""
    lab.sql(
        "WITH done AS (UPDATE flowstone.steps SET status = 'succeeded', attempt = 1, fence = 1, due_at = NULL, sent_at = NULL, "
        "started_at = flowstone.now(), finished_at = flowstone.now() WHERE run_id = %(run)s AND NOT name = ANY (%(bad)s) RETURNING id), "
        "logged AS (INSERT INTO flowstone.history (run_id, step_id, event, attempt, fence) "
        "SELECT %(run)s, id, event, 1, 1 FROM done CROSS JOIN unnest(ARRAY['step.running', 'step.succeeded']) AS event) "
        "UPDATE flowstone.runs SET remaining_steps = cardinality(%(bad)s), status = 'running', started_at = flowstone.now() "
        "WHERE id = %(run)s",
        run=run,
        bad=sorted(bad),
    )


def test_ten_thousand_steps_of_which_37_failed_start_exactly_37_again(lab: Lab) -> None:
    bad = {f"s{n}" for n in range(0, 10_000, 271)}
    assert len(bad) == 37
    run = lab.start(*[step(f"s{n}") for n in range(10_000)], promise=False)
    _done_in_bulk(lab, run, bad)
    lab.answers = dict.fromkeys(bad, BROKEN)
    lab.drain()
    assert (lab.run(run)["status"], lab.run(run)["failed_steps"]) == ("failed", 37)
    lab.answers = {}
    opened = again(lab, run)
    assert opened is not None
    assert opened.steps == 37
    lab.drain()
    assert lab.run(run)["status"] == "succeeded"
    assert (starts(lab, run, 1), starts(lab, run, 2)) == (10_000, 37)


def test_a_retry_of_a_hundred_thousand_steps_takes_bounded_time(flowstone_databases: Any) -> None:
    """A tree: each step has a parent, and all were cancelled. On a database of its own, which is thrown away whole."""
    count = 100_000
    with laboratory(flowstone_databases) as lab:
        run = lab.start(step("s0"), *[step(f"s{n}", n // 2) for n in range(1, count)], promise=False)
        lab.cancel(run)
        begun = time.monotonic()
        opened = again(lab, run)
        assert opened is not None
        assert opened.steps == count
        assert time.monotonic() - begun < 60


# --- nothing of an earlier round writes -------------------------------------------------------------------------------------------------


def test_a_stale_fence_of_an_earlier_round_writes_nothing(lab: Lab) -> None:
    """A worker that was silent for a whole round comes back with its answer."""
    worker = lab.worker()
    old = lab.running(worker)
    lab.sql(
        "UPDATE flowstone.steps SET status = 'ready', worker_id = NULL, due_at = flowstone.now() WHERE id = %(id)s",
        id=old.id,
    )
    lab.sql(
        "INSERT INTO flowstone.history (run_id, step_id, event) VALUES (%(run)s, %(step)s, 'step.released')",
        run=old.run_id,
        step=old.id,
    )
    lab.cancel(old.run_id)
    again(lab, old.run_id)
    before = lab.steps(old.run_id)["a"]
    end = partial(steps.end, held=old.held, status=StepStatus.FAILED, error={"message": "late"}, name="a")
    late = (
        lambda tx: steps.succeed(tx, old.held, {"late": True}),
        end,
        lambda tx: steps.retry(tx, old.held, {"message": "late"}, 1.0),
        lambda tx: steps.give_back(tx, old.held, "late"),
    )
    assert [lab.database.attempt(act) for act in late] == [None] * 4
    new = lab.claim(worker, old.id)
    assert new is not None
    assert (new.round, new.fence) == (2, old.fence + 1)
    assert [lab.database.attempt(act) for act in late] == [None] * 4
    assert before["output"] is None
    lab.succeed(new.held)
    assert lab.run(old.run_id)["status"] == "succeeded"


def test_of_many_that_retry_at_once_one_opens_the_round(lab: Lab) -> None:
    calls(lab, "a", BROKEN)
    for _ in range(10):
        run = lab.start(step("a"), step("b"))
        lab.drain()
        answers = in_threads(*[partial(again, lab, run)] * 6)
        assert [each.round for each in answers if each is not None] == [2]
        assert lab.run(run)["round"] == 2
        lab.cancel(run)


def test_a_retry_that_races_the_last_settle_comes_wholly_before_or_after_it(lab: Lab) -> None:
    worker, seen = lab.worker(), set()
    for number in range(40):
        run = lab.start(step("a"), step("b"))
        first, last = (lab.claim(worker, lab.id_of(run, name)) for name in "ab")
        assert first is not None
        assert last is not None
        lab.database.attempt(
            lambda tx, held=first.held: steps.end(tx, held, StepStatus.FAILED, {"message": "x"}, name="a")
        )
        turn = [partial(lab.succeed, last.held), partial(again, lab, run)]
        in_threads(*(turn if number % 2 else reversed(turn)))
        row = lab.run(run)
        seen.add(row["status"])
        assert (row["status"], row["round"], row["remaining_steps"]) in {("failed", 1, 0), ("pending", 2, 1)}
        assert lab.statuses(run)["b"] == "succeeded"
        lab.cancel(run)
    assert seen <= {"failed", "pending"}


def test_rounds_that_are_opened_while_workers_drain_lose_and_double_nothing(lab: Lab) -> None:
    """Some fail at each first call of a round; whoever sees the run ended opens the next, from several connections."""
    ends = threading.Event()
    lab.answers = {
        f"s{n}": (lambda claim, n=n: BROKEN if claim.round <= n % 4 else Done()) for n in range(40)
    }
    run = lab.start(*[step(f"s{n}", *({n - 7} if n > 6 and n % 3 else ())) for n in range(40)])

    def work() -> None:
        executor = lab.executor()
        while not ends.is_set():
            executor.work(None, "lab") or ends.wait(0.002)

    def reopen() -> None:
        stop = time.monotonic() + 30
        while lab.run(run)["status"] != "succeeded" and time.monotonic() < stop:
            again(lab, run)
        ends.set()

    in_threads(work, work, reopen, reopen, timeout=60)
    row = lab.run(run)
    assert (row["status"], row["round"]) == ("succeeded", 4)
    assert set(lab.statuses(run).values()) == {"succeeded"}


# --- every graph --------------------------------------------------------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[Any], dict[str, str], list[str]]:
    """Steps with required and optional parents, how each ends in its first round, and where the next begins."""
    size = draw(st.integers(1, 7))
    plan = []
    for position in range(size):
        parents = draw(st.sets(st.integers(0, position - 1))) if position else set()
        optional = draw(st.sets(st.sampled_from(sorted(parents)))) if parents else set()
        plan.append(step(f"s{position}", *sorted(parents - optional), optional=sorted(optional)))
    ends = {each.name: draw(st.sampled_from(["done", "broken", "skip"])) for each in plan}
    return plan, ends, draw(st.lists(st.sampled_from([each.name for each in plan]), unique=True, max_size=2))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graphs())
def test_whatever_the_graph_a_round_ends_and_starts_only_what_it_must(
    lab: Lab, graph: tuple[list[Any], dict[str, str], list[str]]
) -> None:
    plan, ends, begin_at = graph
    first = {"done": Done(), "broken": BROKEN, "skip": Skip("not now")}
    lab.answers = {
        name: (lambda claim, end=end: first[end] if claim.round == 1 else Done())
        for name, end in ends.items()
    }
    run = lab.start(*plan)
    lab.drain()
    before = lab.steps(run)
    opened = again(lab, run, begin_at=begin_at)
    wanted = [name for name, row in before.items() if row["status"] == "failed"]
    assert (opened is None) == (not wanted and not begin_at)
    lab.drain()
    after = lab.steps(run)
    assert all(row["status"] in STEP_TERMINAL for row in after.values())
    redone = {name for name, row in after.items() if row["round"] == 2}
    assert {*wanted, *(begin_at if opened else ())} <= redone
    assert all(after[name]["status"] == "succeeded" for name in redone)
    assert all(
        after[name]["output"] == before[name]["output"] and after[name]["fence"] == before[name]["fence"]
        for name in after.keys() - redone
    )
    assert lab.findings() == []
