"""Waking workers: wake-ups are promised to the next rows of a queue, and sent after the commit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias
from uuid import UUID

from flowstone_celery import faults
from flowstone_celery.core import steps
from flowstone_celery.core.model import INLINE_QUEUE, NoCarrier
from flowstone_celery.core.statements import SQL

if TYPE_CHECKING:
    from flowstone_celery.config import Settings
    from flowstone_celery.core.model import Carrier, WakeUp
    from flowstone_celery.db.database import Database, Tx
    from flowstone_celery.db.statements import Statement

_BATCH = 1_000

Promise: TypeAlias = "Callable[[Tx], list[WakeUp]]"


def wake(database: Database, carrier: Carrier, settings: Settings, queues: Iterable[str]) -> int:
    """As many of each queue's next ready rows are woken as it has room for; answers how many.

    None on the inline queue: nobody listens there, and a message would stay in the broker for ever. None by who carries nothing: the
    pacer does it.
    """
    if isinstance(carrier, NoCarrier):
        return 0
    return sum(
        send_promised(database, carrier, _promise_on(queue, settings))
        for queue in sorted(set(queues) - {INLINE_QUEUE})
    )


def _promise_on(queue: str, settings: Settings) -> Promise:
    return lambda tx: steps.promise(tx, queue, min_wakeups=settings.min_wakeups)


def back_in_line(database: Database, *, only_run: UUID | None = None) -> list[str]:
    """Rows whose moment has come, or whose maker is no more, are in the line again; answers their queues, one entry for each row.

    With `only_run` those of this run only.
    """
    return [
        queue
        for statement in (SQL["unpark_due"], SQL["unpark_awaiting"])
        for queue in _unpark(database, statement, only_run)
    ]


def _unpark(database: Database, statement: Statement, only_run: UUID | None) -> list[str]:
    queues: list[str] = []
    while True:
        batch = database.once(statement, only_run=only_run, limit=_BATCH)
        queues += [row["queue"] for row in batch]
        if len(batch) < _BATCH:
            return queues


def send_promised(database: Database, carrier: Carrier, work: Promise) -> int:
    """What the work promises in its transaction is sent after it; answers how many."""

    def promised(tx: Tx) -> list[WakeUp]:
        wakeups = work(tx)
        faults.point("promise.before_commit")
        return wakeups

    wakeups = database.attempt(promised)
    faults.point("promise.after_commit")
    if wakeups:
        carrier.send(wakeups)
    return len(wakeups)
