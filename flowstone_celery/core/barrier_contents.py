"""What a barrier's items came to as one stream of bytes, for its digest: the same bytes wherever the same succeeded.

Neither how keys were cut into pages nor how results are kept shows in it. Postgres puts short results together, so that Python handles
thousands of them at a time; those that are kept compressed are unpacked one by one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from flowstone_celery.core.barrier_pages import PACKED, result_of
from flowstone_celery.core.barrier_reads import pages_from
from flowstone_celery.core.statements import SQL

if TYPE_CHECKING:
    from flowstone_celery.core.barrier_model import Key
    from flowstone_celery.db.database import Database, Row

_STRETCH: Final = 5_000
"""Items that are read at a time."""
_LENGTH: Final = 4

Stretch = tuple[Sequence["Key"], bytes]
"""Keys in order, and their results, each behind its length."""


def with_length(result: bytes) -> bytes:
    """A result as it stands in the stream."""
    return len(result).to_bytes(_LENGTH, "big") + result


def digest(stretches: Iterator[Stretch]) -> str:
    """The SHA-256 of all keys and results, in hex, however they are cut into stretches."""
    of_keys, of_results = hashlib.sha256(), hashlib.sha256()
    for keys, results in stretches:
        if keys:  # canonical JSON has no line break
            of_keys.update(b"\n".join(keys) + b"\n")
        of_results.update(results)
    return hashlib.sha256(of_keys.digest() + of_results.digest()).hexdigest()


def stretches(database: Database, barrier: int, round_: int) -> Iterator[Stretch]:
    """What had succeeded by this round, in index order."""
    keys = _Keys(database, barrier)
    after = -1
    while row := database.first(
        SQL["contents"], barrier=barrier, round=round_, after=after, limit=_STRETCH, packed=PACKED[0]
    ):
        dense = keys.between(row["first"], row["last"])
        indexes = row["indexes"]
        chosen = dense if indexes is None else [dense[index - row["first"]] for index in indexes]
        results = row["results"] if not row["packed"] else _unpacked(database, barrier, round_, row)
        yield chosen, results
        after = row["last"]


def _unpacked(database: Database, barrier: int, round_: int, row: Row) -> bytes:
    found, after = [], row["first"] - 1
    while after < row["last"]:
        rows = database.once(SQL["results"], barrier=barrier, after=after, limit=_STRETCH // 10)
        found += [
            with_length(result_of(each["result"]) or b"")
            for each in rows
            if each["status"] == "succeeded" and each["round"] <= round_ and each["index"] <= row["last"]
        ]
        after = rows[-1]["index"]
    return b"".join(found)


class _Keys:
    """The keys of a barrier, read once from the first to the last."""

    def __init__(self, database: Database, barrier: int) -> None:
        """Begin before the first page."""
        self._pages = pages_from(database, barrier, 0)
        self._first = 0
        self._page: list[Key] = []

    def between(self, first: int, last: int) -> list[Key]:
        """The keys of these indexes, both included; none before those of the last call."""
        found: list[Key] = []
        while (at := first + len(found)) <= last:
            while at >= self._first + len(self._page):
                self._first, self._page = next(self._pages)
            found += self._page[at - self._first : last + 1 - self._first]
        return found
