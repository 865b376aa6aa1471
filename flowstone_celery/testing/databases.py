"""Databases for tests: migrated once into a template, cloned for each test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

if TYPE_CHECKING:
    from flowstone_celery.config import Settings

_LEASE = 2.0


@dataclass(frozen=True, slots=True)
class Databases:
    """A server on which each test gets a database of its own."""

    admin_url: str
    template: str
    broker_url: str
    home: Path | None
    """The folder of the embedded servers, or None for servers given by URL."""

    @contextmanager
    def fresh(self, **settings: Any) -> Iterator[Settings]:
        """A migrated, empty database for the block, as settings that point at it (lease 2 s)."""
        from flowstone_celery.config import load_settings

        name = f"flowstone_test_{uuid4().hex[:12]}"
        _admin(self.admin_url, f'CREATE DATABASE "{name}" TEMPLATE "{self.template}"')
        try:
            given = {"env": "test", "lease_seconds": _LEASE, "grace_seconds": 1.0, **settings}
            redis = {"redis_url": self.broker_url} if self.broker_url.startswith("redis") else {}
            yield load_settings(env_file=None, database_url=_renamed(self.admin_url, name), **redis, **given)
        finally:
            _admin(self.admin_url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@contextmanager
def serving(
    home: Path, *, database_url: str | None = None, broker_url: str | None = None
) -> Iterator[Databases]:
    """Servers for the block: those given by URL, else embedded ones in `home`, with a migrated template database."""
    from flowstone_celery.embedded import servers

    given = database_url is not None and broker_url is not None
    found = None if given else servers.up(home, durable=False, appendonly=False)
    url = database_url or (found.database_url if found else "")
    broker = broker_url or (found.broker_url if found else "")
    template = f"flowstone_template_{uuid4().hex[:12]}"
    try:
        _make_template(url, template)
        yield Databases(url, template, broker, None if given else home)
        _admin(url, f'DROP DATABASE IF EXISTS "{template}" WITH (FORCE)')
    finally:
        if found:
            servers.down(home)


def _make_template(url: str, name: str) -> None:
    from flowstone_celery.db.database import Database
    from flowstone_celery.db.migrate import migrate

    _admin(url, f'CREATE DATABASE "{name}"')
    database = Database(_renamed(url, name))
    migrate(database)
    database.dispose()


def _renamed(url: str, name: str) -> str:
    from sqlalchemy.engine import make_url

    return make_url(url).set(database=name).render_as_string(hide_password=False)


def _admin(url: str, sql: str) -> None:
    from sqlalchemy import create_engine
    from sqlalchemy.engine import make_url
    from sqlalchemy.pool import NullPool

    engine = create_engine(
        make_url(url).set(drivername="postgresql+psycopg"), poolclass=NullPool, isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.exec_driver_sql(sql)
