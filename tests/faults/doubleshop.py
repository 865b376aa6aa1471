"""The same app, with a carrier that sends every wake-up twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from faultshop import app, fs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowstone_celery.core.model import Carrier, WakeUp

__all__ = ["app"]


class Twice:
    """Sends what it is given, and sends it again."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier

    def send(self, wakeups: Sequence[WakeUp]) -> None:
        self._carrier.send(wakeups)
        self._carrier.send(wakeups)


fs.parts.carrier = Twice(fs.parts.carrier)
