"""Bring a database to this code's schema: Alembic's revisions, under a lock, from the wheel or the checkout."""

from __future__ import annotations

import io
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flowstone_celery.db import schema as schema_page
from flowstone_celery.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alembic.config import Config
    from sqlalchemy import Connection

    from flowstone_celery.db.database import Database

_LOCK = 0x666C6F77  # "flow": one migration at a time, whatever the schema


@dataclass(frozen=True, slots=True)
class Current:
    """Where a database stands."""

    revision: str | None
    head: str

    @property
    def up_to_date(self) -> bool:
        """Nothing is left to run."""
        return self.revision == self.head


def migrate(database: Database) -> Current:
    """All revisions are applied; several hosts that migrate at once wait for each other.

    Raises:
        DatabaseUnavailable: nothing answers at the URL.
    """
    from alembic import command

    with _locked(database) as connection:
        command.upgrade(_config(database.schema, connection), "head")
    return current(database)


def current(database: Database) -> Current:
    """Tell which revision the database has, and which is the newest."""
    from alembic.runtime.migration import MigrationContext

    with _connected(database) as connection:
        context = MigrationContext.configure(connection, opts={"version_table_schema": database.schema})
        return Current(context.get_current_revision(), head())


def head() -> str:
    """The newest revision that this code ships."""
    from alembic.script import ScriptDirectory

    newest = ScriptDirectory.from_config(_config(schema_page.SCHEMA)).get_current_head()
    assert newest is not None
    return newest


def as_sql(schema: str = schema_page.SCHEMA) -> str:
    """The whole migration as text, for those who let nobody else change their database."""
    from alembic import command

    page = io.StringIO()
    config = _config(schema)
    config.output_buffer = page
    command.upgrade(config, "head", sql=True)
    return f'CREATE SCHEMA IF NOT EXISTS "{schema}";\n\n{page.getvalue()}'


def revisions_folder() -> Path:
    """Where the revisions lie: inside the installed package, else beside it in a checkout."""
    package = Path(__file__).parents[1]
    shipped = package / "_migrations"
    return shipped if shipped.is_dir() else package.parent / "migrations"


def _config(schema: str, connection: Connection | None = None) -> Config:
    from alembic.config import Config

    config = Config()
    # Alembic reads %(name)s in option values as interpolation; a folder's name may hold a percent sign.
    config.set_main_option("script_location", str(revisions_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes.update(schema=schema, connection=connection)
    return config


@contextmanager
def _locked(database: Database) -> Iterator[Connection]:
    with _connected(database) as connection, connection.begin():
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%(lock)s)", {"lock": _LOCK})
        connection.exec_driver_sql(f'CREATE SCHEMA IF NOT EXISTS "{database.schema}"')
        yield connection


@contextmanager
def _connected(database: Database) -> Iterator[Connection]:
    from sqlalchemy.exc import OperationalError

    from flowstone_celery.db.address import masked

    try:
        connection = database.engine.connect()
    except OperationalError as error:
        raise DatabaseUnavailable(
            f"the database at {masked(database.url)} does not answer: {str(error.orig).splitlines()[0]}",
            hint="start it, or set FLOWSTONE_DATABASE_URL",
        ) from error
    with connection:
        yield connection
