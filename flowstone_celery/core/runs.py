"""Runs: start, cancel, read. Each verb takes a transaction and stays inside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson

from flowstone_celery import faults
from flowstone_celery.core import barrier_close, lanes
from flowstone_celery.core.model import PROTOCOL, NewRun, NewStep, WakeUp, json_text
from flowstone_celery.core.statements import SQL
from flowstone_celery.errors import IdempotencyConflict, InvalidOption, RunNotFound
from flowstone_celery.states import BarrierStatus
from flowstone_celery.telemetry import emit

if TYPE_CHECKING:
    from flowstone_celery.config import Settings
    from flowstone_celery.core.model import Carrier
    from flowstone_celery.db.database import Database, Row, Tx

_CANCEL_BATCH = 5_000


def start(tx: Tx, run: NewRun, *, settings: Settings, promise: bool = True) -> tuple[UUID, list[WakeUp]]:
    """The run stands with its steps, in one statement; answers its id and the wake-ups to send after the commit.

    A run that was started before with the same idempotency key and the same request is answered instead.

    Raises:
        IdempotencyConflict: the key was used for another request.
        InvalidOption: the run has no step, so it could never end.
    """
    wakeups = _start_later(tx, run, settings=settings, promise=promise)()
    if wakeups is None:
        return _started_before(tx, run), []
    tx.after_commit(lambda: _tell_started(run))
    return run.id, wakeups


def _start_later(
    tx: Tx, run: NewRun, *, settings: Settings, promise: bool
) -> Callable[[], list[WakeUp] | None]:
    """The statement is asked for; call the answer for the wake-ups, None: the idempotency key is taken."""
    if not run.steps:
        raise InvalidOption(f"run {run.name!r} has no step", hint="a run needs at least one")
    asked = tx.later(SQL["start"], **_start_values(run), min_wakeups=settings.min_wakeups, promise=promise)

    def answer() -> list[WakeUp] | None:
        rows = asked()
        return [WakeUp.of(row) for row in rows if row["id"] is not None] if rows else None

    return answer


def _tell_started(run: NewRun) -> None:
    emit(
        "flowstone.run.start",
        run_id=str(run.id),
        name=run.name,
        partition=run.partition,
        requested_by=run.requested_by,
    )


def _start_values(run: NewRun) -> dict[str, Any]:
    steps = run.steps
    edges = [
        (child, parent, optional) for child, step in enumerate(steps, 1) for parent, optional in _edges(step)
    ]
    return {
        "run": run.id,
        "kind": run.kind,
        "name": run.name,
        "partition": run.partition,
        "tenant": run.tenant,
        "requested_by": run.requested_by,
        "idempotency_key": run.idempotency_key,
        "request_digest": run.request_digest,
        "priority": run.priority,
        "correlation_id": run.correlation_id,
        "input": json_text(run.input),
        "code_version": run.code_version,
        "protocol": PROTOCOL,
        "kinds": [step.kind for step in steps],
        "names": [step.name for step in steps],
        "partitions": [step.partition for step in steps],
        "tasks": [step.task for step in steps],
        "queues": [step.queue for step in steps],
        "priorities": [step.priority for step in steps],
        "code_digests": [step.code_digest for step in steps],
        "remaining": [len(step.needs) for step in steps],
        "max_failures": [step.max_failures for step in steps],
        "timeouts": [step.timeout for step in steps],
        "retries": [json_text(asdict(step.retry)) for step in steps],
        "inputs": [json_text(step.input) for step in steps],
        "due_in": [step.due_in for step in steps],
        "sole": [step.sole for step in steps],
        "lane": run.lane,
        "lane_width": run.lane_width,
        "deadline_in": run.deadline_in,
        "edge_children": [child for child, _, _ in edges],
        "edge_parents": [parent for _, parent, _ in edges],
        "edge_optional": [optional for _, _, optional in edges],
    }


def _edges(step: NewStep) -> list[tuple[int, bool]]:
    return [(parent + 1, optional) for parent, optional in step.needs.items()]


def _started_before(tx: Tx, run: NewRun) -> UUID:
    row = tx.row(SQL["by_key"], tenant=run.tenant, key=run.idempotency_key)
    if row is None:
        # The other run's transaction has not ended as we looked: its row is locked for us until then, so it rolled back.
        raise IdempotencyConflict(
            f"another run with key {run.idempotency_key!r} was being started and went away",
            hint="start it again",
        )
    if row["request_digest"] != run.request_digest:
        raise _conflict(run, row)
    found: UUID = row["id"]
    return found


def _conflict(run: NewRun, row: Row) -> IdempotencyConflict:
    """Both are told: what the key stands for, and what was asked for under it now."""
    before, now = _parts_of(row["request_digest"]), _parts_of(run.request_digest)
    differ = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    told = "; ".join(f"{name} was {_said(before, name)}, now it is {_said(now, name)}" for name in differ)
    return IdempotencyConflict(
        f"key {run.idempotency_key!r} stands for run {row['id']} of {row['name']!r} (partition {row['partition']!r}), "
        f"but now {run.name!r} (partition {run.partition!r}) is asked for under it{': ' if told else ''}{told}",
        hint="use another key, or ask for the same thing",
        run_id=str(row["id"]),
        before={"name": row["name"], "partition": row["partition"], **before},
        now={"name": run.name, "partition": run.partition, **now},
    )


def _parts_of(digest: str | None) -> dict[str, Any]:
    """A request's parts, where its digest is readable."""
    try:
        found = orjson.loads(digest or "")
    except orjson.JSONDecodeError:
        found = None
    return found if isinstance(found, dict) else {}


def _said(parts: Mapping[str, Any], name: str) -> str:
    return (json_text(parts[name]) or "null") if name in parts else "not given"


def begin(
    database: Database, carrier: Carrier, run: NewRun, *, settings: Settings, promise: bool = True
) -> UUID:
    """Start the run in a transaction of its own, which travels in one flight, and send its wake-ups after the commit."""

    def work(tx: Tx) -> Callable[[], list[WakeUp] | None]:
        asked = _start_later(tx, run, settings=settings, promise=promise)
        faults.point("run.create.before_commit")
        return asked

    wakeups = database.attempt(work)()
    if wakeups is None:
        return database.attempt(lambda tx: _started_before(tx, run))
    _send(carrier, wakeups)
    _tell_started(run)
    if run.lane is not None:
        lanes.admit(database, carrier, settings, run.tenant, run.lane)
    return run.id


def _send(carrier: Carrier, wakeups: Sequence[WakeUp]) -> None:
    faults.point("run.create.after_commit")
    if wakeups:
        carrier.send(wakeups)


def cancel(
    database: Database, run_id: UUID, *, actor: str, actor_type: str = "user", reason: str = ""
) -> bool:
    """The run is cancelling and what had not begun is cancelled; running code is interrupted by its keeper.

    Answers False if the run had ended before, or was being cancelled already.

    Raises:
        RunNotFound: no run has this id.
    """
    moved = database.first(
        SQL["cancel"], run=run_id, actor=actor, actor_type=actor_type, reason=reason or "cancelled"
    )
    faults.point("cancel.after_run_row")
    if moved is None:
        read(database, run_id)
        return False
    cancel_steps(database, run_id)
    return True


def cancel_steps(database: Database, run_id: UUID) -> int:
    """All steps of a cancelling run that have not begun are cancelled, in batches; answers how many."""
    total = 0
    for row in database.once(SQL["open_barriers_of_run"], run=run_id):
        database.attempt(partial(barrier_close.close, barrier=row["id"], status=BarrierStatus.CANCELLED))
    while True:
        batch = database.attempt(lambda tx: tx.row(SQL["cancel_steps"], run=run_id, limit=_CANCEL_BATCH))
        moved: int = batch["moved"] if batch else 0
        total += moved
        if batch and batch["run_status"] in ("cancelled", "failed"):
            emit("flowstone.run.stop", run_id=str(run_id), name=batch["run_name"], status=batch["run_status"])
        if moved < _CANCEL_BATCH:
            return total
        faults.point("cancel.between_batches")


def read(database: Database, run_id: UUID) -> Row:
    """The run's row.

    Raises:
        RunNotFound: no run has this id.
    """
    row = database.first(SQL["run"], run=run_id)
    if row is None:
        raise RunNotFound(
            f"no run has the id {run_id}", hint="`flowstone run ls` lists the newest", run_id=str(run_id)
        )
    return row


def steps(database: Database, run_id: UUID, *, hands: bool = False) -> list[Row]:
    """The run's steps in order, each with the ids of its parents and where it runs; with `hands` also those that do items."""
    return database.once(SQL["steps_of_run"], run=run_id, hands=hands)


def events(
    database: Database, run_id: UUID, *, after: int = 0, limit: int = 1_000, hands: bool = False
) -> list[Row]:
    """The run's history after the given event id, oldest first; with `hands` also what those that do items went through."""
    return database.once(SQL["events"], run=run_id, after=after, limit=limit, hands=hands)


def page(
    database: Database,
    *,
    status: str | None = None,
    name: str | None = None,
    partition: str | None = None,
    before: tuple[datetime, UUID] | None = None,
    limit: int = 50,
) -> list[Row]:
    """One page of runs, newest first; `before` is the last page's end (created_at, id)."""
    moment, run_id = before or (None, None)
    return database.once(
        SQL["runs_page"],
        status=status,
        name=name,
        partition=partition,
        before=moment,
        before_id=run_id,
        limit=limit,
    )
