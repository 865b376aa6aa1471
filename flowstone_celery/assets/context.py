"""What an asset's function may ask for: who it is, which slice, which attempt, and whether it should end."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flowstone_celery.assets.batching import Batched
    from flowstone_celery.assets.definitions import Span
    from flowstone_celery.assets.partition import PartitionKey


@dataclass(frozen=True, slots=True)
class Context:
    """The context of one attempt (FS-9). Asked for by a parameter annotated `Context` or named `ctx`."""

    asset: str
    """The asset's qualified name."""
    partition: PartitionKey
    """The key of the slice that is made, or None."""
    run_id: UUID
    step_id: int
    attempt: int
    """1 for the first start of the function in this round, counting crashes too."""
    fence: int
    """Grows with each claim; pass it to whatever can refuse a stale holder."""
    idempotency_key: str
    """The same in all attempts that a crash caused: pass it on with side effects."""
    started_at: datetime
    requested_by: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the run was started with."""
    window: Span | None = None
    """The time that the partition stands for, `start` up to and without `end`, in the definition's zone; None for other keys."""
    partitions: Mapping[str, PartitionKey] = field(default_factory=dict)
    """The parts of a key of several dimensions, by the names of the dimensions."""
    key: Any = None
    """In an item of a scatter: the element that it is about (the list of them, where a function takes whole batches)."""
    index: int | None = None
    """In an item of a scatter: its place among all items, from 0."""
    batch: Batched | None = None
    """In an item that is a batch: its place, its elements, its group, and `batch_input`."""
    resources: Mapping[str, Any] = field(default_factory=dict)
    """The values of exactly those resources that the asset requires, by name."""
    ask: Callable[[], None] = lambda: None

    def check(self) -> None:
        """Return if the work may go on; end it here if it was cancelled, has timed out or lost its lease.

        Long loops call it where signals do not reach: in the threads and solo pools, and inline, where nothing else ends them.
        """
        self.ask()

    @property
    def log(self) -> logging.Logger:
        """A logger named after the asset."""
        return logging.getLogger(f"flowstone.asset.{self.asset}")

    @staticmethod
    def for_test(asset: str = "test", partition: PartitionKey = None, **values: Any) -> Context:
        """A context for calling an asset's function in a unit test, with no service at all."""
        from datetime import UTC

        given: dict[str, Any] = {
            "run_id": UUID(int=0),
            "step_id": 0,
            "attempt": 1,
            "fence": 1,
            "idempotency_key": "test",
            "started_at": datetime.now(UTC),
        }
        return Context(asset=asset, partition=partition, **{**given, **values})
