"""The one connection of a keeper on which Postgres says that somebody else's transaction has committed.

A notification is a hint: whoever misses it finds the rows at the next look.
"""

from __future__ import annotations

import time
from contextlib import suppress
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from sqlalchemy.exc import SQLAlchemyError

if TYPE_CHECKING:
    from flowstone_celery.db.database import Database

_OPEN_AGAIN = 2.0
_LONGEST_NAME = 63


def channel(schema: str) -> str:
    """The name under which commits that concern this schema are told: of at most 63 bytes, as Postgres wants it."""
    name = f"flowstone_{schema}"
    return (
        name
        if len(name) <= _LONGEST_NAME
        else f"flowstone_{blake2b(schema.encode(), digest_size=16).hexdigest()}"
    )


class Listener:
    """Hears a schema's channel. A connection that is lost is opened again at the next `open`."""

    def __init__(self, database: Database) -> None:
        """Open nothing yet."""
        self._database = database
        self._connection: psycopg.Connection[Any] | None = None
        self._open_again = 0.0

    def open(self) -> None:
        """It listens, if the database lets it; tried at most every two seconds."""
        if self._connection is not None or time.monotonic() < self._open_again:
            return
        self._open_again = time.monotonic() + _OPEN_AGAIN
        with suppress(psycopg.Error, SQLAlchemyError, OSError):
            self._connection = self._listening()

    def _listening(self) -> psycopg.Connection[Any]:
        fairy = self._database.engine.raw_connection()
        connection: psycopg.Connection[Any] = fairy.driver_connection  # type: ignore[assignment] # psycopg's, by the URL
        fairy.detach()
        try:
            connection.autocommit = True
            connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel(self._database.schema))))
        except BaseException:
            connection.close()
            raise
        return connection

    @property
    def sockets(self) -> list[int]:
        """What to wait on, beside other things."""
        return [] if self._connection is None else [self._connection.fileno()]

    def heard(self) -> bool:
        """Whether something was told since it was last asked. Waits for nothing."""
        if self._connection is None:
            return False
        heard = False
        try:
            self._connection.pgconn.consume_input()
            while self._connection.pgconn.notifies() is not None:
                heard = True
        except psycopg.Error:
            self.close()
        return heard

    def close(self) -> None:
        """The connection is given up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
