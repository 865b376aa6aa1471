"""What open barriers need that nobody else gives them: more hands when there are more slots, a call when all stand aside."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from flowstone_celery.core.barrier_close import add_hands, call_hands, close
from flowstone_celery.core.statements import SQL
from flowstone_celery.states import BarrierStatus

if TYPE_CHECKING:
    from flowstone_celery.db.database import Database, Row, Tx

_AT_ONCE = 100
_KEYS = 20_000


def sweep(database: Database) -> list[str]:
    """Barriers with work have hands for it, and digests of keys that nobody needs go; answers queues of hands that became ready."""
    queues: set[str] = set()
    for row in database.once(SQL["barriers_in_need"], limit=_AT_ONCE):
        queues.update(database.attempt(partial(_help, row=row)))
    database.once(SQL["drop_keys"], limit=_KEYS)
    return sorted(queues)


def _help(tx: Tx, *, row: Row) -> tuple[str, ...]:
    tx.row(SQL["lock_barrier"], barrier=row["id"])
    if row["orphan"]:
        part = close(tx, row["id"], BarrierStatus.CANCELLED)
        return part.opened if part else ()
    return (*call_hands(tx, row["id"], most=_AT_ONCE), *add_hands(tx, row["id"]))
