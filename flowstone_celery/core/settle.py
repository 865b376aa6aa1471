"""From what a handler answered to the transition that settles it."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from flowstone_celery import faults
from flowstone_celery.core import barriers, steps
from flowstone_celery.core.barrier_model import Scattered
from flowstone_celery.core.interrupts import CANCELLED, STOP, TIMEOUT, Interrupted
from flowstone_celery.core.model import Answer, Claim, Done
from flowstone_celery.core.statements import SQL
from flowstone_celery.errors import Cancelled, ExecutionError, FlowStoneError, StepTimeout
from flowstone_celery.outcomes import Cancel, Fail, Retry, Skip
from flowstone_celery.states import StepStatus

if TYPE_CHECKING:
    from flowstone_celery.core.barrier_model import Part
    from flowstone_celery.core.steps import Moved
    from flowstone_celery.db.database import Tx


@dataclass(frozen=True, slots=True)
class GiveBack:
    """The worker stops: the step goes back unharmed, and the interrupt goes on."""

    reason: str
    interrupt: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt failed with this error."""

    error: FlowStoneError
    retryable: bool


class Rests(Enum):
    """How a hand's slice has ended."""

    IDLE = "idle"
    """It has found nothing to do: it stands aside until it is called."""
    IN_LINE = "in line"
    """Its time is over: others take their turn before it."""
    AT_END = "at end"
    """Its barrier has closed."""


class LastPart(Protocol):
    """A hand's slice is over, with items that are not settled yet: they are settled with it, in one transaction and one flight."""

    def later(self, tx: Tx) -> Callable[[], Part | None]:
        """The items are settled, asked for with what else is on its way; what was done is told after the commit.

        Raises:
            Counted: by the answer, where they are to be settled by themselves.
        """

    def settle_all(self) -> bool:
        """The items are settled by themselves."""


@dataclass(frozen=True, slots=True)
class InLineWith:
    """The hand's time is over, with this last part."""

    part: LastPart


Verdict = Answer | Failed | GiveBack | Rests | InLineWith
"""How a call came out: what the handler answered, or what became of it."""


def move_later(tx: Tx, claim: Claim, verdict: Verdict) -> Callable[[], Moved | None]:
    """The step moves as the verdict says; call the answer to know, None: another claim holds the step now.

    What is asked for meanwhile travels with it.
    """
    if isinstance(verdict, Done):
        return _succeed_later(tx, claim, verdict)
    if isinstance(verdict, Scattered):
        return barriers.scatter_later(tx, claim, verdict)
    if isinstance(verdict, InLineWith):
        return _in_line_later(tx, claim, verdict.part)
    moved = _rest(tx, claim, verdict) if isinstance(verdict, Rests) else _move(tx, claim, verdict)
    return lambda: moved


def _in_line_later(tx: Tx, hand: Claim, last: LastPart) -> Callable[[], Moved | None]:
    part, moved = last.later(tx), barriers.go_back_later(tx, hand)

    def answer() -> Moved | None:
        part()
        found = moved()
        return None if found is None else replace(found, event="in_line")

    return answer


def _succeed_later(tx: Tx, claim: Claim, done: Done) -> Callable[[], Moved | None]:
    written = done.write(tx) if done.write else {}
    if not callable(written):
        return steps.succeed_later(tx, claim.held, {**(done.output or {}), **written} or None)
    asked = steps.succeed_later(tx, claim.held, done.output)

    def answer() -> Moved | None:
        moved = asked()
        written()
        return moved

    return answer


def _move(tx: Tx, claim: Claim, verdict: Skip | Retry | Fail | Cancel | Failed | GiveBack) -> Moved | None:
    match verdict:
        case Skip(reason):
            why = {"code": "FS-2000", "type": "Skipped", "message": reason or "skipped"}
            return steps.end(tx, claim.held, StepStatus.SKIPPED, why, name=claim.name)
        case Cancel(reason):
            return _cancel(tx, claim, reason or "cancelled")
        case Retry(after=after, reason=reason):
            text = reason or "asked to be tried again"
            error = ExecutionError(text, asset=claim.name, partition=claim.partition)
            return _fail(tx, claim, error, retryable=True, delay=_seconds(after))
        case Fail():
            return _fail(tx, claim, error_of(verdict) or ExecutionError(), retryable=False)
        case Failed(error, retryable):
            return _fail(tx, claim, error, retryable=retryable)
        case GiveBack(reason):
            return steps.give_back(tx, claim.held, reason)


def _rest(tx: Tx, hand: Claim, rests: Rests) -> Moved | None:
    """The hand ends if its barrier has closed meanwhile; one that may not stand aside, because there is news, is in the line again."""
    moved = barriers.stand_aside(tx, hand) if rests is Rests.IDLE else None
    if moved is not None:
        return moved if moved.event == StepStatus.SUCCEEDED else replace(moved, event="idle")
    moved = barriers.go_back(tx, hand)
    return (
        replace(moved, event="in_line")
        if moved is not None and moved.event != StepStatus.SUCCEEDED
        else moved
    )


def _fail(
    tx: Tx, claim: Claim, error: FlowStoneError, *, retryable: bool, delay: float | None = None
) -> Moved | None:
    return steps.fail_or_retry(
        tx,
        claim.held,
        error,
        name=claim.name,
        failures=claim.failures,
        max_failures=claim.max_failures,
        policy=claim.retry,
        retryable=retryable,
        delay=delay,
    )


def _cancel(tx: Tx, claim: Claim, reason: str) -> Moved | None:
    """The step ends as cancelled and takes its run with it (a run that is cancelling already stays so)."""
    moved = steps.end(tx, claim.held, StepStatus.CANCELLED, Cancelled(reason).to_dict(), name=claim.name)
    if moved is not None:
        actor = {"actor": f"step {claim.name}", "actor_type": "step"}
        tx.row(SQL["cancel"], run=claim.run_id, reason=reason, **actor)
    return moved


def _seconds(delay: float | timedelta | None) -> float | None:
    return delay.total_seconds() if isinstance(delay, timedelta) else delay


def verdict_of(error: BaseException, claim: Claim, *, leaving: bool) -> Verdict:
    """What it means that a call ended so: an exception is a failed attempt, an interrupt what its reason says.

    Args:
        error: what the handler or the user's code raised.
        claim: of the call.
        leaving: the process is about to end, so that an exit is not the step's own doing.
    """
    match error:
        case Interrupted():
            return _interrupted(claim, error)
        case faults.FaultInjectedError():
            raise error
        case FlowStoneError():
            return Failed(error, retryable=error.retryable or isinstance(error, ExecutionError))
        case SystemExit() if leaving:
            return GiveBack("the worker stops", error)
        case Exception() | SystemExit() | CancelledError():
            return Failed(ExecutionError.of(error, claim.name, claim.partition), retryable=True)
        case _:
            # KeyboardInterrupt and Celery's shutdown: the process is asked to go, the step is not to blame.
            return GiveBack("the worker stops", error)


def _interrupted(claim: Claim, interrupt: Interrupted) -> Verdict:
    if interrupt.reason == TIMEOUT:
        return Failed(timeout_error(claim.name, claim.partition, claim.timeout_seconds), retryable=True)
    if interrupt.reason == CANCELLED:
        return Cancel("the run was cancelled")
    assert interrupt.reason == STOP, interrupt.reason
    return GiveBack("the worker stops")


def error_of(verdict: Verdict) -> FlowStoneError | None:
    """The error in it, if there is one."""
    if isinstance(verdict, Failed):
        return verdict.error
    if not isinstance(verdict, Fail):
        return None
    error = ExecutionError(verdict.reason or "failed")
    error.facts = dict(verdict.error or {})
    return error


def timeout_error(name: str, partition: str, seconds: float | None) -> StepTimeout:
    """The error of an attempt that ran longer than it may."""
    return StepTimeout(
        f"{name!r} ran longer than its timeout of {seconds:g} s" if seconds else f"{name!r} ran too long",
        hint="raise timeout= on its declaration, or make the work smaller",
        asset=name,
        partition=partition,
    )
