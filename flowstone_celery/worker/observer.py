"""What monitors see of steps: the message's own task shows the step it named, each further step shows as a task of its own."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery.events.event import Event, get_exchange
from celery.utils.time import utcoffset

from flowstone_celery.worker.carrier import args_shown, kwargs_shown

if TYPE_CHECKING:
    from celery import Celery

    from flowstone_celery.core.model import Claim
    from flowstone_celery.errors import FlowStoneError
    from flowstone_celery.worker.line import Line, Producer

_AT_ONCE = 300
"""Events in one message."""
WELL = frozenset({"succeeded", "skipped", "waiting", "idle", "in_line"})
"""How steps end that have done what they were called for."""
_TELL_EVERY = 1.0
"""Seconds between two messages of a window that goes on."""


@dataclass(frozen=True, slots=True)
class Named:
    """How the step that a message named ended."""

    event: str
    error: FlowStoneError | None
    did: str | None = None
    """Of a hand: what it has done."""


class StepObserver:
    """Remembers how the step that the message named ended, and gathers Celery's task events of all further ones."""

    def __init__(
        self, app: Celery, line: Line, step: int, message_id: str, hostname: str, *, sends: bool
    ) -> None:
        """Observe the message that named this step. `sends`: the worker sends task events."""
        self._step = step
        self._app = app
        self._line = line
        self._message_id = message_id
        self._hostname = hostname
        self._sends = sends
        self._shown: dict[int, str] = {}
        self._events: list[dict[str, Any]] = []
        self._told_at = time.monotonic()
        self._lock = threading.Lock()
        self.named: Named | None = None
        self.further = 0
        self._did: dict[int, str] = {}

    def started(self, claim: Claim) -> None:
        """A further step is a task of its own."""
        with self._lock:
            self._started(claim)

    def _started(self, claim: Claim) -> None:
        if claim.id == self._step and self.named is None:
            return
        self.further += 1
        if not self._sends:
            return
        task = self._shown[claim.id] = str(uuid4())
        self._add(
            task,
            "task-received",
            name=claim.task,
            args=args_shown(claim.partition),
            kwargs=kwargs_shown(claim.run_id),
            root_id=self._message_id,
            parent_id=self._message_id,
            retries=claim.failures,
            eta=None,
            expires=None,
        )
        self._add(task, "task-started")

    def ended(self, claim: Claim, event: str, error: FlowStoneError | None, seconds: float) -> None:
        """The step was settled, or was another's by then."""
        with self._lock:
            task = self._shown.pop(claim.id, None)
            if task is not None:
                self._add(task, *_shown(event, error, seconds, self._did.pop(claim.id, None)))
            elif claim.id == self._step and self.named is None:
                self.named = Named(event, error, self._did.pop(claim.id, None))

    def does(self, claim: Claim, text: str) -> None:
        """The hand's task shows the items that it is at."""
        if self._sends:
            with self._lock:
                self._does(claim, text)

    def did(self, claim: Claim, text: str) -> None:
        """The hand's task will have this result."""
        with self._lock:
            self._did[claim.id] = text

    def _does(self, claim: Claim, text: str) -> None:
        task = self._shown.get(claim.id)
        if task is None and claim.id == self._step:
            task = self._message_id
        if task is not None:
            # Told after its start: monitors take names and arguments of it, and leave the state.
            kwargs = f"{kwargs_shown(claim.run_id)[:-1]}, 'items': {text!r}}}"
            self._add(task, "task-received", name=claim.task, kwargs=kwargs)

    def pulse(self) -> None:
        """Monitors hear of steps side by side while others of them run still."""
        if time.monotonic() - self._told_at >= _TELL_EVERY:
            self.flush()

    def revoked(self) -> None:
        """The message's own task shows as cancelled; Celery itself has no word for that from inside a task."""
        if self._sends:
            self._add(self._message_id, *_shown("cancelled", None, 0.0))

    def flush(self) -> None:
        """What was gathered has left, or is forgotten if the broker is away: monitors may miss it, the rows do not."""
        with self._lock:
            events, self._events = self._events, []
            self._told_at = time.monotonic()
        if events:
            self._line.use(lambda producer: self._publish(producer, events))

    def _add(self, task: str, kind: str, _fields: dict[str, Any] | None = None, /, **fields: Any) -> None:
        self._events.append(
            Event(
                kind,
                uuid=task,
                hostname=self._hostname,
                utcoffset=utcoffset(),
                pid=os.getpid(),
                clock=self._app.clock.forward(),
                timestamp=time.time(),
                **fields,
                **(_fields or {}),
            )
        )

    def _publish(self, producer: Producer, events: list[dict[str, Any]]) -> None:
        exchange = get_exchange(producer.connection, name=self._app.conf.event_exchange)
        for begin in range(0, len(events), _AT_ONCE):
            producer.publish(
                events[begin : begin + _AT_ONCE],
                exchange=exchange.name,
                routing_key="task.multi",
                declare=[exchange],
                serializer=self._app.conf.event_serializer,
                headers={"hostname": self._hostname},
                delivery_mode=1,
            )


def _shown(
    event: str, error: FlowStoneError | None, seconds: float, did: str | None = None
) -> tuple[str, dict[str, Any]]:
    """Celery's event for how a step ended."""
    match event:
        case _ if event in WELL:
            return "task-succeeded", {"result": did or event, "runtime": seconds}
        case "failed":
            return "task-failed", {"exception": str(error), "traceback": _traceback(error)}
        case "cancelled":
            return "task-revoked", {"terminated": False, "signum": None, "expired": False}
        case _:
            return "task-retried", {"exception": str(error or event), "traceback": _traceback(error)}


def _traceback(error: FlowStoneError | None) -> str:
    return str((error.facts if error else {}).get("traceback") or "")
