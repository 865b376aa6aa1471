"""A clock that stands in the database: `flowstone.now()` defined again, with an offset."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from flowstone_celery.db.schema import clock_sql
from flowstone_celery.db.statements import Statement

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowstone_celery.db.database import Database

_NOW = Statement("testing", "now", frozenset(), "SELECT flowstone.now() AS now")


class VirtualClock:
    """The clock of one database. It runs on as real clocks do, and can be moved ahead; all processes see it at once."""

    def __init__(self, database: Database, on_advance: Callable[[float], None] | None = None) -> None:
        """Begin at the real time; `on_advance` hears of the seconds by which it moves."""
        self._database = database
        self._on_advance = on_advance
        self._offset = timedelta()

    def now(self) -> datetime:
        """The database's time, aware UTC."""
        found: datetime = self._database.once(_NOW)[0]["now"]
        return found

    def advance(self, delta: timedelta | None = None, **units: float) -> datetime:
        """Move ahead, by a timedelta or by its keywords (`hours=7`); answers the new time.

        Raises:
            ValueError: the step is negative; time does not run back.
        """
        step = (delta or timedelta()) + timedelta(**units)
        if step < timedelta():
            raise ValueError(f"the clock cannot go back by {-step}")
        self._set(self._offset + step)
        if self._on_advance is not None:
            self._on_advance(step.total_seconds())
        return self.now()

    def reset(self) -> None:
        """The real time again."""
        self._set(timedelta())

    def _set(self, offset: timedelta) -> None:
        text = clock_sql(self._database.schema, offset.total_seconds())
        self._database.once(Statement("testing", "set_clock", frozenset(), text.replace("%", "%%")))
        self._offset = offset
