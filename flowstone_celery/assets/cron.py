"""Windows between the moments of a cron expression, with a rule for the hours at which clocks are set.

`30 2 * * *` means once a day: where that hour comes twice, the first counts; where it is skipped, the moment behind the gap. An
expression with `*` or a step in its hour field goes on through the hour that comes twice, and leaves out what is skipped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

from flowstone_celery.assets.definitions import wrong
from flowstone_celery.assets.moments import Moments
from flowstone_celery.assets.windows import Key
from flowstone_celery.assets.zones import begins, clock_is_set

_SECOND = timedelta(seconds=1)
_NEAR = timedelta(hours=3)
_STRIDE = timedelta(days=5)
"""Within so long the clocks of a zone are set once at most."""
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


@dataclass(frozen=True, repr=False, init=False)
class Cron(Moments):
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
        return self._next(bound - _SECOND)

    def _step(self, key: Any, by: int) -> Key:
        return self._next(key) if by > 0 else self._floor(key - _SECOND / 2)

    def _floor(self, moment: datetime) -> Key:
        """Far from a change of the clocks the local times tell it; near one, the moments are counted from before it."""
        if self._change(moment - _NEAR, moment + _NEAR) is None:
            return self._latest_before(moment)
        fire = self._latest_before(moment - 3 * _NEAR)
        while (following := self._next(fire)) <= moment:
            fire = following
        return fire

    def _latest_before(self, moment: datetime) -> datetime:
        """The latest one that does not lie behind a moment around which no clock is set."""
        walls = _croniter(self.expression, self._wall(moment).replace(microsecond=0) + _SECOND)
        while True:
            wall: datetime = walls.get_prev(datetime)
            local = wall.replace(tzinfo=self.zone)
            first, second = (local.replace(fold=fold).astimezone(UTC) for fold in (0, 1))
            if first <= second:
                return first if self._fixed else second
            if self._fixed:
                return begins(wall, self.zone)

    def _next(self, after: datetime) -> datetime:
        """The first one behind this moment. Each stretch of one offset is gone through in local time."""
        at, wall, included = after, *self._first_wall(after)
        while True:
            offset = _offset(at, self.zone)
            fire = _wall_fire(self.expression, wall, included=included).replace(tzinfo=UTC) - offset
            change = self._change(at, fire)
            if change is None:
                return fire
            skipped = (change + offset).replace(tzinfo=None)
            at, wall, included = change, self._wall(change), True
            if self._fixed and wall > skipped and _wall_fire(self.expression, skipped, included=True) < wall:
                return change
            if self._fixed:
                wall = max(wall, skipped)

    def _first_wall(self, after: datetime) -> tuple[datetime, bool]:
        """From which local time to look on, and whether it counts itself: local times that come again do not, if hours are fixed."""
        local = after.astimezone(self.zone)
        again = _offset_of(local.replace(fold=0)) - _offset_of(local)
        if self._fixed and local.fold and again > timedelta(0):
            change = clock_is_set(after - again, after, self.zone) or after
            return (change + _offset_of(local) + again).replace(tzinfo=None), True
        return self._wall(after), False

    def _change(self, after: datetime, until: datetime) -> datetime | None:
        """The first moment in (after, until] at which the clocks are set."""
        while after < until:
            stop = min(until, after + _STRIDE)
            if found := clock_is_set(after, stop, self.zone):
                return found
            after = stop
        return None

    def _wall(self, moment: datetime) -> datetime:
        return moment.astimezone(self.zone).replace(tzinfo=None, fold=0)


def _offset(moment: datetime, zone: ZoneInfo) -> timedelta:
    return _offset_of(moment.astimezone(zone))


def _offset_of(local: datetime) -> timedelta:
    return local.utcoffset() or timedelta(0)


@lru_cache(maxsize=4_096)
def _wall_fire(expression: str, wall: datetime, *, included: bool) -> datetime:
    """The first local time of the expression behind this one, or at it."""
    found: datetime = _croniter(expression, wall - _SECOND if included else wall).get_next(datetime)
    return found


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
