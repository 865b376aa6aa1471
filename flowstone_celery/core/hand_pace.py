"""How many items a hand asks for: few at first, then as many as it has done in a tenth of a second."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final

FIRST: Final = 8
MOST: Final = 1_000
"""Items in one range, and in one part."""
PART_SECONDS: Final = 0.1
"""Work of one range as measured, and the longest that ended items wait to be settled."""
PART_BYTES: Final = 1 << 20
"""Results that are gathered before they are settled."""
SLOW_SECONDS: Final = 1.0
"""An item that runs longer keeps nothing from others: neighbours that have ended are settled, those not begun are given back."""
AHEAD_SECONDS: Final = 0.2
"""Work that is claimed ahead where items are done side by side, so that no place stands empty while more is claimed."""
_GROWTH: Final = 4
_REMEMBERED: Final = 256


class Pace:
    """How fast the items of one barrier go in this process."""

    def __init__(self, width: int, *, single: bool = False) -> None:
        """Begin carefully.

        Args:
            width: how many run side by side; a range has at least enough for all places.
            single: one item at a time, however fast they are.
        """
        self._least = width if width > 1 else 1
        self._seconds = AHEAD_SECONDS if width > 1 else PART_SECONDS
        self._single = single
        self.size = 1 if single else max(FIRST, self._least)
        """Items in the next range."""
        self.ahead = 0
        """Items to claim ahead of those that run side by side; none before it is known how long they take."""

    def measured(self, items: int, seconds: float) -> None:
        """So many items took so long: the next range lasts as long as it should, and is at most four times this one."""
        if not self._single and items:
            fitting = int(self._seconds * items / max(seconds, 1e-9))
            self.ahead = min(fitting, max(self.ahead, self.size) * _GROWTH, MOST)
            self.size = min(max(self._least, min(self.size * _GROWTH, fitting)), MOST)


class Paces:
    """The paces of this process, remembered from one slice to the next."""

    def __init__(self) -> None:
        """Begin with none."""
        self._by_barrier: OrderedDict[int, Pace] = OrderedDict()

    def of(self, barrier: int, width: int, *, single: bool) -> Pace:
        """The pace of this barrier's items."""
        found = self._by_barrier.pop(barrier, None) or Pace(width, single=single)
        self._by_barrier[barrier] = found
        while len(self._by_barrier) > _REMEMBERED:
            self._by_barrier.popitem(last=False)
        return found


class Parts:
    """When the next part is to be settled."""

    __slots__ = ("_at", "bytes", "items")

    def __init__(self) -> None:
        """Begin with nothing gathered."""
        self.restart(time.monotonic())

    def restart(self, now: float) -> None:
        """What was gathered is settled."""
        self._at, self.items, self.bytes = now + PART_SECONDS, 0, 0

    def is_due(self, now: float) -> bool:
        """Whether enough has gathered, or for long enough."""
        return now >= self._at or self.items >= MOST or self.bytes >= PART_BYTES
