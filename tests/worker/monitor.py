"""What a monitor such as Flower hears of a worker."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

from worker import shop


class Monitor:
    """Listens to Celery's events as Flower does."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._stop = False
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self) -> Monitor:
        ready = threading.Event()
        self._ready = ready
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join(10)

    def _listen(self) -> None:
        with shop.app.connection_for_read() as link:
            receiver = shop.app.events.Receiver(link, handlers={"*": self.events.append})
            with receiver.consumer_context() as (connection, _channel, _consumers):
                self._ready.set()
                while not self._stop:
                    with suppress(TimeoutError):
                        connection.drain_events(timeout=0.1)

    def of(self, kind: str, name: str = "") -> list[dict[str, Any]]:
        """Events of this kind, of tasks of this name."""
        named = {each["uuid"] for each in list(self.events) if name and each.get("name") == name}
        return [
            each for each in list(self.events) if each["type"] == kind and (not name or each["uuid"] in named)
        ]
