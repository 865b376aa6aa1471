"""What user code may answer: a closed set, so that whoever settles a step handles every case.

A function that answers anything else has answered a value: `as_outcome` wraps it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias, get_args

from flowstone_celery.errors import InvalidOption


@dataclass(frozen=True, slots=True)
class Value:
    """The step succeeds with this value; the metadata is shown beside it and never read by FlowStone."""

    value: Any
    metadata: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.value, get_args(Outcome)):
            kind = type(self.value).__name__
            raise InvalidOption(
                f"Value cannot hold another outcome ({kind})", hint=f"Return the {kind} itself."
            )
        _check_object("Value", "metadata", self.metadata)


@dataclass(frozen=True, slots=True)
class Skip:
    """The step ends skipped: it has no value and needs none."""

    reason: str = ""

    def __post_init__(self) -> None:
        _check_text("Skip", self.reason)


@dataclass(frozen=True, slots=True)
class Retry:
    """The step is tried again, after so many seconds (a number or a timedelta) or after its own backoff.

    It counts as an attempt: with no retries left, the step fails.
    """

    after: float | timedelta | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        _check_text("Retry", self.reason)
        _check_delay(self.after)

    @property
    def seconds(self) -> float | None:
        """The pause in seconds; None leaves it to the step's backoff."""
        if isinstance(self.after, timedelta):
            return self.after.total_seconds()
        return None if self.after is None else float(self.after)


@dataclass(frozen=True, slots=True)
class Fail:
    """The step fails at once, whatever retries are left; `error` is a JSON object stored with it."""

    reason: str
    error: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _check_text("Fail", self.reason)
        _check_object("Fail", "error", self.error)


@dataclass(frozen=True, slots=True)
class Cancel:
    """The step ends cancelled, on the word of its own function."""

    reason: str = ""

    def __post_init__(self) -> None:
        _check_text("Cancel", self.reason)


Outcome: TypeAlias = Value | Skip | Retry | Fail | Cancel


def as_outcome(answer: object) -> Outcome:
    """The answer itself when it is an outcome, otherwise the `Value` that holds it.

    Raises:
        InvalidOption: the answer is one of the outcome classes instead of an instance.
    """
    if isinstance(answer, Outcome):
        return answer
    if isinstance(answer, type) and issubclass(answer, get_args(Outcome)):
        name = answer.__name__
        raise InvalidOption(f"the answer is the class {name}, not an outcome", hint=f"Return {name}(…).")
    return Value(answer)


def _check_text(outcome: str, reason: object) -> None:
    if not isinstance(reason, str):
        raise InvalidOption(
            f"{outcome}'s reason is text, not {type(reason).__name__}",
            hint="Write it as one sentence for people.",
        )


def _check_object(outcome: str, field: str, value: object) -> None:
    if value is None or (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
        return
    raise InvalidOption(
        f"{outcome}'s {field} is a dict with text keys, not {type(value).__name__}",
        hint=f'Write {field}={{"key": …}}.',
    )


def _check_delay(after: object) -> None:
    if after is None:
        return
    seconds = after.total_seconds() if isinstance(after, timedelta) else after
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise InvalidOption(
            f"Retry's after is a number of seconds or a timedelta, not {type(after).__name__}",
            hint="Retry(after=30).",
        )
    if not math.isfinite(seconds) or seconds < 0:
        raise InvalidOption(
            f"Retry's after is {after}, which is no time to wait", hint="Use zero seconds or more."
        )
