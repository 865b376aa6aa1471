"""Windows that begin at moments: hours, and the stretches between the moments of a cron expression.

`30 2 * * *` means once a day: where that hour comes twice, the first counts; where it is skipped, the moment behind the gap. An
expression with `*` or a step in its hour field goes on through the hour that comes twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from flowstone_celery.assets.definitions import wrong
from flowstone_celery.assets.windows import FIRST_YEAR, LAST_YEAR, Key, TimeWindows, midnight, parsed
from flowstone_celery.assets.zones import clock_is_set
from flowstone_celery.errors import InvalidPartition

if TYPE_CHECKING:
    from flowstone_celery.assets.partition import PartitionKey

_HOUR = timedelta(hours=1)
_FIELDS = (5, 6)
_RANDOM = re.compile(r"(?i)(?<![a-z])r(?![a-z])")
_EXAMPLE = 'Write for example Cron("30 2 * * *", "2026-01-01", tz="Europe/Prague").'
_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}


@dataclass(frozen=True, repr=False)
class _Moments(TimeWindows):
    """Windows that begin at any moment; a key is that moment in UTC."""

    _example: ClassVar[str] = "2026-11-20T09:00:00+00:00"

    def _bound(self, given: Any, name: str) -> Key:
        try:
            found = self._moment(parsed(given) if isinstance(given, str) else given)
        except InvalidPartition:
            found = None
        if found is None or not FIRST_YEAR <= found.year <= LAST_YEAR:
            wrong(
                f"{name} of {type(self).__name__} is a date or datetime, not {given!r:.80}",
                f'Write {name}="2026-11-20".',
            )
        return found

    def _moment(self, given: Any) -> datetime | None:
        """A moment in UTC: an aware datetime, a naive one as the zone's clocks show it, a date as its midnight."""
        if isinstance(given, datetime) and given.utcoffset() is not None:
            return given.astimezone(UTC)
        if isinstance(given, datetime):
            return self._local(given)
        return midnight(given, self.tz) if isinstance(given, date) else None

    def _local(self, wall: datetime) -> datetime:
        found = [wall.replace(tzinfo=self.zone, fold=fold).astimezone(UTC) for fold in (0, 1)]
        if found[0] == found[1]:
            return found[0]
        if found[0] > found[1]:
            self.refuse(wall, f"the clocks of {self.tz} skip it", "Give it with its offset.")
        both = " or ".join(each.astimezone(self.zone).isoformat() for each in found)
        return self.refuse(wall, f"the clocks of {self.tz} show it twice", f"Write {both}.")

    def _shape(self, key: Any) -> Key:
        if not isinstance(key, datetime) or key.utcoffset() is None:
            what = "a datetime without a zone" if isinstance(key, datetime) else type(key).__name__
            self.refuse(
                key,
                f"its keys are aware datetimes, and this is {what}",
                f"Write for example {self._example}.",
            )
        return key.astimezone(UTC)

    def parse(self, text: str) -> PartitionKey:
        """As `Definition.parse`: a datetime; without an offset as the zone's clocks show it; a date for its midnight."""
        found = self._moment(parsed(text))
        return self._shape(text) if found is None else found

    def _written(self, bound: Any) -> str:
        local = bound.astimezone(self.zone).replace(tzinfo=None)
        return str(local.date() if local.time() == time() else local.isoformat())

    def show(self, key: PartitionKey) -> str:
        """As `Definition.show`: the zone's local time with its offset."""
        moment: Any = self._shape(key)
        return str(moment.astimezone(self.zone).isoformat())

    def _begins(self, key: Any) -> datetime:
        moment: datetime = key
        return moment

    def _at_or_after(self, bound: Any) -> Key:
        found = self._floor(bound)
        return found if found == bound else self._step(found, 1)


@dataclass(frozen=True, repr=False)
class Hourly(_Moments):
    """A window for each hour of the zone's clocks, named by the moment at which it begins; setting the clocks begins another."""

    rank: ClassVar[int | None] = 1

    def _floor(self, moment: datetime) -> Key:
        local = moment.astimezone(self.zone)
        past = timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
        return clock_is_set(moment - past, moment, self.zone) or moment - past

    def _step(self, key: Any, by: int) -> Key:
        if by < 0:
            return self._floor(key - timedelta(microseconds=1))
        local = key.astimezone(self.zone)
        full = key + _HOUR - timedelta(minutes=local.minute, seconds=local.second)
        return clock_is_set(key, full, self.zone) or full


@dataclass(frozen=True, repr=False, init=False)
class Cron(_Moments):
    """A window from each moment of the expression to the next, named by the moment at which it begins."""

    expression: str = ""
    rank: ClassVar[int | None] = None
    _fixed: bool = field(init=False, compare=False, default=False)

    def __init__(
        self,
        expression: str,
        start: date | datetime | str,
        end: date | datetime | str | None = None,
        tz: str = "UTC",
        current: bool = False,
    ) -> None:
        """Take a cron expression: five fields, six with seconds behind them, or `@daily` and its like.

        Raises:
            InvalidOption: the expression is none or never comes, or the rest is wrong as for all windows.
        """
        self._put(expression=_checked(expression), start=start, end=end, tz=tz, current=current)
        self._put(_fixed=_is_fixed(self.expression))
        self.__post_init__()

    def __repr__(self) -> str:
        """As it is declared."""
        _, _, rest = super().__repr__().partition("(")
        return f"Cron({self.expression!r}, {rest}"

    def _grid(self) -> tuple[object, ...]:
        return (self.tz, self.expression)

    def _at_or_after(self, bound: Any) -> Key:
        return next(self._fires(bound - timedelta(seconds=1)))

    def _floor(self, moment: datetime) -> Key:
        begun = self._some_fire_before(moment)
        for fire in self._fires(begun - timedelta(seconds=1)):
            if fire > moment:
                return begun
            begun = fire
        return begun

    def _step(self, key: Any, by: int) -> Key:
        if by < 0:
            return self._floor(key - timedelta(microseconds=1))
        return next(self._fires(key))

    def _some_fire_before(self, moment: datetime) -> datetime:
        """One that does not lie behind the moment: going back may land on a local time that comes again and so does not count."""
        found = _croniter(self.expression, moment.astimezone(self.zone))
        while True:
            back = found.get_prev(datetime).astimezone(UTC)
            fire = next(self._fires(back - timedelta(seconds=1)))
            if fire <= moment:
                return fire

    def _fires(self, after: datetime) -> Iterator[datetime]:
        """The moments that come after this one, in UTC."""
        found = _croniter(self.expression, after.astimezone(self.zone))
        last = after
        while True:
            local = found.get_next(datetime)
            moment = local.astimezone(UTC)
            if moment <= last or (self._fixed and _comes_again(local)):
                continue
            last = moment
            yield moment


def _comes_again(local: datetime) -> bool:
    """Whether the clocks have shown this local time before, an offset ago."""
    return bool(local.fold) and local.utcoffset() != local.replace(fold=0).utcoffset()


def _is_fixed(expression: str) -> bool:
    """Whether the hours are named: then each local time counts once."""
    fields = expression.split()
    return len(fields) in _FIELDS and "*" not in fields[1] and "/" not in fields[1]


def _checked(expression: Any) -> str:
    """The expression in fields. One that is random would be another in each process."""
    text = " ".join(expression.split()) if isinstance(expression, str) else ""
    text = _ALIASES.get(text, text)
    if len(text.split()) not in _FIELDS or _RANDOM.search(text):
        wrong(f"{expression!r:.80} is no cron expression of five fields", _EXAMPLE)
    try:
        _croniter(text, datetime(2000, 1, 1, tzinfo=UTC)).get_next(datetime)
    except (ValueError, KeyError, TypeError) as error:
        wrong(f"{expression!r:.80} is no cron expression that ever comes: {error}", _EXAMPLE)
    return text


def _croniter(expression: str, start: datetime) -> Any:
    from croniter import croniter

    return croniter(expression, start)
