"""The servers that both sides share: PostgreSQL that waits for its disk, Redis that keeps nothing, both of this benchmark alone."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import redis

from flowstone_celery.db.database import Database
from flowstone_celery.db.migrate import migrate
from flowstone_celery.embedded import servers

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Services:
    """Where the servers answer, and what they are."""

    database_url: str
    broker_url: str
    redis_url: str
    versions: dict[str, str]

    def broker(self, number: int) -> str:
        """A Redis database for one side alone, as Celery reads it."""
        return f"{self.broker_url.partition('?')[0]}?virtual_host={number}"


@contextmanager
def serving() -> Iterator[Services]:
    """Fresh servers with our tables for the block, in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="flowstone-benchmark-") as folder:
        home = Path(folder) / ".flowstone"
        found = servers.up(home, durable=True, appendonly=False)
        try:
            versions = {"postgres": _migrated(found.database_url), "redis": _redis_version(found.redis_url)}
            yield Services(found.database_url, found.broker_url, found.redis_url, versions)
        finally:
            servers.down(home)


def _migrated(url: str) -> str:
    """The tables stand; answers PostgreSQL's version."""
    database = Database(url)
    try:
        migrate(database)
        with database.connection() as connection:
            number = connection.info.server_version
    finally:
        database.dispose()
    return f"{number // 10_000}.{number % 10_000}"


def _redis_version(url: str) -> str:
    with redis.Redis.from_url(url) as client:
        return str(client.info("server")["redis_version"])
