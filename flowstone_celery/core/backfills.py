"""Backfills as rows: what is to be begun, how much of it is, and acts on all of its runs. A run for each partition, in one lane.

Whoever begins a part moves the row's mark in the transaction that starts its runs. So a client may die at any point, several may go
on with the same backfill at once, and each partition still has one run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flowstone_celery.core import lanes, runs
from flowstone_celery.core.model import json_text, new_run_id
from flowstone_celery.core.statements import SQL
from flowstone_celery.errors import BackfillNotFound, InvalidOption

if TYPE_CHECKING:
    from flowstone_celery.core.acts import Doer
    from flowstone_celery.core.model import NewRun
    from flowstone_celery.db.database import Database, Row, Tx

_PAGE = 1_000
_DIGITS = 32


@dataclass(frozen=True, slots=True)
class NewBackfill:
    """A backfill that is about to stand."""

    asset: str
    mode: str
    partitions: Sequence[str]
    """Texts of what is to be made, in the order of their start."""
    skipped: Sequence[str]
    """Texts of what was asked for and need not be made."""
    max_concurrent: int
    request: Mapping[str, Any] = field(default_factory=dict)
    """What each of its runs is started with, as plain JSON."""
    digest: str = ""
    """What two requests with the same key must share."""
    key: str | None = None
    tenant: str = ""
    requested_by: str = ""
    id: UUID = field(default_factory=new_run_id)


def lane_of(backfill_id: UUID) -> str:
    """The lane in which its runs go."""
    return f"backfill/{backfill_id}"


def add(database: Database, new: NewBackfill, *, actor: str) -> bool:
    """The backfill stands, and nothing of it has begun; False if its key is taken."""
    row = database.first(
        SQL["backfill_add"],
        backfill=new.id,
        tenant=new.tenant,
        idempotency_key=new.key,
        request_digest=new.digest,
        asset=new.asset,
        mode=new.mode,
        partitions=list(new.partitions),
        skipped=list(new.skipped),
        max_concurrent=new.max_concurrent,
        request=json_text(dict(new.request)),
        requested_by=new.requested_by,
        actor=actor,
    )
    return row is not None


# --- read -------------------------------------------------------------------------------------------------------------------------


def read(database: Database, backfill_id: UUID) -> Row:
    """The backfill's row, with the number of its partitions in place of their names.

    Raises:
        BackfillNotFound: none has this id.
    """
    return _there(database.first(SQL["backfill"], backfill=backfill_id), backfill_id)


def by_key(database: Database, tenant: str, key: str) -> Row | None:
    """The backfill that was started with this key."""
    return database.first(SQL["backfill_by_key"], tenant=tenant, key=key)


def progress(database: Database, backfill_id: UUID) -> Row:
    """As `read`, with the number of its runs by how they stand.

    Raises:
        BackfillNotFound: none has this id.
    """
    return _there(database.first(SQL["backfill_progress"], backfill=backfill_id), backfill_id)


def page(
    database: Database,
    *,
    name: str | None = None,
    before: tuple[datetime, UUID] | None = None,
    limit: int = 50,
) -> list[Row]:
    """One page of backfills with their progress, newest first; `before` is the last page's end (created_at, id)."""
    moment, last = before or (None, None)
    return database.once(SQL["backfills_page"], name=name, before=moment, before_id=last, limit=limit)


def skipped(database: Database, backfill_id: UUID) -> list[str]:
    """The texts of the partitions that need not be made."""
    row = _there(database.first(SQL["backfill_skipped"], backfill=backfill_id), backfill_id)
    return list(row["skipped"])


def partitions(database: Database, backfill_id: UUID, *, after: int, limit: int) -> tuple[int, list[str]]:
    """How many partitions have been begun, and the texts of those behind a place in their order."""
    found = database.first(SQL["backfill_keys"], backfill=backfill_id, after=after, limit=limit)
    row = _there(found, backfill_id)
    return row["begun"], list(row["partitions"])


def runs_of(database: Database, backfill_id: UUID) -> Iterator[Row]:
    """Its runs in the order of their start, read in pages as they are asked for."""
    last: tuple[datetime | None, UUID | None] = (None, None)
    while True:
        moment, run_id = last
        rows = database.once(
            SQL["backfill_runs"], lane=lane_of(backfill_id), before=moment, before_id=run_id, limit=_PAGE
        )
        yield from rows
        if len(rows) < _PAGE:
            return
        last = (rows[-1]["created_at"], rows[-1]["id"])


def find(database: Database, beginning: str) -> UUID:
    """The backfill whose id begins so.

    Raises:
        BackfillNotFound: none does.
        InvalidOption: several do.
    """
    digits = beginning.replace("-", "").lower()
    if not digits or len(digits) > _DIGITS or set(digits) - set("0123456789abcdef"):
        raise BackfillNotFound(
            f"{beginning!r:.80} is not the id of a backfill, nor the beginning of one",
            hint="`flowstone backfill ls` lists the newest",
        )
    low, high = (UUID(digits.ljust(_DIGITS, last)) for last in "0f")
    found = [row["id"] for row in database.once(SQL["backfill_by_prefix"], low=low, high=high)]
    if len(found) > 1:
        several = ", ".join(map(str, found[:5])) + (", …" if len(found) > 5 else "")
        raise InvalidOption(
            f"several backfills have ids that begin with {beginning}: {several}", hint="write more of it"
        )
    if not found:
        raise _none(beginning)
    only: UUID = found[0]
    return only


def _there(row: Row | None, backfill_id: UUID) -> Row:
    if row is None:
        raise _none(str(backfill_id))
    return row


def _none(named: str) -> BackfillNotFound:
    hint = "`flowstone backfill ls` lists the newest"
    return BackfillNotFound(f"no backfill has the id {named}", hint=hint, backfill_id=named)


# --- begin ------------------------------------------------------------------------------------------------------------------------


def begin(doer: Doer, backfill_id: UUID, after: int, new: Sequence[NewRun], *, promise: bool) -> bool:
    """The partitions behind this place have their runs, in one transaction.

    False if nothing was begun: somebody else has begun them, or the backfill is paused or cancelled.
    """

    def work(tx: Tx) -> bool:
        if tx.row(SQL["backfill_advance"], backfill=backfill_id, after=after, places=len(new)) is None:
            return False
        for run in new:
            runs.start(tx, run, settings=doer.settings, promise=promise)
        return True

    return doer.database.attempt(work)


def let_in(doer: Doer, backfill_id: UUID, tenant: str) -> None:
    """As many of its runs as may go at a time are at it; each that ends lets in the next."""
    lanes.admit(doer.database, doer.carrier, doer.settings, tenant, lane_of(backfill_id))


# --- acts -------------------------------------------------------------------------------------------------------------------------


def pause(doer: Doer, backfill_id: UUID, *, actor: str) -> bool:
    """Nothing more of it begins, and what runs goes on to its end; False if it is paused or cancelled."""

    def work(tx: Tx) -> list[UUID] | None:
        if tx.row(SQL["backfill_pause"], backfill=backfill_id, actor=actor) is None:
            return None
        return _paused_in(tx, backfill_id, actor)

    paused = doer.database.attempt(work)
    for run_id in paused or ():
        lanes.stand_aside(doer.database, run_id)
    return paused is not None


def resume(doer: Doer, backfill_id: UUID, *, actor: str) -> bool:
    """A paused backfill goes on; False if it is not paused."""

    def work(tx: Tx) -> list[UUID] | None:
        if tx.row(SQL["backfill_resume"], backfill=backfill_id, actor=actor) is None:
            return None
        return [row["id"] for row in tx.rows(SQL["lane_resume"], lane=lane_of(backfill_id), actor=actor)]

    resumed = doer.database.attempt(work)
    for run_id in resumed or ():
        lanes.call_in(doer.database, doer.carrier, doer.settings, run_id)
    return resumed is not None


def cancel(
    doer: Doer,
    backfill_id: UUID,
    *,
    actor: str,
    reason: str = "",
    on_run: Callable[[int], None] = lambda _: None,
) -> bool:
    """Nothing more of it begins, and what runs is interrupted; False if it had been cancelled.

    That nothing begins any more is one commit; its runs are cancelled one by one after it, and `on_run` is told how many were. Asked
    again, it goes on where it was left.
    """

    def work(tx: Tx) -> bool:
        moved = tx.row(SQL["backfill_cancel"], backfill=backfill_id, actor=actor, reason=reason)
        _paused_in(tx, backfill_id, actor)
        return moved is not None

    cancelled = doer.database.attempt(work)
    done = 0
    for row in runs_of(doer.database, backfill_id):
        if row["status"] in ("pending", "running"):
            done += runs.cancel(
                doer.database, row["id"], actor=actor, reason=reason or "its backfill was cancelled"
            )
            on_run(done)
    return cancelled


def reopen(database: Database, backfill_id: UUID, *, actor: str) -> None:
    """What was never begun may begin, though it had been cancelled."""
    database.once(SQL["backfill_reopen"], backfill=backfill_id, actor=actor)


def _paused_in(tx: Tx, backfill_id: UUID, actor: str) -> list[UUID]:
    return [row["id"] for row in tx.rows(SQL["lane_pause"], lane=lane_of(backfill_id), actor=actor)]
