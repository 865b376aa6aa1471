"""What the facade offers to workers, and where a Celery app keeps it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery import Celery

    from flowstone_celery.assets.catalog import Catalog
    from flowstone_celery.config import Settings
    from flowstone_celery.core.executor import Executor
    from flowstone_celery.core.interrupts import Interrupts
    from flowstone_celery.core.workers import WorkerProcess
    from flowstone_celery.db.database import Database

HOUSE = "flowstone"
"""The attribute of a Celery app under which its house is found."""

HEADER = "flowstone"
"""The message header that names a step: `{"step": id, "v": protocol}`."""


class House(Protocol):
    """What a worker needs of the facade."""

    @property
    def settings(self) -> Settings:
        """This process's settings."""

    @property
    def database(self) -> Database:
        """Where the rows are."""

    @property
    def manage(self) -> bool:
        """Whether app-wide settings may be changed at worker start."""

    def executor_for(self, worker: WorkerProcess, interrupts: Interrupts) -> Executor:
        """The executor of this process; asked once for each process."""

    def knows(self) -> tuple[str, ...]:
        """The names of the tasks whose steps can run here."""

    @property
    def catalog(self) -> Catalog:
        """All declared assets."""

    def start(self, task_name: str, kwargs: Mapping[str, Any], key: str) -> object:
        """A run is started as if the user had called it; the same key starts nothing twice. What it answers is the task's result."""

    def check(self) -> None:
        """Raise the first declaration error, if there is one."""

    def broker_url(self) -> str | None:
        """The broker for an app that names none."""

    def close_resources(self) -> None:
        """What this process has set up for steps is torn down. Never raises."""


def house_of(app: Celery) -> House | None:
    """The house that is attached to this app."""
    found: House | None = getattr(app, HOUSE, None)
    return found
