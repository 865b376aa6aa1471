"""Steps: the typed functions over `steps.sql`. Each takes a transaction; None or False means that it did not happen."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from flowstone_celery.core.model import INLINE_QUEUE, PROTOCOL, Claim, WakeUp, json_text
from flowstone_celery.core.retry_policy import RetryPolicy
from flowstone_celery.core.statements import SQL
from flowstone_celery.errors import FlowStoneError
from flowstone_celery.states import Phase, StepStatus

if TYPE_CHECKING:
    from uuid import UUID

    from flowstone_celery.db.database import Row, Tx


@dataclass(frozen=True, slots=True)
class Moved:
    """A settlement that happened."""

    event: str
    """The history event: succeeded, failed, skipped, cancelled, retry or released."""
    opened: tuple[str, ...]
    """The queues of the steps that became ready, one entry each."""
    run_status: str | None = None
    delay: float = 0.0
    left_lane: tuple[str, str] | None = None
    """Tenant and lane that the run left with this step."""
    awaited: bool = False
    """Whether others wait for what the step was making."""


@lru_cache(maxsize=64)
def _array(names: tuple[str, ...]) -> str:
    """The names as the text of a Postgres array: made once, where psycopg would walk the list at each claim."""
    quoted = (name.replace("\\", "\\\\").replace('"', '\\"') for name in names)
    return "{" + ",".join(f'"{name}"' for name in quoted) + "}"


def claim(
    tx: Tx,
    step: int | None,
    *,
    worker: int,
    knows: Sequence[str],
    queue: str | None = None,
    only_run: UUID | None = None,
    relaxed: bool = True,
    beside: bool = False,
) -> Claim | None:
    """Claim this very step, if it is still ready, due and known here; else the queue's next, where one is named."""
    return claim_later(
        tx,
        step,
        queue=queue,
        worker=worker,
        knows=knows,
        only_run=only_run,
        relaxed=relaxed,
        beside=beside,
    )()


def claim_next(
    tx: Tx,
    queue: str,
    *,
    worker: int,
    knows: Sequence[str],
    only_run: UUID | None = None,
    relaxed: bool = True,
    beside: bool = False,
) -> Claim | None:
    """Claim the queue's next ready step that this worker may run, by priority, turn and id.

    `beside`: it will share its process with others, so none that a process has died with.
    """
    return claim(
        tx,
        None,
        queue=queue,
        worker=worker,
        knows=knows,
        only_run=only_run,
        relaxed=relaxed,
        beside=beside,
    )


def claim_later(
    tx: Tx,
    step: int | None,
    *,
    queue: str | None,
    worker: int,
    knows: Sequence[str],
    only_run: UUID | None = None,
    relaxed: bool = True,
    beside: bool = False,
) -> Callable[[], Claim | None]:
    """As `claim`, asked for with what else is on its way; call the answer for the claim."""
    asked = tx.later(
        SQL["claim"],
        step=step,
        queue=queue,
        worker=worker,
        knows=_array(tuple(knows)),
        protocol=PROTOCOL,
        only_run=only_run,
        relaxed=relaxed,
        beside=beside,
    )

    def answer() -> Claim | None:
        rows = asked()
        return Claim.of(rows[0]) if rows else None

    return answer


def succeed(tx: Tx, held: Mapping[str, int], output: Mapping[str, Any] | None) -> Moved | None:
    """running → succeeded; children with nothing left to wait for are ready."""
    return succeed_later(tx, held, output)()


def succeed_later(
    tx: Tx, held: Mapping[str, int], output: Mapping[str, Any] | None
) -> Callable[[], Moved | None]:
    """As `succeed`, asked for with what else is on its way; call the answer for what moved."""
    asked = tx.later(SQL["succeed"], **held, output=json_text(output))
    return lambda: _moved("succeeded", next(iter(asked()), None))


def end(
    tx: Tx,
    held: Mapping[str, int],
    status: StepStatus,
    error: Mapping[str, Any] | None,
    *,
    name: str,
    failed_attempts: int = 0,
    crashed: int = 0,
    lost: int = 0,
) -> Moved | None:
    """running → failed, skipped or cancelled; what needs the step ends with it, what can do without it goes on."""
    row = tx.row(
        SQL["end_without_value"],
        **held,
        status=status.value,
        error=json_text(error),
        dependents=status.value,
        dependents_error=json_text(error_of_dependents(status, name, error)),
        failed_attempts=failed_attempts,
        crashed=crashed,
        lost=lost,
    )
    if row is not None and row["barrier"] is not None:
        skipped = tx.row(SQL["skip_hands"], barrier=row["barrier"])
        if skipped is not None and skipped["run_status"] is not None:
            row |= {name: skipped[name] for name in ("run_status", "tenant", "lane")}
    return _moved(status.value, row)


def error_of_dependents(status: StepStatus, name: str, error: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is said of a step that needed one which ended so."""
    because = (error or {}).get("message") or status.value
    return {
        "code": "FS-2003",
        "type": "DependencyFailed",
        "message": f"{name!r}, which this needs, ended as {status.value}: {because}",
        "facts": {"dependency": name, "status": status.value},
        "retryable": False,
    }


def retry(tx: Tx, held: Mapping[str, int], error: Mapping[str, Any], delay: float) -> Moved | None:
    """running → ready after the delay in seconds; one failure more."""
    return _moved("retry", tx.row(SQL["retry"], **held, error=json_text(error), delay=delay), delay=delay)


def fail_or_retry(
    tx: Tx,
    held: Mapping[str, int],
    error: FlowStoneError,
    *,
    name: str,
    failures: int,
    max_failures: int,
    policy: RetryPolicy,
    retryable: bool = True,
    delay: float | None = None,
) -> Moved | None:
    """A failed attempt: ready again after its delay while attempts are left, else failed."""
    if retryable and failures + 1 < max_failures:
        pause = policy.pause(failures + 1, random.random()) if delay is None else delay
        return retry(tx, held, error.to_dict(), pause)
    return end(tx, held, StepStatus.FAILED, error.to_dict(), name=name, failed_attempts=1)


def give_back(tx: Tx, held: Mapping[str, int], reason: str) -> Moved | None:
    """running → ready at once; nothing is counted."""
    return _moved("released", tx.row(SQL["give_back"], **held, reason=reason))


def lose_claims(tx: Tx, released: Sequence[Row]) -> None:
    """Items that released hands claimed at the very last are lost too; in the transaction of their release, behind it."""
    hands = [row["id"] for row in released if row["phase"] == Phase.ITEM]
    if hands:
        tx.run(SQL["lose_claims"], hands=hands)


def free_awaiting(tx: Tx, name: str, partition: str) -> list[str]:
    """Who waited for this value may try now; answers their queues."""
    return [row["queue"] for row in tx.rows(SQL["free_awaiting"], name=name, partition=partition)]


def promise(tx: Tx, queue: str, *, min_wakeups: int) -> list[WakeUp]:
    """Promise wake-ups to the queue's next ready rows, as many as it has room for; send them after the commit."""
    return [WakeUp.of(row) for row in tx.rows(SQL["promise"], queue=queue, min_wakeups=min_wakeups)]


def promise_all(tx: Tx, queues: Sequence[str], *, min_wakeups: int) -> list[WakeUp]:
    """Promise wake-ups on each of these queues; none on the inline queue: nobody would keep them, and other runs' rows would wait."""
    heard = sorted(set(queues) - {INLINE_QUEUE})
    return [each for queue in heard for each in promise(tx, queue, min_wakeups=min_wakeups)]


def _moved(event: str, row: Row | None, *, delay: float = 0.0) -> Moved | None:
    if row is None:
        return None
    lane = row.get("lane")
    return Moved(
        event,
        tuple(row["opened"] or ()),
        row.get("run_status"),
        delay,
        (row["tenant"], lane) if lane is not None else None,
        row["awaited"],
    )
