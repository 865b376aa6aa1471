"""Steps side by side: where a window takes its steps from, and what each of them is.

A step whose work is a coroutine turns its message's slice into a window. Further steps of the same queue that await too are claimed
under the same guards and in the same order until the window is full; each is settled when it ends, and what it makes ready, or the
next of the queue, takes its place in the same transaction. Steps that do not await are left to other messages, or follow the window.

The slice's end is the end of starting, with one exception: while a step that began within the slice still runs, the process could
not do anything else anyway, so free places go on being filled. When the last of those has ended nothing begins any more, so a window
cannot renew itself for ever: other queues get their turn after one longest step at most.

A step that a process has died with, or that lost its worker, runs alone: if it is poison its crash counts, and harms nobody else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from flowstone_celery.core.interrupts import STOP
from flowstone_celery.core.model import Answer
from flowstone_celery.core.settle import verdict_of
from flowstone_celery.core.window import Window
from flowstone_celery.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from uuid import UUID

    from flowstone_celery.config import Settings
    from flowstone_celery.core.executor import Executor, Settled, Slice, Turn
    from flowstone_celery.core.interrupts import AwaitingCall, Interrupts
    from flowstone_celery.core.model import AsyncHandler, Awaited, Claim, Handler
    from flowstone_celery.core.observing import Observer
    from flowstone_celery.core.settle import Verdict


class SideBySide:
    """The source of one window: the steps of one queue that await."""

    def __init__(
        self,
        executor: Executor,
        handlers: Mapping[str, Handler],
        interrupts: Interrupts,
        turn: Slice,
        only_run: UUID | None,
        observer: Observer | None,
    ) -> None:
        """Belong to one message's slice."""
        self.executor = executor
        self.interrupts = interrupts
        self.observer = observer
        self.only_run = only_run
        self.slice = turn
        self.handlers = handlers
        self.alone = False
        self.leaving = False
        self.context = copy_context()
        self._closed = False
        self._queue = ""
        self._started = 0
        self._left: Claim | None = None
        self._asked_all = False
        self._calls: set[AwaitingCall] = set()
        self._early: set[tuple[int, int]] = set()
        self._lock = threading.Lock()

    def work(self, claim: Claim, settings: Settings) -> tuple[int, Claim | None]:
        """This step and all that were taken beside and after it are settled. Answers how many, and what was claimed but is not for here."""
        self._queue = claim.queue
        self.alone = is_suspect(claim)
        width = 1 if self.alone else settings.async_width
        Window(self, width=width, helpers=settings.pool_size).run(self.unit(claim))
        if self._left is None and not self._asked_all and self.slice.may_go_on():
            self._left = self.executor.claim_beside(self._queue, self.slice, self.only_run)
        return self._started, self._left

    # --- what the window asks -------------------------------------------------------------------------------------------------

    def may_take(self) -> bool:
        """Within the slice; and later while a step that began within it runs still."""
        return not self.alone and self.may_go_on()

    def take(self) -> StepUnit | None:
        """The queue's next step that awaits; none while the database is away."""
        with suppress(DatabaseUnavailable):
            claim = self.executor.claim_beside(self._queue, _Beside(self), self.only_run)
            return None if claim is None else self.unit(claim)
        return None

    def pulse(self) -> None:
        """Calls that are to end hear of it; the observer tells what it saw."""
        if self.observer:
            self.observer.pulse()
        with suppress(DatabaseUnavailable):
            self.interrupts.tell(self._calls.copy())

    def close(self) -> None:
        """Nothing begins any more, neither here nor after the window."""
        self._closed = True

    def leave(self) -> None:
        """The process is asked to go: what runs is given back."""
        self.leaving = True
        for call in self._calls.copy():
            call.demand(STOP)

    # --- what its steps ask ---------------------------------------------------------------------------------------------------

    def unit(self, claim: Claim) -> StepUnit:
        """The claimed step as a piece of work."""
        with self._lock:
            self._started += 1
            if self._is_within():
                self._early.add((claim.id, claim.fence))
            self.slice.starts_left -= 1
        call = self.interrupts.call_beside(claim, self.executor.patiently)
        self._calls.add(call)
        if self.leaving:
            call.demand(STOP)
        return StepUnit(self, claim, call)

    def turn(self, *, last: bool) -> Turn:
        """What may follow a step that settles: if it is the last, anything."""
        return self.slice if (last or self.alone) and not self._closed else _Beside(self)

    def may_go_on(self) -> bool:
        """Whether another step may begin beside those that run."""
        if self._closed or self.slice.draining():
            return False
        return self._is_within() or bool(self._early)

    def over(self, call: AwaitingCall) -> None:
        """The step's code has ended: it keeps the window open no longer."""
        self._early.discard((call.claim.id, call.claim.fence))

    def settled(self, call: AwaitingCall) -> None:
        """Nothing reaches the step any more."""
        self._calls.discard(call)
        self.interrupts.over(call)

    def following(self, settled: Settled, *, last: bool) -> StepUnit | None:
        """What was claimed with a settlement, if it is for this window; anything else follows the window."""
        claim = settled.following
        if last or self.alone:
            self._asked_all = settled.moved is not None
            if claim is not None and (self.alone or not self._is_for_here(claim)):
                self._left = claim
                return None
        return None if claim is None else self.unit(claim)

    def _is_for_here(self, claim: Claim) -> bool:
        return claim.task in self.executor.awaiting(claim.kind) and not is_suspect(claim)

    def _is_within(self) -> bool:
        return self.slice.starts_left > 0 and time.monotonic() < self.slice.until


def is_suspect(claim: Claim) -> bool:
    """Whether a process has died with this step, or its worker was lost: it shares its process with no other."""
    return claim.crashes > 0 or claim.losses > 0


@dataclass(frozen=True, slots=True)
class _Beside:
    """The turn of a step that settles while others run."""

    room: SideBySide
    beside: bool = True

    def may_go_on(self) -> bool:
        return self.room.may_go_on()

    def knows(self) -> Sequence[str]:
        return self.room.executor.awaiting()


class StepUnit:
    """One claimed step in a window."""

    def __init__(self, room: SideBySide, claim: Claim, call: AwaitingCall) -> None:
        """Belong to this window; the context is a copy of the message's own."""
        self.context = room.context.copy()
        self._room = room
        self._claim = claim
        self._call = call
        self._begun = time.monotonic()
        self._work: Awaited | None = None
        self._result: object = None
        self._error: BaseException | None = None
        self._verdict: Verdict | None = None

    def load(self) -> bool:
        """What the step needs is there, or its verdict is known."""
        return self.context.run(self._load)

    def _load(self) -> bool:
        self._room.executor.begin(self._claim, self._room.observer)
        try:
            found = cast("AsyncHandler", self._room.handlers[self._claim.kind]).begin(self._claim, self._call)
        except BaseException as error:  # noqa: BLE001 - settled for what it means
            self._ends_with(error)
            return False
        if isinstance(found, Answer):
            self._verdict = found
            return False
        self._work = found
        return True

    def run(self) -> Coroutine[Any, Any, object]:
        """The user's coroutine; whatever it raises is kept, so that no exit of its own ends the loop."""
        return Told(self._kept(), self._call)

    async def _kept(self) -> None:
        assert self._work is not None
        try:
            self._call.enter()
            self._result = await self._work.run()
        except BaseException as error:  # noqa: BLE001 - settled for what it means
            self._error = error

    def runs(self, cancel: Callable[[], None]) -> None:
        """Interrupts reach its code from now on."""
        self._call.cancelled_by(cancel)

    def is_cancelled_now(self) -> bool:
        """Whether its code is to be cancelled at the await where it stands."""
        return self._call.deliver()

    def store(self, error: BaseException | None) -> None:
        """Its value is stored, what it held is given back, its verdict is known."""
        self.context.run(self._store, self._call.interrupted or self._error or error)

    def _store(self, error: BaseException | None) -> None:
        assert self._work is not None
        try:
            self._work.close()
            if error is None:
                self._verdict = self._work.answer(self._result)
        except BaseException as found:  # noqa: BLE001 - settled for what it means
            error = error or found
        if error is not None:
            self._ends_with(error)

    def _ends_with(self, error: BaseException) -> None:
        leaving = self._room.leaving or self._room.executor.is_leaving
        self._verdict = verdict_of(error, self._claim, leaving=leaving)

    def settle(self, *, last: bool) -> tuple[StepUnit | None, bool]:
        """The step is settled; what was claimed with it takes its place."""
        room, verdict = self._room, self._verdict
        assert verdict is not None
        room.over(self._call)
        try:
            settled = self.context.run(
                room.executor.end,
                self._claim,
                verdict,
                room.turn(last=last),
                room.only_run,
                room.observer,
                self._begun,
            )
        finally:
            room.settled(self._call)
        more = settled.moved is None or len(settled.moved.opened) > 1
        return room.following(settled, last=last), more


class Told(Coroutine[Any, Any, object]):
    """A coroutine that says when its code runs: between two awaits."""

    def __init__(self, inner: Coroutine[Any, Any, object], call: AwaitingCall) -> None:
        self._inner = inner
        self._call = call

    def send(self, value: Any) -> Any:
        """As a coroutine's own."""
        self._call.step_in()
        try:
            return self._inner.send(value)
        finally:
            self._call.step_out()

    def throw(self, *error: Any) -> Any:
        """As a coroutine's own."""
        self._call.step_in()
        try:
            return self._inner.throw(*error)
        finally:
            self._call.step_out()

    def close(self) -> None:
        """As a coroutine's own."""
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, object]:
        return (yield from self._inner.__await__())
