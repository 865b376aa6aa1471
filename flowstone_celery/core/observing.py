"""Who watches the steps that an executor runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from flowstone_celery.core.model import Claim
    from flowstone_celery.errors import FlowStoneError


class Observer(Protocol):
    """Sees each step that an executor runs (Celery's task events are made from it)."""

    def started(self, claim: Claim) -> None:
        """The step was claimed and is about to be called."""

    def ended(self, claim: Claim, event: str, error: FlowStoneError | None, seconds: float) -> None:
        """The step was settled: succeeded, failed, skipped, cancelled, retry, released, or stale."""

    def does(self, claim: Claim, text: str) -> None:
        """The hand is at these items now."""

    def did(self, claim: Claim, text: str) -> None:
        """The hand has done so many items."""

    def pulse(self) -> None:
        """Called now and then while steps run side by side, so that what was seen is told."""
