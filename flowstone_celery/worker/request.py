"""A message of ours inside a worker: how a cold stop ends it where Celery itself knows no way."""

from __future__ import annotations

from typing import Any

from celery.worker.request import Request

from flowstone_celery.worker.house import house_of
from flowstone_celery.worker.seat import PREFORK, Place, seat_of


class StepRequest(Request):  # type: ignore[misc]  # Celery's classes are untyped
    """Steps in the worker's own process (threads, solo) are asked to end; Celery can only end processes of a pool."""

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """The step is given back as soon as its code hears: at once in the main thread, at its next `ctx.check()` elsewhere."""
        if Place.announced().pool == PREFORK:
            super().cancel(pool, signal=signal, emit_retry=emit_retry)
            return
        self._announce_cancelled(emit_retry=False)
        house = house_of(self._app)
        if house is not None:
            seat_of(self._app, house).interrupts.leave()
