"""How far scatters are, as people see it: a bar for each on a terminal, now and then a line on a pipe."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final

from flowstone_celery.cli.show import has_shapes, lasted, mark, slice_of
from flowstone_celery.states import BarrierStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.text import Text

    from flowstone_celery.assets.handle import Run
    from flowstone_celery.core.barrier_model import Progress

_WIDTH: Final = 24
_WINDOW_SECONDS: Final = 10.0
_LEAST_SECONDS: Final = 0.3
"""Over a shorter time a rate says nothing."""
_TENTHS: Final = 10.0
_SILENT_SECONDS: Final = 30.0
"""A line comes after so long on a pipe, though no further tenth has ended."""


class Pace:
    """How many items end in a second, over the looks of the last seconds."""

    def __init__(self) -> None:
        """Nothing was seen yet."""
        self._looks: deque[tuple[float, int]] = deque()

    def look(self, at: float, ended: int) -> float | None:
        """Items in a second until this look; None while too little was seen.

        Args:
            at: seconds of a clock that only goes forward.
            ended: items that have ended by then. Fewer than before mean another round, which is measured anew.
        """
        if self._looks and ended < self._looks[-1][1]:
            self._looks.clear()
        self._looks.append((at, ended))
        while len(self._looks) > 2 and at - self._looks[1][0] >= _WINDOW_SECONDS:
            self._looks.popleft()
        began, before = self._looks[0]
        return (ended - before) / (at - began) if at - began >= _LEAST_SECONDS else None


def ended(now: Progress) -> int:
    """Items that have succeeded, or failed for good."""
    return now.succeeded + now.failed


def seconds_left(now: Progress, rate: float | None) -> float | None:
    """Until the last item ends at this rate; None where nobody can know."""
    if now.status != BarrierStatus.OPEN or not now.sealed or not rate:
        return None
    return now.pending / rate


def bar(now: Progress, rate: float | None = None, *, width: int = _WIDTH) -> Text:
    """A bar of so many cells and the counts behind it: what succeeded, what failed, what is to come."""
    from rich.text import Text

    full, rest = ("━", "─") if has_shapes() else ("#", "-")
    good, bad = _cells(now, width)
    line = Text().append(full * good, style="green").append(full * bad, style="red")
    return line.append(rest * (width - good - bad), style="dim").append(f" {counts(now, rate)}", style="dim")


def _cells(now: Progress, width: int) -> tuple[int, int]:
    """Cells for what succeeded and for what failed: of the latter one at least, and all only when nothing is open."""
    if not now.total:
        return (width if now.status == BarrierStatus.COMPLETED else 0), 0
    bad = min(width, max(1, round(width * now.failed / now.total))) if now.failed else 0
    both = width * ended(now) // now.total
    return max(0, both - bad), bad


def counts(now: Progress, rate: float | None = None) -> str:
    """The same in words: `1,200/2,000 items · 350/s · 3 failed · 2 retrying · 2.3 s left`."""
    left = seconds_left(now, rate)
    told = (
        _of_total(now),
        _told_rate(rate) if rate and now.status == BarrierStatus.OPEN else "",
        f"{now.failed:,} failed" if now.failed else "",
        f"{now.retrying:,} retrying" if now.retrying else "",
        f"{now.running:,} at work" if now.running and now.status == BarrierStatus.OPEN else "",
        f"{lasted(left)} left" if left else "",
    )
    return " · ".join(filter(None, told))


def _told_rate(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"


def _of_total(now: Progress) -> str:
    if now.sealed:
        return f"{ended(now):,}/{now.total:,} items"
    return f"{ended(now):,} of {now.total:,} items so far"


class Bars:
    """The scatters of one run: how far each is, and how fast it goes."""

    def __init__(self, run: Run, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is read yet."""
        self._run = run
        self._clock = clock
        self._paces: dict[int, Pace] = {}
        self._closed: dict[tuple[int, int], Progress] = {}
        """By id and the run's round: what has closed stays as it is until then."""
        self._told: dict[int, tuple[str, int]] = {}
        self._told_at: dict[int, float] = {}

    def look(self) -> list[tuple[Progress, float | None]]:
        """Each of its scatters with items in a second, the oldest first."""
        current, found = self._run.round, list[tuple["Progress", "float | None"]]()
        for scatter in reversed(self._run.scatters()):
            now = self._closed.get((scatter.id, current)) or scatter.progress()
            if now.status != BarrierStatus.OPEN:
                self._closed[scatter.id, current] = now
            found.append((now, self._paces.setdefault(now.id, Pace()).look(self._clock(), ended(now))))
        return found

    def by_step(self) -> dict[int, Text]:
        """The bar of each scattering step: of several that it had, the newest."""
        return {now.step_id: bar(now, rate) for now, rate in self.look()}

    def news(self) -> list[Text]:
        """A line for each scatter of which another tenth has ended, or that has closed, since it was told of; or that was silent for long.

        One that had closed when it was first seen is told, too.
        """
        return [_line(now, rate) for now, rate in self.look() if self._is_news(now)]

    def _is_news(self, now: Progress) -> bool:
        step = (now.status, int(now.percent // _TENTHS))
        silent = self._clock() - self._told_at.get(now.id, self._clock())
        is_open, before = now.status == BarrierStatus.OPEN, self._told.get(now.id)
        if before == step and not (is_open and silent >= _SILENT_SECONDS):
            return False
        self._told[now.id], self._told_at[now.id] = step, self._clock()
        return not (is_open and before is None and not ended(now))  # that it has begun, its step tells


def _line(now: Progress, rate: float | None) -> Text:
    word = "scatter" if now.status == BarrierStatus.OPEN else f"scatter {now.status}"
    line = mark(now.status, f"{slice_of(now.name, now.partition)} {word}")
    return line.append(f": {counts(now, rate)}", style="default")
