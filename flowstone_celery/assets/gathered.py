"""What a scatter gathered: the results of its items in the order of their keys, read page by page whenever they are iterated.

The results lie with the items. Where no fold makes a value of them, the asset's value is a small pointer to them, and whoever loads it
gets a `Gathered` again: a million results are never in memory at once unless somebody asks for a list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

import orjson

from flowstone_celery import codec
from flowstone_celery.assets.batching import Batched
from flowstone_celery.core import barrier_contents, barriers
from flowstone_celery.errors import CorruptRow, InvalidValue
from flowstone_celery.io.manager import Slot, Stored

if TYPE_CHECKING:
    from flowstone_celery.core.barrier_contents import Stretch
    from flowstone_celery.core.barrier_model import Item
    from flowstone_celery.db.database import Database, Row

T = TypeVar("T")

IO = "gathered"
"""The IO manager of values that are what a scatter gathered."""

_PAGE = 1_000
_NOTHING: Mapping[str, Any] = {"errors": []}


@dataclass(frozen=True, slots=True)
class Result:
    """One succeeded item: its place, its key, and its result, both as JSON."""

    index: int
    key: bytes
    result: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """One item that failed for good; in a batch whose errors are collected, one element."""

    index: int
    key: Any
    error: Mapping[str, Any]
    attempt: int = 1

    @property
    def message(self) -> str:
        """What went wrong."""
        return str(self.error.get("message", ""))


@dataclass(frozen=True, slots=True)
class Counts:
    """How many items there were; of a scatter with batches, how many batches."""

    total: int
    succeeded: int
    failed: int
    collapsed: int = 0
    """Elements that were dropped because another had the same key."""


class Results(Protocol):
    """Where results are read from, in pages by index."""

    def succeeded(self, after: int, limit: int) -> Sequence[Result]:
        """The next succeeded items behind this index, in order."""

    def failed(self, after: int, limit: int) -> Sequence[Failure]:
        """The next failed items behind this index, in order."""

    def stretches(self) -> Iterator[Stretch]:
        """All succeeded items in order, many at a time."""


class Gathered(Generic[T]):
    """The results of a scatter, in index order. Iterating it, or `values`, reads them anew, page by page."""

    def __init__(
        self,
        source: Results,
        counts: Counts,
        *,
        batched: bool = False,
        each: bool = False,
        pointer: Mapping[str, Any] | None = None,
    ) -> None:
        """Read from here.

        Args:
            source: the results.
            counts: of the items.
            batched: whether items are batches, so that their keys hold their elements.
            each: whether a batch's result holds one result for each of its elements.
            pointer: how the same is found again.
        """
        self._source, self._batched, self._each = source, batched, each
        self._length: int | None = None if each else counts.succeeded
        self.counts = counts
        self.pointer = pointer

    @staticmethod
    def at(database: Database, pointer: Mapping[str, Any]) -> Gathered[Any]:
        """What lies with the items of a barrier, as of one of its rounds."""
        counts = Counts(**{name: int(pointer[name]) for name in Counts.__dataclass_fields__})
        source = BarrierResults(database, int(pointer["barrier"]), int(pointer["round"]))
        return Gathered(
            source,
            counts,
            batched=bool(pointer["batched"]),
            each=bool(pointer["each"]),
            pointer=dict(pointer),
        )

    @staticmethod
    def for_test(
        items: Mapping[Any, T] | Iterable[tuple[Any, T]], failed: Mapping[Any, str] | None = None
    ) -> Gathered[T]:
        """A `Gathered` of these results by key, to call a fold in a unit test; `failed` are messages by key."""
        pairs = list(items.items() if isinstance(items, Mapping) else items)
        results = [
            Result(index, codec.canonical(key), codec.encode(value))
            for index, (key, value) in enumerate(pairs)
        ]
        failures = [
            Failure(len(pairs) + index, key, {"message": message})
            for index, (key, message) in enumerate((failed or {}).items())
        ]
        counts = Counts(len(results) + len(failures), len(results), len(failures))
        return Gathered(_InMemory(results, failures), counts)

    def __iter__(self) -> Iterator[T]:
        """The results, in index order."""
        return self.values()

    def __len__(self) -> int:
        """How many results there are."""
        if self._length is None:
            self._length = sum(1 for _ in self.values())
        return self._length

    def __bool__(self) -> bool:
        """Whether there is a result."""
        return len(self) > 0

    def __repr__(self) -> str:
        """How many succeeded and failed; no result is read."""
        return f"<gathered: {self.counts.succeeded} succeeded, {self.counts.failed} failed>"

    def values(self) -> Iterator[T]:
        """The results of what succeeded; None for what was skipped."""
        return (value for _, value in self.items())

    def keys(self) -> Iterator[Any]:
        """The keys of what succeeded: the elements, or lists of elements where a function took whole batches."""
        return (key for key, _ in self.items())

    def items(self) -> Iterator[tuple[Any, T]]:
        """Key and result of what succeeded."""
        for found in self._stored():
            if self._each:
                yield from self._elements(found)
            else:
                yield self._key(found.key), cast("T", codec.decode(found.result))

    @property
    def failed(self) -> Failures:
        """What failed for good, in index order, with its errors: empty unless the scatter tolerates failures."""
        return Failures(self._failures)

    def digest(self) -> str:
        """The SHA-256 of all keys and results, in hex: equal where the same was gathered."""
        return barrier_contents.digest(self._source.stretches())

    def _stored(self) -> Iterator[Result]:
        after = -1
        while page := self._source.succeeded(after, _PAGE):
            yield from page
            after = page[-1].index

    def _failures(self) -> Iterator[Failure]:
        after = -1
        while page := self._source.failed(after, _PAGE):
            for each in page:
                yield Failure(each.index, self._plain(each.key), each.error, each.attempt)
            after = page[-1].index
        if self._each:
            yield from self._collected()

    def _collected(self) -> Iterator[Failure]:
        """The elements that failed in batches that succeeded."""
        for found in self._stored():
            elements = self._key(found.key)
            for position, error in (codec.decode(found.result) or _NOTHING)["errors"]:
                yield Failure(found.index, elements[position], error)

    def _elements(self, found: Result) -> Iterator[tuple[Any, T]]:
        elements, kept = self._key(found.key), codec.decode(found.result)
        if kept is None:  # the batch was skipped
            yield from ((each, cast("T", None)) for each in elements)
            return
        failed = {position for position, _ in kept["errors"]}
        there = [each for at, each in enumerate(elements) if at not in failed]
        yield from zip(there, kept["values"], strict=True)

    def _key(self, key: bytes) -> Any:
        return self._plain(codec.decode(key))

    def _plain(self, element: Any) -> Any:
        return Batched.of(element).items if self._batched else element


class Failures:
    """Failed items, read page by page whenever they are iterated."""

    def __init__(self, read: Callable[[], Iterator[Failure]]) -> None:
        """Read them so."""
        self._read = read

    def __iter__(self) -> Iterator[Failure]:
        """In index order."""
        return self._read()

    def __len__(self) -> int:
        """How many; they are read for it."""
        return sum(1 for _ in self._read())

    def __bool__(self) -> bool:
        """Whether there is one."""
        return next(self._read(), None) is not None

    def __repr__(self) -> str:
        """The first of them."""
        first = next(self._read(), None)
        return (
            "<no failed items>"
            if first is None
            else f"<failed items, the first: {first.key!r:.80}: {first.message:.80}>"
        )


@dataclass(frozen=True, slots=True)
class _InMemory:
    results: list[Result]
    failures: list[Failure]

    def succeeded(self, after: int, limit: int) -> Sequence[Result]:
        return [each for each in self.results if each.index > after][:limit]

    def failed(self, after: int, limit: int) -> Sequence[Failure]:
        return [each for each in self.failures if each.index > after][:limit]

    def stretches(self) -> Iterator[Stretch]:
        yield (
            [each.key for each in self.results],
            b"".join(barrier_contents.with_length(each.result) for each in self.results),
        )


class GatheredIO:
    """Keeps of what was gathered where it lies: with the items of its scatter."""

    name = IO

    def __init__(self, database: Callable[[], Database]) -> None:
        """Read from this database, which is opened when a result is read."""
        self._database = database

    def store(self, slot: Slot, value: object) -> Stored:
        """A pointer to the items; the digest is that of all keys and results.

        Raises:
            InvalidValue: the value is not what a scatter gathered.
        """
        if not isinstance(value, Gathered) or value.pointer is None:
            raise InvalidValue(
                f"asset {slot.asset!r} returned {type(value).__name__}, and the IO manager {IO!r} keeps only what a scatter gathered",
                hint="Name another IO manager, or none: io= is for folds and for assets that do not scatter.",
            )
        return Stored(len(orjson.dumps(value.pointer)), value.digest(), pointer=value.pointer)

    def load(self, slot: Slot, stored: Stored) -> Gathered[Any]:
        """What was gathered, to be read when it is iterated.

        Raises:
            CorruptRow: the pointer is none of these.
        """
        try:
            return Gathered.at(self._database(), stored.pointer or {})
        except (KeyError, TypeError) as error:
            raise CorruptRow(
                f"the value of asset {slot.asset!r} (step {slot.step_id}) points to no gathered results",
                hint="materialize it again",
            ) from error

    def delete(self, slot: Slot, stored: Stored) -> None:
        """The results go with their scatter."""


def pointer_to(barrier: int, round_: int, counts: Counts, *, batched: bool, each: bool) -> dict[str, Any]:
    """How the results of this barrier are found again, as they are in this round."""
    numbers = {name: getattr(counts, name) for name in Counts.__dataclass_fields__}
    return {"barrier": barrier, "round": round_, "batched": batched, "each": each, **numbers}


def plain_key(item: Item) -> Any:
    """The element that an item is about: its key as it was told, dates and the like too."""
    return codec.decode(orjson.dumps(item.key))


@dataclass(frozen=True, slots=True)
class BarrierResults:
    """The results of a barrier's items, as of one of its rounds."""

    database: Database
    barrier: int
    round: int

    def succeeded(self, after: int, limit: int) -> Sequence[Result]:
        """The next succeeded items."""
        found: list[Result] = []
        while not found and (rows := barriers.results(self.database, self.barrier, after=after, limit=limit)):
            found = [Result(row["index"], row["key"], row["result"]) for row in rows if self._counts(row)]
            after = rows[-1]["index"]
        return found

    def failed(self, after: int, limit: int) -> Sequence[Failure]:
        """The next failed items."""
        items = barriers.items(self.database, self.barrier, status="failed", after=after, limit=limit)
        return [Failure(each.index, plain_key(each), each.error or {}, each.attempt) for each in items]

    def stretches(self) -> Iterator[Stretch]:
        """All succeeded items, without a look at each."""
        return barrier_contents.stretches(self.database, self.barrier, self.round)

    def _counts(self, row: Row) -> bool:
        return bool(row["status"] == "succeeded" and row["round"] <= self.round)
