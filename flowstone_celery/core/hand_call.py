"""How an item's code is told to end: a hand's own calls, which know the items' timeout by themselves.

What the keeper demands of a hand concerns the whole of it (its run is cancelled, its worker stops). An item's timeout is told here:
its hand goes on with the next one, so a demand that comes late must not hit that.
"""

from __future__ import annotations

import math
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING

from flowstone_celery.core.interrupts import TIMEOUT, AwaitingCall, Interrupted, LiveCall, UserCode

if TYPE_CHECKING:
    from flowstone_celery.core.interrupts import Interrupts, Patience
    from flowstone_celery.core.model import Claim

running: ContextVar[ItemCall | None] = ContextVar("flowstone_item", default=None)
"""The item whose coroutine this is."""


class HandCall(LiveCall):
    """One hand's call, for items one after the other in this thread."""

    def __init__(self, claim: Claim, interrupts: Interrupts, patience: Patience) -> None:
        """Begin before the first item."""
        super().__init__(claim, interrupts, patience)
        self.ends_at = math.inf
        """When the item that runs has run too long (monotonic seconds)."""
        self.give_up = ""
        """Why the item that runs is of no use any more, as the hand has found out itself."""
        self._late = 0.0
        self._section = UserCode(self)

    def user_code(self) -> UserCode:
        """One and the same for all items: it is entered for each."""
        return self._section

    @property
    def asked(self) -> str | None:
        """Why the hand itself is to end, or None."""
        return self._remembered

    def demand(self, reason: str) -> None:
        """End the item's code: at once if it runs. Only what concerns the hand is remembered for the next one."""
        if reason != TIMEOUT:
            self._remembered = self._remembered or reason
            super().demand(reason)
        elif self._inside and self._is_late():
            raise Interrupted(TIMEOUT)

    def overdue(self) -> str | None:
        """Why the item that runs is to end, as the hand knows by itself."""
        return self.give_up or (TIMEOUT if time.monotonic() >= self.ends_at else None)

    def check(self) -> None:
        """Raise `Interrupted` if the item that asks is to end."""
        item = running.get()
        if item is not None:
            item.check()
            return
        found = self._interrupts.reason(self.claim)
        reason = self.give_up if found in (None, TIMEOUT) else found
        if reason and not self._delivered:
            self._remembered, self._delivered = reason, True
            raise Interrupted(reason)
        if self._is_late():
            raise Interrupted(TIMEOUT)

    def _is_late(self) -> bool:
        """Once for each item: whether its time is over."""
        if self._late == self.ends_at or time.monotonic() < self.ends_at:
            return False
        self._late = self.ends_at
        return True


class ItemCall(AwaitingCall):
    """One item's call among several whose coroutines share a loop."""

    def __init__(self, hand: HandBeside, ends_at: float) -> None:
        """Begin with nothing to cancel."""
        super().__init__(hand.claim, hand.interrupts, hand.patiently)
        self.ends_at = ends_at

    @property
    def reason(self) -> str | None:
        """What ended its code, if something did."""
        return self._remembered if self._delivered else None

    def overdue(self) -> str | None:
        """Whether its time is over."""
        return TIMEOUT if time.monotonic() >= self.ends_at else None

    def check(self) -> None:
        """Raise `Interrupted` if this item is to end."""
        found = self._interrupts.reason(self.claim)
        reason = self.overdue() if found in (None, TIMEOUT) else found
        if reason and not self._delivered:
            self._remembered, self._delivered = reason, True
            raise Interrupted(reason)


class HandBeside(AwaitingCall):
    """One hand's call, for items side by side: what is demanded of it is demanded of each."""

    def __init__(self, claim: Claim, interrupts: Interrupts, patience: Patience) -> None:
        """Begin before the first item."""
        super().__init__(claim, interrupts, patience)
        self.interrupts = interrupts
        self._items: set[ItemCall] = set()

    @property
    def asked(self) -> str | None:
        """Why the hand itself is to end, or None."""
        return self._remembered

    def item(self, ends_at: float) -> ItemCall:
        """The call of an item that begins."""
        call = ItemCall(self, ends_at)
        self._items.add(call)
        if self._remembered:
            call.demand(self._remembered)
        return call

    def over(self, call: ItemCall) -> None:
        """Nothing reaches the item any more."""
        self._items.discard(call)
        call.ended()

    @property
    def is_here(self) -> bool:
        """Whether an item's code runs in this very thread now."""
        return any(each.is_here for each in self._items.copy())

    def demand(self, reason: str) -> None:
        """Each item ends: the one whose code runs in this thread last, for it is left by an exception."""
        if reason == TIMEOUT:
            self.end_overdue()
            return
        self._remembered = self._remembered or reason
        for each in sorted(self._items.copy(), key=lambda item: item.is_here):
            each.demand(reason)

    def overdue(self) -> str | None:
        """Whether an item is to end by its own clock."""
        now = time.monotonic()
        return TIMEOUT if any(now >= each.ends_at for each in self._items.copy()) else None

    def end_overdue(self) -> None:
        """Items whose time is over end."""
        late = [each for each in self._items.copy() if each.overdue()]
        for each in sorted(late, key=lambda item: item.is_here):
            each.demand(TIMEOUT)
