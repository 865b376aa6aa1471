"""The core over several connections: transactions that are begun, held, committed, rolled back and cut in any order break no rule."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar
from uuid import UUID

import pytest
from actlab import doer
from corelab import AT_ONCE, LONG, QUEUE, TASK, Lab, sql, step
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from interlab import Books, Learn, Session, Stage, new_value, writes
from psycopg.errors import UniqueViolation

from flowstone_celery.core import acts, runs, steps
from flowstone_celery.core.model import Claim, Done, NewRun
from flowstone_celery.core.statements import SQL
from flowstone_celery.errors import CommitUnknown, DatabaseUnavailable, ExecutionError, IdempotencyConflict
from flowstone_celery.record import values
from flowstone_celery.states import RUN_TERMINAL, StepStatus

HARDY = {"max_failures": 4, "retry": AT_ONCE}
SHAPES = {
    "one": [step("a", **HARDY)],
    "chain": [step("a", **HARDY), step("b", 0), step("c", 1)],
    "diamond": [step("a"), step("b", 0), step("c", 0, **HARDY), step("d", 1, optional=[2])],
    "pair": [step("a"), step("b"), step("c", optional=[0, 1]), step("d", 1)],
    "made": [step("m", partition="p", sole=True, **HARDY), step("n", 0)],
}
ANSWERS = ("value", "large", "fail", "error", "later", "skip", "cancel", "back")
# What makes the story longer is more likely than what ends it.
LIKELY = ("value", "value", "value", "large", "error", "later", "back", "skip", "fail", "cancel")
MISFORTUNES = ("roll back", "roll back", "cut", "cut unnoticed", "crash", "stop", "lost")
WEIGHTS = {
    "claim": 6, "settle": 6, "commit": 6, "start": 2, "settle_late": 2, "go_on": 1, "misfortune": 2, "act_on_a_run": 2,
    "reopen": 2, "admit": 1, "advance": 2, "sweep": 2, "work": 1,
}  # fmt: skip
# What is drawn are numbers, whatever the rows are like: a story must not hang on what a database answered.
LIKELY_ACTS = [act for act, weight in WEIGHTS.items() for _ in range(weight)]
REACHED: dict[str, str] = {
    "commit": "a transaction that was held open is committed",
    "roll back": "one that had done something is rolled back",
    "cut": "the connection of an open transaction dies",
    "cut while waiting": "the connection of a statement that waits for a lock dies",
    "commit of the cut": "somebody commits on a connection that has died",
    "waited": "a statement waits for another's lock",
    "waited and happened": "and does its work when it gets it",
    "waited in vain": "or finds that it came too late",
    "key again": "a key that was used answers its run",
    "key of another": "a key that stands for something else is refused",
    "claim by id": "a wake-up finds its row",
    "claim by query": "a query finds a row",
    "claim in vain": "a wake-up finds its row gone",
    "parked": "a claim finds that another makes the same value",
    "rivals": "two claims of one value meet",
    **{f"settle {name}": "a settlement with this answer stands" for name in ANSWERS},
    "value again": "a value whose attempt has settled one is written again",
    "stale": "a settlement comes too late",
    "stale round": "a settlement of an earlier round comes too late",
    "two settle": "one claim is settled from two connections at once",
    "went on": "a settlement claims the next step in its transaction",
    "crash": "a process dies while it holds a step",
    "lost": "a lease is lost",
    "cancelled": "a run is cancelled while something of it is held open",
    "expired": "a run's deadline passes",
    "paused": "a run is paused",
    "resumed": "and resumed",
    "reopened": "a run's next round begins",
    "reopened everything": "a run begins anew",
    "reopened at": "a run begins anew from a step",
    "admitted": "a lane lets a run in",
    "outside": "a run waits for its lane",
    "house waited": "code with transactions of its own waits for one that is held open",
    "worked": "a worker claims, calls and settles beside the open transactions",
}


class Interleaved(RuleBasedStateMachine):
    """Three connections held open by hand, and a house that opens its own."""

    lab: Lab
    seen: ClassVar[Counter[str]]

    @initialize()
    def begin(self) -> None:
        self.lab.wipe()
        self.lab.sql("UPDATE flowstone.pacer SET steady_since = flowstone.now(), beat_at = flowstone.now()")
        self.books = Books(self.lab)
        self.stage = Stage(self.lab, 3)
        self.node = self.lab.node(slots=2)
        self.workers = [self.lab.worker(self.node) for _ in range(2)]
        self.keys: dict[str, UUID] = {}
        short = dataclasses.replace(self.lab.settings, slice_starts=2, crash_limit=1000, loss_limit=1000)
        self.executor = self.lab.executor(self.node, settings=short)
        self.pacer = self.lab.pacer()
        self.doer = doer(self.lab)
        for shape, lane in (("made", None), ("made", None), ("diamond", "narrow"), ("chain", "narrow")):
            self.lab.start(*SHAPES[shape], lane=lane)

    # --- who is there ---------------------------------------------------------------------------------------------------------

    def free(self) -> Session:
        """A connection without a transaction: where all have one, the first that can commits it."""
        while not (idle := [each for each in self.stage.sessions if each.is_idle]):
            self.open()[0].commit()
            self.settle_down(waited=True)
            self.books.compare()
        return idle[0]

    def open(self) -> list[Session]:
        return [each for each in self.stage.sessions if each.is_open]

    def claims(self) -> list[Claim]:
        return list(self.books.claims.values())

    def run_ids(self, *statuses: str) -> list[UUID]:
        return [key for key, row in self.books.runs.items() if not statuses or row["status"] in statuses]

    def is_busy(self) -> bool:
        """Whether the house waits for somebody."""
        return self.stage.house.doing is not None

    def mark(self, what: str) -> None:
        assert what in REACHED
        self.seen[what] += 1

    def act(
        self, work: Callable[[Any], Learn | None], session: Session | None = None, *, hold: bool = True
    ) -> bool:
        """The work is done in a transaction that is held open, or committed; or it waits. Answers whether it has happened."""
        session = session or self.free()
        session.act(work)
        self.settle_down()
        happened = session.is_open
        if happened and not hold:
            session.commit()
            self.settle_down(waited=True)
        return happened

    def settle_down(self, waited: bool = False) -> None:
        """Everybody has come as far as he can; those whose statement came too late, or was refused, have rolled back."""
        waiting = self.stage.settle_down()
        for session in self.stage.sessions:
            if session.doing is not None and session.is_done:
                self.ended(session, waited)
            elif session in waiting and not waited:
                self.mark("waited")
        if self.stage.house.is_done:
            self.stage.house.take()
        elif self.stage.house in waiting and not waited:
            self.mark("house waited")

    def ended(self, session: Session, waited: bool) -> None:
        try:
            learn = session.take()
        except UniqueViolation as error:
            refused = {"steps_makers": "rivals", "asset_values_of_attempt": "value again"}
            self.mark(refused[error.diag.constraint_name or ""])
            learn = None
        except IdempotencyConflict:
            self.mark("key of another")
            learn = None
        if waited:
            self.mark("waited and happened" if learn else "waited in vain")
        if learn is None:
            session.roll_back()
            self.settle_down(waited=True)
        else:
            session.then.append(learn)

    def in_house(self, work: Callable[[], Any]) -> None:
        self.stage.house.begin(work)
        self.settle_down()

    # --- ends of transactions -------------------------------------------------------------------------------------------------

    def commit(self, pick: int, hold: bool) -> None:
        if session := chosen(self.open(), pick):
            session.commit()
            self.mark("commit")
            self.settle_down(waited=True)

    def misfortune(self, pick: int, hold: bool) -> None:
        """Somebody gives up, a connection dies, a process dies, a lease ends."""
        what = MISFORTUNES[pick // 10 % len(MISFORTUNES)]
        if what in ("crash", "stop"):
            self.die(pick % 2, crash=what == "crash")
        elif what == "lost":
            self.lose_leases()
        elif what == "roll back":
            if session := chosen(self.open(), pick):
                session.roll_back()
                self.mark("roll back")
                self.settle_down(waited=True)
        elif session := chosen([each for each in self.stage.sessions if each.doing] or self.open(), pick):
            self.cut_off(session, unnoticed=what == "cut unnoticed")

    def cut_off(self, session: Session, *, unnoticed: bool = False) -> None:
        """The connection dies; whoever does not notice tries to commit, and learns that it did not happen."""
        waits = session.doing is not None
        self.stage.kill(session)
        self.mark("cut while waiting" if waits else "cut")
        if waits:
            with pytest.raises(Exception, match=r"terminat|closed"):
                session.take()
        if unnoticed and not waits:
            self.mark("commit of the cut")
            session.then.clear()
            with pytest.raises((CommitUnknown, DatabaseUnavailable)):
                session.commit()
        else:
            session.roll_back()
        self.settle_down(waited=True)

    # --- runs -----------------------------------------------------------------------------------------------------------------

    def start(self, pick: int, hold: bool) -> None:
        if len(self.books.runs) > 10:
            return
        shape, key = sorted(SHAPES)[pick % 5], (None, "k")[pick % 7 > 4]
        lane = (None, None, "narrow", "wide")[pick % 4]
        deadline, promise = (None, 45.0)[pick % 2], pick % 3 == 0
        if key and pick % 11 > 4:
            shape = "one"
        run = NewRun(
            "plain", shape, SHAPES[shape], lane=lane, lane_width=2 if lane == "wide" else 1, idempotency_key=key,
            request_digest=f'{{"shape":"{shape}"}}' if key else None, deadline_in=deadline,
        )  # fmt: skip

        def work(tx: Any) -> Learn:
            found, _ = runs.start(tx, run, settings=self.lab.settings, promise=promise)
            return lambda: self.started(run, found)

        self.act(work, hold=hold)

    def started(self, run: NewRun, found: UUID) -> None:
        if run.idempotency_key is not None:
            assert self.keys.setdefault(run.idempotency_key, found) == found, "one key stands for two runs"
            if found != run.id:
                self.mark("key again")

    def act_on_a_run(self, pick: int, hold: bool) -> None:
        what = ("cancel", "pause", "pause", "resume", "resume")[pick // 10 % 5]
        going = self.run_ids("pending", "running")
        paused = [key for key in going if self.books.runs[key]["paused"]]
        run = chosen((paused if what == "resume" else going) or going, pick)
        if run is None or self.is_busy():
            return

        def work() -> None:
            if what == "cancel" and self.lab.cancel(run) and self.open():
                self.mark("cancelled")
            if what == "pause" and acts.pause(self.doer, run, actor="t"):
                self.mark("paused")
            if what == "resume" and acts.resume(self.doer, run, actor="t"):
                self.mark("resumed")

        self.in_house(work)

    def reopen(self, pick: int, hold: bool) -> None:
        how = ("failed", "everything", "at")[pick % 3]
        run = chosen(self.run_ids(*RUN_TERMINAL), pick)
        if run is None:
            self.work(pick, hold)
            return
        names = sorted({row["name"] for row in self.books.steps.values() if row["run_id"] == run})
        begin_at = [names[pick % len(names)]] if how == "at" else []
        asked = {"begin_at": begin_at, "everything": how == "everything", "deadline_in": None}

        def work(tx: Any) -> Learn | None:
            row = acts._reopen(tx, run, **asked, actor="t", actor_type="user")
            what = {"failed": "reopened", "everything": "reopened everything", "at": "reopened at"}[how]
            return None if row is None else lambda: self.mark(what)

        self.act(work, hold=hold)

    def admit(self, pick: int, hold: bool) -> None:
        lane = ("narrow", "wide")[pick % 2]

        def work(tx: Any) -> Learn | None:
            tx.rows(SQL["lane_lock"], tenant="", lane=lane)
            admitted = tx.rows(SQL["admit"], tenant="", lane=lane)
            return (lambda: self.mark("admitted")) if admitted else None

        if not self.act(work, hold=hold) and any(
            row["lane"] == lane and not row["admitted"] for row in self.books.runs.values()
        ):
            self.mark("outside")

    # --- claims ---------------------------------------------------------------------------------------------------------------

    def claim(self, pick: int, hold: bool) -> None:
        if pick % 3 == 0:
            self.claim_by_query(pick % 2, hold=hold)
        else:
            self.claim_by_wake_up(pick % 2, pick, any_step=pick % 5 == 0, hold=hold)

    def claim_by_wake_up(self, which: int, pick: int, *, any_step: bool, hold: bool) -> None:
        ready = [
            key
            for key, row in self.books.steps.items()
            if any_step or (row["status"] == "ready" and row["parked"] is None)
        ]
        wanted = chosen(ready or list(self.books.steps), pick)
        worker = self.workers[which]

        def work(tx: Any) -> Learn | None:
            claim = steps.claim(tx, wanted, worker=worker, knows=[TASK])
            if claim is not None:
                return self.claimed(claim, "claim by id")
            parked = tx.row(_PARKED, id=wanted)
            if parked is None:
                self.mark("claim in vain")
            return (lambda: self.mark("parked")) if parked else None

        self.claim_as(worker, work, hold=hold)

    def claim_by_query(self, which: int, *, hold: bool) -> None:
        worker = self.workers[which]

        def work(tx: Any) -> Learn | None:
            claim = steps.claim_next(tx, QUEUE, worker=worker, knows=[TASK])
            return claim and self.claimed(claim, "claim by query")

        self.claim_as(worker, work, hold=hold)

    def claim_as(self, worker: int, work: Callable[[Any], Learn | None], *, hold: bool) -> None:
        session = self.free()
        session.worker = worker
        self.act(work, session, hold=hold)

    def claimed(self, claim: Claim, how: str) -> Learn:
        def learn() -> None:
            self.mark(how)
            self.books.claimed(claim)

        return learn

    # --- settlements ----------------------------------------------------------------------------------------------------------

    def held(self) -> list[Claim]:
        return [each for each in self.claims() if (each.id, each.fence) not in self.books.facts]

    def settle(self, pick: int, hold: bool) -> None:
        """By its holder, or by its keeper at the same time."""
        answer, on = LIKELY[pick // 7 % len(LIKELY)], pick % 3 == 0
        claim = chosen(self.held(), pick)
        if claim is None:
            self.claim_by_query(pick % 2, hold=False)
        else:
            self.settle_as(claim, answer, hold=hold or on)
            if on:
                self.go_on(pick, hold)

    def settle_late(self, pick: int, hold: bool) -> None:
        """What was settled, released or taken over under this fence, in this round or an earlier one."""
        late = [each for each in self.claims() if (each.id, each.fence) in self.books.facts]
        claim = chosen(late, pick)
        if claim is None:
            return
        answer = LIKELY[pick // 7 % len(LIKELY)]
        assert not self.settle_as(claim, answer), "a stale fence settled"
        self.mark("stale")
        if self.books.steps[claim.id]["round"] > claim.round:
            self.mark("stale round")

    def settle_as(self, claim: Claim, answer: str, *, hold: bool = True) -> bool:
        if answer in ("value", "large"):
            # The same each time that this attempt is settled: a value that lies ready is never settled as a small one.
            answer = "large" if (claim.id + claim.fence) % 4 == 0 else "value"
        session, key = self.free(), (claim.id, claim.fence)
        rivals = [each for each in self.stage.sessions if each.touches == claim.id]
        alone = not rivals and self.stage.house.doing is None
        row = self.books.steps[claim.id]
        is_held = (row["status"], row["fence"], row["worker_id"]) == ("running", claim.fence, claim.worker_id)
        session.worker, session.touches = claim.worker_id, claim.id

        def work(tx: Any) -> Learn | None:
            moved = self.move(tx, claim, answer)
            assert is_held or moved is None, "a claim that is held by another, or by nobody, settled"
            if moved is None:
                return None
            session.settled = True
            if moved.awaited:
                steps.free_awaiting(tx, claim.name, claim.partition)

            def learn() -> None:
                self.books.settled(*key, moved.event)
                self.mark(f"settle {answer}")
                found = self.lab.sql(_UNDER, **claim.held, run=claim.run_id)
                assert [each["event"] for each in found] == [f"step.{moved.event}"], (
                    "the rows answer for the commit"
                )

            return learn

        if rivals:
            self.mark("two settle")
        happened = self.act(work, session, hold=hold)
        waits = session.doing is not None
        assert happened or waits or not is_held or not alone, "a claim that is held did not settle"
        return happened

    def move(self, tx: Any, claim: Claim, answer: str) -> steps.Moved | None:
        """Settle as this answer asks for; None: the claim is no more."""
        held, name, error = claim.held, claim.name, ExecutionError("no")
        limits = {"failures": claim.failures, "max_failures": claim.max_failures, "policy": AT_ONCE}
        match answer:
            case "value" | "large":
                prepared = self.prepared(claim) if answer == "large" else None
                return steps.succeed(tx, held, writes(claim, prepared)(tx) or None)
            case "error" | "later":
                delay = 30.0 if answer == "later" else None
                return steps.fail_or_retry(tx, held, error, name=name, delay=delay, **limits)
            case "fail":
                return steps.end(tx, held, StepStatus.FAILED, error.to_dict(), name=name, failed_attempts=1)
            case "skip":
                return steps.end(tx, held, StepStatus.SKIPPED, {"message": "none"}, name=name)
            case "back":
                return steps.give_back(tx, held, "stop")
        moved = steps.end(tx, held, StepStatus.CANCELLED, {"message": "enough"}, name=name)
        if moved is not None:
            tx.row(SQL["cancel"], run=claim.run_id, reason="enough", actor="t", actor_type="step")
        return moved

    def prepared(self, claim: Claim) -> int | None:
        """A large value lies ready, in a transaction of its own; None if this attempt has settled one."""
        try:
            return values.prepare(self.lab.database, new_value(claim, b"much"))
        except AssertionError:
            return None

    def go_on(self, pick: int, hold: bool) -> None:
        """A settlement claims the next step in its own transaction, and promises wake-ups to the rest."""
        session = chosen([each for each in self.open() if each.settled], pick)
        if session is None or session.worker is None:
            return
        worker = session.worker
        session.settled = False

        def work(tx: Any) -> Learn:
            claim = steps.claim_next(tx, QUEUE, worker=worker, knows=[TASK], relaxed=False)
            steps.promise(tx, QUEUE, min_wakeups=8)
            return self.claimed(claim, "went on") if claim else lambda: None

        self.act(work, session)

    # --- deaths, clocks, sweeps -------------------------------------------------------------------------------------------------

    def die(self, which: int, *, crash: bool) -> None:
        """A process dies with its connections, and its keeper sees it."""
        if self.is_busy():
            return
        worker = self.workers[which]
        for session in self.stage.sessions:
            if session.worker == worker and not session.is_idle:
                self.cut_off(session)
        self.workers[which] = self.lab.worker(self.node)

        def work() -> None:
            if self.release(worker, crash=crash):
                self.mark("crash")

        self.in_house(work)

    def release(self, worker: int, *, crash: bool) -> list[Any]:
        asked = {"workers": [worker], "crash": int(crash), "loss": int(not crash), "reason": "died"}
        released = self.lab.database.attempt(lambda tx: tx.rows(SQL["release_dead"], **asked, **_LIMITS))
        self.lab.database.once(SQL["bury"], workers=[worker])
        return released

    def lose_leases(self) -> None:
        """The node falls silent, is found lost, and beats again."""
        if self.is_busy():
            return
        self.lab.sql(_SILENT)
        self.lab.sql(_STEADY)

        def work() -> None:
            if self.lab.database.once(SQL["release_lost"], lease=2.0, loss_limit=1000, limit=2):
                self.mark("lost")
            self.lab.database.once(
                SQL["beat"], node=self.node.key, alive=[*self.workers, self.executor.worker_id], lease=LONG
            )

        self.in_house(work)

    def advance(self, pick: int, hold: bool) -> None:
        self.lab.clock.advance(seconds=(1, 31, 50)[pick % 3])

    def sweep(self, pick: int, hold: bool) -> None:
        """All that the ticker does: due, late, cancelling, lost, lanes, wake-ups."""

        if self.is_busy():
            return

        def work() -> None:
            late = self.lab.scalar(_LATE)
            self.pacer.hear()
            self.pacer._sweep()
            if late:
                self.mark("expired")

        self.in_house(work)

    def work(self, pick: int, hold: bool) -> None:
        """A worker claims, calls and settles, in transactions of its own."""

        if self.is_busy():
            return

        def work() -> None:
            if self.executor.work(None, QUEUE, observer=self.books):
                self.mark("worked")

        self.lab.answers = dict.fromkeys("abcdmn", lambda claim: Done(write=writes(claim)))
        self.in_house(work)

    # --- the story ------------------------------------------------------------------------------------------------------------

    @rule(
        act=st.sampled_from(LIKELY_ACTS),
        pick=st.sampled_from(range(9973)),
        hold=st.sampled_from([True, True, False]),
    )
    def something_happens(self, act: str, pick: int, hold: bool) -> None:
        """One rule that draws all: hypothesis leaves whole rules out of most stories, and here each stands on others."""
        getattr(self, act)(pick, hold)

    # --- what always holds ----------------------------------------------------------------------------------------------------

    @invariant()
    def what_is_committed_breaks_no_rule(self) -> None:
        if hasattr(self, "books"):
            self.books.compare()

    def teardown(self) -> None:
        """Whatever happened, everybody ends what he began, and all runs come to their end."""
        if not hasattr(self, "stage"):
            return
        try:
            self.everybody_ends()
            self.all_runs_end()
            self.books.compare()
        finally:
            self.stage.close()

    def everybody_ends(self) -> None:
        while any(not each.is_idle for each in self.stage.sessions) or self.stage.house.doing is not None:
            for session in self.open():
                session.commit()
            self.settle_down(waited=True)

    def all_runs_end(self) -> None:
        for worker in self.workers:
            self.release(worker, crash=False)
        for run in self.run_ids("pending", "running"):
            acts.resume(self.doer, run, actor="t")
        for _ in range(60):
            self.pacer.hear()
            self.pacer._sweep()
            while self.executor.work(None, QUEUE, observer=self.books):
                pass
            if self.lab.scalar("SELECT count(*) FROM flowstone.runs WHERE finished_at IS NULL") == 0:
                return
            self.lab.clock.advance(seconds=61)
        raise AssertionError(f"these did not end: {self.lab.reasons()}")


T = TypeVar("T")


def chosen(options: Sequence[T], pick: int) -> T | None:
    """One of them, None if there are none."""
    return options[pick % len(options)] if options else None


_LIMITS = {"crash_limit": 1000, "loss_limit": 1000}
_PARKED = sql("SELECT 1 AS yes FROM flowstone.steps WHERE id = %(id)s AND parked = 'maker'")
_SILENT = (
    "UPDATE flowstone.workers SET alive_until = flowstone.now() - interval '1 second' WHERE status = 'live'"
)
_STEADY = "UPDATE flowstone.pacer SET steady_since = flowstone.now() - interval '10 minutes', beat_at = flowstone.now()"
_LATE = "SELECT count(*) FROM flowstone.runs WHERE deadline_at <= flowstone.now() AND status IN ('pending', 'running')"
_UNDER = SQL["settled_under"].text


@dataclasses.dataclass(frozen=True)
class Explored:
    """What the stories of one profile came to."""

    seen: Counter[str]
    breach: BaseException | None


def explore(lab_: Lab, *, examples: int, lengths: Sequence[int], derandomize: bool) -> Explored:
    """Tell so many stories of the first length, and of the others for as long as something was not reached."""

    class Bound(Interleaved):
        lab = lab_
        seen: ClassVar[Counter[str]] = Counter()

    for length in lengths:
        told = settings(
            max_examples=examples,
            stateful_step_count=length,
            deadline=None,
            derandomize=derandomize,
            database=None,
            phases=(
                Phase.generate,
            ),  # shrinking over real connections takes minutes; the story is printed as it was
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        )
        try:
            run_state_machine_as_test(Bound, settings=told)
        except Exception as breach:  # noqa: BLE001 - raised by the test that asks for it
            return Explored(Bound.seen, breach)
        if Bound.seen.keys() == REACHED.keys():
            break
    return Explored(Bound.seen, None)


@pytest.fixture(scope="module")
def explored(module_lab: Lab) -> Explored:
    """The same short stories each time."""
    return explore(module_lab, examples=25, lengths=(60, 80, 100), derandomize=True)


@pytest.mark.timeout(240)
def test_no_interleaving_of_transactions_breaks_a_rule(explored: Explored) -> None:
    if explored.breach is not None:
        raise explored.breach


@pytest.mark.timeout(240)
@pytest.mark.parametrize("what", sorted(REACHED))
def test_the_stories_reach(explored: Explored, what: str) -> None:
    assert explored.seen[what], f"no story in which {REACHED[what]}"


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_no_interleaving_breaks_a_rule_in_the_long_form(module_lab: Lab) -> None:
    found = explore(module_lab, examples=150, lengths=(150,), derandomize=False)
    if found.breach is not None:
        raise found.breach
    assert found.seen.keys() == REACHED.keys()
