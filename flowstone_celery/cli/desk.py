"""What one command works with: the Celery app, its FlowStone, the settings, the database. Each is found on first use."""

from __future__ import annotations

import getpass
import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import click

from flowstone_celery.errors import RunNotFound

if TYPE_CHECKING:
    from uuid import UUID

    from flowstone_celery.app import FlowStone
    from flowstone_celery.assets.handle import Run
    from flowstone_celery.config import Settings
    from flowstone_celery.db.database import Database


@dataclass
class Desk:
    """One command's things. Named is the app's name as for `celery -A`, or the Celery app itself, or None."""

    named: Any = None
    verbose: bool = False
    written: str | None = None
    """The name of the app as the user wrote it, to hand on to `celery -A`."""
    _opened: list[Database] = field(default_factory=list)

    KEY: ClassVar = "flowstone_celery.desk"

    @staticmethod
    def of(ctx: click.Context, app: str | None, *, verbose: bool) -> Desk:
        """The desk of this command: `-A` of ours, else that of `celery -A`, else FLOWSTONE_APP."""
        found = Desk(verbose=verbose)
        given = ctx.find_root().params.get("app")
        if app is None and given is not None and ctx.obj is not None:
            found.named, found.written = ctx.obj.app, given if isinstance(given, str) else None
        else:
            found.choose(app)
        ctx.meta[Desk.KEY] = found
        ctx.call_on_close(found.close)
        return found

    def choose(self, name: str | None) -> None:
        """Work on the app of this name."""
        self.named = self.written = name

    @cached_property
    def own_settings(self) -> Settings:
        """What the environment says, whatever the app."""
        from flowstone_celery.config import load_settings

        return load_settings()

    @property
    def app_name(self) -> str | None:
        """The app's name as text, if it was given one: by `-A` or by FLOWSTONE_APP."""
        return self.written or (self.own_settings.app if self.named is None else None)

    @property
    def has_app(self) -> bool:
        """Whether an app was named in any way."""
        return self.named is not None or self.own_settings.app is not None

    @cached_property
    def house(self) -> FlowStone:
        """The FlowStone of the named app, or of the one that Celery itself would find.

        Raises:
            ConfigError: there is none, there are several, or its module cannot be imported (names file and line).
        """
        from flowstone_celery.cli.apps import find_house

        return find_house(self.named if self.named is not None else self.own_settings.app)

    @property
    def settings(self) -> Settings:
        """The settings of the named app's FlowStone, else those of the environment."""
        return self.house.settings if self.has_app else self.own_settings

    @cached_property
    def database(self) -> Database:
        """The database of the named app, else that of the settings, else the embedded one that is up.

        Raises:
            ServiceUnavailable: none of them is there.
        """
        return self.house.database if self.has_app else self.open_database(self.own_settings)

    @cached_property
    def _own_house(self) -> FlowStone:
        """A FlowStone without assets on the settings' database, for acts that need no app: workers' pacers send what they make ready."""
        from flowstone_celery.app import FlowStone

        return FlowStone(mode="inline", settings=self.own_settings)

    @property
    def acting_house(self) -> FlowStone:
        """The FlowStone of the named app; where none was named, one without assets, which serves for most acts."""
        return self.house if self.has_app else self._own_house

    def acting(self, run_id: UUID) -> Run:
        """A handle that acts on a run."""
        return self.acting_house.handle(run_id)

    def open_database(self, settings: Settings) -> Database:
        """The database that these settings name, else the embedded one that is up.

        Raises:
            ServiceUnavailable: neither is there.
        """
        from flowstone_celery.app import FlowStone

        found = FlowStone(mode="inline", settings=settings).database
        self._opened.append(found)
        return found

    def run(self, run_id: UUID | str) -> Run:
        """A handle on a run that exists, by its id or by as much of it as tells it from others.

        Raises:
            RunNotFound: no run has this id.
            InvalidOption: several begin so.
        """
        from flowstone_celery.assets.handle import Run
        from flowstone_celery.core import ids

        found = Run(ids.find(self.database, str(run_id)), self.database, _no_values)
        _ = found.row
        return found

    @property
    def actor(self) -> str:
        """Who does it, for the audit log: the name of the account."""
        try:
            return getpass.getuser()
        except (KeyError, OSError, ImportError):  # an account without a name, as in some containers
            return f"uid {os.getuid()}"

    def close(self) -> None:
        """Give back the connections; the house opens them again when it is used."""
        if "house" in self.__dict__:
            self.house.close()
        if "_own_house" in self.__dict__:
            self._own_house.close()
        for database in self._opened:
            database.dispose()


def _no_values(asset: str, _partition: str, run_id: UUID) -> Any:
    raise RunNotFound(f"the value of {asset!r} made by run {run_id} is read by `flowstone asset get`")


def desk(ctx: click.Context | None = None) -> Desk:
    """The desk of the running command."""
    found: Desk = (ctx or click.get_current_context()).meta[Desk.KEY]
    return found
