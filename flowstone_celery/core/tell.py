"""What the core tells of its steps: one event for each transition."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from flowstone_celery.core import barriers
from flowstone_celery.errors import DatabaseUnavailable
from flowstone_celery.states import BarrierStatus
from flowstone_celery.telemetry import emit

if TYPE_CHECKING:
    from flowstone_celery.core.barrier_model import Barrier
    from flowstone_celery.core.model import Claim
    from flowstone_celery.core.steps import Moved
    from flowstone_celery.db.database import Database, Row
    from flowstone_celery.errors import FlowStoneError


def about(claim: Claim) -> dict[str, Any]:
    """The fields by which every event names its step."""
    return {
        "run_id": str(claim.run_id),
        "step_id": claim.id,
        "name": claim.name,
        "partition": claim.partition,
        "attempt": claim.attempt,
    }


def tell_settled(claim: Claim, moved: Moved | None, error: FlowStoneError | None, seconds: float) -> None:
    """One event for how the step ended, and one if the run ended with it."""
    step, text, code = about(claim), str(error or ""), error.code if error else ""
    match moved.event if moved else "stale":
        case "succeeded":
            emit("flowstone.step.succeed", **step, duration_ms=seconds * 1000, queue=claim.queue)
        case "failed":
            emit("flowstone.step.fail", **step, error=text, code=code)
        case "retry":
            emit(
                "flowstone.step.retry",
                **step,
                error=text,
                code=code,
                delay_seconds=moved.delay if moved else 0.0,
            )
        case "skipped":
            emit("flowstone.step.skip", **step)
        case "cancelled":
            emit("flowstone.step.cancel", **step)
        case "released":
            emit("flowstone.step.release", **step, reason="stop")
        case "waiting" | "idle" | "in_line":
            pass  # a scatter, and a hand's slices, have events of their own
        case _:
            emit("flowstone.step.stale", **step, fence=claim.fence)
    if moved and moved.run_status in ("succeeded", "failed", "cancelled"):
        emit("flowstone.run.stop", run_id=str(claim.run_id), name=claim.run_name, status=moved.run_status)


def tell_released(row: Row, reason: str) -> None:
    """Emit that a step was taken from its worker."""
    emit(
        "flowstone.step.release",
        run_id=str(row["run_id"]),
        step_id=row["id"],
        name=row["name"],
        partition=row["partition"],
        attempt=row["attempt"],
        reason=reason,
    )


def about_barrier(barrier: Barrier) -> dict[str, Any]:
    """The fields by which every event names its scatter."""
    return {
        "barrier_id": barrier.id,
        "run_id": str(barrier.run_id),
        "asset": barrier.name,
        "partition": barrier.partition,
    }


def tell_scattered(database: Database, claim: Claim) -> None:
    """One event for a scatter that has begun; those of its end, too, if it had nothing to do."""
    with suppress(DatabaseUnavailable):
        found = barriers.of_step(database, claim.id)
        if found is None:
            return
        emit(
            "flowstone.scatter.start",
            **about_barrier(found),
            count=found.total,
            collapsed=found.collapsed,
            round=found.round,
        )
        if found.status != BarrierStatus.OPEN and not found.total:
            tell_closed(database, found.id)


def tell_closed(database: Database, barrier_id: int) -> None:
    """One event for how a barrier has ended, and one if its step is ready to gather."""
    with suppress(DatabaseUnavailable):
        found, counted = barriers.barrier(database, barrier_id), barriers.progress(database, barrier_id)
        if found is None or counted is None:
            return
        counts = {"completed": counted.succeeded, "failed": counted.failed}
        match found.status:
            case BarrierStatus.OPEN:
                pass
            case BarrierStatus.FAILED:
                emit("flowstone.scatter.failed", **about_barrier(found), **counts)
            case BarrierStatus.CANCELLED:
                emit("flowstone.scatter.cancel", **about_barrier(found))
            case _:
                emit("flowstone.scatter.complete", **about_barrier(found), **counts)
                emit("flowstone.scatter.gather_ready", **about_barrier(found))
