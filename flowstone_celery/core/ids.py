"""Runs by the beginning of their id."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING
from uuid import UUID

from flowstone_celery.core.statements import SQL
from flowstone_celery.errors import InvalidOption, RunNotFound

if TYPE_CHECKING:
    from flowstone_celery.db.database import Database

FORM = re.compile(r"[0-9a-fA-F]{4}[0-9a-fA-F-]{0,32}", re.ASCII)
"""What the beginning of an id looks like."""

_SHORTEST = 13
"""Characters that tell the millisecond of a run's start."""
_DIGITS = 32


def find(database: Database, beginning: str) -> UUID:
    """The run whose id begins so.

    Raises:
        RunNotFound: none does.
        InvalidOption: several do.
    """
    digits = beginning.replace("-", "").lower()
    if not FORM.fullmatch(beginning) or len(digits) > _DIGITS:
        raise RunNotFound(
            f"{beginning!r:.80} is not the id of a run, nor the beginning of one",
            hint="`flowstone run ls` lists the newest",
        )
    if len(digits) == _DIGITS:
        return UUID(digits)
    low, high = (UUID(digits.ljust(_DIGITS, last)) for last in "0f")
    rows = [row["id"] for row in database.once(SQL["by_prefix"], low=low, high=high)]
    if not rows:
        raise RunNotFound(
            f"no run has an id that begins with {beginning}", hint="`flowstone run ls` lists the newest"
        )
    if len(rows) > 1:
        several = ", ".join(str(each) for each in rows[:5]) + (", …" if len(rows) > 5 else "")
        raise InvalidOption(
            f"several runs have ids that begin with {beginning}: {several}", hint="write more of it"
        )
    found: UUID = rows[0]
    return found


def short(database: Database, ids: Sequence[UUID]) -> dict[UUID, str]:
    """As much of each id as tells it from all other runs now."""
    return {
        row["id"]: _short(row["id"], row["before"], row["after"])
        for row in database.once(SQL["neighbors"], runs=list(ids))
    }


def _short(this: UUID, *others: UUID | None) -> str:
    shared = [_in_common(str(this), str(other)) for other in others if other is not None]
    return str(this)[: max([_SHORTEST, *(each + 1 for each in shared)])]


def _in_common(one: str, other: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=True)))
