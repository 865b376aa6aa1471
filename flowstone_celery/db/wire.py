"""Named statements straight through libpq: prepared once for each connection, sent and read without a cursor between.

A step costs a handful of statements, and psycopg's cursor spends more on each than the statement itself takes on the wire. What
crosses here are the plain types of named statements; psycopg still keeps the connection, waits, loads and raises. Statements that
need no answer of each other travel in one flight: each wait between two costs the step a turn of the scheduler.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

import psycopg
from psycopg import generators, pq
from psycopg.adapt import Transformer

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

_PARAMETER = re.compile(r"%\((\w+)\)s|%%")
_QUOTED = re.compile(r'[{}",\\\s]')
_TEXT, _BINARY = pq.Format.TEXT, pq.Format.BINARY
_IDLE = pq.TransactionStatus.IDLE
_FINE = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)

_BOOL, _BYTEA, _INT8, _FLOAT8, _TIMESTAMPTZ, _UUID, _UNKNOWN = 16, 17, 20, 701, 1184, 2950, 0


@lru_cache(maxsize=2_000)
def numbered(text: str) -> tuple[bytes, tuple[str, ...]]:
    """The text with $1, $2, … for its named parameters, and their names in that order."""
    names: dict[str, int] = {}

    def number(found: re.Match[str]) -> str:
        return "%" if found[1] is None else f"${names.setdefault(found[1], len(names) + 1)}"

    return _PARAMETER.sub(number, text).encode(), tuple(names)


class Later:
    """A statement that is on its way, or will be with the next that is waited for."""

    __slots__ = ("_wire", "result")

    def __init__(self, wire: Wire) -> None:
        """Not answered yet."""
        self._wire = wire
        self.result: PGresult | None = None

    def rows(self) -> list[dict[str, Any]]:
        """Its rows, waited for if need be.

        Raises:
            psycopg.Error: it, or what went before it in the same flight, has failed.
        """
        if self.result is None:
            self._wire.flush()
        if self.result is None:
            raise psycopg.errors.InFailedSqlTransaction("what went before this statement has failed")
        return self._wire.loaded(self.result)


_Call: TypeAlias = "tuple[Callable[[], None], Later | None]"


class Wire:
    """The prepared statements of one connection, and those that wait to be sent in one flight."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        """Prepare nothing yet."""
        self._connection = connection
        self._pg: PGconn = connection.pgconn
        self._transformer = Transformer(connection)
        self._names: dict[tuple[str, tuple[int, ...]], bytes] = {}
        self._prepared = 0
        self._waiting: list[_Call] = []

    def rows(self, text: str, values: Mapping[str, object], *, anew: bool = False) -> list[dict[str, Any]]:
        """Run the statement and return its rows; `anew`: plan it for these values.

        Raises:
            psycopg.Error: as for psycopg's own `execute`.
        """
        return self.loaded(self._run(text, values, anew=anew))

    def count(self, text: str, values: Mapping[str, object], *, anew: bool = False) -> int:
        """Run the statement and return how many rows it touched."""
        return self._run(text, values, anew=anew).command_tuples or 0

    def later(self, text: str, values: Mapping[str, object]) -> Later:
        """The statement will run in its turn; nothing is sent before somebody waits for an answer."""
        later = Later(self)
        self._waiting.append((self._call(text, values, anew=False), later))
        return later

    def loaded(self, result: PGresult) -> list[dict[str, Any]]:
        """The rows of a result."""
        if not result.nfields:
            return []
        self._transformer.set_pgresult(result)
        return self._transformer.load_rows(0, result.ntuples, _maker(_columns(result)))

    def begin(self) -> None:
        """A transaction opens with the first statement in it."""
        self._waiting = [(lambda: self._pg.send_query_params(b"BEGIN", None), None)]

    def commit(self) -> None:
        """The transaction is committed.

        Raises:
            psycopg.Error: it is not, or the connection broke and nobody knows.
        """
        calls, done = self._waiting, Later(self)
        if len(calls) == 1 and self._pg.transaction_status == _IDLE:
            self._waiting = []  # nothing was done in it
            return
        self._waiting = [*calls, (lambda: self._pg.send_query_params(b"COMMIT", None), done)]
        self.flush()
        if done.result is None or done.result.command_status != b"COMMIT":
            raise psycopg.errors.InFailedSqlTransaction("the transaction had failed, so it was rolled back")

    def drop(self) -> None:
        """What was not sent yet is not sent; a flight that was broken off takes its connection with it."""
        self._waiting = []
        if self._pg.pipeline_status != pq.PipelineStatus.OFF:
            self._connection.close()

    def flush(self) -> None:
        """All that waits is sent in one flight, and answered.

        Raises:
            psycopg.Error: the first that failed; those behind it did not run.
        """
        calls, self._waiting = self._waiting, []
        try:
            self._send(calls)
        except psycopg.errors.FeatureNotSupported:
            self.forget()  # a migration changed a table under a prepared statement
            raise

    def forget(self) -> None:
        """All statements are prepared anew."""
        self._names = {}

    def _send(self, calls: list[_Call]) -> None:
        if len(calls) == 1:
            send, later = calls[0]
            send()
            result = self._answer()
            if later is not None:
                later.result = result
        elif calls:
            self._fly(calls)

    # --- one flight -----------------------------------------------------------------------------------------------------------

    def _run(self, text: str, values: Mapping[str, object], *, anew: bool) -> PGresult:
        later = Later(self)
        try:
            self._waiting.append((self._call(text, values, anew=anew), later))
            self.flush()
        except psycopg.errors.FeatureNotSupported:
            # In a transaction its work is tried again from the start.
            if self._pg.transaction_status != _IDLE:
                raise
            return self._run(text, values, anew=anew)
        assert later.result is not None
        return later.result

    def _call(self, text: str, values: Mapping[str, object], *, anew: bool) -> Callable[[], None]:
        query, names = numbered(text)
        parameters, types, formats = _dumped(values[name] for name in names)
        if anew:
            return lambda: self._pg.send_query_params(query, parameters, types, formats)
        name = self._names.get((text, types)) or self._prepare(text, query, types)
        return lambda: self._pg.send_query_prepared(name, parameters, formats)

    def _fly(self, calls: Iterable[_Call]) -> None:
        """Sent without waiting between them; the server does one after the other, and none behind one that failed."""
        self._pg.enter_pipeline_mode()
        laters = []
        for send, later in calls:
            send()
            laters.append(later)
        self._pg.pipeline_sync()
        self._connection.wait(generators.send(self._pg))
        results = [self._connection.wait(generators.fetch_many(self._pg))[-1] for _ in laters]
        self._connection.wait(generators.fetch_many(self._pg))
        self._pg.exit_pipeline_mode()
        for later, result in zip(laters, results, strict=True):
            if result.status not in _FINE:
                raise psycopg.errors.error_from_result(result)
            if later is not None:
                later.result = result

    def _prepare(self, text: str, query: bytes, types: tuple[int, ...]) -> bytes:
        # A number that was never used: a statement that was forgotten still has its name on the server.
        self._prepared += 1
        name = b"flowstone_%d" % self._prepared
        self._pg.send_prepare(name, query, types)
        self._answer()
        self._names[text, types] = name
        return name

    def _answer(self) -> PGresult:
        result: PGresult = self._connection.wait(generators.execute(self._pg))[-1]
        if result.status not in _FINE:
            raise psycopg.errors.error_from_result(result)
        return result


def _columns(result: PGresult) -> tuple[bytes, ...]:
    return tuple(result.fname(number) or b"" for number in range(result.nfields))


@lru_cache(maxsize=2_000)
def _maker(columns: tuple[bytes, ...]) -> Callable[[Iterable[Any]], dict[str, Any]]:
    names = tuple(name.decode() for name in columns)
    return lambda row: dict(zip(names, row, strict=True))


# --- parameters -----------------------------------------------------------------------------------------------------------------


_Dumped: TypeAlias = "tuple[bytes | None, int]"
"""A value as bytes, and its type; unknown for what the statement itself tells."""


def _dumped(
    values: Iterable[object],
) -> tuple[list[bytes | None], tuple[int, ...], list[pq.Format] | None]:
    dumped = [_dump(value) for value in values]
    types = tuple([kind for _, kind in dumped])
    formats = [_BINARY if kind == _BYTEA else _TEXT for kind in types] if _BYTEA in types else None
    return [each for each, _ in dumped], types, formats


def _dump(value: object) -> _Dumped:
    dump = _DUMPERS.get(type(value)) or _of_base(value)
    return dump(value)


def _of_base(value: object) -> Callable[[Any], _Dumped]:
    """How a value of a derived type is sent: as one of its base."""
    for base, dump in _DUMPERS.items():
        if isinstance(value, base):
            return dump
    raise psycopg.ProgrammingError(f"a named statement takes no {type(value).__name__}")


def _text(value: str) -> _Dumped:
    if "\x00" in value:
        raise psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")
    return value.encode(), _UNKNOWN


def _list(members: Iterable[object]) -> _Dumped:
    return b"{" + b",".join([_member(each) for each in members]) + b"}", _UNKNOWN


def _member(value: object) -> bytes:
    if value is None:
        return b"NULL"
    dumped, kind = _dump(value)
    assert dumped is not None
    if kind == _BYTEA:
        raise psycopg.ProgrammingError("a named statement takes no list of bytes")
    if not isinstance(value, str) or (value and not _QUOTED.search(value) and value.upper() != "NULL"):
        return dumped
    return b'"' + dumped.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


_DUMPERS: dict[type, Callable[[Any], _Dumped]] = {
    type(None): lambda _: (None, _UNKNOWN),
    str: _text,
    bool: lambda value: (b"t" if value else b"f", _BOOL),
    int: lambda value: (b"%d" % value, _INT8),
    float: lambda value: (repr(float(value)).encode(), _FLOAT8),
    bytes: lambda value: (value, _BYTEA),
    UUID: lambda value: (str(value).encode(), _UUID),
    datetime: lambda value: (value.isoformat().encode(), _TIMESTAMPTZ),
    list: _list,
    tuple: _list,
}
