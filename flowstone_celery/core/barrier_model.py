"""The nouns of scatters: what a step that fans out hands in, what a hand claims, and what becomes of an item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flowstone_celery.core.retry_policy import RetryPolicy

if TYPE_CHECKING:
    from datetime import datetime

PAGE = 500
"""Keys in a page at most: it is cursor and counter for its items."""

Key = bytes
"""A key as canonical JSON text."""


def item_task(name: str) -> str:
    """The Celery task under whose name the hands of this step work: routes and monitors know it."""
    return f"{name}[item]"


@dataclass(frozen=True, slots=True)
class Policy:
    """What holds for the items of one barrier. Times in seconds."""

    max_concurrent: int | None = None
    """Items at work at once in the whole cluster; None: no limit."""
    failure_threshold: float = 0.0
    """The part of items, from 0 to 1, that may fail."""
    failure_mode: str = "all_or_nothing"
    """`all_or_nothing`: the first item that has failed for good closes the barrier. `partial`: the threshold decides."""
    retry_strategy: str = "individual"
    """`individual`: an item has its own backoff. `batch`: failed ones wait until nothing else is open, then go together."""
    max_attempts: int = 3
    """Starts of an item's code that may fail, the last included."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    timeout: float | None = None
    """An attempt of an item that lasts longer has failed; None: no limit."""
    crash_limit: int = 3
    dispatch: str = "auto"
    """`auto`: ranges grow as measured. `item`: each item is a Celery task of its own."""
    rate_limit: str | None = None
    width: int = 1
    """Items side by side in one hand: above 1 for `async def` items."""
    result_bytes: int = 1_048_576
    """A result, as JSON, may be this large."""
    batch: Mapping[str, Any] | None = None
    """How elements were put together into items; for whoever looks. None: each item is one element."""


@dataclass(frozen=True, slots=True)
class NewBarrier:
    """A barrier that is about to open: where its items are done, and what holds for them."""

    name: str
    """The asset that scatters."""
    task: str
    queue: str
    priority: int | None
    """None: its step's, which the run may have chosen."""
    policy: Policy
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Scattered:
    """A handler's answer: the step waits for items. Keys are distinct and in order.

    Either `keys` are all of them, written in the settling transaction; or `barrier` is one that the handler opened and
    filled page by page while it read, which is sealed now; or `again` names one that has ended, whose failed items are
    done again in its next round.
    """

    new: NewBarrier | None = None
    keys: Sequence[Key] = ()
    collapsed: int = 0
    """Equal keys that were dropped."""
    barrier: int | None = None
    again: int | None = None


@dataclass(frozen=True, slots=True)
class Barrier:
    """A barrier's row as it stood when it was read."""

    id: int
    step_id: int
    run_id: UUID
    round: int
    name: str
    partition: str
    status: str
    sealed: bool
    total: int
    collapsed: int
    done: int
    """Succeeded items of completed pages; `Progress` counts those of open pages too."""
    failed: int
    policy: Policy
    checkpoint: Mapping[str, Any] | None
    """Where its reader goes on; None before the first page and once it is sealed."""
    metadata: Mapping[str, Any] | None
    error: Mapping[str, Any] | None
    created_at: datetime
    closed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a barrier is."""

    id: int
    name: str
    partition: str
    run_id: UUID
    step_id: int
    round: int
    status: str
    sealed: bool
    total: int
    succeeded: int
    failed: int
    retrying: int
    running: int
    """Width of the live claims."""
    collapsed: int

    @property
    def pending(self) -> int:
        """Items that have not ended."""
        return self.total - self.succeeded - self.failed

    @property
    def percent(self) -> float:
        """Ended items in percent of those known; 0 when there are none yet."""
        return 100.0 * (self.succeeded + self.failed) / self.total if self.total else 0.0


@dataclass(slots=True)  # not frozen: one is made for each item, at four times the cost
class ItemClaim:
    """One item that a hand is to do: its place, its key, and what it has been through."""

    index: int
    key: Key
    attempt: int
    """Of its code, from 1."""
    failures: int = 0
    crashes: int = 0


@dataclass(frozen=True, slots=True)
class Range:
    """What a hand holds now: some items of one barrier, in order."""

    barrier: int
    round: int
    items: Sequence[ItemClaim]
    alone: bool = False
    """Each is settled before the next begins: one of them may have killed the process."""
    width: int = 1
    """So many of them may be at work at once: less than was asked for where `max_concurrent` leaves no more."""


@dataclass(slots=True)  # not frozen, as above
class Ended:
    """One attempt of one item, as a part settles it."""

    index: int
    status: str
    """`succeeded`, `failed`, `retry` or `cancelled`."""
    attempt: int
    result: bytes | None = None
    """JSON; the rows keep it compressed."""
    error: Mapping[str, Any] | None = None
    seconds: float = 0.0
    delay: float = 0.0
    """Before the next attempt, for a retry."""
    crashed: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """What settling a part did."""

    status: str
    """The barrier's, after it."""
    closed: bool
    """Whether this part closed it."""
    opened: tuple[str, ...] = ()
    """Queues of steps that became ready (the scattering step in its phase gather, hands that were called back)."""


@dataclass(frozen=True, slots=True)
class Item:
    """An item for whoever looks: pending ones have no row, so only what their page says."""

    index: int
    key: Any
    status: str
    """`pending`, `retry`, `promoted`, `succeeded`, `failed` or `cancelled`."""
    attempt: int
    error: Mapping[str, Any] | None
    seconds: float | None
    ended_at: datetime | None
    due_at: datetime | None
