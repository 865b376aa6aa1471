"""Acts on a run that stands: the next round, pause and resume, the end at its deadline; alone, by filter, or asked for in advance.

Each act is one guarded statement with its audit row. What it makes ready is called after the commit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flowstone_celery import faults
from flowstone_celery.core import lanes, runs
from flowstone_celery.core.model import json_text
from flowstone_celery.core.statements import SQL
from flowstone_celery.core.wake import wake
from flowstone_celery.errors import DatabaseUnavailable, DeadlineExceeded
from flowstone_celery.states import Act
from flowstone_celery.telemetry import emit

if TYPE_CHECKING:
    from flowstone_celery.config import Settings
    from flowstone_celery.core.model import Carrier
    from flowstone_celery.db.database import Database, Row, Tx

log = logging.getLogger("flowstone.acts")

_PAGE = 500


@dataclass(frozen=True, slots=True)
class Doer:
    """Who acts, with what it needs for it."""

    database: Database
    carrier: Carrier
    settings: Settings


@dataclass(frozen=True, slots=True)
class Reopened:
    """The next round of a run."""

    round: int
    steps: int
    """How many steps are done again."""
    queues: tuple[str, ...] = ()
    """Where the first of them stand."""


def retry(
    doer: Doer,
    run_id: UUID,
    *,
    begin_at: Sequence[str] = (),
    everything: bool = False,
    deadline_in: float | None = None,
    actor: str,
    actor_type: str = "user",
) -> Reopened | None:
    """The run's next round: what failed or was cancelled is done again, what succeeded is kept.

    Args:
        doer: with what to do it.
        run_id: a run that has ended.
        begin_at: names of steps that are done again, too, and everything that stands on them.
        everything: all steps are done again.
        deadline_in: seconds that the new round may take.
        actor: who asked for it.
        actor_type: what kind of actor.

    Returns:
        None if there was nothing to do again: the run has not ended, or it has succeeded and no step was named.

    Raises:
        RunNotFound: no run has this id.
    """
    row = doer.database.attempt(
        lambda tx: _reopen(
            tx,
            run_id,
            begin_at=list(begin_at),
            everything=everything,
            deadline_in=deadline_in,
            actor=actor,
            actor_type=actor_type,
        )
    )
    faults.point("retry.after_commit")
    if row is None:
        runs.read(doer.database, run_id)
        return None
    _call(doer, row)
    emit("flowstone.run.retry", run_id=str(run_id), round=row["round"], steps=row["reopened"])
    return Reopened(row["round"], row["reopened"], tuple(row["opened"] or ()))


def _reopen(tx: Tx, run_id: UUID, **values: Any) -> Row | None:
    return tx.row(SQL["reopen"], run=run_id, **values)


def _call(doer: Doer, row: Row) -> None:
    if row["lane"] is not None:
        lanes.admit(doer.database, doer.carrier, doer.settings, row["tenant"], row["lane"])
    else:
        wake(doer.database, doer.carrier, doer.settings, row["opened"] or ())


def pause(doer: Doer, run_id: UUID, *, actor: str, actor_type: str = "user") -> bool:
    """The run begins nothing more; what runs goes on to its end. False if it has ended or is paused already.

    Raises:
        RunNotFound: no run has this id.
    """
    moved = doer.database.first(SQL["pause"], run=run_id, actor=actor, actor_type=actor_type)
    faults.point("pause.after_run_row")
    if moved is None:
        runs.read(doer.database, run_id)
        return False
    lanes.stand_aside(doer.database, run_id)
    return True


def resume(doer: Doer, run_id: UUID, *, actor: str, actor_type: str = "user") -> bool:
    """A paused run goes on. False if it is not paused.

    Raises:
        RunNotFound: no run has this id.
    """
    moved = doer.database.first(SQL["resume"], run=run_id, actor=actor, actor_type=actor_type)
    faults.point("resume.after_run_row")
    if moved is None:
        runs.read(doer.database, run_id)
        return False
    lanes.call_in(doer.database, doer.carrier, doer.settings, run_id)
    return True


def expire(doer: Doer) -> int:
    """Runs whose deadline has passed end as failed; answers how many."""
    error = DeadlineExceeded(
        "the run had not ended by its deadline",
        hint="give it more time with deadline=, or retry it: what succeeded is kept",
    )
    late = doer.database.once(SQL["expire"], limit=100, error=json_text(error.to_dict()))
    faults.point("deadline.after_run_row")
    for row in late:
        runs.cancel_steps(doer.database, row["id"])
    return len(late)


# --- asked for in somebody else's transaction -----------------------------------------------------------------------------------


def ask(tx: Tx, run_id: UUID, act: Act, *, actor: str, detail: Mapping[str, Any] | None = None) -> None:
    """The act will be done if, and after, the transaction commits."""
    tx.rows(SQL["ask"], run=run_id, act=act.value, actor=actor, detail=json_text(detail))


def do_asked(doer: Doer, *, most: int = 1_000) -> int:
    """What was asked for is done, oldest first; answers how much."""
    done = 0
    while done < most and _do_next(doer):
        done += 1
    return done


def _do_next(doer: Doer) -> bool:
    """One request is taken and done in one transaction; what it makes ready is called after it."""
    after: list[Row] = []
    taken: list[Row] = []

    def work(tx: Tx) -> Row | None:
        after.clear()
        taken.clear()
        row = tx.row(SQL["asked"])
        if row is not None:
            taken.append(row)
            after.extend(_done_in(tx, row))
        return row

    try:
        row = doer.database.attempt(work)
    except (DatabaseUnavailable, faults.FaultInjectedError):
        raise
    except Exception as error:
        if not taken:
            raise
        _refuse(doer, taken[0], error)
        return True
    if row is None:
        return False
    faults.point("request.after_commit")
    _finish(doer, row, after)
    return True


def _refuse(doer: Doer, request: Row, error: Exception) -> None:
    """What cannot be done stands in the audit log, and in the way of nothing that was asked for after it."""
    log.error("request %s of run %s cannot be done", request["id"], request["run_id"], exc_info=error)
    doer.database.once(SQL["refuse"], request=request["id"], error=json_text({"error": str(error)}))


def _done_in(tx: Tx, request: Row) -> list[Row]:
    detail, actor = request["detail"] or {}, {"actor": request["actor"], "actor_type": "user"}
    match Act(request["act"]):
        case Act.CANCEL:
            reason = detail.get("reason") or "cancelled"
            found = tx.row(SQL["cancel"], run=request["run_id"], reason=reason, **actor)
        case Act.RETRY:
            asked = {"begin_at": [], "everything": False, "deadline_in": None, **detail}
            found = _reopen(tx, request["run_id"], **asked, **actor)
        case Act.PAUSE:
            found = tx.row(SQL["pause"], run=request["run_id"], **actor)
        case Act.RESUME:
            found = tx.row(SQL["resume"], run=request["run_id"], **actor)
    return [] if found is None else [found]


def _finish(doer: Doer, request: Row, found: list[Row]) -> None:
    for row in found:
        match Act(request["act"]):
            case Act.CANCEL:
                runs.cancel_steps(doer.database, row["id"])
            case Act.RETRY:
                _call(doer, row)
            case Act.PAUSE:
                lanes.stand_aside(doer.database, row["id"])
            case Act.RESUME:
                lanes.call_in(doer.database, doer.carrier, doer.settings, row["id"])


# --- by filter ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs an act is for: all that are given must hold."""

    statuses: Sequence[str] | None = None
    name: str | None = None
    partition: str | None = None
    """The partition's text."""
    lane: str | None = None
    since: datetime | None = None
    """Started at this moment or later."""
    until: datetime | None = None
    """Started before this moment."""
    paused: bool | None = None

    @property
    def values(self) -> dict[str, Any]:
        """The parameters of `matching`."""
        statuses = None if self.statuses is None else list(self.statuses)
        rest = {
            name: getattr(self, name) for name in ("name", "partition", "lane", "since", "until", "paused")
        }
        return {"statuses": statuses, **rest}


def count(database: Database, which: RunFilter) -> int:
    """How many runs the filter names now."""
    row = database.first(SQL["matching_count"], **which.values)
    return row["runs"] if row else 0


def matching(database: Database, which: RunFilter) -> Iterator[UUID]:
    """The ids of the runs that the filter names, newest first, read in pages as they are asked for."""
    before: datetime | None = None
    before_id: UUID | None = None
    while True:
        page = database.once(SQL["matching"], **which.values, before=before, before_id=before_id, limit=_PAGE)
        for row in page:
            yield row["id"]
        if len(page) < _PAGE:
            return
        before, before_id = page[-1]["created_at"], page[-1]["id"]
