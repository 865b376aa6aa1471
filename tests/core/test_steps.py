"""Steps: failures and crashes counted apart, pauses, stale fences, cascades, parents that end at the same moment."""

from __future__ import annotations

import threading
from itertools import cycle
from typing import Any

import pytest
from corelab import AT_ONCE, QUEUE, TASK, Lab, in_threads, sql, step
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstone_celery.core import steps
from flowstone_celery.core.model import Claim, Done
from flowstone_celery.core.retry_policy import RetryPolicy
from flowstone_celery.core.statements import SQL
from flowstone_celery.db.database import Tx
from flowstone_celery.errors import ExecutionError
from flowstone_celery.outcomes import Cancel, Fail, Retry, Skip
from flowstone_celery.record import values
from flowstone_celery.record.values import NewValue
from flowstone_celery.states import StepStatus

# --- retries ----------------------------------------------------------------------------------------------------------------------


@given(
    st.sampled_from(["fixed", "linear", "exponential"]),
    st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1), st.integers(1, 5_000), st.floats(0, 1),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_a_pause_stays_within_its_cap_and_its_jitter(
    backoff: str, delay: float, cap: float, jitter: float, failures: int, chance: float
) -> None:
    policy = RetryPolicy(backoff, delay, cap, jitter)
    growth = {"fixed": 1.0, "linear": float(failures), "exponential": 2.0 ** min(failures - 1, 60)}[backoff]
    plain = min(delay * growth, cap)
    pause = policy.pause(failures, chance)
    assert 0 <= pause <= cap
    assert plain * (1 - jitter) * 0.999999 <= pause <= plain * (1 + jitter) * 1.000001
    assert RetryPolicy(backoff, delay, cap, 0.0).pause(failures, chance) == plain


@pytest.mark.parametrize(
    ("backoff", "pauses"),
    [("fixed", [2, 2, 2, 2]), ("linear", [2, 4, 6, 7]), ("exponential", [2, 4, 7, 7])],
)
def test_pauses_grow_as_declared_and_the_last_failure_ends_the_step(
    lab: Lab, backoff: str, pauses: list[int]
) -> None:
    lab.answers["a"] = Retry(reason="not yet")
    run = lab.start(step("a", max_failures=5, retry=RetryPolicy(backoff, 2.0, 7.0, 0.0)))
    assert lab.drain() == 5
    details = lab.sql("SELECT detail FROM flowstone.history WHERE event = 'step.retry' ORDER BY id")
    assert [row["detail"]["delay"] for row in details] == pauses
    row = lab.steps(run)["a"]
    assert (row["status"], row["failures"], row["attempt"], row["fence"], row["crashes"]) == (
        "failed",
        5,
        5,
        5,
        0,
    )
    assert row["error"]["message"] == "not yet"
    assert lab.run(run)["status"] == "failed"


def test_a_retry_is_not_claimed_before_it_is_due(lab: Lab) -> None:
    worker = lab.worker()
    lab.answers["a"] = Retry(after=10)
    run = lab.start(step("a", max_failures=3))
    lab.executor().work(None, QUEUE)
    assert lab.claim(worker, lab.id_of(run, "a")) is None
    lab.clock.advance(seconds=9.5)
    assert lab.claim_next(worker) is None
    lab.clock.advance(seconds=1)
    claim = lab.claim_next(worker)
    assert claim is not None
    assert (claim.attempt, claim.failures) == (2, 1)


def test_an_exception_is_a_failed_attempt_and_a_fail_is_final(lab: Lab) -> None:
    def raising(claim: Claim) -> Done:
        raise ValueError(f"attempt {claim.attempt}")

    lab.answers.update(raises=raising, fails=Fail("never again", {"row": 7}))
    run = lab.start(
        step("raises", max_failures=3, retry=AT_ONCE), step("fails", max_failures=3, retry=AT_ONCE)
    )
    lab.drain()
    found = lab.steps(run)
    assert [found[name]["failures"] for name in ("raises", "fails")] == [3, 1]
    assert "ValueError" in str(found["raises"]["error"])
    assert "attempt 3" in str(found["raises"]["error"])
    assert found["fails"]["error"]["facts"] == {"row": 7}


def test_a_kind_without_a_handler_fails_and_says_so(lab: Lab) -> None:
    run = lab.start(step("a", kind="strange"))
    lab.drain()
    assert lab.statuses(run) == {"a": "failed"}
    assert "strange" in str(lab.steps(run)["a"]["error"])


# --- crashes ----------------------------------------------------------------------------------------------------------------------


def _die(lab: Lab, claim: Claim, *, crash: int = 1, loss: int = 0) -> list[dict[str, Any]]:
    limits = {"crash_limit": lab.settings.crash_limit, "loss_limit": lab.settings.loss_limit}
    values = {
        "workers": [claim.worker_id],
        "crash": crash,
        "loss": loss,
        "reason": "its process died",
        **limits,
    }
    found = lab.database.once(SQL["release_dead"], **values)
    lab.database.once(SQL["bury"], workers=[claim.worker_id])
    return found


def test_crashes_are_counted_apart_from_failures(lab: Lab) -> None:
    run = lab.start(step("a", max_failures=1))
    for _ in range(lab.settings.crash_limit - 1):
        claim = lab.claim_next(lab.worker())
        assert claim is not None
        assert len(_die(lab, claim)) == 1
    claim = lab.claim_next(lab.worker())
    assert claim is not None
    assert (claim.attempt, claim.failures, claim.crashes) == (3, 0, 2)
    lab.succeed(claim.held)
    assert lab.run(run)["status"] == "succeeded"


def test_the_idempotency_key_outlives_crashes_and_changes_with_a_failure(lab: Lab) -> None:
    lab.start(step("a", max_failures=3))
    keys = []
    for _ in range(2):
        claim = lab.claim_next(lab.worker())
        assert claim is not None
        keys.append(claim.idempotency_key)
        _die(lab, claim)
    claim = lab.claim_next(lab.worker())
    assert claim is not None
    keys.append(claim.idempotency_key)
    lab.database.attempt(lambda tx: steps.retry(tx, claim.held, {}, 0.0))
    again = lab.claim_next(lab.worker())
    assert again is not None
    assert keys == [keys[0]] * 3
    assert again.idempotency_key != keys[0]


def test_a_step_at_its_limit_is_not_released(lab: Lab) -> None:
    lab.start(step("a"))
    for _ in range(lab.settings.crash_limit - 1):
        claim = lab.claim_next(lab.worker())
        assert claim is not None
        _die(lab, claim)
    claim = lab.claim_next(lab.worker())
    assert claim is not None
    limits = {"crash_limit": lab.settings.crash_limit, "loss_limit": lab.settings.loss_limit}
    dying = {"workers": [claim.worker_id], "crash": 1, "loss": 0, "reason": "died", **limits}
    assert lab.database.once(SQL["release_dead"], **dying) == []
    assert lab.statuses(claim.run_id) == {"a": "running"}
    lab.succeed(claim.held)


def test_a_step_given_back_counts_nothing(lab: Lab) -> None:
    claim = lab.running(lab.worker())
    assert lab.database.attempt(lambda tx: steps.give_back(tx, claim.held, "the worker stops")) is not None
    row = lab.steps(claim.run_id)["a"]
    assert (row["status"], row["failures"], row["crashes"], row["losses"], row["note"]) == (
        "ready", 0, 0, 0, "the worker stops",
    )  # fmt: skip


# --- a stale fence writes nothing ----------------------------------------------------------------------------------------------------


def _new_value(claim: Claim, content: bytes = b"x") -> NewValue:
    return NewValue(
        "lab.asset", "", claim.run_id, claim.id, claim.fence, "database", len(content), "d", content, None
    )


def _everything(lab: Lab) -> list[Any]:
    tables = ("steps", "runs", "history", "asset_values", "asset_current", "lineage", "audit")
    return [lab.sql(f"SELECT * FROM flowstone.{table} ORDER BY 1, 2") for table in tables]


@pytest.mark.parametrize("large", [False, True], ids=["in the row", "prepared"])
def test_the_zombie_of_a_lost_claim_writes_nothing(lab: Lab, large: bool) -> None:
    taken: list[Claim] = []

    def lose_the_claim(claim: Claim) -> Done:
        _die(lab, claim)
        found = lab.claim_next(lab.worker())
        assert found is not None
        taken.append(found)
        value = _new_value(claim)
        prepared = values.prepare(lab.database, value) if large else None
        before.extend(_everything(lab))
        return Done(write=lambda tx: {"value": values.settle(tx, value, prepared=prepared)})

    before: list[Any] = []
    lab.answers["a"] = lose_the_claim
    run = lab.start(step("a"), step("b", 0))
    executor = lab.executor()
    assert executor.work(lab.id_of(run, "a"), QUEUE, going_on=False) == 1
    assert _everything(lab) == before
    assert values.current(lab.database, "lab.asset", "") is None
    assert values.versions(lab.database, "lab.asset", "") == []
    assert values.of_run(lab.database, "lab.asset", "", run) is None
    [claim] = taken
    assert lab.succeed(claim.held) is not None


def test_every_settlement_under_a_stale_fence_is_refused(lab: Lab) -> None:
    stale = lab.running(lab.worker(), max_failures=9)
    _die(lab, stale)
    current = lab.claim_next(lab.worker())
    assert current is not None
    before = _everything(lab)
    for act in (
        lambda tx: steps.succeed(tx, stale.held, None),
        lambda tx: steps.end(tx, stale.held, StepStatus.FAILED, {}, name="a"),
        lambda tx: steps.end(tx, stale.held, StepStatus.SKIPPED, {}, name="a"),
        lambda tx: steps.retry(tx, stale.held, {}, 0.0),
        lambda tx: steps.give_back(tx, stale.held, "stop"),
        lambda tx: steps.fail_or_retry(
            tx, stale.held, ExecutionError("x"), name="a", failures=0, max_failures=9, policy=AT_ONCE
        ),
    ):
        assert lab.database.attempt(act) is None
    assert _everything(lab) == before
    lab.succeed(current.held)


def test_a_worker_cannot_settle_under_its_own_former_fence_nor_another_under_the_same(lab: Lab) -> None:
    worker = lab.worker()
    former = lab.running(worker)
    lab.database.attempt(lambda tx: steps.give_back(tx, former.held, "stop"))
    claim = lab.claim_next(worker)
    assert claim is not None
    assert (claim.worker_id, claim.fence) == (worker, former.fence + 1)
    assert lab.succeed(former.held) is None
    assert lab.succeed({**claim.held, "worker": lab.worker()}) is None
    assert lab.succeed(claim.held) is not None


# --- cascades ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "status", "run_status"),
    [
        (Fail("no"), "failed", "failed"),
        (Skip("no need"), "skipped", "succeeded"),
        (Cancel("enough"), "cancelled", "cancelled"),
    ],
    ids=["fail", "skip", "cancel"],
)
def test_what_needs_a_step_without_value_ends_as_it_did(
    lab: Lab, answer: Any, status: str, run_status: str
) -> None:
    lab.answers["a"] = answer
    run = lab.start(
        step("a"), step("b", 0), step("c", 1), step("free", optional=[0]), step("last", 2, optional=[3])
    )
    lab.drain()
    lab.pacer().step()
    found = lab.statuses(run)
    free = "cancelled" if status == "cancelled" else "succeeded"
    assert found == {"a": status, "b": status, "c": status, "last": status, "free": free}
    assert lab.run(run)["status"] == run_status
    error = lab.steps(run)["b"]["error"]
    assert (error["code"], error["facts"]["dependency"]) == ("FS-2003", "a")


Plan = list[dict[int, bool]]


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, list[str]]:
    """A DAG of up to 12 steps, each with its needs (True: optional), and what each answers if it is called."""
    size = draw(st.integers(1, 12))
    needs = [
        draw(st.dictionaries(st.integers(0, n - 1), st.booleans(), max_size=4)) if n else {}
        for n in range(size)
    ]
    answers = draw(
        st.lists(st.sampled_from(["succeeded"] * 3 + ["failed", "skipped"]), min_size=size, max_size=size)
    )
    return needs, answers


def oracle(needs: Plan, answers: list[str]) -> list[set[str]]:
    """How each step may end: as it answers, or, where a required one has no value, as any of those did."""
    ends: list[set[str]] = []
    for mine, answer in zip(needs, answers, strict=True):
        required = [ends[parent] for parent, optional in mine.items() if not optional]
        bad = set().union(*(each - {"succeeded"} for each in required)) if required else set()
        ends.append(bad or {answer})
    return ends


@given(plans(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_any_dag_ends_as_the_oracle_says(module_lab: Lab, plan: tuple[Plan, list[str]], random: Any) -> None:
    lab, (needs, answers) = module_lab, plan
    lab.wipe()
    steps_ = [
        step(f"s{n}", *[p for p, optional in mine.items() if not optional], optional=[p for p, optional in mine.items() if optional])
        for n, mine in enumerate(needs)
    ]  # fmt: skip
    run = lab.start(*steps_)
    ids = {row["id"]: int(name[1:]) for name, row in lab.steps(run).items()}
    worker = lab.worker()
    while ready := [row["id"] for row in lab.steps(run).values() if row["status"] == "ready"]:
        claim = lab.claim(worker, random.choice(ready))
        assert claim is not None
        if answers[ids[claim.id]] == "succeeded":
            lab.succeed(claim.held)
        else:
            status = StepStatus(answers[ids[claim.id]])
            lab.database.attempt(lambda tx, c=claim, s=status: steps.end(tx, c.held, s, {}, name=c.name))
    found = lab.statuses(run)
    for n, allowed in enumerate(oracle(needs, answers)):
        assert found[f"s{n}"] in allowed, (n, found)
    assert lab.run(run)["status"] == ("failed" if "failed" in found.values() else "succeeded")
    assert lab.findings() == []


# --- at the same moment -----------------------------------------------------------------------------------------------------------


def _end_in(tx: Tx, claim: Claim, how: str) -> Any:
    if how == "succeeded":
        return steps.succeed(tx, claim.held, None)
    return steps.end(tx, claim.held, StepStatus(how), {"message": how}, name=claim.name)


def _end(lab: Lab, claim: Claim, how: str) -> Any:
    return lab.database.attempt(lambda tx: _end_in(tx, claim, how))


@pytest.mark.parametrize("second", ["succeeded", "failed", "skipped"])
@pytest.mark.parametrize("first", ["succeeded", "failed", "skipped"])
def test_two_parents_that_end_at_the_same_moment_open_their_child_once(
    lab: Lab, first: str, second: str
) -> None:
    """The second has settled in its own snapshot and waits for the first to commit."""
    worker = lab.worker()
    run = lab.start(step("p"), step("q"), step("child", optional=[0, 1]), step("needs p", 0, optional=[1]))
    claims = [lab.claim(worker, lab.id_of(run, name)) for name in ("p", "q")]
    began, moved = threading.Event(), []

    def settle_first() -> None:
        with lab.database.transaction() as tx:
            moved.append(_end_in(tx, claims[0], first))
            began.set()
            lab.wait_until_one_waits_for_a_lock()

    def settle_second() -> None:
        assert began.wait(10)
        moved.append(_end(lab, claims[1], second))

    in_threads(settle_first, settle_second)
    assert None not in moved
    assert lab.steps(run)["child"]["status"] == "ready"
    assert lab.events(run).count("step.ready child") == 1
    assert lab.statuses(run)["needs p"] == ("ready" if first == "succeeded" else first)
    lab.drain()
    assert lab.run(run)["status"] == ("failed" if "failed" in (first, second) else "succeeded")


@pytest.mark.parametrize("second", ["succeeded", "failed"])
@pytest.mark.parametrize("first", ["succeeded", "failed"])
def test_two_last_steps_that_end_at_the_same_moment_close_their_run_once(
    lab: Lab, first: str, second: str
) -> None:
    """Each has counted in its own snapshot, in which the other still runs."""
    worker = lab.worker()
    run = lab.start(step("p"), step("q"))
    claims = [lab.claim(worker, lab.id_of(run, name)) for name in ("p", "q")]
    began = threading.Event()

    def settle_first() -> None:
        with lab.database.transaction() as tx:
            assert _end_in(tx, claims[0], first) is not None
            began.set()
            lab.wait_until_one_waits_for_a_lock()

    def settle_second() -> None:
        assert began.wait(10)
        assert _end(lab, claims[1], second) is not None

    in_threads(settle_first, settle_second)
    ended = "failed" if "failed" in (first, second) else "succeeded"
    assert (lab.run(run)["status"], lab.run(run)["remaining_steps"]) == (ended, 0)
    assert lab.events(run).count(f"run.{ended}") == 1


@pytest.mark.parametrize(
    "ends", [["succeeded"], ["succeeded", "failed", "skipped"]], ids=["all succeed", "mixed"]
)
def test_parents_that_share_thirty_children_meet_without_a_deadlock(lab: Lab, ends: list[str]) -> None:
    worker = lab.worker()
    parents = [step(f"p{n}") for n in range(8)]
    children = [step(f"c{n}", optional=range(8)) for n in range(30)]
    before = lab.scalar("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    for _ in range(3):
        run = lab.start(*parents, *children)
        claims = [lab.claim(worker, lab.id_of(run, f"p{n}")) for n in range(8)]
        in_threads(*[lambda c=c, h=h: _end(lab, c, h) for c, h in zip(claims, cycle(ends), strict=False)])
        assert [lab.statuses(run)[f"c{n}"] for n in range(30)] == ["ready"] * 30
        assert sum(event.startswith("step.ready c") for event in lab.events(run)) == 30
    lab.sql("SELECT pg_stat_force_next_flush()")
    assert lab.scalar("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == before


def test_of_many_that_claim_one_step_at_once_one_has_it(lab: Lab) -> None:
    run = lab.start(step("a"))
    workers = [lab.worker() for _ in range(6)]
    found = in_threads(*[lambda w=w: lab.claim(w, lab.id_of(run, "a")) for w in workers])
    assert len([each for each in found if each is not None]) == 1
    assert lab.steps(run)["a"]["fence"] == 1


def test_claims_by_query_at_once_take_different_steps(lab: Lab) -> None:
    lab.start(*[step(f"s{n}") for n in range(20)], promise=False)
    workers = [lab.worker() for _ in range(5)]
    found = in_threads(*[lambda w=w: [lab.claim_next(w) for _ in range(4)] for w in workers])
    taken = [claim.id for mine in found for claim in mine if claim is not None]
    assert len(taken) == len(set(taken)) == 20


def test_the_claim_hands_over_all_that_the_call_needs(lab: Lab) -> None:
    lab.answers["a"] = Done({"n": 7})
    lab.answers["b"] = Skip("none")
    seen: list[Claim] = []
    lab.answers["c"] = lambda claim: seen.append(claim) or Done()
    lab.start(
        step("a", partition="p"), step("b"), step("c", 0, optional=[1], input={"x": 1}, timeout=9.0, retry=RetryPolicy("fixed", 3.0)),
        input={"metadata": {"k": "v"}}, requested_by="me", correlation_id="c-1", tenant="t",
    )  # fmt: skip
    lab.drain()
    [claim] = seen
    assert [(each.name, each.partition, each.status, each.optional) for each in claim.inputs] == [
        ("a", "p", "succeeded", False),
        ("b", "", "skipped", True),
    ]
    assert claim.inputs[0].output == {"n": 7}
    assert (claim.input, claim.timeout_seconds, claim.retry) == ({"x": 1}, 9.0, RetryPolicy("fixed", 3.0))
    assert (claim.run_input, claim.requested_by, claim.correlation_id, claim.tenant, claim.task) == (
        {"metadata": {"k": "v"}}, "me", "c-1", "t", TASK,
    )  # fmt: skip


def test_the_deadline_is_the_claim_s_time_plus_the_timeout(lab: Lab) -> None:
    claim = lab.running(lab.worker(), timeout=30.0)
    row = lab.sql(
        "SELECT extract(epoch FROM deadline_at - started_at)::float8 AS s FROM flowstone.steps WHERE id = %(id)s",
        id=claim.id,
    )
    assert row[0]["s"] == pytest.approx(30.0)
    assert lab.database.attempt(lambda tx: tx.rows(sql("SELECT 1 AS one"))) == [{"one": 1}]
