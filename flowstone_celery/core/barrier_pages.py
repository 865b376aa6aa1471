"""Keys in pages, results in rows: how both are packed, and what this process remembers of pages, which never change."""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from flowstone_celery.core.barrier_model import PAGE
from flowstone_celery.core.statements import SQL

if TYPE_CHECKING:
    from uuid import UUID

    from flowstone_celery.core.barrier_model import Key
    from flowstone_celery.db.database import Tx

_WORTH = 256
"""Bytes from which a result is compressed: below, the header costs more than it saves."""
PACKED = b"\x78"
"""How a zlib stream begins, and no JSON text."""
_REMEMBERED = 256
_FEWEST = 100
"""Keys in a page, where there are as many."""
_PAGES_OF_HAND = 4
_RANGES_OF_WIDTH = 4
_NEWLINE = b"\n"


@dataclass(frozen=True, slots=True)
class Packed:
    """Pages of keys as arrays, one member for each page; `firsts` count from the first key."""

    firsts: list[int]
    sizes: list[int]
    keys: str


def size_for(keys: int, hands: int, width: int) -> int:
    """How many keys go into a page, so that each hand finds some of its own: hands that share a page wait for each other's commits.

    A range ends with its page: small pages would cost those whose items are quick, or many at a time, more than they spare.
    """
    return min(PAGE, max(_FEWEST, _RANGES_OF_WIDTH * width, ceil(keys / (_PAGES_OF_HAND * hands))))


def pack(keys: Sequence[Key], size: int = PAGE) -> Packed:
    """The keys in pages. Canonical JSON has no line break, so that a page is read without parsing it."""
    firsts = list(range(0, len(keys), size))
    pages = [keys[first : first + size] for first in firsts]
    packed = [zlib.compress(_NEWLINE.join(page), 1) for page in pages]
    return Packed(firsts, [len(page) for page in pages], bytes_array(packed))


def unpack(page: bytes) -> list[Key]:
    """The keys of a page, in order."""
    return zlib.decompress(page).split(_NEWLINE)


def bytes_array(members: Iterable[bytes | None]) -> str:
    """The text of a Postgres array of bytea."""
    return "{" + ",".join(["NULL" if each is None else f'"\\\\x{each.hex()}"' for each in members]) + "}"


def packed_result(result: bytes | None) -> bytes | None:
    """A result as its row keeps it."""
    return result if result is None or len(result) < _WORTH else zlib.compress(result, 1)


def result_of(stored: bytes | None) -> bytes | None:
    """The result's JSON text."""
    return zlib.decompress(stored) if stored is not None and stored.startswith(PACKED) else stored


class Pages:
    """What this process has read last of pages and policies. A run's id tells databases apart."""

    def __init__(self, most: int = _REMEMBERED) -> None:
        """Remember so many."""
        self._most = most
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[UUID, int, int], Any] = OrderedDict()

    def known(self, run: UUID, barrier: int, number: int) -> Any:
        """What was remembered under this page, or None."""
        with self._lock:
            found = self._known.get((run, barrier, number))
            if found is not None:
                self._known.move_to_end((run, barrier, number))
            return found

    def remember(self, run: UUID, barrier: int, number: int, what: Any) -> None:
        """What was read longest ago is forgotten."""
        with self._lock:
            self._known[run, barrier, number] = what
            while len(self._known) > self._most:
                self._known.popitem(last=False)

    def keys(self, tx: Tx, run: UUID, barrier: int, number: int) -> list[Key]:
        """The keys of a page, read once."""
        found: list[Key] | None = self.known(run, barrier, number)
        if found is None:
            row = tx.row(SQL["keys_of_page"], barrier=barrier, number=number)
            found = unpack(row["keys"]) if row else []
            self.remember(run, barrier, number, found)
        return found


PAGES = Pages()
