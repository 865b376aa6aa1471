"""From how an item's code came out to what a part settles for it."""

from __future__ import annotations

import random
from asyncio import CancelledError
from typing import TYPE_CHECKING

from flowstone_celery import faults
from flowstone_celery.core.barrier_model import Ended
from flowstone_celery.core.interrupts import TIMEOUT, Interrupted
from flowstone_celery.errors import Cancelled, ExecutionError, FlowStoneError, StepTimeout
from flowstone_celery.outcomes import Cancel, Fail, Retry, Skip, Value, as_outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowstone_celery.core.barrier_model import Barrier, ItemClaim

SPECIAL = (Value, Skip, Retry, Fail, Cancel, type)
"""What an item's code returns and is not its value as it stands: outcomes, and classes, which may be outcomes by mistake."""

NOTHING = b"null"
"""The result of an item that was skipped."""


class Untouched(Exception):  # noqa: N818 - an event: the item did not happen, and goes back
    """The process or the run ends: this attempt does not count. `__cause__` is what ended it."""

    def __init__(self, reason: str) -> None:
        """Carry the interrupt's reason, or the empty text if the process itself was asked to go."""
        super().__init__(reason)
        self.reason = reason


class Judge:
    """What becomes of one barrier's items."""

    def __init__(
        self, barrier: Barrier, store: Callable[[ItemClaim, object], bytes], leaving: Callable[[], bool]
    ) -> None:
        """Judge by this barrier's policy; `store` makes a result's JSON, `leaving` tells an exit that was asked for."""
        self._barrier = barrier
        self._policy = barrier.policy
        self._store = store
        self._leaving = leaving
        self.cancel: Cancel | None = None
        """An item's word that the run is to be cancelled."""

    def returned(self, item: ItemClaim, answer: object, seconds: float) -> Ended:
        """Its code has answered an outcome, or a class."""
        try:
            outcome = as_outcome(answer)
        except FlowStoneError as wrong:
            return self.failed(item, wrong, seconds, final=True)
        match outcome:
            case Value(value):
                return self.made(item, value, seconds)
            case Skip():
                return Ended(item.index, "succeeded", item.attempt, NOTHING, seconds=seconds)
            case Retry(reason=reason):
                error = self._error(item, reason or "asked to be tried again")
                return self.failed(item, error, seconds, delay=outcome.seconds)
            case Fail(reason, facts):
                error = self._error(item, reason or "failed")
                error.facts = {**error.facts, **(facts or {})}
                return self.failed(item, error, seconds, final=True)
            case Cancel(reason):
                self.cancel = outcome
                told = Cancelled(reason or "cancelled").to_dict()
                return Ended(item.index, "cancelled", item.attempt, error=told, seconds=seconds)

    def made(self, item: ItemClaim, value: object, seconds: float) -> Ended:
        """Its code has answered a value: a success, unless it cannot be stored."""
        try:
            return Ended(item.index, "succeeded", item.attempt, self._store(item, value), None, seconds)
        except FlowStoneError as error:
            return self.failed(item, error, seconds, final=not error.retryable)
        except Exception as error:  # noqa: BLE001 - whatever a result's own code raises, the item has failed
            return self.failed(item, self._wrapped(item, error), seconds, final=True)

    def raised(self, item: ItemClaim, error: BaseException, seconds: float) -> Ended:
        """Its code has raised.

        Raises:
            Untouched: what ended it is no doing of its own.
        """
        match error:
            case Interrupted(reason=reason):
                if reason == TIMEOUT:
                    return self.failed(item, self._timeout(item), seconds)
                raise Untouched(reason) from error
            case faults.FaultInjectedError():
                raise error
            case FlowStoneError():
                final = not (error.retryable or isinstance(error, ExecutionError))
                return self.failed(item, error, seconds, final=final)
            case SystemExit() if self._leaving():
                raise Untouched("") from error
            case Exception() | SystemExit() | CancelledError():
                return self.failed(item, self._wrapped(item, error), seconds)
            case _:
                raise Untouched("") from error

    def failed(
        self,
        item: ItemClaim,
        error: FlowStoneError,
        seconds: float,
        *,
        final: bool = False,
        delay: float | None = None,
    ) -> Ended:
        """This attempt has failed: the item waits for its retry while attempts are left."""
        told, failures = error.to_dict(), item.failures + 1
        if final or failures >= self._policy.max_attempts:
            return Ended(item.index, "failed", item.attempt, error=told, seconds=seconds)
        pause = self._policy.retry.pause(failures, random.random()) if delay is None else delay
        return Ended(item.index, "retry", item.attempt, error=told, seconds=seconds, delay=pause)

    def _wrapped(self, item: ItemClaim, error: BaseException) -> ExecutionError:
        found = ExecutionError.of(error, self._barrier.name, self._barrier.partition)
        found.facts = {**found.facts, "item": item.index, "key": shown(item.key)}
        return found

    def _error(self, item: ItemClaim, text: str) -> ExecutionError:
        return ExecutionError(
            text,
            asset=self._barrier.name,
            partition=self._barrier.partition,
            item=item.index,
            key=shown(item.key),
        )

    def _timeout(self, item: ItemClaim) -> StepTimeout:
        seconds = self._policy.timeout
        return StepTimeout(
            f"item {item.index} of {self._barrier.name!r} ran longer than its timeout of {seconds or 0:g} s",
            hint="raise timeout= of its Scatter, or make the items smaller",
            asset=self._barrier.name,
            partition=self._barrier.partition,
            item=item.index,
            key=shown(item.key),
        )


def shown(key: bytes) -> str:
    """A key for people: its JSON, cut where it is long."""
    text = key.decode("utf-8", "replace")
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


_SHOWN = 200
