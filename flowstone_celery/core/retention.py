"""Retention: runs that ended long ago go, batch by batch, with all that nothing stands on any more.

A batch is one transaction with its audit row: whoever dies between two leaves nothing half done, and the next goes on. What must
stay is decided in the statements: current values, what a live run consumed, runs whose idempotency key is still to be honored. The
lineage of what is gone stays, as names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from flowstone_celery import faults
from flowstone_celery.core.statements import SQL
from flowstone_celery.record import audit

if TYPE_CHECKING:
    from flowstone_celery.config import Settings
    from flowstone_celery.db.database import Database, Row, Tx
    from flowstone_celery.db.statements import Statement

DAY = 86_400.0
_GRACE = DAY
"""Seconds after which a large value that no attempt settled is rubbish."""
_RUNS = 500
_ITEMS = 20_000
_STEPS = 5_000
"""A batch ends with the run that reaches so many steps."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What is old, in seconds."""

    keep: float
    """Runs that ended longer ago may go."""
    key_life: float = 30 * DAY
    """A run with an idempotency key stays for so long after its start, so that the key answers it."""

    @staticmethod
    def of(settings: Settings, keep: float | None = None) -> Policy | None:
        """The policy of the settings, with another age where one is given; None if neither says how old is old."""
        days = settings.retention_days
        if keep is None and days is None:
            return None
        return Policy(keep if keep is not None else (days or 0) * DAY, settings.key_life_days * DAY)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What went."""

    runs: int = 0
    steps: int = 0
    values: int = 0
    """Outdated values of assets."""
    leftovers: int = 0
    """Large values that no attempt settled."""
    dead: int = 0
    """Rows of processes, nodes and requests that are no more."""
    items: int = 0
    """Items of scatters whose runs are gone."""
    barriers: int = 0
    reached: datetime | None = None
    """Runs that ended before this moment have been looked at."""

    @property
    def any(self) -> bool:
        """Whether anything went."""
        return bool(self.runs or self.values or self.leftovers or self.dead or self.items or self.barriers)

    def plus(self, other: Pruned) -> Pruned:
        """Both together."""
        return Pruned(
            self.runs + other.runs,
            self.steps + other.steps,
            self.values + other.values,
            self.leftovers + other.leftovers,
            self.dead + other.dead,
            self.items + other.items,
            self.barriers + other.barriers,
            other.reached or self.reached,
        )


def batch(database: Database, policy: Policy, *, actor: str, after: datetime | None = None) -> Pruned:
    """One bounded batch is gone; nothing is left to prune when nothing was. `after`: where the last batch ended."""
    about = {"keep": policy.keep, "limit": _RUNS}

    def work(tx: Tx) -> Pruned:
        row = _one(tx, SQL["prune_runs"], **about, key_life=policy.key_life, reached=after, most_steps=_STEPS)
        left = len(tx.rows(SQL["expired_values"], grace=_GRACE, limit=_RUNS))
        dead = _one(tx, SQL["bury_rows"], **about)["dead"]
        scatters = tx.row(SQL["bury_barriers"], limit=_ITEMS) or {"items": 0, "barriers": 0}
        if row["runs"]:
            details = {"runs": row["runs"], "older_than_seconds": policy.keep}
            audit.add(
                tx,
                actor=actor,
                action="db.prune",
                resource_type="database",
                resource_id="runs",
                details=details,
            )
        gone = (scatters["items"], scatters["barriers"])
        return Pruned(row["runs"], row["steps"], row["stored"], left, dead, *gone, row["reached"])

    return database.attempt(work)


def prune(
    database: Database, policy: Policy, *, actor: str, on_batch: Callable[[Pruned], None] | None = None
) -> Pruned:
    """All that is old is gone; `on_batch` is told after each batch what has gone so far."""
    total = Pruned()
    while (gone := batch(database, policy, actor=actor, after=total.reached)).any:
        total = total.plus(gone)
        if on_batch:
            on_batch(total)
        faults.point("retention.between_batches")
    return total


def prunable(database: Database, policy: Policy) -> Pruned:
    """How many runs and leftovers pruning would delete now."""
    row = database.once(SQL["prunable"], keep=policy.keep, key_life=policy.key_life, grace=_GRACE)[0]
    return Pruned(runs=row["runs"], leftovers=row["leftovers"])


def _one(tx: Tx, statement: Statement, **values: Any) -> Row:
    row = tx.row(statement, **values)
    assert row is not None, "a statement that counts answers one row"
    return row
