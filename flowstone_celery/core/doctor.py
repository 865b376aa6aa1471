"""The doctor: the invariants of the design as queries, and the reason for every row that does not run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from flowstone_celery.core.statements import DOCTOR, SQL

if TYPE_CHECKING:
    from flowstone_celery.db.database import Database, Row


@dataclass(frozen=True, slots=True)
class Finding:
    """One breach of an invariant."""

    invariant: str
    sentence: str


def examine(database: Database, *, production: bool = False) -> list[Finding]:
    """Every breach that the rows show; none is the answer that is wanted."""
    return [
        Finding(name, row["finding"])
        for name, statement in DOCTOR.items()
        for row in database.once(statement, production=production)
    ]


def why_not_running(database: Database, run_id: UUID | None = None, *, limit: int = 1_000) -> list[Row]:
    """For each unfinished step, of one run or of all, the reason why it is not running."""
    return database.once(SQL["why_not_running"], run=run_id, limit=limit)
