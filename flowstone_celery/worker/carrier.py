"""Wake-ups travel as ordinary Celery messages: the step's task name, its queue, and a header that says which step."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from flowstone_celery import faults
from flowstone_celery.core.model import PROTOCOL
from flowstone_celery.telemetry import emit
from flowstone_celery.worker.confirms import Refused
from flowstone_celery.worker.house import HEADER
from flowstone_celery.worker.line import Line, LineDown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery import Celery
    from celery.events.dispatcher import EventDispatcher

    from flowstone_celery.config import Settings
    from flowstone_celery.core.model import WakeUp
    from flowstone_celery.worker.line import Producer

_BATCH = 1_000


class CeleryCarrier:
    """Publishes wake-ups to the app's broker. It never raises and never waits longer than the publish timeout.

    It serves every thread, and every process that is forked from the one that made it, with a connection of its own.
    """

    def __init__(self, app: Celery, settings: Settings) -> None:
        """Publish to the broker of this app; any app with a broker URL will do."""
        self._app = app
        self._timeout = settings.publish_timeout_seconds
        self._line = Line(app, self._timeout)
        self._missed: Counter[str] = Counter()
        self._events: EventDispatcher | None = None

    def send(self, wakeups: Sequence[WakeUp]) -> None:
        """Send all of them, many in one batch. What does not leave is sent by the sweep."""
        if not wakeups:
            return
        faults.point("publish.before_flush")
        error = self._line.use(lambda producer: self._publish_all(producer, wakeups))
        faults.point("publish.after_flush")
        self._tell(wakeups, error)

    def close(self) -> None:
        """This process's connection is closed."""
        self._line.close()

    # --- publish --------------------------------------------------------------------------------------------------------------

    def _publish_all(self, producer: Producer, wakeups: Sequence[WakeUp]) -> None:
        if len(wakeups) == 1:
            self._publish(producer, wakeups[0])
            return
        # kombu batches from 5.7 on; an older one sends them one by one.
        batch = producer.batch(max_size=_BATCH) if hasattr(producer, "batch") else nullcontext()
        with batch:
            for wakeup in wakeups:
                self._publish(producer, wakeup)

    def _publish(self, producer: Producer, wakeup: WakeUp) -> None:
        tells = bool(self._app.conf.task_send_sent_event)
        message = self._app.amqp.as_task_v2(
            str(uuid4()),
            wakeup.task,
            argsrepr=args_shown(wakeup.partition),
            kwargsrepr=kwargs_shown(wakeup.run),
            ignore_result=True,
            create_sent_event=tells,
        )
        producer.publish(
            message.body,
            exchange="",
            routing_key=wakeup.queue,
            headers={**message.headers, HEADER: {"step": wakeup.step, "v": PROTOCOL}},
            serializer="json",
            retry=False,
            timeout=self._timeout,
            **message.properties,
        )
        if tells:
            self._tell_sent(
                producer,
                {**message.sent_event, "queue": wakeup.queue, "exchange": "", "routing_key": wakeup.queue},
            )

    def _tell_sent(self, producer: Producer, fields: dict[str, Any]) -> None:
        if self._events is None:
            self._events = self._app.events.Dispatcher(enabled=False, buffer_while_offline=False)
        self._events.publish("task-sent", fields, producer)

    # --- tell -----------------------------------------------------------------------------------------------------------------

    def _tell(self, wakeups: Sequence[WakeUp], error: Exception | None) -> None:
        """One event for each queue; what was not even tried is told with the next try."""
        steps: dict[str, list[int]] = {}
        for wakeup in wakeups:
            steps.setdefault(wakeup.queue, []).append(wakeup.step)
        left = {queue: ids for queue, ids in steps.items() if _has_left(queue, error)}
        self._missed.update({queue: len(ids) for queue, ids in steps.items() if queue not in left})
        if isinstance(error, LineDown):
            return
        missed, self._missed = self._missed, Counter()
        for queue, count in missed.items():
            emit("flowstone.wakeup.failed", queue=queue, count=count, error=repr(error or LineDown()))
        for queue, ids in left.items():
            emit("flowstone.wakeup.sent", queue=queue, count=len(ids), step_ids=ids)


def _has_left(queue: str, error: Exception | None) -> bool:
    return error is None or (isinstance(error, Refused) and queue not in error.queues)


def args_shown(partition: str) -> str:
    """What Flower shows as the arguments of a step."""
    return f"({partition!r},)" if partition else "()"


def kwargs_shown(run: object) -> str:
    """What Flower shows as the keyword arguments of a step."""
    return f"{{'run': '{run}'}}"
