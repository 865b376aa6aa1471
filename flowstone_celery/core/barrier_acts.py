"""Acts on a barrier that stands: its cancel, the acceptance of what succeeded, its next round. Each leaves its audit row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowstone_celery.core.barrier_close import close
from flowstone_celery.core.barrier_model import Part
from flowstone_celery.core.statements import SQL
from flowstone_celery.errors import Cancelled
from flowstone_celery.record import audit
from flowstone_celery.states import BarrierStatus

if TYPE_CHECKING:
    from flowstone_celery.db.database import Database, Row, Tx

_CAN_BE_ACCEPTED = (BarrierStatus.FAILED, BarrierStatus.CANCELLED)


def cancel(tx: Tx, barrier: int, actor: str, reason: str, *, actor_type: str = "user") -> Part | None:
    """An open barrier is cancelled, and its step with all that stands on it; None: it is not open.

    Hands that run end with their slice's next look at it; pending items are cancelled, which nobody writes down.
    """
    part = close(tx, barrier, BarrierStatus.CANCELLED, Cancelled(reason or "cancelled").to_dict())
    if part is not None:
        _audit(tx, barrier, actor, actor_type, "barrier.cancel", reason)
    return part


def accept(tx: Tx, barrier: int, actor: str, reason: str, *, actor_type: str = "user") -> Part | None:
    """What succeeded of a failed or cancelled barrier is taken as it is: its run's next round begins with the barrier closed.

    The step waits for its turn like any other (another run may be making the value); when it is called, its handler answers
    `Scattered(again=…)`, finds nothing to do again, and gathers. None: the barrier has not failed, or its run has not ended.
    """
    found = tx.row(SQL["lock_barrier"], barrier=barrier)
    if found is None or found["abandoned"] or found["status"] not in _CAN_BE_ACCEPTED:
        return None
    run = _next_round(tx, found, actor, actor_type, begin_at=[])
    if run is None:
        return None
    tx.row(SQL["reopen_barrier"], barrier=barrier, round=run["round"], uncounted=0, keep=True)
    tx.row(SQL["close_barrier"], barrier=barrier, status=BarrierStatus.PARTIAL_FAILURE.value, error=None)
    _audit(tx, barrier, actor, actor_type, "barrier.accept", reason)
    return Part(BarrierStatus.PARTIAL_FAILURE.value, closed=True, opened=tuple(run["opened"] or ()))


def retry(database: Database, barrier: int, actor: str, *, actor_type: str = "user") -> Row | None:
    """The run's next round begins at the barrier's step; the row is that of `reopen` (id, round, tenant, lane, opened queues).

    None: the run has not ended. The step's handler answers `Scattered(again=…)`. Whoever calls this calls what became ready.
    """

    def work(tx: Tx) -> Row | None:
        found = tx.row(SQL["lock_barrier"], barrier=barrier)
        if found is None or found["abandoned"] or found["status"] == BarrierStatus.OPEN:
            return None
        gathered = found["step_status"] == "succeeded"
        return _next_round(tx, found, actor, actor_type, begin_at=[found["name"]] if gathered else [])

    return database.attempt(work)


def _next_round(tx: Tx, barrier: Row, actor: str, actor_type: str, *, begin_at: list[str]) -> Row | None:
    return tx.row(
        SQL["reopen"],
        run=barrier["run_id"],
        begin_at=begin_at,
        everything=False,
        deadline_in=None,
        actor=actor,
        actor_type=actor_type,
    )


def _audit(tx: Tx, barrier: int, actor: str, actor_type: str, action: str, reason: str) -> None:
    audit.add(
        tx,
        actor=actor,
        actor_type=actor_type,
        action=action,
        resource_type="barrier",
        resource_id=str(barrier),
        details={"reason": reason},
    )
