"""Runs: they start whole, once for each key; they are cancelled, at once or in batches; they tell their story."""

from __future__ import annotations

import threading
from uuid import UUID, uuid4

import pytest
from corelab import AT_ONCE, QUEUE, Lab, in_threads, rolled_back, sql, step

from flowstone_celery.core import runs
from flowstone_celery.core.model import Done, NewRun
from flowstone_celery.core.retry_policy import RetryPolicy
from flowstone_celery.errors import IdempotencyConflict, RunNotFound
from flowstone_celery.outcomes import Cancel, Fail, Retry, Skip
from flowstone_celery.record import audit

# --- start ------------------------------------------------------------------------------------------------------------------------


def test_a_run_appears_with_its_steps_and_edges(lab: Lab) -> None:
    run = lab.start(step("a"), step("b", 0), step("c", 0, optional=[1]), partition="p", priority=3)
    row = lab.run(run)
    assert (row["status"], row["total_steps"], row["remaining_steps"], row["partition"]) == (
        "pending",
        3,
        3,
        "p",
    )
    assert lab.statuses(run) == {"a": "ready", "b": "blocked", "c": "blocked"}
    parents = {name: each["parents"] for name, each in lab.steps(run).items()}
    ids = {name: each["id"] for name, each in lab.steps(run).items()}
    assert parents == {"a": None, "b": [ids["a"]], "c": [ids["a"], ids["b"]]}
    assert [(each.name, each.queue) for each in lab.postbox.take()] == [("a", QUEUE)]


def test_a_run_whose_transaction_is_rolled_back_never_was(lab: Lab) -> None:
    run = NewRun("plain", "lab", [step()])

    def abandoned() -> None:
        with lab.database.transaction() as tx:
            runs.start(tx, run, settings=lab.settings)
            raise LookupError

    with pytest.raises(LookupError):
        abandoned()
    with pytest.raises(RunNotFound, match=str(run.id)):
        lab.run(run.id)


def test_a_step_with_a_delay_is_claimed_only_when_it_is_due(lab: Lab) -> None:
    worker, run = lab.worker(), lab.start(step(due_in=60.0))
    assert lab.postbox.take() == []
    assert lab.claim_next(worker) is None
    assert "it is due at" in lab.reasons(run)["a"]
    lab.clock.advance(seconds=61)
    assert lab.claim_next(worker) is not None


# --- idempotency ------------------------------------------------------------------------------------------------------------------


def _keyed(lab: Lab, digest: str = "d", **options: object):
    return lab.start(step(), idempotency_key="order 7", request_digest=digest, **options)


def test_the_same_request_with_the_same_key_answers_the_same_run(lab: Lab) -> None:
    run = _keyed(lab)
    assert _keyed(lab) == run
    lab.drain()
    assert _keyed(lab) == run, "also after it has ended"
    assert len(runs.page(lab.database)) == 1
    assert lab.events(run).count("run.pending") == 1


def test_another_request_with_the_same_key_is_refused_naming_both(lab: Lab) -> None:
    run = _keyed(lab, name="reports")
    with pytest.raises(IdempotencyConflict) as caught:
        _keyed(lab, "another", name="invoices", partition="2024-01-01")
    sentence = str(caught.value)
    assert all(word in sentence for word in ("order 7", str(run), "reports", "invoices", "2024-01-01"))
    assert caught.value.facts["run_id"] == str(run)
    assert len(runs.page(lab.database)) == 1


def test_two_tenants_may_use_the_same_key(lab: Lab) -> None:
    assert _keyed(lab, tenant="one") != _keyed(lab, tenant="two")


def test_of_many_that_start_with_one_key_at_once_one_starts(lab: Lab) -> None:
    found = in_threads(*[lambda: _keyed(lab)] * 6)
    assert len(set(found)) == 1
    assert len(runs.page(lab.database)) == 1
    assert len(lab.postbox.take()) == 1


def test_the_second_starter_waits_for_the_first_and_starts_if_that_one_rolls_back(lab: Lab) -> None:
    began = threading.Event()

    def request() -> NewRun:
        return NewRun("plain", "lab", [step()], idempotency_key="order 7", request_digest="d")

    def first() -> None:
        with rolled_back(lab.database) as tx:
            runs.start(tx, request(), settings=lab.settings)
            began.set()
            lab.wait_until_one_waits_for_a_lock()

    def second() -> UUID:
        assert began.wait(10)
        return runs.begin(lab.database, lab.postbox, request(), settings=lab.settings)

    _, run = in_threads(first, second)
    assert [row["id"] for row in runs.page(lab.database)] == [run]


# --- cancel -----------------------------------------------------------------------------------------------------------------------


def test_a_pending_run_is_cancelled_at_once_with_all_its_steps(lab: Lab) -> None:
    run = lab.start(step("a"), step("b", 0))
    assert lab.cancel(run, reason="not needed")
    assert lab.run(run)["status"] == "cancelled"
    assert lab.run(run)["error"]["message"] == "not needed"
    assert set(lab.statuses(run).values()) == {"cancelled"}
    [row] = audit.of_resource(lab.database, "run", str(run))
    assert (row["action"], row["actor"], row["details"]) == ("run.cancel", "tester", {"reason": "not needed"})
    assert lab.claim_next(lab.worker()) is None


def test_a_running_step_keeps_its_run_cancelling_until_it_ends(lab: Lab) -> None:
    worker = lab.worker()
    run = lab.start(step("a"), step("b"), step("c", 0))
    claim = lab.claim(worker, lab.id_of(run, "a"))
    assert claim is not None
    lab.cancel(run)
    assert lab.run(run)["status"] == "cancelling"
    assert lab.statuses(run) == {"a": "running", "b": "cancelled", "c": "cancelled"}
    lab.succeed(claim.held)
    assert lab.run(run)["status"] == "cancelled"
    assert lab.statuses(run)["a"] == "succeeded"


@pytest.mark.parametrize(
    "answer", [Retry(after=0), Fail("no"), Skip(), Cancel()], ids=lambda each: type(each).__name__
)
def test_whatever_running_code_answers_a_cancelled_run_ends_cancelled(lab: Lab, answer: object) -> None:
    run = lab.start(step("a", max_failures=5, retry=AT_ONCE), step("b", 0))

    def cancelled_meanwhile(claim):
        lab.cancel(run)
        return answer

    lab.answers["a"] = cancelled_meanwhile
    lab.executor().work(None, QUEUE)
    lab.steady()
    lab.pacer().step()
    assert lab.run(run)["status"] == "cancelled"
    assert lab.statuses(run)["b"] == "cancelled"


def test_cancel_is_answered_once_and_refuses_what_has_ended_or_never_was(lab: Lab) -> None:
    run = lab.start(step())
    assert [lab.cancel(run), lab.cancel(run)] == [True, False]
    done = lab.start(step())
    lab.drain()
    assert not lab.cancel(done)
    assert lab.run(done)["status"] == "succeeded"
    with pytest.raises(RunNotFound):
        lab.cancel(uuid4())


def test_many_steps_are_cancelled_in_batches(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_CANCEL_BATCH", 7)
    run = lab.start(*[step(f"s{n}", *([n - 1] if n % 3 else [])) for n in range(50)])
    assert lab.cancel(run)
    assert lab.run(run)["status"] == "cancelled"
    assert lab.events(run).count("run.cancelled") == 1


def test_rows_that_somebody_holds_are_left_to_the_next_sweep(lab: Lab) -> None:
    run = lab.start(step("a"), step("b"))
    with lab.database.transaction() as tx:
        tx.rows(sql("SELECT id FROM flowstone.steps WHERE id = %(id)s FOR UPDATE"), id=lab.id_of(run, "a"))
        lab.cancel(run)
        assert lab.statuses(run) == {"a": "ready", "b": "cancelled"}
        assert lab.run(run)["status"] == "cancelling"
    lab.pacer().step()
    assert lab.run(run)["status"] == "cancelled"


@pytest.mark.parametrize("nth", range(8))
def test_a_cancel_and_a_settlement_at_once_end_in_one_way(lab: Lab, nth: int) -> None:
    run = lab.start(step("a"), *[step(f"c{n}", 0) for n in range(10)])
    claim = lab.claim(lab.worker(), lab.id_of(run, "a"))
    assert claim is not None
    in_threads(lambda: lab.succeed(claim.held), lambda: lab.cancel(run))
    lab.pacer().step()
    assert lab.run(run)["status"] == "cancelled"
    assert lab.statuses(run)["a"] == "succeeded"


# --- the story --------------------------------------------------------------------------------------------------------------------


def test_the_history_of_a_run_is_complete_and_in_order(lab: Lab) -> None:
    lab.answers["b"] = lambda claim: [Retry(after=5), Done({"n": 1})][claim.failures]
    lab.answers["d"] = Fail("never")
    run = lab.start(step("a"), step("b", 0, max_failures=3), step("d", 0), step("e", 2))
    lab.drain()
    story = lab.events(run)
    assert story == [
        "run.pending", "run.running", "step.running a", "step.succeeded a", "step.ready b", "step.ready d", "step.running b",
        "step.retry b", "step.running d", "step.failed d", "step.failed e", "step.running b", "step.succeeded b", "run.failed",
    ]  # fmt: skip
    rows = runs.events(lab.database, run)
    assert [row["at"] for row in rows] == sorted(row["at"] for row in rows)
    [retried] = [row for row in rows if row["event"] == "step.retry"]
    assert retried["detail"]["delay"] == 5
    assert (retried["attempt"], retried["fence"]) == (1, 1)
    middle = rows[5]["id"]
    assert [row["id"] for row in runs.events(lab.database, run, after=middle)] == [
        row["id"] for row in rows[6:]
    ]


def test_runs_are_read_in_pages_newest_first(lab: Lab) -> None:
    started = [lab.start(step(), name="x" if n % 2 else "y") for n in range(7)]
    seen, before = [], None
    while page := runs.page(lab.database, before=before, limit=3):
        seen += [row["id"] for row in page]
        before = (page[-1]["created_at"], page[-1]["id"])
    assert seen == started[::-1]
    assert {row["name"] for row in runs.page(lab.database, name="x")} == {"x"}
    assert runs.page(lab.database, status="running") == []


# --- why ----------------------------------------------------------------------------------------------------------------------------


def test_every_unfinished_row_has_its_reason(lab: Lab) -> None:
    def put(name: str, text: str = "", **options: object) -> None:
        run = lab.start(step(name, **options))
        if text:
            lab.sql(text, run=run)

    lab.node(queues=["known", "strange", "old"])
    late = lab.worker(lease=-1.0)
    alive = lab.worker()
    runs_now = lab.start(step("runs"), step("waits", 0), step("optional", 0, optional=[1]))
    lab.claim(alive, lab.id_of(runs_now, "runs"))
    lost = lab.start(step("lost"))
    lab.claim(alive, lab.id_of(lost, "lost"))
    lab.sql("UPDATE flowstone.steps SET worker_id = %(late)s WHERE run_id = %(run)s", late=late, run=lost)
    put("nobody", queue="empty")
    put("unknown", queue="strange", task="mystery")
    put("newer", "UPDATE flowstone.steps SET v = 9 WHERE run_id = %(run)s", queue="old")
    put("woken", queue="known")
    put("line", "UPDATE flowstone.steps SET sent_at = NULL WHERE run_id = %(run)s", queue="known")
    put(
        "noted",
        "UPDATE flowstone.steps SET sent_at = NULL, note = 'lease lost' WHERE run_id = %(run)s",
        queue="known",
    )
    put("paused", "UPDATE flowstone.runs SET paused = true WHERE id = %(run)s", queue="known")
    put("later", due_in=60.0, queue="known")
    reasons = lab.reasons()
    expected = {
        "runs": "it runs on lab@here (pid ",
        "lost": "lost its lease; another takes over",
        "waits": "it waits for 1 of its dependencies: runs (running)",
        "optional": "it waits for 2 of its dependencies: runs (running), waits (blocked)",
        "nobody": "no worker listens on queue 'empty'",
        "unknown": "no worker on queue 'strange' knows the task 'mystery'",
        "newer": "every worker on queue 'old' is older than the step (protocol 9)",
        "woken": "a worker on queue 'known' has been woken",
        "line": "it stands in line on queue 'known'",
        "noted": "lease lost; it is next in line on queue 'known'",
        "paused": "its run is paused",
        "later": "it is due at ",
    }
    assert reasons.keys() == expected.keys()
    for name, words in expected.items():
        assert words in reasons[name], name


def test_a_step_of_a_cancelling_run_says_so(lab: Lab) -> None:
    run = lab.start(step("a"), step("b"))
    with lab.database.transaction() as tx:
        tx.rows(sql("SELECT id FROM flowstone.steps WHERE run_id = %(run)s FOR UPDATE"), run=run)
        lab.cancel(run)
        assert set(lab.reasons(run).values()) == {"its run is being cancelled"}
    lab.pacer().step()
    assert lab.reasons(run) == {}


def test_a_retry_says_which_one_it_waits_for(lab: Lab) -> None:
    lab.answers["a"] = Retry(after=30)
    run = lab.start(step("a", max_failures=3, retry=RetryPolicy()))
    lab.executor().work(None, QUEUE)
    assert lab.reasons(run)["a"].endswith("UTC (retry 1)")
