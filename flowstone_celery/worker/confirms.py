"""On an AMQP broker a message has left when the broker says so: publisher confirms, many under way at once, none waited for without end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from flowstone_celery.errors import BrokerUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable

_LONGEST: Final = 5
"""How many times the publish timeout the confirms of one batch may take together, while they come in."""


class Unconfirmed(BrokerUnavailable):
    """The broker took the bytes and did not say in time that it has the messages."""


class Refused(BrokerUnavailable):
    """The broker answered, and has not taken the messages for these queues: they do not exist yet, or are full."""

    def __init__(self, queues: Iterable[str]) -> None:
        """Name the queues; messages to others have left."""
        self.queues = frozenset(queues)
        names = ", ".join(repr(queue) for queue in sorted(self.queues))
        super().__init__(
            f"the broker has no room for wake-ups on {names}: no such queue yet, or it is full",
            hint="a worker that listens there declares the queue; ready steps are offered again then",
        )


class Confirms:
    """One AMQP channel in confirm mode. kombu's own form waits for each message's confirm before it sends the next."""

    def __init__(self, connection: Any, channel: Any) -> None:
        """From now on this channel's messages are confirmed, and no call on its connection waits longer than the socket's timeout."""
        self._connection = connection
        self._send = channel.basic_publish
        self._last = 0
        self._under_way: dict[int, str] = {}
        self._refused: set[str] = set()
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.events["basic_return"].add(self._on_return)
        channel.confirm_select()
        channel.basic_publish = self._publish

    def wait(self, timeout: float) -> None:
        """Everything published so far is with the broker.

        Args:
            timeout: the longest silence, in seconds; a batch whose confirms come in may take some times that.

        Raises:
            Unconfirmed: the broker did not answer in time.
            Refused: it answered that it did not take some of them.
        """
        end = time.monotonic() + timeout * _LONGEST
        while self._under_way:
            # Never zero: a socket without any patience may stop in the middle of a frame.
            left = max(0.001, min(timeout, end - time.monotonic()))
            try:
                self._connection.drain_events(timeout=left)
            except TimeoutError as error:
                raise Unconfirmed(
                    f"the broker has not confirmed {len(self._under_way)} messages within {timeout:g} s"
                ) from error
        refused, self._refused = self._refused, set()
        if refused:
            raise Refused(refused)

    def _publish(self, message: Any, exchange: str = "", routing_key: str = "", **options: Any) -> Any:
        # Straight to a queue that does not exist, a message would vanish and be confirmed all the same.
        options["mandatory"] = not exchange
        self._last += 1
        self._under_way[self._last] = routing_key
        return self._send(message, exchange=exchange, routing_key=routing_key, **options)

    def _on_ack(self, tag: int, multiple: bool) -> None:
        self._settle(tag, multiple=multiple)

    def _on_nack(self, tag: int, multiple: bool) -> None:
        self._refused.update(self._settle(tag, multiple=multiple))

    def _on_return(self, _error: Exception, _exchange: str, routing_key: str, _message: Any) -> None:
        self._refused.add(routing_key)

    def _settle(self, tag: int, *, multiple: bool) -> list[str]:
        tags = [each for each in self._under_way if each <= tag] if multiple else [tag]
        return [self._under_way.pop(each, "") for each in tags]
