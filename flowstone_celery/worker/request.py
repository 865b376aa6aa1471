"""A message of ours inside a worker: how it is acknowledged, and how a cold stop ends it where Celery itself knows no way."""

from __future__ import annotations

from typing import Any

from celery.utils.log import get_logger
from celery.worker.request import Request

from flowstone_celery.worker.house import house_of
from flowstone_celery.worker.seat import PREFORK, Place, seat_of

log = get_logger("flowstone.worker")


class _Calm:
    """What is critical for a task whose message is its truth is news for a step: the row forbids a second start."""

    @staticmethod
    def critical(*_: Any, **__: Any) -> None:
        """The connection went with the message's number; the broker delivers it again."""
        log.info("a step's message cannot be acknowledged, its connection is gone; it may come again in vain")


class StepRequest(Request):  # type: ignore[misc]  # Celery's classes are untyped
    """Steps in the worker's own process (threads, solo) are asked to end; Celery can only end processes of a pool."""

    acknowledged: bool

    def acknowledge(self) -> None:
        """The message is settled with its broker, or with its connection: neither is an event for the log."""
        if not self.acknowledged:
            self._on_ack(_Calm, self._connection_errors)
            self.acknowledged = True

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """The step is given back as soon as its code hears: at once in the main thread, at its next `ctx.check()` elsewhere."""
        if Place.announced().pool == PREFORK:
            super().cancel(pool, signal=signal, emit_retry=emit_retry)
            return
        self._announce_cancelled(emit_retry=False)
        house = house_of(self._app)
        if house is not None:
            seat_of(self._app, house).interrupts.leave()
