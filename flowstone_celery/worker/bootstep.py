"""The boot-steps: a worker's node is announced, its keeper starts before the pool and leaves after it, the consumer knows our messages."""

from __future__ import annotations

import atexit
import os
import shutil
import time
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from celery import bootsteps, signals
from celery.utils.log import get_logger
from celery.worker import state

from flowstone_celery.core.interrupts import Board
from flowstone_celery.core.model import PROTOCOL
from flowstone_celery.core.workers import Node
from flowstone_celery.db import schema
from flowstone_celery.errors import DatabaseUnavailable, FlowStoneError, UnsupportedPool
from flowstone_celery.worker.advice import advice
from flowstone_celery.worker.house import HEADER, House, house_of
from flowstone_celery.worker.prefork import let_children_go
from flowstone_celery.worker.seat import PREFORK, Place
from flowstone_celery.worker.task import EARLY_ACK_SECONDS, StepTask
from flowstone_celery.worker.tether import Tether

if TYPE_CHECKING:
    from collections.abc import Callable

_LOOK_EVERY: Final = 0.5
_FAREWELL: Final = 5.0
"""Seconds that a keeper has for its last words to the database."""
_SUPPORTED: Final = {"prefork": PREFORK, "thread": "threads", "solo": "solo"}

log = get_logger("flowstone.worker")


class KeeperStep(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery's classes are untyped
    """Worker boot-step: the node, its board, its keeper."""

    name = "flowstone.keeper"
    label = "FlowStone keeper"
    requires = ("celery.worker.components:Timer",)

    def __init__(self, worker: Any, **options: Any) -> None:
        """Refuse what cannot work, before anything is started."""
        super().__init__(worker, **options)
        self._worker = worker
        self._house = _require(house_of(worker.app))
        pool = self._checked(worker)
        self._place = Place(uuid4(), worker.hostname, pool, Board.new())
        self._place.announce()
        self._pid = os.getpid()
        self._node: Node | None = None
        self._code_version = ""
        self._announced = False
        self._refused: set[str] = set()
        self.tether = Tether(self._greeting)
        worker.flowstone = self
        atexit.register(self._clean_up)

    def _checked(self, worker: Any) -> str:
        try:
            pool = supported_pool(
                worker.pool_cls if isinstance(worker.pool_cls, str) else worker.pool_cls.__module__
            )
            self._house.check()
            self._check_schema()
        except FlowStoneError as error:
            # The command prints the sentence and ends; a traceback would bury it.
            raise SystemExit(str(error)) from error
        return pool

    def _check_schema(self) -> None:
        """A database that is away is waited for; one with other tables than this code's is no place for a worker."""
        database = self._house.database
        try:
            database.check_schema()
        except DatabaseUnavailable:
            log.warning("the database does not answer yet; steps begin when it does")
        finally:
            # Nothing of this connection is left for the pool's children.
            database.dispose()

    def include(self, parent: Any) -> bool:
        """Be the first to start and so the last to stop: the pool's processes live and die inside the keeper's life."""
        parent.steps.insert(0, self)
        return True

    # --- life -------------------------------------------------------------------------------------------------------------------

    def start(self, worker: Any) -> None:
        """The keeper runs and is looked after by the worker's own timer."""
        self._advise(worker)
        self._node = self._describe()
        self.tether.start()
        signals.worker_shutting_down.connect(self._on_shutting_down, sender=worker.hostname)
        worker.timer.call_repeatedly(_LOOK_EVERY, self.look)

    def look(self) -> None:
        """The keeper lives, and knows what this worker listens to now."""
        self.tether.look()
        node = self._describe()
        if node != self._node:
            self._node = node
            self.tether.say(node=node.to_dict())
        self.tell_events()
        if state.should_terminate:
            self._end_long_steps()
        # billiard looks for dead children each 5 s; until it has, a slot is gone and its message counts against the prefetch.
        self._worker.pool.maintain_pool()
        let_children_go(self._worker.pool)

    def tell_events(self) -> None:
        """Processes of the pool send task events exactly if this worker does (`-E`, or switched on by a monitor)."""
        dispatcher = getattr(getattr(self._worker, "consumer", None), "event_dispatcher", None)
        on = bool(
            dispatcher and dispatcher.enabled and (not dispatcher.groups or "task" in dispatcher.groups)
        )
        if on is not self._place.sends_events:
            self._place.set_events(on)

    def close(self, _worker: Any) -> None:
        """The stop is announced: what the pool leaves behind is nobody's fault."""
        self._announce_stop()

    def stop(self, _worker: Any) -> None:
        """The pool is gone; the keeper says so in the rows and is gone too."""
        if not self.tether.let_go(_FAREWELL):
            log.warning(
                "FlowStone's keeper did not leave within %g s and was killed; leases end by themselves",
                _FAREWELL,
            )
        self._clean_up()

    terminate = stop

    def _on_shutting_down(self, **_: Any) -> None:
        self._announce_stop()

    def _announce_stop(self) -> None:
        if not self._announced:
            self._announced = True
            self._place.board.drain()
            self.tether.say(stop=True)

    def _clean_up(self) -> None:
        """No keeper and no folder stay behind, however the worker ends."""
        atexit.unregister(self._clean_up)
        if os.getpid() == self._pid:
            self.tether.let_go(_FAREWELL)
            shutil.rmtree(self._place.board.folder, ignore_errors=True)

    def _end_long_steps(self) -> None:
        """A cold stop cancels what is not acknowledged; our long steps are, so they are told to go here."""
        self._announce_stop()
        for request in tuple(state.active_requests):
            if isinstance(request.task, StepTask) and request.acknowledged and not request._already_cancelled:
                request.cancel(self._worker.pool, emit_retry=False)

    # --- what the keeper is told ------------------------------------------------------------------------------------------------

    def _greeting(self) -> dict[str, Any]:
        conf, house = self._worker.app.conf, self._house
        return {
            "settings": house.settings.to_dict(),
            "database": {"url": house.database.url, "schema": house.database.schema},
            "node": (self._node or self._describe()).to_dict(),
            "board": str(self._place.board.folder),
            "broker": {
                "broker_url": conf.broker_write_url,
                "broker_transport_options": conf.broker_transport_options,
                "broker_use_ssl": conf.broker_use_ssl,
                "broker_login_method": conf.broker_login_method,
                "task_send_sent_event": conf.task_send_sent_event,
            },
            "may_kill": self._place.pool == PREFORK,
            "stop": self._announced,
        }

    def _describe(self) -> Node:
        worker, knows = self._worker, self._house.knows()
        if self._node is None or self._node.knows != knows:
            digest = self._house.catalog.digest()
            self._code_version = f"code {digest} (protocol {PROTOCOL}, schema {schema.VERSION})"
        return Node(
            key=self._place.key,
            name=self._place.name,
            pid=self._pid,
            pool=self._place.pool,
            queues=tuple(sorted(worker.app.amqp.queues.consume_from)),
            knows=knows,
            slots=_slots(worker),
            code_version=self._code_version,
        )

    def refusal(self, header: dict[str, Any]) -> str:
        """Why this worker cannot run the step of such a message; the empty text if it can."""
        spoken = header.get("v", 0)
        if spoken > PROTOCOL:
            return f"is of an older version than the step (protocol {PROTOCOL}, the step has {spoken})"
        return self._place.board.retired

    def refuse(self, consumer: Any, message: Any, why: str) -> None:
        """A wake-up that cannot be served here is taken off the queue; its row says why. One line in the log for each task."""
        task = message.headers.get("task")
        message.ack_log_error(log, consumer.connection_errors)
        self.tether.say(
            note={"step": message.headers[HEADER]["step"], "note": f"worker {worker_name(consumer)} {why}"}
        )
        if task not in self._refused:
            self._refused.add(task)
            log.warning("a step came to this worker, which %s; its row waits for another", why)

    # --- advice -----------------------------------------------------------------------------------------------------------------

    def _advise(self, worker: Any) -> None:
        redis = worker._conninfo.transport.driver_type == "redis"
        found = advice(worker.app, worker, redis=redis)
        if self._house.manage:
            for each in found:
                each.apply(worker.app, worker)
        elif found:
            lines = "\n".join(f"  {each.sentence}" for each in found)
            log.warning(
                "steps would run better with these settings of the app (FlowStone changes none of them):\n%s",
                lines,
            )


class StepConsumer(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery's classes are untyped
    """Consumer boot-step: wake-ups for unknown tasks, and acknowledgements of long steps."""

    name = "flowstone.consumer"
    label = "FlowStone messages"
    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        """From now on an unknown task of ours is no error."""
        super().__init__(consumer, **options)
        consumer.on_unknown_task = _refusing(consumer, consumer.on_unknown_task)

    def start(self, consumer: Any) -> None:
        """Begin to watch for long steps. Celery cancels the timer with the connection, and this starts anew with the next one."""
        consumer.controller.flowstone.tell_events()
        if consumer.hub is not None:
            late = late_after(consumer.app)
            consumer.timer.call_repeatedly(late / 4, acknowledge_long, (late,))


def _refusing(
    consumer: Any, otherwise: Callable[[Any, Any, Exception], None]
) -> Callable[[Any, Any, Exception], None]:
    def on_unknown_task(body: Any, message: Any, error: Exception) -> None:
        if HEADER not in message.headers:
            otherwise(body, message, error)
            return
        consumer.controller.flowstone.refuse(
            consumer, message, f"does not know task {message.headers.get('task')}"
        )

    return on_unknown_task


def late_after(app: Any) -> float:
    """Seconds after which the message of a running step is acknowledged: well before the broker's patience ends.

    Redis delivers again after the app's visibility timeout. RabbitMQ closes the channel after its consumer timeout: half an hour
    by default, or what a queue's own argument says, in milliseconds.
    """
    visibility = float((app.conf.broker_transport_options or {}).get("visibility_timeout") or 3600)
    patience = (
        float((queue.queue_arguments or {}).get("x-consumer-timeout") or 1_800_000) / 1000
        for queue in app.amqp.queues.consume_from.values()
    )
    return min(EARLY_ACK_SECONDS, visibility / 4, *(seconds / 4 for seconds in patience))


def acknowledge_long(late: float) -> None:
    """No step that has run for so many seconds has a message that its broker might deliver again."""
    for request in tuple(state.active_requests):
        if (
            isinstance(request.task, StepTask)
            and request.time_start
            and time.time() - request.time_start > late
        ):
            request.acknowledge()


def supported_pool(implementation: str) -> str:
    """The name of a pool that steps can run in, from its class's module.

    Raises:
        UnsupportedPool: steps cannot be leased, interrupted or ended in it.
    """
    short = implementation.rpartition(".")[2].partition(":")[0]
    if short not in _SUPPORTED:
        raise UnsupportedPool(
            f"the pool {short!r} cannot run steps: many of them would share one thread, which nothing outside can lease or interrupt",
            hint="start the worker with -P prefork, -P threads or -P solo; async def functions run many at once in each of them",
        )
    return _SUPPORTED[short]


def worker_name(consumer: Any) -> str:
    """The node name of a consumer's worker."""
    return str(consumer.hostname)


def _slots(worker: Any) -> int:
    """How many messages the pool works on at once, now; before it starts, as many as it will."""
    try:
        return int(worker.pool.num_processes or worker.concurrency)
    except AttributeError:
        return int(worker.concurrency)


def _require(house: House | None) -> House:
    assert house is not None, "the boot-step is added by attach(), which sets the house first"
    return house
