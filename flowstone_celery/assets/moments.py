"""Windows that begin at moments and not at midnights. Hours stand here, the moments of a cron expression in `cron.py`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from flowstone_celery.assets.definitions import wrong
from flowstone_celery.assets.windows import FIRST_YEAR, LAST_YEAR, Key, TimeWindows, midnight, parsed
from flowstone_celery.assets.zones import clock_is_set
from flowstone_celery.errors import InvalidPartition

if TYPE_CHECKING:
    from flowstone_celery.assets.partition import PartitionKey

_HOUR = timedelta(hours=1)


@dataclass(frozen=True, repr=False)
class Moments(TimeWindows):
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
class Hourly(Moments):
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
