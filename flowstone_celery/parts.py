"""What a FlowStone is made of, each part opened on first use: settings, database, shelf, carrier, handlers, inline worker."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from flowstone_celery.assets.resources import Resources
from flowstone_celery.core.model import INLINE_QUEUE
from flowstone_celery.errors import InvalidOption, ServiceUnavailable
from flowstone_celery.telemetry import set_strict

if TYPE_CHECKING:
    from uuid import UUID

    from flowstone_celery.assets.catalog import Catalog
    from flowstone_celery.assets.reader import AssetReader
    from flowstone_celery.config import Settings
    from flowstone_celery.core.joining import Joiner
    from flowstone_celery.core.model import Carrier, Handler
    from flowstone_celery.db.database import Database
    from flowstone_celery.embedded.servers import Servers
    from flowstone_celery.io.manager import IOManager, Shelf


class Drains(Protocol):
    """Works a run to its end in this process."""

    def drain(self, run_id: UUID) -> object:
        """Return when the run has ended."""


class Parts:
    """The parts of one house. Two threads may open a part twice; the last one stays, which does no harm."""

    def __init__(
        self,
        app: Any,
        catalog: Catalog,
        knows: Callable[[], Sequence[str]],
        *,
        settings: Settings | None = None,
        io: Iterable[IOManager] = (),
        resources: Resources | None = None,
    ) -> None:
        """Open nothing yet. The resources outlive these parts; by default they are new ones of the catalog.

        Raises:
            InvalidOption: something in `io` is no IO manager.
        """
        self._app = app
        self._catalog = catalog
        self._knows = knows
        self._extra_io = tuple(_manager(each) for each in io)
        self.resources = resources or Resources(catalog.resources)
        if settings is not None:
            self.settings = settings

    @cached_property
    def settings(self) -> Settings:
        """The settings, by default read from the environment.

        Raises:
            ConfigError: a setting has a value that it cannot have.
        """
        from flowstone_celery.config import load_settings

        return load_settings()

    @property
    def _broker_of_app(self) -> str | None:
        return None if self._app is None else self._app.conf.broker_url

    @cached_property
    def database(self) -> Database:
        """The database: by URL, else the embedded one that is up for this project.

        Raises:
            ServiceUnavailable: neither is there.
        """
        from flowstone_celery.db.database import Database

        settings = self.settings
        settings.require_production_ready(broker_url=self._broker_of_app)
        set_strict(settings.env != "production")
        return Database(
            settings.database_url or self._embedded_database_url(),
            schema=settings.db_schema,
            pool_size=settings.pool_size,
            pooler=settings.database_pooler,
        )

    @cached_property
    def shelf(self) -> Shelf:
        """The IO managers by name."""
        from flowstone_celery.assets.gathered import GatheredIO
        from flowstone_celery.io.database import DatabaseIO
        from flowstone_celery.io.manager import Shelf
        from flowstone_celery.io.memory import MemoryIO

        gathered = GatheredIO(lambda: self.database)
        return Shelf(DatabaseIO(self.settings.max_value_bytes), MemoryIO(), gathered, *self._extra_io)

    @cached_property
    def reader(self) -> AssetReader:
        """What reads values and their status."""
        from flowstone_celery.assets.reader import AssetReader

        return AssetReader(self.database, self.shelf)

    @cached_property
    def handlers(self) -> Mapping[str, Handler]:
        """What does the work of each kind of step."""
        from flowstone_celery.assets.handler import KIND, AssetHandler
        from flowstone_celery.assets.scattering import Outside

        outside = Outside(lambda: self.carrier, self.queue_of)
        parts = (self._catalog, self.shelf, self.database, self.settings, self.resources)
        return {KIND: AssetHandler(*parts, outside)}

    def queue_of(self, task: str, queue: str | None) -> str:
        """The queue to which the app's own router sends this task, or the given one; without an app, that of inline work.

        Raises:
            InvalidOption: the app declares its queues and this is none of them.
        """
        if self._app is None:
            return INLINE_QUEUE
        from flowstone_celery.worker.attach import queue_of

        return queue_of(self._app, task, queue)

    @cached_property
    def carrier(self) -> Carrier:
        """What sends wake-ups."""
        from flowstone_celery.core.model import NoCarrier

        if self._app is None:
            return NoCarrier()
        from flowstone_celery.worker.carrier import CeleryCarrier

        return CeleryCarrier(self._app, self.settings)

    @cached_property
    def inline(self) -> Drains:
        """This process as a worker for its own runs."""
        from flowstone_celery.core.inline import InlineWorker

        return InlineWorker(self.database, self.settings, self.handlers, self._knows)

    @cached_property
    def joiner(self) -> Joiner:
        """What acts in transactions of others."""
        from flowstone_celery.core.joining import Joiner

        return Joiner(
            self.database,
            self.settings,
            lambda: self.carrier,
            lambda run_id: self.inline.drain(run_id),  # noqa: PLW0108 - opened when it is needed
        )

    def work_inline_by(self, other: Drains) -> None:
        """Inline runs are done by this worker from now on (the test kit's, on a virtual clock)."""
        self.__dict__["inline"] = other

    def broker_url(self) -> str | None:
        """The broker for an app that names none: FLOWSTONE_REDIS_URL, else the embedded Redis that is up, else None."""
        if self.settings.redis_url:
            return _broker_form(self.settings.redis_url)
        found = self._embedded()
        return found.broker_url if found else None

    def close(self) -> None:
        """Give back this process's connections; the parts open again when they are used."""
        opened, carrier = (self.__dict__.pop(name, None) for name in ("database", "carrier"))
        for name in ("shelf", "reader", "handlers", "inline", "joiner"):
            self.__dict__.pop(name, None)
        if opened is not None:
            opened.dispose()
        # Not every carrier has something to close: one that carries nothing has not.
        if hasattr(carrier, "close"):
            carrier.close()

    def _embedded(self) -> Servers | None:
        from flowstone_celery.embedded import servers

        return servers.find(self.settings.home)

    def _embedded_database_url(self) -> str:
        found = self._embedded()
        if found is None:
            raise ServiceUnavailable(
                f"no database is configured, and no embedded one is up for this project ({self.settings.home.absolute()})",
                hint="run `flowstone up` (a real PostgreSQL and Redis under .flowstone/), or set FLOWSTONE_DATABASE_URL",
            )
        return found.database_url


def own_app() -> Any:
    """A Celery app for a FlowStone that was given none."""
    from celery import Celery

    return Celery("flowstone")


def _manager(candidate: IOManager) -> IOManager:
    """The candidate, which keeps the contract as far as can be told beforehand."""
    from flowstone_celery.io.manager import IOManager

    if isinstance(candidate, type) or not isinstance(candidate, IOManager):
        raise InvalidOption(
            f"{candidate!r:.80} in io=[…] is no IO manager",
            hint="give instances with a name, store, load and delete (flowstone_celery.io.manager.IOManager)",
        )
    return candidate


def _broker_form(redis_url: str) -> str:
    """A Redis URL as kombu reads it: unix sockets have a scheme of their own there."""
    return redis_url.replace("unix://", "redis+socket://", 1).replace("?db=", "?virtual_host=", 1)
