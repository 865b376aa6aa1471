"""The door of the room: how the facade attaches itself to somebody's Celery app."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from flowstone_celery.errors import InvalidOption
from flowstone_celery.worker.house import HOUSE, house_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery
    from celery.app.task import Task

    from flowstone_celery.worker.house import House


def attach(app: Celery, house: House) -> None:
    """Workers of this app run steps for this house from now on. No setting of the app changes.

    Raises:
        InvalidOption: another house is attached to this app.
    """
    if house_of(app) not in (None, house):
        raise InvalidOption(
            f"the Celery app {app.main or app!r} has a FlowStone already",
            hint="use that one: one FlowStone for each app",
        )
    setattr(app, HOUSE, house)
    name_broker = _name_broker(house)
    if app.configured:
        name_broker(app)
    else:
        # Strong, for nobody else holds this function; it goes with the app.
        app.on_after_configure.connect(name_broker, weak=False)
    # By name: a client that never becomes a worker does not load them.
    app.steps["worker"].add("flowstone_celery.worker.bootstep:KeeperStep")
    app.steps["consumer"].add("flowstone_celery.worker.bootstep:StepConsumer")


def register_step_task(
    app: Celery, task_name: str, *, queue: str | None = None, doc: str | None = None
) -> Task:
    """The app knows a task of this name that runs steps; it is made when the app is finalized, never before.

    Args:
        app: the user's Celery app; it is not finalized by this.
        task_name: the task's full name, as messages carry it.
        queue: where plain `delay()` sends it; None leaves that to the app's router.
        doc: the task's docstring.
    """
    from flowstone_celery.worker.task import StepTask

    options: dict[str, Any] = {} if queue is None else {"queue": queue}
    return app.task(_body(task_name, doc), name=task_name, base=StepTask, lazy=True, shared=False, **options)


def _name_broker(house: House) -> Callable[..., None]:
    """Once the app has read its configuration: where that names no broker, FlowStone's serves."""

    def name_broker(sender: Celery, **_: Any) -> None:
        if sender.conf.broker_url is None and (url := house.broker_url()) is not None:
            sender.conf.broker_url = url

    return name_broker


def _body(task_name: str, doc: str | None) -> Callable[..., None]:
    """A function of its own for each task: Celery names the task's class after it and warns when two share one name."""

    def step(*args: Any, **kwargs: Any) -> None:
        """Never called: `StepTask` answers the call itself."""

    # Celery writes it into a def statement: the brackets of an items' task are no part of a name.
    name = re.sub(r"\W", "_", task_name.rpartition(".")[2]) or "step"
    step.__name__ = step.__qualname__ = name
    step.__doc__ = doc
    return step


def queue_of(app: Celery, task_name: str, queue: str | None = None) -> str:
    """The queue to which the app's own router sends this task, or the given one.

    Raises:
        InvalidOption: the app declares its queues and this is none of them.
    """
    from celery.exceptions import QueueNotFound

    try:
        route = app.amqp.router.route({} if queue is None else {"queue": queue}, task_name)
    except QueueNotFound as error:
        raise InvalidOption(
            f"{task_name!r} is to run on a queue that the app does not declare: {error}",
            hint="add it to task_queues, or set task_create_missing_queues",
        ) from error
    found = route["queue"]
    return str(getattr(found, "name", found))
