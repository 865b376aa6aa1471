"""Lanes: runs of one lane go one after the other, as many at a time as the lane is wide, in the order of their start.

A run in a lane begins outside: its first steps are parked. Whoever starts a run, and whoever ends one, lets the next in; the sweep
does it for those who died before they could.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from flowstone_celery import faults
from flowstone_celery.core.statements import SQL
from flowstone_celery.core.wake import wake

if TYPE_CHECKING:
    from flowstone_celery.config import Settings
    from flowstone_celery.core.model import Carrier
    from flowstone_celery.db.database import Database, Tx

_BATCH = 1_000


def admit(database: Database, carrier: Carrier, settings: Settings, tenant: str, lane: str) -> int:
    """The lane's next runs are let in, as far as it has room, and their first steps called; answers how many."""

    def work(tx: Tx) -> list[UUID]:
        tx.rows(SQL["lane_lock"], tenant=tenant, lane=lane)
        return [row["id"] for row in tx.rows(SQL["admit"], tenant=tenant, lane=lane)]

    admitted = database.attempt(work)
    faults.point("lane.after_admit")
    for run_id in admitted:
        call_in(database, carrier, settings, run_id)
    return len(admitted)


def call_in(database: Database, carrier: Carrier, settings: Settings, run_id: UUID) -> int:
    """Steps that stood aside for their run's lane or pause are back in the line, and woken; answers how many."""
    # All first, then the waking: rows that were promised a moment ago would be taken for such as were promised in vain.
    queues: list[str] = []
    while True:
        batch = [row["queue"] for row in database.once(SQL["unpark_run"], run=run_id, limit=_BATCH)]
        queues += batch
        if len(batch) < _BATCH:
            break
    wake(database, carrier, settings, queues)
    return len(queues)


def stand_aside(database: Database, run_id: UUID) -> None:
    """The ready steps of a paused run leave the line."""
    while len(database.once(SQL["park_paused"], run=run_id, limit=_BATCH)) == _BATCH:
        pass


def sweep(database: Database, carrier: Carrier, settings: Settings) -> int:
    """What those left undone who died while letting a run in, pausing it or calling it back; answers how many runs were helped."""
    if not database.once(SQL["anyone_aside"])[0]["yes"]:
        return 0
    waiting = database.once(SQL["lanes_with_room"], limit=100)
    for row in waiting:
        admit(database, carrier, settings, row["tenant"], row["lane"])
    for row in database.once(SQL["half_paused"], limit=100):
        stand_aside(database, row["run_id"])
    aside = database.once(SQL["unadmitted_parts"], limit=100)
    return len(waiting) + sum(call_in(database, carrier, settings, row["run_id"]) > 0 for row in aside)
