"""Local time of one zone in exact terms: where a local moment begins, and when its clock is set."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from flowstone_celery.errors import InvalidOption, did_you_mean

_SECOND = timedelta(seconds=1)
_DAY = timedelta(days=1)


def zone_of(name: str | ZoneInfo) -> ZoneInfo:
    """The time zone of this name.

    Raises:
        InvalidOption: there is none; names the nearest.
    """
    if isinstance(name, ZoneInfo):
        return name
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        near = did_you_mean(name, available_timezones()) if isinstance(name, str) else ""
        raise InvalidOption(
            f"there is no time zone {name!r:.80}",
            hint=near or 'Write for example "Europe/Prague".',
            option="tz",
        ) from None


def begins(wall: datetime, zone: ZoneInfo) -> datetime:
    """The first moment, in UTC, at which the zone's clocks show this local time or, where that is skipped, a later one."""
    first = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if _shown(first, zone) == wall:
        return first
    before, after = first - 2 * _DAY, first + 2 * _DAY
    while after - before > _SECOND:
        middle = before + (after - before) // 2
        if _shown(middle, zone) >= wall:
            after = middle
        else:
            before = middle
    return _whole(after)


def clock_is_set(after: datetime, until: datetime, zone: ZoneInfo) -> datetime | None:
    """The moment in (after, until], in UTC, from which the zone has another offset; None if it keeps the one that it has.

    The two lie so near to each other that the clock is set at most once between them.
    """
    offset = after.astimezone(zone).utcoffset()
    if until.astimezone(zone).utcoffset() == offset:
        return None
    while until - after > _SECOND:
        middle = after + (until - after) // 2
        if middle.astimezone(zone).utcoffset() == offset:
            after = middle
        else:
            until = middle
    return _whole(until)


def _shown(moment: datetime, zone: ZoneInfo) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


def _whole(moment: datetime) -> datetime:
    """The whole second: clocks are set on one, and a search by halves ends just behind it."""
    return moment.replace(microsecond=0)
