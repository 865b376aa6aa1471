"""Somebody else's transaction, through their SQLAlchemy connection or session: written in, and heard of when it commits.

SQLAlchemy tells of a session's commit, but of a bare connection's only before it happens. So what follows a commit is kept with a
session, dropped when its transaction or savepoint is rolled back, and done when the outermost one has committed. A connection
cannot be heard: Postgres tells for it, with a notification that it delivers at the commit.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import event
from sqlalchemy.engine import Connection, Transaction, TwoPhaseTransaction
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, scoped_session

from flowstone_celery import faults
from flowstone_celery.db.address import masked
from flowstone_celery.db.database import Tx
from flowstone_celery.errors import CannotJoin

if TYPE_CHECKING:
    from sqlalchemy.orm import SessionTransaction

    from flowstone_celery.db.database import Row
    from flowstone_celery.db.statements import Statement

Deliver: TypeAlias = "Callable[[list[Any]], None]"
"""Takes all the news of one commit at once. Equal ones are called once."""

_KEY = "flowstone.follows"
_AS_IS = {"stream_results": False, "yield_per": None}
"""Whatever their connection does with results: a statement that writes has no cursor on the server."""

log = logging.getLogger("flowstone.db")


@dataclass(frozen=True, slots=True)
class Begun:
    """Their transaction from afar: keeps nothing of it alive."""

    _root: Callable[[], Transaction | None]

    @staticmethod
    def unknown() -> Begun:
        """One of which nothing is known."""
        return Begun(lambda: None)

    @property
    def is_open(self) -> bool:
        """Whether it has neither committed nor rolled back."""
        root = self._root()
        return root is not None and root.is_active


class Joined(Tx):
    """Their open transaction in the shape of ours. Nothing here commits, rolls back or changes a setting of the connection."""

    def __init__(self, connection: Connection, schema: str, session: Session | None) -> None:
        """Write through this connection; a session, if there is one, tells of the commit."""
        self._theirs = connection
        self._schema = schema
        self._session = session
        self.begun = Begun(weakref.ref(connection.get_transaction() or connection.begin()))

    def rows(self, statement: Statement, **values: object) -> list[Row]:
        """Run the statement in their transaction and return its rows; the errors are SQLAlchemy's, as of their own statements."""
        result = self._theirs.exec_driver_sql(
            statement.sql(self._schema), values, execution_options=dict(_AS_IS)
        )
        return [dict(row) for row in result.mappings()] if result.returns_rows else []

    def run(self, statement: Statement, **values: object) -> int:
        """Run the statement in their transaction and return how many rows it touched."""
        return self._theirs.exec_driver_sql(
            statement.sql(self._schema), values, execution_options=dict(_AS_IS)
        ).rowcount

    def after_commit(self, call: Callable[[], None]) -> None:
        """Call this once their transaction is committed; never if it is not, and never on a connection, which cannot tell."""
        self.follow(_call_all, call)

    def follow(self, deliver: Deliver, news: object) -> None:
        """Deliver the news, with all others of this transaction, once it is committed. Does nothing on a connection."""
        if self._session is not None:
            _keep(self._session, _Follow(deliver, news, weakref.ref(_boundary(self._session)), self.is_async))

    @property
    def tells(self) -> bool:
        """Whether the commit will be heard of in this process."""
        return self._session is not None

    @property
    def may_notify(self) -> bool:
        """Postgres prepares no transaction that has notified."""
        return not isinstance(self._theirs.get_transaction(), TwoPhaseTransaction)

    @property
    def is_async(self) -> bool:
        """Whether their connection belongs to an event loop."""
        return self._theirs.dialect.is_async

    @property
    def home(self) -> Hashable:
        """What stands for their database: the pool, which engines with other options share."""
        return self._theirs.engine.pool

    @property
    def url(self) -> str:
        """Where they are connected, without the password."""
        return masked(self._theirs.engine.url.render_as_string(hide_password=True))


def join(target: object, schema: str) -> Joined:
    """Their transaction, for statements of ours.

    A session takes part with the connection of its default bind. One that is bound to a connection commits when that does, so it is
    taken as that connection.

    Raises:
        CannotJoin: it is no open SQLAlchemy connection or session on psycopg, or each of its statements commits by itself.
    """
    caller = target.registry() if isinstance(target, scoped_session) else target
    if isinstance(caller, Session):
        return Joined(
            _checked(_of_session(caller)), schema, None if _is_bound_to_connection(caller) else caller
        )
    if isinstance(caller, Connection):
        return Joined(_checked(caller), schema, None)
    raise _no_caller(caller)


def _no_caller(caller: object) -> CannotJoin:
    name = type(caller).__name__
    if name.removesuffix("_session").lower().startswith("async"):
        return CannotJoin(
            f"connection= is asynchronous ({name})",
            hint="await fs.aio.run(…, connection=…), or call this inside `await connection.run_sync(…)`",
        )
    return CannotJoin(
        f"connection= takes a Connection or a Session of SQLAlchemy, not {caller!r:.80}",
        hint="give what your own statements go through, for example `with engine.begin() as connection:`",
    )


def _is_bound_to_connection(session: Session) -> bool:
    return isinstance(session.get_bind(), Connection)


def _of_session(session: Session) -> Connection:
    try:
        return session.connection()
    except SQLAlchemyError as error:
        raise CannotJoin(
            f"the session gives no connection: {str(error).splitlines()[0]}",
            hint="a session without a default bind, or with several engines, is told which one: "
            "connection=session.connection(bind_arguments={'mapper': …})",
        ) from error


def _checked(connection: Connection) -> Connection:
    """The connection, through which a transaction of ours could have gone."""
    if connection.closed:
        raise CannotJoin("connection= is closed", hint="use it inside its `with` block")
    dialect = connection.dialect
    if (
        dialect.name != "postgresql"
        or not dialect.driver.startswith("psycopg")
        or dialect.driver == "psycopg2"
    ):
        raise CannotJoin(
            f"connection= speaks {dialect.name}+{dialect.driver}, and rows of FlowStone are written through psycopg 3",
            hint="make that engine with postgresql+psycopg://…",
        )
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        raise CannotJoin(
            "connection= is in autocommit mode: each statement would commit by itself",
            hint="take one without isolation_level='AUTOCOMMIT', or leave connection= away",
        )
    return connection


# --- what follows a session's commit --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Follow:
    """News to deliver if the transaction in which it arose commits. Nothing in it keeps the session alive."""

    deliver: Deliver
    news: object
    at: weakref.ref[SessionTransaction]
    is_async: bool
    committed: bool = False


def _boundary(session: Session) -> SessionTransaction:
    """The innermost savepoint, else the transaction itself (never one that SQLAlchemy opens for the length of a flush)."""
    found = session.get_nested_transaction() or session.get_transaction()
    assert found is not None, "their connection was just used in it"
    return found


def _keep(session: Session, follow: _Follow) -> None:
    _listen()
    session.info.setdefault(_KEY, []).append(follow)


@cache
def _listen() -> None:
    """One pair of listeners for all sessions of the process: none is left behind on a session."""
    event.listen(Session, "after_commit", _committed)
    event.listen(Session, "after_transaction_end", _ended)


def _committed(session: Session) -> None:
    """What was asked for in a savepoint belongs to what is around it now; in the outermost transaction it is certain."""
    follows: list[_Follow] = session.info.get(_KEY, [])
    if not follows:
        return
    ending = _boundary(session)
    around = ending.parent
    while around is not None and not around.nested and around.parent is not None:
        around = around.parent
    for follow in follows:
        if follow.at() is ending:
            if around is None:
                follow.committed = True
            else:
                follow.at = weakref.ref(around)


def _ended(session: Session, transaction: SessionTransaction) -> None:
    """News of a transaction that has committed is delivered, that of one that was rolled back is dropped."""
    follows: list[_Follow] = session.info.get(_KEY, [])
    if not follows:
        return
    left = [follow for follow in follows if follow.at() is not transaction]
    if left:
        session.info[_KEY] = left
    else:
        del session.info[_KEY]
    certain = [follow for follow in follows if follow.committed and follow.at() is transaction]
    deliveries: dict[Deliver, list[Any]] = {}
    for follow in certain:
        deliveries.setdefault(follow.deliver, []).append(follow.news)
    for deliver, news in deliveries.items():
        _hand_over(deliver, news, beside=any(follow.is_async for follow in certain))


def _hand_over(deliver: Deliver, news: list[Any], *, beside: bool) -> None:
    """Now, or in a thread where an event loop must not be held up."""
    if beside:
        try:
            asyncio.get_running_loop().run_in_executor(None, _safely, deliver, news)
        except RuntimeError:  # no loop runs, or it is closing: nothing is held up
            _safely(deliver, news)
    else:
        _safely(deliver, news)


def _safely(deliver: Deliver, news: list[Any]) -> None:
    try:
        deliver(news)
    except faults.FaultInjectedError:
        raise
    except Exception:  # their commit stands, and so do our rows: the sweep does what is missing
        log.exception("what follows a commit failed")


def _call_all(calls: list[Any]) -> None:
    for call in calls:
        call()
