"""What a scatter may be told: every option of `Scatter` and `Batch`, read into its one form where it is written."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any

from flowstone_celery.assets.batch import Batch
from flowstone_celery.assets.options import OPTIONS, Option, ScatterOptions, count_of, name_of, read_options
from flowstone_celery.errors import InvalidOption

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%", re.ASCII)
_RATE = re.compile(r"([1-9]\d{0,8})/(second|minute|hour|day)", re.ASCII)


class FailureMode(StrEnum):
    """What a failed item means for its scatter."""

    ALL_OR_NOTHING = "all_or_nothing"
    PARTIAL = "partial"


class RetryStrategy(StrEnum):
    """When an item that failed is tried again."""

    INDIVIDUAL = "individual"
    BATCH = "batch"


class Dispatch(StrEnum):
    """How items travel: in ranges that grow as measured, or each as a Celery task of its own."""

    AUTO = "auto"
    ITEM = "item"


class Scatter(ScatterOptions):
    """How an asset spreads into items, one for each element of a dependency's value or for each key that its code names.

    `@fs.asset(scatter=Scatter(over="urls"))` above a function of `item`; keys from code by `@pages.keys`; a fold of the results by
    `@pages.gather`.
    """

    __slots__ = (
        "backoff",
        "batch",
        "dispatch",
        "failure_mode",
        "failure_threshold",
        "jitter",
        "max_attempts",
        "max_concurrent",
        "max_result_bytes",
        "over",
        "priority",
        "queue",
        "rate_limit",
        "retry_cap",
        "retry_delay",
        "retry_strategy",
        "timeout",
        "unique",
        "width",
    )

    def __init__(
        self,
        over: Any = None,
        *,
        max_concurrent: int | None = None,
        failure_threshold: float | str | None = None,
        failure_mode: str | None = None,
        retry_strategy: str = RetryStrategy.INDIVIDUAL,
        max_attempts: int = 3,
        backoff: str | None = None,
        retry_delay: Any = None,
        retry_cap: Any = None,
        jitter: float | None = None,
        timeout: Any = None,
        queue: str | None = None,
        priority: int | None = None,
        rate_limit: str | None = None,
        dispatch: str = Dispatch.AUTO,
        batch: Batch | None = None,
        width: int | None = None,
        unique: bool = True,
        max_result_bytes: int | None = None,
        **unknown: Any,
    ) -> None:
        """Read the options.

        Args:
            over: the dependency whose elements are the items: a list, or what another scatter gathered. Without it, `@….keys` tells them.
            max_concurrent: items at work at once in the whole cluster; None: as many as there are workers.
            failure_threshold: the part of items that may fail: a number from 0 to 1, or "2%". Above 0 it means `partial`.
            failure_mode: `all_or_nothing` (the first item that fails for good ends the scatter) or `partial` (the threshold decides).
            retry_strategy: `individual` (an item has its own backoff) or `batch` (failed items wait for all others, then go together).
            max_attempts: starts of an item's code that may fail, the last included.
            backoff, retry_delay, retry_cap, jitter: as of an asset, for items; those of the asset by default.
            timeout: seconds or a timedelta that an attempt of one item may last.
            queue: where items are done; the asset's by default.
            priority: larger runs sooner; the asset's by default.
            rate_limit: "10/second" (or minute, hour, day), or the name of a declared limit.
            dispatch: `auto`, or `item`: each item is a Celery task of its own.
            batch: how elements are put together.
            width: items side by side in one process, for `async def` functions; by default FLOWSTONE_ASYNC_WIDTH.
            unique: False says that a reader never tells a key twice, and spares the look.
            max_result_bytes: an item's result, as JSON, may be this large; 1 MiB by default.
            **unknown: none.

        Raises:
            UnknownOption: an option does not exist.
            InvalidOption: an option has a value that it cannot have, or two do not go together.
        """
        given = {
            "over": over,
            "max_concurrent": max_concurrent,
            "failure_threshold": failure_threshold,
            "failure_mode": failure_mode,
            "retry_strategy": retry_strategy,
            "max_attempts": max_attempts,
            "backoff": backoff,
            "retry_delay": retry_delay,
            "retry_cap": retry_cap,
            "jitter": jitter,
            "timeout": timeout,
            "queue": queue,
            "priority": priority,
            "rate_limit": rate_limit,
            "dispatch": dispatch,
            "batch": batch,
            "width": width,
            "unique": unique,
            "max_result_bytes": max_result_bytes,
        }
        read = read_options("Scatter", "", {**given, **unknown}, SCATTER_OPTIONS)
        _check_scatter(read)
        self.over: str | None = read.get("over")
        self.max_concurrent: int | None = read.get("max_concurrent")
        self.failure_threshold: float = read.get("failure_threshold", 0.0)
        self.failure_mode: str = str(read.get("failure_mode", FailureMode.ALL_OR_NOTHING))
        self.retry_strategy: str = str(read.get("retry_strategy", RetryStrategy.INDIVIDUAL))
        self.max_attempts: int = read.get("max_attempts", 3)
        self.backoff: str | None = None if "backoff" not in read else str(read["backoff"])
        self.retry_delay: float | None = read.get("retry_delay")
        self.retry_cap: float | None = read.get("retry_cap")
        self.jitter: float | None = read.get("jitter")
        self.timeout: float | None = read.get("timeout")
        self.queue: str | None = read.get("queue")
        self.priority: int | None = read.get("priority")
        self.rate_limit: str | None = read.get("rate_limit")
        self.dispatch: str = str(read.get("dispatch", Dispatch.AUTO))
        self.batch: Batch | None = read.get("batch")
        self.width: int | None = read.get("width")
        self.unique: bool = read.get("unique", True)
        self.max_result_bytes: int = read.get("max_result_bytes", 1_048_576)

    def __repr__(self) -> str:
        """What it goes over."""
        return f"Scatter(over={self.over!r})" if self.over else "Scatter()"


# --- options that do not go together ----------------------------------------------------------------------------------------------


def _check_scatter(read: dict[str, Any]) -> None:
    mode = read.get("failure_mode")
    if read.get("failure_threshold", 0.0) > 0:
        if mode == FailureMode.ALL_OR_NOTHING:
            raise InvalidOption(
                f"Scatter: with failure_mode='all_or_nothing' no item may fail, but failure_threshold is {read['failure_threshold']:g}",
                hint="Leave failure_mode out (a threshold means 'partial'), or the threshold.",
                option="failure_threshold",
            )
        read["failure_mode"] = FailureMode.PARTIAL
    delay, cap = read.get("retry_delay"), read.get("retry_cap")
    if delay is not None and cap is not None and cap < delay:
        raise InvalidOption(
            f"Scatter: retry_cap ({cap:g} s) is shorter than retry_delay ({delay:g} s)",
            hint="The cap is the longest pause: make it the larger one.",
            option="retry_cap",
        )


# --- readers: ValueError for what is wrong ----------------------------------------------------------------------------------------


def _part(value: Any) -> float:
    if isinstance(value, str):
        percent = _PERCENT.fullmatch(value.strip())
        if percent is None:
            raise ValueError
        value = float(percent[1]) / 100
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError
    return float(value)


def _rate(value: Any) -> str:
    if isinstance(value, str) and ("/" in value or value[:1].isdigit()):
        if not _RATE.fullmatch(value):
            raise ValueError
        return value
    label: str = OPTIONS["queue"].read(value)
    return label


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError  # noqa: TRY004 - readers speak through one error
    return value


def _batch(value: Any) -> Batch:
    if isinstance(value, int) and not isinstance(value, bool):
        return Batch(size=value)
    if not isinstance(value, Batch):
        raise ValueError  # noqa: TRY004 - readers speak through one error
    return value


_WHOLE = "a whole number from 1 up"

SCATTER_OPTIONS: dict[str, Option] = {
    "over": Option("the name of a dependency, or an asset", 'over="urls"', name_of),
    "max_concurrent": Option(_WHOLE, "max_concurrent=50", count_of),
    "failure_threshold": Option(
        'a number from 0 to 1, or a text such as "2%"', "failure_threshold=0.02", _part
    ),
    "failure_mode": Option(
        f"one of {', '.join(FailureMode)}", 'failure_mode="partial"', FailureMode, tuple(FailureMode)
    ),
    "retry_strategy": Option(
        f"one of {', '.join(RetryStrategy)}", 'retry_strategy="batch"', RetryStrategy, tuple(RetryStrategy)
    ),
    "max_attempts": Option(_WHOLE, "max_attempts=5", count_of),
    **{
        name: OPTIONS[name]
        for name in ("backoff", "retry_delay", "retry_cap", "jitter", "timeout", "queue", "priority")
    },
    "rate_limit": Option(
        "a number for each second, minute, hour or day, or the name of a declared limit",
        'rate_limit="10/second"',
        _rate,
    ),
    "dispatch": Option(f"one of {', '.join(Dispatch)}", 'dispatch="item"', Dispatch, tuple(Dispatch)),
    "batch": Option("a Batch(…), or the number of elements in one", "batch=Batch(size=50)", _batch),
    "width": Option(_WHOLE, "width=200", count_of),
    "unique": Option("True or False", "unique=False", _flag),
    "max_result_bytes": Option(_WHOLE, "max_result_bytes=4_000_000", count_of),
}
