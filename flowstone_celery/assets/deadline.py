"""Deadlines as users write them: how long something may take, or until when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from flowstone_celery.assets.options import seconds_of
from flowstone_celery.errors import InvalidOption

Deadline: TypeAlias = "float | timedelta | datetime"
"""Seconds or a timedelta from now, or an aware moment."""

_EXAMPLE = "Write for example deadline=3600, deadline=timedelta(hours=1), or an aware datetime in the future."


def seconds_until(deadline: Deadline) -> float:
    """The seconds that are left until the deadline; the database counts them from the start of the run on its own clock.

    Raises:
        InvalidOption: it is none, has no time zone, or has passed.
    """
    if isinstance(deadline, datetime):
        return _left(deadline)
    try:
        seconds = seconds_of(deadline)
    except ValueError:
        seconds = 0.0
    if seconds == 0.0:
        raise InvalidOption(
            f"deadline is a number of seconds above 0, a timedelta or a moment, not {deadline!r:.80}",
            hint=_EXAMPLE,
            option="deadline",
        )
    return seconds


def _left(deadline: datetime) -> float:
    if deadline.tzinfo is None:
        raise InvalidOption(
            f"the deadline {deadline} has no time zone",
            hint="give it one: datetime.now(UTC) + timedelta(hours=1)",
            option="deadline",
        )
    left = (deadline - datetime.now(UTC)).total_seconds()
    if left <= 0:
        raise InvalidOption(f"the deadline {deadline} has passed", hint=_EXAMPLE, option="deadline")
    return left
