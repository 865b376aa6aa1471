"""One way to the database: an engine for each process, transactions, and what waits for their commit.

SQLAlchemy keeps the pool and serves dynamic reads; the named statements go straight to the psycopg connection below it, prepared
on first use. Nothing here knows what the statements mean.
"""

from __future__ import annotations

import logging
import os
import random
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg.rows import dict_row
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from flowstone_celery import faults
from flowstone_celery.db import schema as schema_page
from flowstone_celery.db.address import checked_schema, checked_url, masked
from flowstone_celery.db.refusals import GONE, MAYBE_AGAIN, NO_SCHEMA, TRY_AGAIN, is_passing, is_refusal
from flowstone_celery.db.statements import Statement
from flowstone_celery.db.versions import refuse_mismatch
from flowstone_celery.db.wire import Wire
from flowstone_celery.errors import CommitUnknown, DatabaseUnavailable, SchemaMismatch

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.pool import PoolProxiedConnection


Row = dict[str, Any]
T = TypeVar("T")

log = logging.getLogger("flowstone.db")

_VERSION = Statement(
    "db", "schema_version", frozenset(), "SELECT version, oldest_code FROM flowstone.schema_version"
)
_TRIES = 8
_IDLE = psycopg.pq.TransactionStatus.IDLE


class Tx:
    """One open transaction: runs named statements and remembers what to do after the commit."""

    _wire: Wire | None = None

    def __init__(self, connection: psycopg.Connection[Any], schema: str, wire: Wire | None = None) -> None:
        """Wrap a psycopg connection that is inside a transaction or about to begin one.

        `wire`: where statements may be prepared for the connection's life; without it they go through a cursor of psycopg.
        """
        self._connection = connection
        self._schema = schema
        self._wire = wire
        self._after: list[Callable[[], None]] = []

    def rows(self, statement: Statement, **values: object) -> list[Row]:
        """Run the statement and return its rows."""
        if self._wire is not None:
            return self._wire.rows(statement.sql(self._schema), values, anew=statement.anew)
        cursor = self._connection.cursor(row_factory=dict_row)
        cursor.execute(statement.sql(self._schema), values)
        # `description` would build an object for each column only to be asked whether there are any.
        return cursor.fetchall() if cursor.pgresult and cursor.pgresult.nfields else []

    def row(self, statement: Statement, **values: object) -> Row | None:
        """Run the statement and return its first row, or None: then it did not happen."""
        rows = self.rows(statement, **values)
        return rows[0] if rows else None

    def later(self, statement: Statement, **values: object) -> Callable[[], list[Row]]:
        """The statement runs in its turn; call the answer for its rows. Until then others may be asked for in the same flight."""
        if self._wire is None:
            rows = self.rows(statement, **values)
            return lambda: rows
        return self._wire.later(statement.sql(self._schema), values).rows

    def run(self, statement: Statement, **values: object) -> int:
        """Run the statement and return how many rows it touched."""
        if self._wire is not None:
            return self._wire.count(statement.sql(self._schema), values, anew=statement.anew)
        return self._connection.execute(statement.sql(self._schema), values).rowcount

    def after_commit(self, call: Callable[[], None]) -> None:
        """Call this once the transaction is committed; never if it is not."""
        self._after.append(call)

    def committed(self) -> None:
        """Do what waited for the commit. A call that fails is logged: the commit stands."""
        calls, self._after = self._after, []
        for call in calls:
            try:
                call()
            except faults.FaultInjectedError:
                raise
            except Exception:  # the rows are the truth; a hint that was not sent is sent again by the sweep
                log.exception("a call after commit failed")


class Database:
    """The engine of this process; made anew after a fork, never shared over it."""

    def __init__(
        self,
        url: str,
        *,
        schema: str = "flowstone",
        pool_size: int = 5,
        pooler: str = "session",
        application: str = "flowstone",
    ) -> None:
        """Remember where the database is; nothing is opened before it is needed.

        Args:
            url: SQLAlchemy URL, `postgresql+psycopg://…` (plain `postgresql://…` is taken as that).
            schema: the Postgres schema that holds all tables.
            pool_size: connections kept for each process.
            pooler: "session", or "transaction" behind a transaction-mode pooler (no prepared statements).
            application: shown in `pg_stat_activity`, followed by the pid.

        Raises:
            ConfigError: the URL cannot be read or names another database product.
        """
        self.url = checked_url(url)
        self.schema = checked_schema(schema)
        self._pool_size = pool_size
        self._pooler = pooler
        self._application = application
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._engine_pid = 0
        self._checked_by = 0
        """The pid of the process that looked at the schema: one may be forked long after its parent did."""

    @property
    def engine(self) -> Engine:
        """This process's SQLAlchemy engine (tables are found in the configured schema)."""
        if self._engine is None or self._engine_pid != os.getpid():
            with self._lock:
                if self._engine is None or self._engine_pid != os.getpid():
                    self._renew()
        assert self._engine is not None
        return self._engine

    def _renew(self) -> None:
        if self._engine is not None:
            # After a fork the sockets belong to the parent too: forget them without a word on the wire.
            self._engine.dispose(close=False)
        self._engine = self._create()
        self._engine_pid = os.getpid()

    def _create(self) -> Engine:
        prepare = 1 if self._pooler == "session" else None
        arguments: dict[str, Any] = {
            "prepare_threshold": prepare,
            "connect_timeout": 10,
            "application_name": f"{self._application}:{os.getpid()}",
        }
        if self._pooler == "session":
            # Plans of prepared statements outlive the emptiness they were made in: a plan that reads a whole table because it was
            # small would be kept when it is large. Every named statement has an index to stand on, in the order that it asks for: to a
            # table that was filled a moment ago, sorting all of an index that is near looks as cheap as reading one row of the right one.
            # One plan for all values: to plan anew takes several times as long as to run.
            arguments["options"] = (
                "-c timezone=UTC -c enable_seqscan=off -c enable_sort=off -c jit=off -c plan_cache_mode=force_generic_plan"
            )
        # No reset when a connection comes back: each block here ends its transaction itself.
        engine = create_engine(
            self.url,
            pool_size=self._pool_size,
            max_overflow=20,
            pool_timeout=30,
            pool_reset_on_return=None,
            connect_args=arguments,
        )
        return engine.execution_options(schema_translate_map={schema_page.SCHEMA: self.schema})

    def dispose(self) -> None:
        """Close this process's connections."""
        with self._lock:
            if self._engine is not None:
                self._engine.dispose(close=self._engine_pid == os.getpid())
            self._engine = None

    @contextmanager
    def connection(self, *, autocommit: bool = False) -> Iterator[psycopg.Connection[Any]]:
        """A psycopg connection from the pool, for the length of the block.

        Raises:
            DatabaseUnavailable: nothing answers at the URL, or the connection broke in the block.
            SchemaMismatch: the tables are missing, older or newer than this code can use.
        """
        with self._ready() as (connection, _), _committing(connection, by_itself=autocommit):
            yield connection

    @contextmanager
    def _by_itself(self) -> Iterator[Tx]:
        """A connection on which each statement commits by itself."""
        with self._ready() as (connection, wire):
            if wire is not None:
                yield Tx(connection, self.schema, wire)
                return
            with _committing(connection, by_itself=True):
                yield Tx(connection, self.schema)

    @contextmanager
    def _ready(self) -> Iterator[tuple[psycopg.Connection[Any], Wire | None]]:
        """As `_checked_out`, of a database whose tables fit."""
        if self._checked_by != os.getpid():
            self.check_schema()
        with self._checked_out() as found:
            yield found

    @contextmanager
    def _checked_out(self) -> Iterator[tuple[psycopg.Connection[Any], Wire | None]]:
        """A connection of the pool, with its wire where statements may be prepared."""
        fairy = self._fresh()
        connection: psycopg.Connection[Any] = fairy.driver_connection  # type: ignore[assignment] # psycopg's, by the URL
        wire: Wire | None = fairy.info.get("wire")
        if wire is None and self._pooler == "session":
            wire = fairy.info["wire"] = Wire(connection)
        try:
            _current.connection = connection
            yield connection, wire
        except NO_SCHEMA as error:
            raise self._no_schema(error) from error
        except TRY_AGAIN:
            raise
        except GONE as error:
            if is_refusal(error):
                raise
            fairy.invalidate(error)
            raise self._away(error) from error
        finally:
            _current.connection = None
            if wire is not None:
                wire.drop()
            if not connection.closed and connection.pgconn.transaction_status != _IDLE:
                # Something broke off in the middle of a statement: nobody else may read the rest of its answer.
                connection.close()
            if connection.closed and fairy.is_valid:
                fairy.invalidate()
            fairy.close()

    def _fresh(self) -> PoolProxiedConnection:
        """A pooled connection that the server has not hung up on since it was last used."""
        try:
            while True:
                fairy = self.engine.raw_connection()
                if not _hung_up(fairy.driver_connection):  # type: ignore[arg-type] # psycopg's, by the URL
                    return fairy
                fairy.invalidate()
        except (*GONE, OperationalError, PoolTimeout) as error:  # a raw connection's error is psycopg's own
            raise self._away(error) from error

    @contextmanager
    def transaction(self) -> Iterator[Tx]:
        """A transaction that commits at the end of the block and then does what waited for it.

        Raises:
            CommitUnknown: the connection broke during the commit itself; read the rows to know.
            DatabaseUnavailable, SchemaMismatch: as for `connection`.
        """
        with self._ready() as (connection, wire):
            tx = Tx(connection, self.schema, wire)
            try:
                if wire is not None:
                    wire.begin()
                yield tx
            except BaseException:
                if wire is not None:
                    wire.drop()
                if not connection.closed:
                    connection.rollback()
                raise
            try:
                (wire or connection).commit()
            except GONE as error:
                if is_refusal(error):
                    connection.rollback()
                    raise
                raise CommitUnknown(
                    f"the connection broke during a commit: {_line(error)}",
                    hint="the row tells whether it happened",
                ) from error
            except psycopg.Error:
                # What travelled with the commit has failed, so there is something to roll back.
                connection.rollback()
                raise
        tx.committed()

    def attempt(self, work: Callable[[Tx], T], *, tries: int = _TRIES) -> T:
        """Run the work in a transaction, again when Postgres asks for it (deadlock, serialization, lock timeout)."""
        for nth in range(1, tries + 1):
            try:
                with self.transaction() as tx:
                    return work(tx)
            except (*TRY_AGAIN, *MAYBE_AGAIN) as error:
                if nth == tries or not is_passing(error):
                    raise
                time.sleep(random.uniform(0.002, 0.01) * nth)
        raise AssertionError("unreachable")

    def by_statement(self, work: Callable[[Tx], T]) -> T:
        """Run the work on one connection on which each statement commits by itself; again if a rival was faster."""
        with self._by_itself() as tx:
            for nth in range(1, _TRIES + 1):
                try:
                    return work(tx)
                except psycopg.errors.UniqueViolation as error:
                    if nth == _TRIES or not is_passing(error):
                        raise
                    time.sleep(random.uniform(0.002, 0.01) * nth)
        raise AssertionError("unreachable")

    def once(self, statement: Statement, **values: object) -> list[Row]:
        """Run one statement that commits by itself, and return its rows."""
        with self._by_itself() as tx:
            return tx.rows(statement, **values)

    def first(self, statement: Statement, **values: object) -> Row | None:
        """Run one statement that commits by itself, and return its first row, or None: then it did not happen."""
        rows = self.once(statement, **values)
        return rows[0] if rows else None

    def check_schema(self) -> None:
        """The tables are of a version that this code can use.

        Raises:
            SchemaMismatch: they are missing, older or newer.
            DatabaseUnavailable: nothing answers at the URL.
        """
        with self._checked_out() as (connection, _), _committing(connection, by_itself=True):
            found = connection.execute(_VERSION.sql(self.schema)).fetchone()
        refuse_mismatch(found, schema=self.schema)
        self._checked_by = os.getpid()

    def _away(self, error: Exception) -> DatabaseUnavailable:
        return DatabaseUnavailable(
            f"the database at {masked(self.url)} does not answer: {_line(error)}",
            hint="start it, or set FLOWSTONE_DATABASE_URL to one that runs (`flowstone doctor` checks all services)",
        )

    def _no_schema(self, error: Exception) -> SchemaMismatch:
        return SchemaMismatch(
            f"schema {self.schema!r} at {masked(self.url)} lacks a table of ours: {_line(error)}",
            hint="run `flowstone db migrate`",
        )


@contextmanager
def _committing(connection: psycopg.Connection[Any], *, by_itself: bool) -> Iterator[None]:
    """Meanwhile each statement commits by itself, or none does; the pool's connections begin transactions again."""
    connection.autocommit = by_itself
    try:
        yield
    finally:
        if not connection.closed:
            connection.rollback()
            connection.autocommit = False


class _Current(threading.local):
    connection: psycopg.Connection[Any] | None = None


_current = _Current()


def cut_connection() -> None:
    """Break this thread's connection, as a lost network would (for the crash points)."""
    connection = _current.connection
    if connection is not None:
        connection.close()


faults.on_drop_connection(cut_connection)


def _hung_up(connection: psycopg.Connection[Any]) -> bool:
    """Whether an idle connection has something to read: that is the server's good-bye. Costs no round trip."""
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _line(error: Exception) -> str:
    text = str(getattr(error, "orig", None) or error).strip()
    return text.splitlines()[0] if text else type(error).__name__
