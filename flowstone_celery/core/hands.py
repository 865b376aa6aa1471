"""Hands: the steps that do a barrier's items. What a kind of step offers so that its items can be done, and one slice of a hand.

A hand claims a range of items, does them, settles them in parts, and claims the next one until its slice ends. Ranges are small at
first and grow as the items turn out to be quick. An item that takes long keeps nothing from its neighbours: a thread that watches
settles those that have ended and gives those back that were not begun. Of a range that a process died with, each item is settled
before the next begins.
"""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from flowstone_celery import faults
from flowstone_celery.core import barriers, items_beside
from flowstone_celery.core.hand_call import HandCall
from flowstone_celery.core.hand_desk import Desk, Workplace
from flowstone_celery.core.hand_pace import SLOW_SECONDS, Paces
from flowstone_celery.core.interrupts import CANCELLED, Interrupted
from flowstone_celery.core.items import SPECIAL, Judge, Untouched, shown
from flowstone_celery.core.settle import GiveBack, InLineWith, Rests
from flowstone_celery.errors import DatabaseUnavailable, ExecutionError
from flowstone_celery.outcomes import Cancel
from flowstone_celery.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flowstone_celery.core.barrier_model import Barrier, Ended, ItemClaim, Range
    from flowstone_celery.core.executor import Slice
    from flowstone_celery.core.hand_pace import Pace
    from flowstone_celery.core.interrupts import Interrupts
    from flowstone_celery.core.model import Call, Claim, Handler
    from flowstone_celery.core.observing import Observer
    from flowstone_celery.core.settle import Verdict

_AFTER_ERROR = 0.5
"""Seconds before a hand whose slice broke off is in the line again."""
_SOONEST = 0.005
"""Seconds between two looks at least."""


class ItemCalls(Protocol):
    """The items' code with all that it takes, for one slice of a hand."""

    @property
    def awaiting(self) -> bool:
        """Whether the items' code is a coroutine: `run` is used then, several at a time, and never `call`."""

    def call(self, item: ItemClaim) -> object:
        """The user's code for this item, inside `call.user_code()`: what it returns is returned, what it raises is raised.

        A value, or an outcome: those are understood by the hand.
        """

    async def run(self, item: ItemClaim) -> object:
        """The same as a coroutine, in a loop: interrupts are the loop's affair, `call.user_code()` is not entered."""

    def ended(self, item: ItemClaim, value: object) -> bytes:
        """The value as canonical JSON, as it is stored. Never given an outcome: a `Value` comes as what it holds.

        Raises:
            InvalidValue, ValueTooLarge: it cannot be stored; the item has failed for good, without another attempt.
        """

    def close(self) -> None:
        """What `items` took is given back, however the slice ended."""


@runtime_checkable
class ItemHandler(Protocol):
    """A kind of step that scatters: the same object as its `Handler`."""

    def items(self, hand: Claim, barrier: Barrier, call: Call) -> ItemCalls:
        """Load what the items' code needs: asked once for each slice of a hand, in a thread that may block.

        What it raises is a failed attempt of each item that the hand holds then.

        Args:
            hand: the hand's own claim; its `name` and `partition` are the scattering step's.
            barrier: whose items are to be done.
            call: for `user_code`, `check` (raises if the item that calls it is to end) and `patiently`.
        """


class Hands:
    """The hands of one process, one at a time in each of its threads."""

    def __init__(self, place: Workplace, handlers: Mapping[str, Handler], interrupts: Interrupts) -> None:
        """Belong to this executor."""
        self.place = place
        self.handlers = handlers
        self.interrupts = interrupts
        self.paces = Paces()

    def work(self, claim: Claim, turn: Slice, observer: Observer | None) -> Verdict:
        """One slice of this hand; answers how the hand itself is to be settled.

        What goes wrong around the items is told, and the hand tries again: it belongs to many items, and fails none of them.
        """
        try:
            return Hand(self, claim, turn, observer).work()
        except (DatabaseUnavailable, faults.FaultInjectedError):
            raise
        except Exception as error:  # noqa: BLE001 - a hand that nobody settles would be held for ever
            told = ExecutionError.of(error, claim.name, claim.partition)
            about = {"asset": claim.name, "partition": claim.partition, "run_id": str(claim.run_id)}
            kind = {"type": type(error).__name__, "code": told.code, "retryable": True, "count": 1}
            emit("flowstone.error", **kind, **about, message=f"a hand of {told.message}")
            threading.Event().wait(_AFTER_ERROR)
            return Rests.IN_LINE

    def handler(self, claim: Claim) -> ItemHandler:
        """What does the items of this hand.

        Raises:
            ExecutionError: its kind of step has none.
        """
        found = self.handlers[claim.kind]
        if not isinstance(found, ItemHandler):
            raise ExecutionError(f"steps of the kind {claim.kind!r} have no items", asset=claim.name)
        return found


class Hand:
    """One slice of one hand."""

    def __init__(self, hands: Hands, claim: Claim, turn: Slice, observer: Observer | None) -> None:
        """Begin before the first range."""
        self.place = hands.place
        self.claim = claim
        self.turn = turn
        self.interrupts = hands.interrupts
        self.call = HandCall(claim, hands.interrupts, hands.place.patiently)
        self.begun = 0.0
        """When the item that runs began (monotonic seconds); 0 while none does."""
        self._hands = hands
        self._observer = observer
        self._calls: ItemCalls | None = None
        self._eye: Eye | None = None

    def work(self) -> Verdict:
        """Ranges one after the other until the slice ends, nothing is left, or something asks the hand to go."""
        barrier = self.place.patiently(self._read)
        if barrier is None:
            return Rests.AT_END
        self.barrier, self.policy = barrier, barrier.policy
        self.desk = Desk(self.place, self.claim, barrier)
        self.judge = Judge(barrier, self._stored, lambda: self.place.is_leaving)
        self.interrupts.hears(self.call)
        try:
            verdict = self._ranges()
        except Untouched as asked:
            verdict = self._left(asked)
        finally:
            self._end()
        if self._observer:
            self._observer.did(self.claim, self.desk.told)
        return verdict

    def _read(self) -> Barrier | None:
        assert self.claim.barrier_id is not None, "what is claimed in the phase item is a hand"
        return barriers.of_hand(self.place.database, self.claim)

    def _end(self) -> None:
        if self._eye is not None:
            self._eye.close()
        if self._calls is not None:
            self._calls.close()

    # --- ranges ---------------------------------------------------------------------------------------------------------------

    def _ranges(self) -> Verdict:
        single = self.policy.dispatch == "item"
        pace = self._hands.paces.of(self.barrier.id, self.policy.width, single=single)
        while not self.place.is_leaving:
            held = self.desk.claim(pace.size, self.policy.width)
            if held is None:
                return Rests.IDLE
            self.turn.starts_left -= 1
            if self._observer:
                self._observer.does(self.claim, _about(held))
            begun = time.monotonic()
            self.desk.keeps_last = single
            self._do(held, pace)
            if self.judge.cancel is not None or not self.desk.is_of_use:
                self.desk.settle_all()
            if self.judge.cancel is not None:
                return Cancel(self.judge.cancel.reason or "cancelled")
            if not self.desk.is_of_use:
                return Rests.AT_END
            if self._calls is None or not self._calls.awaiting:
                pace.measured(self.desk.last, time.monotonic() - begun)
            if self.desk.keeps:
                return InLineWith(self.desk)
            if single or not self.turn.may_go_on():
                return Rests.IN_LINE
        return GiveBack("the worker stops")

    def _do(self, held: Range, pace: Pace) -> None:
        calls = self._begun(held)
        if calls is None:
            self.desk.settle()
        elif calls.awaiting:
            items_beside.do(self, calls, held, pace)
        else:
            self._eye = self._eye or Eye(self)
            self._one_by_one(calls, alone=held.alone)

    def _begun(self, held: Range) -> ItemCalls | None:
        """What does the items; None if it cannot be made: then each of them has failed an attempt."""
        if self._calls is not None:
            return self._calls
        try:
            self._calls = self._hands.handler(self.claim).items(self.claim, self.barrier, self.call)
        except BaseException as error:  # noqa: BLE001 - judged for what it means
            for item in held.items:
                ended = self.judge.raised(item, error, 0.0)
                self.desk.todo.popleft()
                self.desk.done.append(ended)
        else:
            self.desk.watch()
        return self._calls

    def _stored(self, item: ItemClaim, value: object) -> bytes:
        assert self._calls is not None
        return self._calls.ended(item, value)

    # --- one after the other --------------------------------------------------------------------------------------------------

    def _one_by_one(self, calls: ItemCalls, *, alone: bool) -> None:
        """Each item of the range, in this thread. An item may cost microseconds: nothing here is done twice, nothing is locked."""
        desk, call, parts, judge, clock = self.desk, self.call, self.desk.parts, self.judge, time.monotonic
        todo, done, limit = desk.todo, desk.done, self.policy.timeout or math.inf
        now = clock()
        while todo:
            try:
                item = todo.popleft()
            except IndexError:  # the eye has given it back
                break
            self.begun = begun = now
            call.ends_at = begun + limit
            try:
                answer = calls.call(item)
            except BaseException as error:  # noqa: BLE001 - judged for what it means
                ended = self._raised(item, error, clock() - begun)
            else:
                call.ends_at = math.inf
                seconds = clock() - begun
                if isinstance(answer, SPECIAL):
                    ended = judge.returned(item, answer, seconds)
                else:
                    ended = judge.made(item, answer, seconds)
            done.append(ended)
            parts.items += 1
            if ended.result is not None:
                parts.bytes += len(ended.result)
            now = clock()
            if alone or parts.is_due(now) or (ended.error is not None and self.is_urgent(ended)):
                self.begun = 0.0
                if not self._part(now):
                    break
                now = clock()
        self.begun = 0.0
        desk.settle(rest=not desk.is_of_use or judge.cancel is not None)

    def _raised(self, item: ItemClaim, error: BaseException, seconds: float) -> Ended:
        self.call.ends_at, self.begun = math.inf, 0.0
        try:
            return self.judge.raised(item, error, seconds)
        except Untouched:
            self.desk.give_back(item)
            raise

    def is_urgent(self, ended: Ended) -> bool:
        """Whether the others are to know at once."""
        return ended.status == "cancelled" or (
            ended.status == "failed" and self.policy.failure_mode == "all_or_nothing"
        )

    def is_over(self, now: float) -> bool:
        """Whether what is not begun is for somebody else: the slice has ended, the process is about to."""
        return now >= self.turn.until or self.judge.cancel is not None or self.place.is_leaving

    def _part(self, now: float) -> bool:
        """What has ended is settled; whether the next item may begin."""
        over = self.is_over(now)
        useful = self.desk.settle(rest=over)
        if self.call.asked:
            raise Untouched(self.call.asked)
        return useful and not over

    def look(self, now: float) -> None:
        """In the watching thread: an item that takes long is told when its time is over, and holds up nobody else."""
        begun = self.begun
        if not begun:
            return
        if now >= self.call.ends_at:
            self.interrupts.nudge()
        if now - begun >= SLOW_SECONDS:
            self.desk.settle_beside(rest=True)
            if self.begun == begun and not self.desk.is_open_still():
                self.call.give_up = CANCELLED
                self.interrupts.nudge()

    # --- its end --------------------------------------------------------------------------------------------------------------

    def _left(self, asked: Untouched) -> Verdict:
        """Something asks the hand to go: what has ended is settled, the rest goes back."""
        self.desk.settle_all(rest=True)
        if asked.reason == CANCELLED:
            return Cancel("the run was cancelled") if self.desk.is_open_still() else Rests.AT_END
        cause = asked.__cause__
        return GiveBack("the worker stops", None if isinstance(cause, Interrupted) else cause)


class Eye:
    """A thread that looks after the hand while its own is in the middle of an item."""

    def __init__(self, hand: Hand) -> None:
        """Begin to look."""
        self._hand = hand
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="flowstone-eye", daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(self._pause()):
            self._hand.look(time.monotonic())

    def _pause(self) -> float:
        """Until the item that runs, or one that begins now, has run too long; half a slow item's time at most."""
        now, hand = time.monotonic(), self._hand
        soonest = min(hand.call.ends_at, now + (hand.policy.timeout or math.inf))
        return min(SLOW_SECONDS / 2, max(_SOONEST, soonest - now))

    def close(self) -> None:
        """Nothing is looked at any more."""
        self._over.set()
        self._thread.join()


def _about(held: Range) -> str:
    """A range for people."""
    first, last = held.items[0], held.items[-1]
    if len(held.items) == 1:
        return f"item {first.index}: {shown(first.key)}"
    return f"items {first.index} to {last.index}"
