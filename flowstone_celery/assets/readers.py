"""Readers: what tells the items of a scatter page by page, and can be gone on with where it stopped.

A reader is any object with `read`. With `checkpoint` and `restore` a new process goes on where the former one died; without them it
reads from the begin again, and keys that are there already are not added twice.
"""

from __future__ import annotations

import glob
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowstone_celery.errors import InvalidOption, InvalidValue, did_you_mean

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.sql import ColumnElement, Select


class Reader:
    """Tells elements page by page. A class of your own need not descend from this one: only `read` is asked of it."""

    def init(self) -> None:
        """Called once, before anything else: open what is needed."""

    def read(self, limit: int) -> Sequence[Any]:
        """The next elements, some `limit` of them; none at all: that was the end."""
        raise NotImplementedError

    def checkpoint(self) -> Mapping[str, Any] | None:
        """Where to go on after what was read so far, as a JSON object; None: there is no such place."""
        return None

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on behind this place: called after `init`, with what `checkpoint` answered in another process."""

    def close(self) -> None:
        """Called at the end, however it came; not if the process dies."""


def is_reader(candidate: object) -> bool:
    """Whether it is read page by page: it has `read`, and is not itself iterable, as open files are."""
    reads = callable(getattr(candidate, "read", None)) and not hasattr(candidate, "__iter__")
    return reads and not isinstance(candidate, type)


class SqlReader(Reader):
    """The rows of a query, in pages by keyset: each page begins behind the last row of the one before, no cursor stays open.

    What is added to the table behind the place that was read is read too; what is added before it is not.
    """

    def __init__(
        self,
        bind: Engine | str,
        query: str | Select[Any],
        *,
        cursor: str | Sequence[str],
        start_after: Any = None,
        parameters: Mapping[str, Any] | None = None,
        row: Callable[[Mapping[str, Any]], Any] | None = None,
    ) -> None:
        """Read this query; nothing is opened yet.

        Args:
            bind: a SQLAlchemy Engine, or the URL of a database.
            query: a SELECT as text or as SQLAlchemy's, or a Table; without ORDER BY and LIMIT, which are added around it.
            cursor: the column, or columns, that tell its rows apart and order them, never NULL; best with an index.
            start_after: begin behind the row with this cursor (a list for several columns).
            parameters: values of the query's own `:names`.
            row: makes an element of a row; by default a dict of its columns, or, if there is one only, its value.

        Raises:
            InvalidOption: the cursor names no column, `start_after` no row by it, or `bind` is nothing to connect by.
        """
        self._names = _names(cursor)
        self._after = _place(start_after, len(self._names))
        if not isinstance(bind, str) and not callable(getattr(bind, "connect", None)):
            raise InvalidOption(
                f"SqlReader: bind is an Engine of SQLAlchemy, or the URL of a database, not {bind!r:.80}",
                hint="Of a Connection, give its engine: each page is read on a connection of its own.",
                option="bind",
            )
        self._bind, self._query, self._parameters = bind, query, dict(parameters or {})
        self._row = row or _plain_row
        self._engine: Engine | None = None

    def init(self) -> None:
        """The engine is there."""
        from sqlalchemy import create_engine

        self._engine = create_engine(self._bind) if isinstance(self._bind, str) else self._bind

    def read(self, limit: int) -> list[Any]:
        """The rows behind the last one that was read.

        Raises:
            InvalidOption: the query has no such column.
            InvalidValue: rows have the same cursor, or none, so that some would be passed over.
        """
        assert self._engine is not None, "init comes first"
        page = self._page(limit + 1)  # one more is looked at: is it another than the last?
        with self._engine.connect() as connection:
            rows = [dict(row) for row in connection.execute(page, self._parameters).mappings()]
        places = [self._place_of(row) for row in rows]
        for one, other in pairwise(places):
            if one == other:
                raise self._unfit(f"two rows have {one!r:.80}")
        if rows:
            self._after = places[:limit][-1]
        return [self._row(each) for each in rows[:limit]]

    def checkpoint(self) -> Mapping[str, Any] | None:
        """The cursor of the last row."""
        return None if self._after is None else {"after": list(self._after)}

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Behind that row."""
        self._after = list(checkpoint["after"])

    def close(self) -> None:
        """An engine that was made here is disposed of; one that was given is its owner's."""
        if self._engine is not None and self._engine is not self._bind:
            self._engine.dispose()

    def _place_of(self, row: Mapping[str, Any]) -> list[Any]:
        missing = [name for name in self._names if name not in row]
        if missing:
            raise InvalidOption(
                f"SqlReader: the query has no column {missing[0]!r}, only {', '.join(map(repr, row))}",
                hint=did_you_mean(missing[0], row) or "Name the cursor as the query's result does.",
                option="cursor",
            )
        found = [row[name] for name in self._names]
        if None in found:
            raise self._unfit("a row has NULL there")
        return found

    def _unfit(self, why: str) -> InvalidValue:
        return InvalidValue(
            f"SqlReader: the cursor {', '.join(self._names)} does not tell rows apart: {why}",
            hint="Name columns that do, such as the primary key as the last one: rows would be passed over between two pages.",
            cursor=list(self._names),
        )

    def _page(self, limit: int) -> Select[Any]:
        from sqlalchemy import column, literal_column, select, text, tuple_

        columns: list[ColumnElement[Any]] = [column(name) for name in self._names]
        query: Any = self._query
        if isinstance(query, str):
            query = text(query.strip().rstrip(";")).columns(*columns)
        elif not hasattr(query, "subquery"):  # a table
            query = query.select()
        source = query.subquery("source")
        page: Select[Any] = select(literal_column("*")).select_from(source)
        if self._after is not None:
            page = page.where(
                tuple_(*columns) > tuple_(*self._after) if len(columns) > 1 else columns[0] > self._after[0]
            )
        return page.order_by(*columns).limit(limit)


class FileReader(Reader):
    """The paths of files by a pattern, in the order of their text. What an element names is read in the item."""

    def __init__(self, pattern: str, *, root: str | Path = ".", start_after: str | None = None) -> None:
        """Look for these files; nothing is looked up yet.

        Args:
            pattern: as of `glob`, `**` for folders at any depth, below the root: "2026/**/*.csv".
            root: the folder; elements are paths relative to it, with `/`.
            start_after: begin behind this path.

        Raises:
            InvalidOption: the pattern is no text, or leads out of the root; `start_after` is no path.
        """
        if start_after is not None and not isinstance(start_after, str):
            raise InvalidOption(
                f"FileReader: start_after is a path below its root, not {start_after!r:.80}",
                hint='Write for example start_after="2026/a.csv".',
                option="start_after",
            )
        outside = isinstance(pattern, str) and (Path(pattern).is_absolute() or ".." in Path(pattern).parts)
        if not isinstance(pattern, str) or not pattern or outside:
            raise InvalidOption(
                f"FileReader: the pattern is a relative path below its root, not {pattern!r:.80}",
                hint='Write for example FileReader("**/*.csv", root="/data").',
                option="pattern",
            )
        self._pattern, self._root, self._after = pattern, Path(root), start_after
        self._paths: list[str] = []

    def init(self) -> None:
        """The files are listed.

        Raises:
            InvalidOption: the root is no folder.
        """
        if not self._root.is_dir():
            raise InvalidOption(
                f"FileReader: {str(self._root)!r} is no folder on this machine",
                hint="Items are read where workers run: name a folder that all of them see.",
                option="root",
            )
        found = glob.iglob(self._pattern, root_dir=self._root, recursive=True)  # noqa: PTH207 - relative to the root, as elements are
        self._paths = sorted(path.replace("\\", "/") for path in found if (self._root / path).is_file())

    def read(self, limit: int) -> list[str]:
        """The next paths."""
        first = 0 if self._after is None else bisect_right(self._paths, self._after)
        found = self._paths[first : first + limit]
        self._after = found[-1] if found else self._after
        return found

    def checkpoint(self) -> Mapping[str, Any] | None:
        """The last path."""
        return None if self._after is None else {"after": self._after}

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Behind that path."""
        self._after = str(checkpoint["after"])


def _names(cursor: Any) -> tuple[str, ...]:
    names = (cursor,) if isinstance(cursor, str) else tuple(cursor) if isinstance(cursor, Sequence) else ()
    if not names or not all(isinstance(name, str) and name for name in names):
        raise InvalidOption(
            f"SqlReader: cursor is the name of a column, or a list of them, not {cursor!r:.80}",
            hint='Write for example cursor="id".',
            option="cursor",
        )
    return names


def _place(start_after: Any, columns: int) -> list[Any] | None:
    """The cursor of a row, as a list."""
    if start_after is None:
        return None
    found = start_after if columns > 1 else [start_after]
    if not isinstance(found, list | tuple) or len(found) != columns:
        raise InvalidOption(
            f"SqlReader: the cursor has {columns} columns, so start_after is a list of {columns} values, not {start_after!r:.80}",
            hint='Write for example start_after=["2026-11-20", 17].',
            option="start_after",
        )
    return list(found)


def _plain_row(row: Mapping[str, Any]) -> Any:
    return next(iter(row.values())) if len(row) == 1 else dict(row)
