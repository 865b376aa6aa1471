"""Items side by side: a hand whose items' code awaits has as many at a time as its barrier's width allows.

Nothing is loaded for an item and nothing stored but its result's JSON, so an item stays in the loop from its begin to its end. A helper
thread settles parts, and claims further items while others run, as many as are done within a moment: no place stands empty meanwhile.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from flowstone_celery.core.hand_call import HandBeside, running
from flowstone_celery.core.hand_pace import AHEAD_SECONDS, FIRST, PART_SECONDS, SLOW_SECONDS
from flowstone_celery.core.interrupts import CANCELLED, STOP, Interrupted
from flowstone_celery.core.items import SPECIAL, Untouched
from flowstone_celery.core.side_by_side import Told
from flowstone_celery.core.window import Unit, Window

if TYPE_CHECKING:
    from flowstone_celery.core.barrier_model import ItemClaim, Range
    from flowstone_celery.core.hand_call import ItemCall
    from flowstone_celery.core.hand_pace import Pace
    from flowstone_celery.core.hands import Hand, ItemCalls

_LOOK_EVERY: Final = PART_SECONDS / 2
"""Seconds after which the window looks what is due, if nothing has told it to before; and between two claims that brought nothing."""
_YIELD_AFTER: Final = 0.5
"""Seconds after which retries that are due come before further items."""


def do(hand: Hand, calls: ItemCalls, held: Range, pace: Pace) -> None:
    """The hand's range is done, and what was claimed while it ran: what has ended is settled.

    Raises:
        Untouched: the hand is asked to go; what has ended is not all settled.
    """
    room = _Room(hand, calls, pace, held)
    hand.interrupts.hears_beside(room.call)
    try:
        while (first := room.next()) is not None:
            try:
                _Places(room, width=room.width, helpers=hand.place.settings.pool_size).run(first)
            except (KeyboardInterrupt, SystemExit) as asked:
                room.asked = Untouched("")
                room.asked.__cause__ = asked
            if held.alone and not hand.desk.settle(rest=room.is_over()):
                break
    finally:
        hand.interrupts.over(room.call)
    if room.asked is not None:
        raise room.asked
    hand.desk.settle(rest=True)


class _Room:
    """Where the window's items come from."""

    def __init__(self, hand: Hand, calls: ItemCalls, pace: Pace, held: Range) -> None:
        self.hand = hand
        self.calls = calls
        self.desk = hand.desk
        self.call = HandBeside(hand.claim, hand.interrupts, hand.place.patiently)
        self.asked: Untouched | None = None
        self.urgent = False
        """Whether somebody else is to know at once how an item has ended."""
        self.context = copy_context()
        self.alone = held.alone
        self.width = 1 if held.alone else held.width
        self.until = hand.turn.until + PART_SECONDS
        """When no item begins any more: the slice is over, and what was claimed ahead had time to begin."""
        self._limit = hand.policy.timeout or math.inf
        self._pace = pace
        self._oldest: dict[int, float] = {}
        self._closed = False
        self._begun = self._ended = self._measured = time.monotonic()
        self._count = 0
        self._grow_at = 0.0 if hand.policy.dispatch != "item" else math.inf
        self._yield_at = self._begun + _YIELD_AFTER

    # --- what the window asks -------------------------------------------------------------------------------------------------

    def may_take(self) -> bool:
        return bool(self.desk.todo) and not self.alone and not self.is_over()

    def take(self) -> ItemUnit | None:
        return self.next()

    def pulse(self) -> None:
        """What is to end hears of it; what has ended long enough ago is settled; who takes long keeps nothing from others."""
        self.hand.interrupts.tell([self.call])
        now = time.monotonic()
        if self.desk.parts.is_due(now + PART_SECONDS):
            self.desk.settle_beside(rest=self.is_over())
        begun = min(self._oldest.copy().values(), default=math.inf)
        if now - begun >= SLOW_SECONDS:
            self.desk.settle_beside(rest=now - self._begun >= SLOW_SECONDS)
            if not self.desk.is_open_still():
                self.call.demand(CANCELLED)

    def close(self) -> None:
        self._closed = True

    def leave(self) -> None:
        self.call.demand(STOP)

    # --- its items ------------------------------------------------------------------------------------------------------------

    def is_over(self) -> bool:
        """Whether no further item begins."""
        hand, desk = self.hand, self.desk
        return (
            self._closed
            or self.asked is not None
            or not desk.open
            or desk.stale
            or self.call.asked is not None
            or hand.judge.cancel is not None
            or time.monotonic() >= self.until
            or hand.place.is_leaving
        )

    def next(self) -> ItemUnit | None:
        """The next item, unless none may begin."""
        if not self.desk.todo or self.is_over():
            return None
        try:
            item = self.desk.todo.popleft()
        except IndexError:  # the pulse has given it back
            return None
        now = self._begun = time.monotonic()
        self._oldest[item.index] = now
        return ItemUnit(self, item, self.call.item(now + self._limit), now)

    def ended(self, item: ItemClaim, now: float) -> None:
        """The item runs no more."""
        self._oldest.pop(item.index, None)
        self._count += 1
        self._ended = now

    # --- what is due ----------------------------------------------------------------------------------------------------------

    @property
    def is_low(self) -> bool:
        """Whether it is time to claim further items."""
        return len(self.desk.todo) <= self._pace.ahead // 2

    def is_due(self, now: float) -> bool:
        """Whether a part is to be settled, or further items to be claimed."""
        self._measure(now)
        parts = self.desk.parts
        return self.urgent or (parts.items > 0 and parts.is_due(now)) or self._wanted(now) > 0

    def serve(self) -> None:
        """In a helper: what has ended is settled, and further items are to do."""
        self.urgent = False
        self.desk.settle(rest=self.is_over())
        now = time.monotonic()
        wanted = self._wanted(now)
        if wanted and not self.desk.grow(wanted, least=FIRST, yields=now >= self._yield_at):
            self._grow_at = now + _LOOK_EVERY

    def _measure(self, now: float) -> None:
        """How many items are done in how long, now and then."""
        elapsed = now - self._measured
        if self._count and (elapsed >= PART_SECONDS or not self._pace.ahead):
            self._pace.measured(self._count, elapsed)
            self._count, self._measured = 0, now

    def _wanted(self, now: float) -> int:
        """Items to claim now: for free places, and as many as will begin within a moment, but none that will not within the slice."""
        left = len(self.desk.todo)
        if self.alone or now < self._grow_at or not self.is_low or self.is_over():
            return 0
        share = (self.hand.turn.until - now) / AHEAD_SECONDS
        ahead = 0 if now - self._ended >= SLOW_SECONDS / 2 else int(self._pace.ahead * min(1.0, share))
        free = self.width - len(self._oldest) if share > 0 else 0
        return max(0, free + ahead - left)


class ItemUnit:
    """One item in a window."""

    __slots__ = ("_answer", "_begun", "_call", "_error", "_item", "_room", "context")

    def __init__(self, room: _Room, item: ItemClaim, call: ItemCall, begun: float) -> None:
        """Belong to this window; the context is a copy of the hand's own."""
        self.context: Context = room.context.copy()
        self.context.run(running.set, call)
        self._room = room
        self._item = item
        self._call = call
        self._begun = begun
        self._answer: object = None
        self._error: BaseException | None = None

    def load(self) -> bool:
        """Nothing is."""
        return True

    def run(self) -> Coroutine[Any, Any, object]:
        """The user's coroutine; whatever it raises is kept, so that no exit of its own ends the loop."""
        return Told(self._kept(), self._call)

    async def _kept(self) -> None:
        try:
            self._call.enter()
            self._answer = await self._room.calls.run(self._item)
        except BaseException as error:  # noqa: BLE001 - judged for what it means
            self._error = error

    def runs(self, cancel: Callable[[], None]) -> None:
        """Interrupts reach its code from now on."""
        self._call.cancelled_by(cancel)

    def is_cancelled_now(self) -> bool:
        """Whether its code is to be cancelled at the await where it stands."""
        return self._call.deliver()

    def store(self, error: BaseException | None) -> None:
        """In the loop: its end is laid on the desk."""
        room, judge, now = self._room, self._room.hand.judge, time.monotonic()
        room.call.over(self._call)
        room.ended(self._item, now)
        error = self._error or error
        seconds = now - self._begun
        if self._call.reason is not None:
            error = Interrupted(self._call.reason)
        try:
            if error is not None:
                ended = judge.raised(self._item, error, seconds)
            elif isinstance(self._answer, SPECIAL):
                ended = judge.returned(self._item, self._answer, seconds)
            else:
                ended = judge.made(self._item, self._answer, seconds)
        except Untouched as asked:
            room.asked = room.asked or asked
            room.desk.give_back(self._item)
            return
        room.desk.done.append(ended)
        parts = room.desk.parts
        parts.items += 1
        if ended.result is not None:
            parts.bytes += len(ended.result)
        if ended.error is not None and room.hand.is_urgent(ended):
            room.urgent = True

    def settle(self, *, last: bool) -> tuple[ItemUnit | None, bool]:
        """Parts are, by the window."""
        del last
        return self._room.next(), False


class _Places(Window):
    """A window whose pieces need no helpers of their own: it looks after all of them together."""

    async def _fill(self) -> None:
        """Return when no place is taken and no item is left that may begin."""
        room = cast("_Room", self._source)
        while not self._is_aborted():
            self._news.clear()
            if room.is_due(time.monotonic()):
                await self._serve(room)
            self._begin(room)
            if not self._places:
                break
            if not room.is_due(time.monotonic()):
                alarm = self._loop.call_later(_LOOK_EVERY, self._news.set)
                await self._news.wait()
                alarm.cancel()

    async def _serve(self, room: _Room) -> None:
        try:
            await self._in(self._rows, room.serve)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - raised again by `run` when all have ended
            self._failed(error)

    def _begin(self, room: _Room) -> None:
        """Every free place is taken, as far as there are items."""
        while len(self._places) < self._width and not room.alone and (unit := room.next()) is not None:
            self._open(unit)

    def _open(self, unit: Unit) -> None:
        task = self._loop.create_task(unit.run(), context=unit.context)
        self._places.add(cast("asyncio.Task[None]", task))
        unit.runs(partial(self._cancel, task, unit))
        task.add_done_callback(partial(self._over, unit), context=unit.context)

    def _over(self, unit: Unit, task: asyncio.Task[object]) -> None:
        """Its place is taken by the next item."""
        self._places.discard(cast("asyncio.Task[None]", task))
        room = cast("_Room", self._source)
        if self._is_aborted():  # nothing of it is judged: the process is as good as dead
            return
        try:
            unit.store(asyncio.CancelledError() if task.cancelled() else None)
            following = None if room.alone else room.next()
            if following is not None:
                self._open(following)
        except BaseException as error:  # noqa: BLE001 - raised again by `run` when all have ended
            self._failed(error)
            following = None
        if following is None or room.urgent or room.is_low:
            self._news.set()
