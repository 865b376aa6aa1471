"""When a barrier closes, as what, and what becomes of its step and its hands then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flowstone_celery.core.barrier_model import Part, Policy
from flowstone_celery.core.model import PROTOCOL, json_text
from flowstone_celery.core.retry_policy import RetryPolicy
from flowstone_celery.core.statements import SQL
from flowstone_celery.core.steps import error_of_dependents
from flowstone_celery.errors import Cancelled, ScatterFailed
from flowstone_celery.states import BarrierStatus, StepStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flowstone_celery.db.database import Row, Tx

ALL_OR_NOTHING = "all_or_nothing"
BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Counts:
    """What closing rests on. `done` are succeeded items, those of open pages left out."""

    total: int
    done: int
    failed: int
    sealed: bool

    @staticmethod
    def of(row: Row) -> Counts:
        """Read them from a barrier's row."""
        return Counts(row["total"], row["done"], row["failed"], row["sealed"])


def policy_of(row: Mapping[str, Any]) -> Policy:
    """Read a policy as a barrier's row keeps it; what it does not know is from newer code."""
    known = {name: value for name, value in row.items() if name in Policy.__dataclass_fields__}
    retry = known.pop("retry", None)
    return Policy(**known, retry=RetryPolicy(**retry)) if retry else Policy(**known)


def status_of(policy: Policy, counts: Counts) -> BarrierStatus | None:
    """As what the barrier closes now, None: it stays open.

    A part of the items may fail only of a total that is final: before, an early failure would weigh too much.
    """
    if counts.failed and policy.failure_mode == ALL_OR_NOTHING:
        return BarrierStatus.FAILED
    if not counts.sealed:
        return None
    if counts.failed and counts.failed / counts.total > policy.failure_threshold:
        return BarrierStatus.FAILED
    if counts.done + counts.failed < counts.total:
        return None
    return BarrierStatus.PARTIAL_FAILURE if counts.failed else BarrierStatus.COMPLETED


def close_if_due(tx: Tx, barrier: int, policy: Policy, counts: Counts, *, name: str) -> Part | None:
    """The barrier closes if its rules say so; None: it stays open, or somebody was faster."""
    status = status_of(policy, counts)
    if status is None:
        return None
    error = _failed(tx, barrier, name, counts).to_dict() if status is BarrierStatus.FAILED else None
    return close(tx, barrier, status, error)


def close(tx: Tx, barrier: int, status: BarrierStatus, error: Mapping[str, Any] | None = None) -> Part | None:
    """open → this status; the step goes on, hands that do not run are skipped. None: it was not open."""
    row = tx.row(SQL["close_barrier"], barrier=barrier, status=status.value, error=json_text(error))
    if row is None:
        return None
    # The step and its children before the run, as in every settlement; hands that somebody holds are passed over.
    opened = step_goes_on(tx, row)
    tx.rows(SQL["skip_hands"], barrier=barrier)
    return Part(status.value, closed=True, opened=opened)


def step_goes_on(tx: Tx, row: Row) -> tuple[str, ...]:
    """A step that waits for this barrier, which has closed, is ready to gather, or ends; answers the queues of what became ready."""
    status = BarrierStatus(row["status"])
    if status in (BarrierStatus.COMPLETED, BarrierStatus.PARTIAL_FAILURE):
        moved = tx.row(SQL["gather"], step=row["step_id"])
        return (moved["queue"],) if moved and moved["parked"] is None else ()
    error = row["error"] or Cancelled("its scatter was cancelled").to_dict()
    ends_as = StepStatus.FAILED if status is BarrierStatus.FAILED else StepStatus.CANCELLED
    moved = tx.row(
        SQL["end_waiting"],
        step=row["step_id"],
        status=ends_as.value,
        error=json_text(error),
        dependents=ends_as.value,
        dependents_error=json_text(error_of_dependents(ends_as, row["name"], error)),
        worker=None,
    )
    return tuple(moved["opened"] or ()) if moved else ()


def add_hands(tx: Tx, barrier: int) -> tuple[str, ...]:
    """As many hands live as can be of use; answers the queues of the new ones, one entry each."""
    return tuple(row["queue"] for row in tx.rows(SQL["add_hands"], barrier=barrier, protocol=PROTOCOL))


def call_hands(tx: Tx, barrier: int, *, most: int) -> tuple[str, ...]:
    """As many of the hands that stand aside are in the line again; answers their queues."""
    return tuple(row["queue"] for row in tx.rows(SQL["call_hands"], barrier=barrier, limit=most))


def _failed(tx: Tx, barrier: int, name: str, counts: Counts) -> ScatterFailed:
    first = tx.row(SQL["items_failed"], barrier=barrier, after=-1, limit=1)
    cause = str(((first or {}).get("error") or {}).get("message") or "")
    told = f"{counts.failed} of {counts.total} items of {name!r} failed"
    if not counts.sealed:
        told = f"{counts.failed} items of {name!r} failed while its keys were being read"
    return ScatterFailed(
        f"{told}, the first: {cause}" if cause else told,
        hint="list them with their errors; retry the run to do them again, or accept what succeeded",
        asset=name,
        failed=counts.failed,
        total=counts.total,
    )
