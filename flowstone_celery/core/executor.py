"""Claim → call → settle: one step after the other, for one time slice.

The pipeline of a step is `_claim`, `_answer`, `_settle`. A settlement is one transaction: what the handler writes (value, lineage),
the step's transition with its history, the children that became ready, the run's counter, the claim of the next step, and the
wake-ups promised to the rest. If the worker's fence is stale nothing of it happens.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from flowstone_celery import faults
from flowstone_celery.core import lanes, runs, settle, steps
from flowstone_celery.core.barrier_model import Scattered
from flowstone_celery.core.hands import Hands
from flowstone_celery.core.model import AsyncHandler, Claim, WakeUp
from flowstone_celery.core.settle import Failed, GiveBack, InLineWith, Rests, Verdict, error_of, verdict_of
from flowstone_celery.core.side_by_side import SideBySide
from flowstone_celery.core.statements import SQL
from flowstone_celery.core.steps import Moved
from flowstone_celery.core.tell import about, tell_scattered, tell_settled
from flowstone_celery.errors import CommitUnknown, DatabaseUnavailable, ExecutionError
from flowstone_celery.states import Phase, StepStatus
from flowstone_celery.telemetry import emit

if TYPE_CHECKING:
    from uuid import UUID

    from flowstone_celery.config import Settings
    from flowstone_celery.core.interrupts import Interrupts
    from flowstone_celery.core.model import Carrier, Handler
    from flowstone_celery.core.observing import Observer
    from flowstone_celery.core.workers import WorkerProcess
    from flowstone_celery.db.database import Database, Tx

T = TypeVar("T")


class _Stale(Exception):  # noqa: N818 - an event, not an error: rolls the settlement back
    """Another claim holds the step now."""


class Turn(Protocol):
    """What may follow a step that settles."""

    @property
    def beside(self) -> bool:
        """Whether it will share its process with others."""

    def may_go_on(self) -> bool:
        """Whether anything may."""

    def knows(self) -> Sequence[str]:
        """The task names that may."""


@dataclass(slots=True)
class Slice:
    """How long one message may go on with further steps."""

    until: float
    starts_left: int
    draining: Callable[[], bool]
    knows: Callable[[], Sequence[str]]
    beside: bool = False

    def may_go_on(self) -> bool:
        """Whether time and starts are left."""
        return self.starts_left > 0 and time.monotonic() < self.until and not self.draining()


@dataclass(frozen=True, slots=True)
class Settled:
    """What a settlement did: how the step moved (None: it was another's by then), and the step that was claimed with it."""

    moved: Moved | None
    following: Claim | None = None


class Executor:
    """Runs steps in this process."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        handlers: Mapping[str, Handler],
        carrier: Carrier,
        worker: WorkerProcess,
        knows: Callable[[], Sequence[str]],
        interrupts: Interrupts,
    ) -> None:
        """Put the parts together.

        Args:
            database: where the rows are.
            settings: slice, wake-ups and limits.
            handlers: what does the work of each kind of step.
            carrier: sends the wake-ups that settlements promise.
            worker: this process's row, under which it claims.
            knows: the task names that this process can run now.
            interrupts: how running code is told to end.
        """
        self._database = database
        self._settings = settings
        self._handlers = handlers
        self._async_handlers = {
            kind: each for kind, each in handlers.items() if isinstance(each, AsyncHandler)
        }
        self._carrier = carrier
        self._worker = worker
        self._knows = knows
        self._interrupts = interrupts
        self._stopping = threading.Event()
        self._hands = Hands(self, handlers, interrupts)

    @property
    def database(self) -> Database:
        """Where the rows are."""
        return self._database

    @property
    def settings(self) -> Settings:
        """This process's settings."""
        return self._settings

    @property
    def worker_id(self) -> int:
        """The id under which this process claims."""
        return self._worker.id

    def stop(self) -> None:
        """No further step begins, and nothing waits for a database that is away."""
        self._stopping.set()

    def work(
        self,
        step: int | None,
        queue: str,
        *,
        only_run: UUID | None = None,
        observer: Observer | None = None,
        going_on: bool = True,
    ) -> int:
        """Run this step if it is still there, else the queue's next, and go on for a slice. Answers how many ran.

        Raises:
            DatabaseUnavailable: the database is away and nothing was claimed (a claimed step waits for it instead).
        """
        faults.point("worker.received")
        if self._interrupts.retired:
            return 0
        turn = self._slice(going_on=going_on)
        claim = self._claim(step, queue, only_run)
        count = 0
        while claim is not None:
            if claim.task in self.awaiting(claim.kind):
                beside = SideBySide(self, self._handlers, self._interrupts, turn, only_run, observer)
                started, claim = beside.work(claim, self._settings)
                count += started
                continue
            count += 1
            turn.starts_left -= 1
            claim = self._perform(claim, turn, only_run, observer)
        return count

    def awaiting(self, kind: str | None = None) -> Sequence[str]:
        """The task names whose steps are done side by side (of this kind, or of all)."""
        handlers = [each for name, each in self._async_handlers.items() if kind in (None, name)]
        if len(handlers) == 1:
            return handlers[0].awaiting()
        return [name for each in handlers for name in each.awaiting()]

    def _slice(self, *, going_on: bool) -> Slice:
        return Slice(
            time.monotonic() + self._settings.slice_seconds,
            self._settings.slice_starts if going_on else 0,
            lambda: self.is_leaving,
            self._knows,
        )

    def _claim(self, step: int | None, queue: str, only_run: UUID | None) -> Claim | None:
        """The addressed step, or, where it is gone, the next of the queue."""
        claim = self._try_claim(step, queue, only_run)
        if claim is None and self._worker.is_forgotten():
            claim = self._try_claim(step, queue, only_run)
        faults.point("claim.after_commit")
        return claim

    def _try_claim(self, step: int | None, queue: str, only_run: UUID | None) -> Claim | None:
        worker, knows = self._worker.id, self._knows()

        return self._database.by_statement(
            lambda tx: steps.claim(tx, step, queue=queue, worker=worker, knows=knows, only_run=only_run)
        )

    def claim_beside(self, queue: str, turn: Turn, only_run: UUID | None) -> Claim | None:
        """The queue's next step of those that this turn allows."""
        worker, knows, beside = self._worker.id, turn.knows(), turn.beside
        claim = self._database.by_statement(
            lambda tx: steps.claim_next(
                tx, queue, worker=worker, knows=knows, only_run=only_run, beside=beside
            )
        )
        faults.point("claim.after_commit")
        return claim

    def _perform(
        self, claim: Claim, turn: Slice, only_run: UUID | None, observer: Observer | None
    ) -> Claim | None:
        begun = time.monotonic()
        self.begin(claim, observer)
        answer = self._answer(claim, turn, observer)
        settled = self.end(claim, answer, turn, only_run, observer, begun)
        if settled.moved is None and turn.may_go_on():
            return self._claim(None, claim.queue, only_run)
        return settled.following

    def begin(self, claim: Claim, observer: Observer | None) -> None:
        """Whoever watches knows that the step is about to be called."""
        if observer:
            observer.started(claim)
        emit("flowstone.step.start", **about(claim), queue=claim.queue, worker=claim.worker_id)

    def end(
        self,
        claim: Claim,
        answer: Verdict,
        turn: Turn,
        only_run: UUID | None,
        observer: Observer | None,
        begun: float,
    ) -> Settled:
        """The step is settled as answered, and whoever watches knows; what asks the process to go is raised then."""
        answer, settled = self._settle(claim, answer, turn, only_run)
        error = error_of(answer)
        event = settled.moved.event if settled.moved else "stale"
        seconds = time.monotonic() - begun
        if observer:
            observer.ended(claim, event, error, seconds)
        tell_settled(claim, settled.moved, error, seconds)
        if isinstance(answer, Scattered) and settled.moved is not None:
            tell_scattered(self._database, claim)
        if isinstance(answer, GiveBack) and answer.interrupt is not None:
            raise answer.interrupt
        return settled

    # --- call -----------------------------------------------------------------------------------------------------------------

    def _answer(self, claim: Claim, turn: Slice, observer: Observer | None) -> Verdict:
        """What the handler answers; an exception is a failed attempt, an interrupt what its reason says."""
        if claim.phase == Phase.ITEM:
            return self._hands.work(claim, turn, observer)
        live = self._interrupts.call(claim, self.patiently)
        try:
            return self._handlers[claim.kind](claim, live)
        except BaseException as error:  # noqa: BLE001 - settled for what it means; an exit is raised again once the step is given back
            return verdict_of(error, claim, leaving=self.is_leaving)

    @property
    def is_leaving(self) -> bool:
        """Whether this process was told to stop."""
        return self._stopping.is_set() or self._interrupts.draining

    # --- settle ---------------------------------------------------------------------------------------------------------------

    def _settle(
        self, claim: Claim, answer: Verdict, turn: Turn, only_run: UUID | None
    ) -> tuple[Verdict, Settled]:
        """Settle; an answer that cannot be written is a failed attempt, so that no step is held for ever."""
        try:
            return answer, self._settle_as(claim, answer, turn, only_run)
        except (DatabaseUnavailable, faults.FaultInjectedError):
            raise
        except Exception as error:
            if isinstance(answer, InLineWith):  # one that closes its barrier, or that the rows refuse
                answer.part.settle_all()
                return self._settle(claim, Rests.IN_LINE, turn, only_run)
            if isinstance(answer, Failed | Rests):
                raise
            if claim.phase == Phase.ITEM:  # a hand that failed would leave what it holds to nobody
                return self._settle(claim, Rests.IN_LINE, turn, only_run)
            failed = Failed(ExecutionError.of(error, claim.name, claim.partition), retryable=True)
            return failed, self._settle_as(claim, failed, turn, only_run)

    def _settle_as(self, claim: Claim, answer: Verdict, turn: Turn, only_run: UUID | None) -> Settled:
        """Settle, however long the database is away; a commit without an answer is looked up in the rows."""
        settled = Settled(None)
        last: Tx | None = None

        def work(tx: Tx) -> None:
            nonlocal settled, last
            last = tx
            settled = self._settle_in(tx, claim, answer, turn, only_run)
            faults.point("settle.before_commit")

        def once() -> Settled:
            try:
                self._database.attempt(work)
            except CommitUnknown:
                if not self.patiently(lambda: self._is_settled(claim)):
                    return once()
                assert last is not None
                last.committed()
            return settled

        try:
            result = self.patiently(once)
        except _Stale:
            return Settled(None)
        faults.point("settle.after_commit" if result.following is None else "continue.after_commit")
        return result

    def _settle_in(self, tx: Tx, claim: Claim, answer: Verdict, turn: Turn, only_run: UUID | None) -> Settled:
        asked = settle.move_later(tx, claim, answer)
        next_ = None
        if turn.may_go_on() and not isinstance(answer, GiveBack):
            # Before it is known whether the settlement holds: if not, the claim is rolled back with it.
            next_ = steps.claim_later(
                tx,
                None,
                queue=claim.queue,
                worker=claim.worker_id,
                knows=turn.knows(),
                only_run=only_run,
                relaxed=False,
                beside=turn.beside,
            )
        moved = asked()
        if moved is None:
            raise _Stale
        following = next_() if next_ else None
        freed = steps.free_awaiting(tx, claim.name, claim.partition) if moved.awaited else []
        wakeups = self._promise_rest(tx, claim, (*moved.opened, *freed), following)
        tx.after_commit(lambda: self.send(wakeups))
        if left := moved.left_lane:
            tx.after_commit(lambda: self._let_next_in(*left))
        if moved.event == StepStatus.CANCELLED:
            tx.after_commit(lambda: self._finish_cancel(claim))
        return Settled(moved, following)

    def _promise_rest(
        self, tx: Tx, claim: Claim, opened: Sequence[str], following: Claim | None
    ) -> list[WakeUp]:
        """Wake-ups for what became ready and is not gone on with; at the end of a slice, for the queue."""
        queues = list(opened)
        if following is None:
            queues.append(claim.queue)
        elif following.queue in queues:
            queues.remove(following.queue)
        return steps.promise_all(tx, queues, min_wakeups=self._settings.min_wakeups)

    def _finish_cancel(self, claim: Claim) -> None:
        """Do now what the sweep would do later; if the database is away, it will."""
        with suppress(DatabaseUnavailable):
            runs.cancel_steps(self._database, claim.run_id)

    def _let_next_in(self, tenant: str, lane: str) -> None:
        """Do now what the sweep would do later; if the database is away, it will."""
        with suppress(DatabaseUnavailable):
            lanes.admit(self._database, self._carrier, self._settings, tenant, lane)

    def send(self, wakeups: Sequence[WakeUp]) -> None:
        """What was promised is on its way."""
        faults.point("promise.after_commit")
        if wakeups:
            self._carrier.send(wakeups)

    def _is_settled(self, claim: Claim) -> bool:
        found = self._database.first(
            SQL["settled_under"], run=claim.run_id, step=claim.id, fence=claim.fence, worker=claim.worker_id
        )
        return found is not None

    def patiently(self, act: Callable[[], T]) -> T:
        """Do it as soon as the database is there; a claimed step is worth waiting for."""
        pause = 0.05
        while True:
            try:
                return act()
            except CommitUnknown:
                raise
            except DatabaseUnavailable:
                if self._stopping.is_set() or self._interrupts.draining:
                    raise
                self._stopping.wait(pause * random.uniform(0.8, 1.2))
                pause = min(pause * 2, 1.0)
