"""Items side by side: a hand whose items' code awaits has as many at a time as its barrier's width allows.

Nothing is loaded for an item and nothing stored but its result's JSON, so most of an item stays in the loop; helper threads only
settle parts and claim ranges. The next range is claimed when all items of the last one have ended: a hand holds one at a time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from flowstone_celery.core.hand_call import HandBeside, running
from flowstone_celery.core.hand_pace import SLOW_SECONDS
from flowstone_celery.core.interrupts import CANCELLED, STOP, Interrupted
from flowstone_celery.core.items import SPECIAL, Untouched
from flowstone_celery.core.side_by_side import Told
from flowstone_celery.core.window import Unit, Window

if TYPE_CHECKING:
    from flowstone_celery.core.barrier_model import ItemClaim, Range
    from flowstone_celery.core.hand_call import ItemCall
    from flowstone_celery.core.hands import Hand, ItemCalls


def do(hand: Hand, calls: ItemCalls, held: Range) -> None:
    """The hand's range is done: what has ended is settled.

    Raises:
        Untouched: the hand is asked to go; what has ended is not all settled.
    """
    room = _Room(hand, calls, alone=held.alone)
    hand.interrupts.hears_beside(room.call)
    try:
        while (first := room.next()) is not None:
            width = 1 if held.alone else held.width
            try:
                _ItemWindow(room, width=width, helpers=hand.place.settings.pool_size).run(first)
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

    def __init__(self, hand: Hand, calls: ItemCalls, *, alone: bool) -> None:
        self.hand = hand
        self.calls = calls
        self.desk = hand.desk
        self.call = HandBeside(hand.claim, hand.interrupts, hand.place.patiently)
        self.asked: Untouched | None = None
        self.limit = hand.policy.timeout or math.inf
        self.context = copy_context()
        self.alone = alone
        self._oldest: dict[int, float] = {}
        self._closed = False

    # --- what the window asks -------------------------------------------------------------------------------------------------

    def may_take(self) -> bool:
        return bool(self.desk.todo) and not self.alone and not self.is_over()

    def take(self) -> _ItemUnit | None:
        return self.next()

    def pulse(self) -> None:
        """What is to end hears of it; what has ended long enough ago is settled; who takes long keeps nothing from others."""
        self.hand.interrupts.tell([self.call])
        if self.desk.parts.is_due(time.monotonic()):
            self.desk.settle_beside(rest=self.is_over())
        begun = min(self._oldest.copy().values(), default=math.inf)
        if time.monotonic() - begun >= SLOW_SECONDS:
            self.desk.settle_beside(rest=True)
            if not self.desk.is_open_still():
                self.call.demand(CANCELLED)

    def close(self) -> None:
        self._closed = True

    def leave(self) -> None:
        self.call.demand(STOP)

    # --- its items ------------------------------------------------------------------------------------------------------------

    def is_over(self) -> bool:
        """Whether no further item begins."""
        return (
            self._closed
            or self.asked is not None
            or not self.desk.is_of_use
            or self.call.asked is not None
            or self.hand.is_over(time.monotonic())
        )

    def next(self) -> _ItemUnit | None:
        """The next item, unless none may begin."""
        if not self.desk.todo or self.is_over():
            return None
        try:
            item = self.desk.todo.popleft()
        except IndexError:  # the pulse has given it back
            return None
        now = time.monotonic()
        self._oldest[item.index] = now
        return _ItemUnit(self, item, self.call.item(now + self.limit), now)

    def ended(self, item: ItemClaim) -> None:
        """The item runs no more."""
        self._oldest.pop(item.index, None)


class _ItemUnit:
    """One item in a window."""

    def __init__(self, room: _Room, item: ItemClaim, call: ItemCall, begun: float) -> None:
        self.context: Context = room.context.copy()
        self.context.run(running.set, call)
        self.urgent = False
        self._room = room
        self._item = item
        self._call = call
        self._begun = begun
        self._answer: object = None
        self._error: BaseException | None = None

    def load(self) -> bool:
        return True

    def run(self) -> Coroutine[Any, Any, object]:
        return Told(self._kept(), self._call)

    async def _kept(self) -> None:
        try:
            self._call.enter()
            self._answer = await self._room.calls.run(self._item)
        except BaseException as error:  # noqa: BLE001 - judged for what it means
            self._error = error

    def runs(self, cancel: Callable[[], None]) -> None:
        self._call.cancelled_by(cancel)

    def is_cancelled_now(self) -> bool:
        return self._call.deliver()

    def store(self, error: BaseException | None) -> None:
        """In the loop: its end is laid on the desk."""
        self.context.run(self._judged, self._error or error)

    def _judged(self, error: BaseException | None) -> None:
        room, judge = self._room, self._room.hand.judge
        room.call.over(self._call)
        room.ended(self._item)
        seconds = time.monotonic() - self._begun
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
        parts.bytes += len(ended.result or b"")
        self.urgent = ended.error is not None and room.hand.is_urgent(ended)

    def settle(self, *, last: bool) -> tuple[_ItemUnit | None, bool]:
        """In a helper: what has ended is settled, all of it if this was the last."""
        del last
        self._room.desk.settle(rest=self._room.is_over())
        return self._room.next(), False


class _ItemWindow(Window):
    """A window whose pieces need helpers only now and then."""

    async def _one(self, unit: Unit) -> Unit | None:
        item = cast("_ItemUnit", unit)
        room = cast("_Room", self._source)
        item.store(await self._code(item))
        if item.urgent or room.desk.parts.is_due(time.monotonic()):
            following, _ = await self._in(self._rows, partial(item.settle, last=False))
            return following
        return None if room.alone else room.next()
