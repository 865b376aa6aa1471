"""Partitions that are windows of time: days, weeks and months here, hours and the moments of a cron expression in
`moments.py`.

Windows follow the clocks of a zone and tile its time without gap or overlap, whatever the clocks do: the day on which they are set
has 23 or 25 hours, an hour that comes twice is two windows, one that is skipped is none. The first window is the first that begins at
or after `start`; with an `end`, the last is the last that begins before it. A window counts once it has ended, or, with
`current=True`, once it has begun.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias
from zoneinfo import ZoneInfo

from flowstone_celery.assets import partition as partitions
from flowstone_celery.assets.definitions import AsOf, Definition, Span, backwards, wrong
from flowstone_celery.assets.zones import begins, zone_of
from flowstone_celery.errors import InvalidPartition, did_you_mean

if TYPE_CHECKING:
    from flowstone_celery.assets.partition import PartitionKey

FIRST_YEAR, LAST_YEAR = 1900, 9000
_DAY = timedelta(days=1)
_HOUR = timedelta(hours=1)
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DATES_PATIENCE = 1_000

Key: TypeAlias = Any
"""A date or a datetime in UTC, as the kind of definition has it; the two are never mixed."""


@dataclass(frozen=True, repr=False)
class TimeWindows(Definition):
    """Windows of time. The keys of days, weeks and months are dates, those of hours and of cron are datetimes in UTC."""

    start: date | datetime | str
    end: date | datetime | str | None = None
    tz: str = "UTC"
    current: bool = False
    """Whether the window that is under way counts too."""
    zone: ZoneInfo = field(init=False, compare=False)
    first: Key = field(init=False, compare=False)
    """The first key."""

    rank: ClassVar[int | None] = None
    """Larger for longer windows; None where that is not known."""
    _example: ClassVar[str] = "2026-11-20"

    def __post_init__(self) -> None:
        """Read the bounds and the zone.

        Raises:
            InvalidOption: a bound is none, the zone is unknown, or there is no window between the bounds.
        """
        self._put(zone=zone_of(self.tz))
        self._put(tz=self.zone.key, start=self._bound(self.start, "start"))
        if self.end is not None:
            self._put(end=self._bound(self.end, "end"))
        self._put(first=self._at_or_after(self.start))
        if self._is_behind(self.first):
            wrong(f"{self} has no window: none begins between its start and its end", "Let it end later.")

    def __repr__(self) -> str:
        """As it is declared."""
        parts = [repr(self._written(self.start)), *self._own()]
        parts += [] if self.end is None else [f"end={self._written(self.end)!r}"]
        parts += [f"tz={self.tz!r}"] * (self.tz != "UTC") + ["current=True"] * self.current
        return f"{type(self).__name__}({', '.join(parts)})"

    # --- what each kind says ------------------------------------------------------------------------------------------------------

    def _bound(self, given: Any, name: str) -> Key:
        raise NotImplementedError

    def _written(self, bound: Any) -> str:
        return str(bound.isoformat())

    def _own(self) -> list[str]:
        """What else it is declared with."""
        return []

    def _shape(self, key: Any) -> Key:
        """The key as one of the right type."""
        raise NotImplementedError

    def _floor(self, moment: datetime) -> Key:
        """The window in which the moment lies, whatever the bounds."""
        raise NotImplementedError

    def _at_or_after(self, bound: Any) -> Key:
        raise NotImplementedError

    def _step(self, key: Any, by: int) -> Key:
        """The window behind this one (by = 1) or before it (by = -1)."""
        raise NotImplementedError

    def _begins(self, key: Any) -> datetime:
        """When the window begins, in UTC."""
        raise NotImplementedError

    # --- what all share -----------------------------------------------------------------------------------------------------------

    def check(self, key: PartitionKey, now: datetime | AsOf | None = None) -> PartitionKey:
        """As `Definition.check`; a window that has not ended is refused where `now` is given."""
        found = self._near(key)
        if found < self.first:
            self.refuse(found, "it lies before the first", f"The first is {self.show(self.first)}.")
        if self._is_behind(found):
            self.refuse(found, "it lies behind the last", f"The last is {self.show(self._last())}.")
        holds = self._floor(self._begins(found))
        if holds != found:
            self.refuse(found, "no window begins there", f"The one that holds it is {self.show(holds)}.")
        if now is not None and not found < self._open(now):
            word, moment = ("begins", 0) if self.current else ("ends", 1)
            when = self.window(found)[moment].isoformat(sep=" ")
            self.refuse(found, f"its window {word} at {when}", "It counts from then on.")
        checked: PartitionKey = found
        return checked

    def show(self, key: PartitionKey) -> str:
        """As `Definition.show`."""
        return str(self._shape(key).isoformat())

    def keys(self, now: datetime | AsOf) -> Iterator[PartitionKey]:
        """As `Definition.keys`: the windows that have ended at that moment."""
        return self.range(now=now)

    def range(
        self, first: PartitionKey = None, last: PartitionKey = None, now: datetime | AsOf | None = None
    ) -> Iterator[PartitionKey]:
        """As `Definition.range`. The bounds need not be keys themselves: those that lie between them count.

        Raises:
            InvalidPartition: as there; and without `last`, `now` and `end` there is no end.
        """
        low, high = (None if bound is None else self._loose(bound) for bound in (first, last))
        if low is not None and high is not None and high < low:
            backwards(first, last)
        if last is None and now is None and self.end is None:
            raise InvalidPartition(f"a range of {self} has no end", hint="Give the last key, or now=….")
        return self._between(low, high, None if now is None else self._open(now))

    def _between(self, low: Any, high: Any, open_: Any) -> Iterator[Any]:
        key = self.first if low is None or low <= self.first else self._at_or_after(low)
        while (high is None or key <= high) and (open_ is None or key < open_) and not self._is_behind(key):
            yield key
            key = self._step(key, 1)

    def previous(self, key: PartitionKey, n: int = 1) -> PartitionKey:
        """As `Definition.previous`."""
        found: Key = self.check(key)
        for _ in range(abs(n)):
            found = self._step(found, -1 if n > 0 else 1)
            if found < self.first or self._is_behind(found):
                return None
        there: PartitionKey = found
        return there

    def window(self, key: PartitionKey) -> Span:
        """As `Definition.window`."""
        found = self._shape(key)
        start, end = (self._begins(each).astimezone(self.zone) for each in (found, self._step(found, 1)))
        return Span(start, end)

    def overlapping(self, span: Span) -> Iterator[PartitionKey]:
        """The windows of this definition that share time with the span, in order."""
        key = max(self.first, self._floor(span.start.astimezone(UTC)))
        while self._begins(key) < span.end.astimezone(UTC) and not self._is_behind(key):
            yield key
            key = self._step(key, 1)

    def same_grid(self, other: Definition) -> bool:
        """Whether the windows of both begin and end at the same moments, apart from where they start."""
        return type(self) is type(other) and isinstance(other, TimeWindows) and self._grid() == other._grid()

    def _grid(self) -> tuple[object, ...]:
        return (self.tz, *self._own())

    def _open(self, now: datetime | AsOf) -> Key:
        """The first key that does not count yet."""
        under_way = self._floor(AsOf.of(now).now.astimezone(UTC))
        return self._step(under_way, 1) if self.current else under_way

    def _is_behind(self, key: Any) -> bool:
        return self.end is not None and key >= self.end

    def _last(self) -> Key:
        assert self.end is not None, "asked only where there is an end"
        return self._step(self._at_or_after(self.end), -1)

    def _loose(self, bound: PartitionKey) -> Key:
        return self._near(self.parse(bound) if isinstance(bound, str) else bound)

    def _near(self, key: PartitionKey) -> Key:
        """The key, of the right type and in a year for which there is a calendar."""
        found = self._shape(key)
        if not FIRST_YEAR <= found.year <= LAST_YEAR:
            self.refuse(found, f"its year is not one from {FIRST_YEAR} to {LAST_YEAR}", "Look at its year.")
        return found

    def _put(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


# --- dates ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class _Dates(TimeWindows):
    """Windows that begin at midnight; a key is the first day."""

    _is: ClassVar[str] = "a day"

    def _bound(self, given: Any, name: str) -> Key:
        found = parsed(given) if isinstance(given, str) else given
        if type(found) is not date or not FIRST_YEAR <= found.year <= LAST_YEAR:
            wrong(
                f"{name} of {type(self).__name__} is a date, not {given!r:.80}",
                f'Write {name}="{self._example}".',
            )
        return found

    def _shape(self, key: Any) -> Key:
        if not isinstance(key, date) or isinstance(key, datetime):
            self.refuse(
                key,
                f"its keys are dates, and this is {type(key).__name__}",
                f"Write for example {self._example}.",
            )
        return key

    def parse(self, text: str) -> PartitionKey:
        """As `Definition.parse`: a date."""
        day: PartitionKey = self._shape(parsed(text))
        return day

    def _at_or_after(self, bound: Any) -> Key:
        found = self._align(bound)
        return self._step(found, 1) if found < bound or self._skipped(found) else found

    def _floor(self, moment: datetime) -> Key:
        return self._align(moment.astimezone(self.zone).date())

    def _step(self, key: Any, by: int) -> Key:
        found = self._move(key, by)
        while self._skipped(found):
            found = self._move(found, by)
        return found

    def _begins(self, key: Any) -> datetime:
        return midnight(key, self.tz)

    def _skipped(self, key: date) -> bool:
        """Whether the zone left the whole window out, as Samoa did with a day when it changed sides."""
        return self.tz != "UTC" and midnight(key, self.tz) == midnight(self._move(key, 1), self.tz)

    def _align(self, day: date) -> date:
        """The first day of the window that the day lies in."""
        raise NotImplementedError

    def _move(self, key: date, by: int) -> date:
        raise NotImplementedError


@lru_cache(maxsize=_DATES_PATIENCE)
def midnight(day: date, tz: str) -> datetime:
    """When the day begins in the zone, in UTC."""
    return begins(datetime(day.year, day.month, day.day), zone_of(tz))  # noqa: DTZ001 - local time, of which `begins` makes a moment


@dataclass(frozen=True, repr=False)
class Daily(_Dates):
    """A window for each day of the zone, named by its date."""

    rank: ClassVar[int | None] = 2

    def _align(self, day: date) -> date:
        return day

    def _move(self, key: date, by: int) -> date:
        return key + by * _DAY


@dataclass(frozen=True, repr=False)
class Weekly(_Dates):
    """A window for each week, from midnight of its weekday to the next, named by its first date."""

    weekday: str = "monday"
    rank: ClassVar[int | None] = 3

    def __post_init__(self) -> None:
        """As `TimeWindows`; the weekday must be one."""
        given: object = self.weekday
        found = [
            day
            for day in _WEEKDAYS
            if isinstance(given, str) and len(given) > 2 and day.startswith(given.casefold())
        ]
        if len(found) != 1:
            near = did_you_mean(given, _WEEKDAYS) if isinstance(given, str) else ""
            wrong(f"a week begins on a weekday, not on {given!r:.80}", near or 'Write weekday="monday".')
        self._put(weekday=found[0])
        super().__post_init__()

    def _own(self) -> list[str]:
        return [] if self.weekday == "monday" else [f"weekday={self.weekday!r}"]

    def _align(self, day: date) -> date:
        return day - (day.weekday() - _WEEKDAYS.index(self.weekday)) % 7 * _DAY

    def _move(self, key: date, by: int) -> date:
        return key + by * 7 * _DAY


@dataclass(frozen=True, repr=False)
class Monthly(_Dates):
    """A window for each month, named by its first date."""

    rank: ClassVar[int | None] = 4
    _example: ClassVar[str] = "2026-11-01"

    def _align(self, day: date) -> date:
        return day.replace(day=1)

    def _move(self, key: date, by: int) -> date:
        months = key.year * 12 + key.month - 1 + by
        return date(months // 12, months % 12 + 1, 1)


def parsed(text: str) -> PartitionKey:
    """The date or datetime that the text is; any other as it is."""
    return partitions.parse(text.strip())
