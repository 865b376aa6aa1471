"""A line to the broker that is kept open, and that never keeps its user waiting for a broker that is away."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any, TypeAlias

from flowstone_celery.errors import BrokerUnavailable
from flowstone_celery.worker.confirms import Confirms, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

Producer: TypeAlias = Any
"""A kombu producer (kombu is typed by halves, so its types would say less than nothing)."""

_PAUSE = 1.0
"""Seconds after a failure in which nothing is tried."""


class LineDown(BrokerUnavailable):
    """The broker did not answer a moment ago, and is not asked again yet."""


class Line:
    """Publishes through one connection for each process; threads take turns.

    A broker that is away costs its timeout once in a second, whatever the number of messages.
    """

    def __init__(self, app: Celery, timeout: float) -> None:
        """Use the app's broker; `timeout`, in seconds, bounds connecting, sending and waiting for a turn."""
        self._app = app
        self._timeout = timeout
        # An end that was made before a fork stays here, untouched: its socket belongs to the parent.
        self._ends: dict[int, _End] = {}

    def use(self, act: Callable[[Producer], None]) -> Exception | None:
        """Let the act publish; answers what went wrong instead of raising it."""
        end = self._ends.get(os.getpid()) or self._ends.setdefault(
            os.getpid(), _End(self._app, self._timeout)
        )
        if not end.turn.acquire(timeout=self._timeout):
            return LineDown("another thread waits for the broker")
        try:
            return end.use(act)
        finally:
            end.turn.release()

    def close(self) -> None:
        """This process's connection is closed."""
        end = self._ends.pop(os.getpid(), None)
        if end is not None:
            end.drop()


class _End:
    """One process's end of the line."""

    def __init__(self, app: Celery, timeout: float) -> None:
        self.turn = threading.Lock()
        self._app = app
        self._timeout = timeout
        self._connection: Any = None
        self._producer: Producer | None = None
        self._confirms: Confirms | None = None
        self._down_until = 0.0

    def use(self, act: Callable[[Producer], None]) -> Exception | None:
        if time.monotonic() < self._down_until:
            return LineDown()
        begun, kept = time.monotonic(), self._producer is not None
        error = self._try(act)
        if (
            error is not None
            and kept
            and not isinstance(error, Refused)
            and time.monotonic() - begun < self._timeout
        ):
            # A kept connection had been closed from the other side; a fresh one tells whether the broker is there.
            error = self._try(act)
        if error is not None and not isinstance(error, Refused):
            self._down_until = time.monotonic() + _PAUSE
        return error

    def _try(self, act: Callable[[Producer], None]) -> Exception | None:
        try:
            act(self._open())
            if self._confirms is not None:
                self._confirms.wait(self._timeout)
        except Refused as error:
            return error
        except Exception as error:  # noqa: BLE001 - each transport raises its own kinds; whatever it is, a hint was not sent and the sweep has it
            self.drop()
            return error
        except BaseException:
            # An interrupt landed between two bytes: the connection's state is unknown.
            self.drop()
            raise
        return None

    def _open(self) -> Producer:
        if self._producer is None:
            self._connection = _connection(self._app, self._timeout)
            self._connection.ensure_connection(
                max_retries=len(self._connection.alt or "1") - 1,
                interval_start=0,
                interval_step=0,
                interval_max=0,
            )
            self._producer = self._app.amqp.Producer(self._channel(), auto_declare=False, serializer="json")
        return self._producer

    def _channel(self) -> Any:
        if self._connection.transport.driver_type != "amqp":
            return self._connection.channel()
        line = self._connection.connection
        # The library's own bounds on reading end in a loop that tries for ever: the socket's own end in an exception.
        line.transport.sock.settimeout(self._timeout)
        channel = self._connection.channel()
        self._confirms = Confirms(line, channel)
        return channel

    def drop(self) -> None:
        """Nothing is connected; the broker is told nothing and not waited for."""
        connection, self._connection, self._producer = self._connection, None, None
        self._confirms = None
        if connection is None:
            return
        try:
            connection.collect(socket_timeout=self._timeout)
        except Exception:  # noqa: BLE001 - closing what is broken may fail in any way, and no one is served by knowing
            return


def _connection(app: Celery, timeout: float) -> Any:
    connection = app.connection_for_write(connect_timeout=timeout, heartbeat=0)
    bounds: tuple[str, ...] = _BOUNDS.get(connection.transport.driver_type, ())
    connection.transport_options = {
        **connection.transport_options,
        **dict.fromkeys(bounds, timeout),
        **_ONCE,
    }
    return connection


_BOUNDS: dict[str, tuple[str, ...]] = {
    "redis": ("socket_timeout", "socket_connect_timeout"),
    "amqp": ("connect_timeout",),
}
"""The options by which each kind of transport bounds its waiting."""

_ONCE: dict[str, Any] = {"retry_on_timeout": False, "confirm_publish": False}
"""No client library tries again by itself (and kombu batches only where none does), and none waits for each message apart."""
