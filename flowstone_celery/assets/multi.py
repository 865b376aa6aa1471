"""Partitions of several dimensions: the products of several definitions."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from typing import TYPE_CHECKING, Any

from flowstone_celery.assets import partition as partitions
from flowstone_celery.assets.definitions import AsOf, Definition, Span, wrong
from flowstone_celery.assets.windows import TimeWindows
from flowstone_celery.errors import InvalidPartition

if TYPE_CHECKING:
    from flowstone_celery.assets.partition import PartitionKey


@dataclass(frozen=True, repr=False, init=False)
class Multi(Definition):
    """The products of several definitions; a key is the tuple of one key of each, in the order of the dimensions."""

    pairs: tuple[tuple[str, Definition], ...]

    def __init__(self, **dimensions: Definition) -> None:
        """Take the dimensions by name.

        Raises:
            InvalidOption: there are fewer than two, one is no definition, or one has dimensions itself.
        """
        if len(dimensions) < 2:
            wrong(
                f"Multi has two dimensions or more, not {len(dimensions)}",
                'Write for example Multi(day=Daily("2026-01-01"), region=Static(["eu", "us"])), or use the one definition itself.',
            )
        for name, each in dimensions.items():
            if isinstance(each, Multi) or not isinstance(each, Definition):
                what = "a Multi itself" if isinstance(each, Multi) else f"{each!r:.80}, no definition"
                wrong(
                    f"dimension {name!r} of a Multi is {what}",
                    "List all dimensions side by side in one Multi.",
                )
        object.__setattr__(self, "pairs", tuple(dimensions.items()))

    def __repr__(self) -> str:
        """The dimensions."""
        return f"Multi({', '.join(f'{name}={each!r}' for name, each in self.pairs)})"

    @property
    def dimensions(self) -> dict[str, Definition]:
        """The definition of each dimension, in order."""
        return dict(self.pairs)

    @property
    def time(self) -> str | None:
        """The name of the dimension of time, if there is just one."""
        found = [name for name, each in self.pairs if isinstance(each, TimeWindows)]
        return found[0] if len(found) == 1 else None

    def named(self, key: PartitionKey) -> dict[str, PartitionKey]:
        """The key's parts by dimension.

        Raises:
            InvalidPartition: it has another number of parts, or is no tuple.
        """
        if not isinstance(key, tuple) or len(key) != len(self.pairs):
            names = ", ".join(self.dimensions)
            self.refuse(
                key,
                f"a key is a tuple of {len(self.pairs)} parts",
                f"Write ({names}) or, as text, {names.replace(', ', '|')}.",
            )
        return dict(zip(self.dimensions, key, strict=True))

    def check(self, key: PartitionKey, now: datetime | AsOf | None = None) -> PartitionKey:
        """As `Definition.check`, part by part."""
        parts = self.named(key)
        return tuple(self._part(name, parts[name], now) for name in parts)

    def _part(self, name: str, part: PartitionKey, now: datetime | AsOf | None) -> PartitionKey:
        try:
            return self.dimensions[name].read(part, now)
        except InvalidPartition as error:
            error.message = f"dimension {name!r}: {error.message}"
            raise

    def parse(self, text: str) -> PartitionKey:
        """As `Definition.parse`: the parts with bars between them, or the text that `encode` makes of the tuple."""
        if "|" not in text and text.startswith("t:"):
            return partitions.decode(text)
        parts = text.split("|")
        return (
            tuple(parts)
            if len(parts) != len(self.pairs)
            else tuple(each.parse(part) for (_, each), part in zip(self.pairs, parts, strict=True))
        )

    def show(self, key: PartitionKey) -> str:
        """As `Definition.show`."""
        parts = self.named(key)
        shown = [self.dimensions[name].show(part) for name, part in parts.items()]
        return partitions.encode(key) if any("|" in part for part in shown) else "|".join(shown)

    def keys(self, now: datetime | AsOf) -> Iterator[PartitionKey]:
        """As `Definition.keys`: the last dimension changes soonest."""
        return _products([each.keys(AsOf.of(now)) for _, each in self.pairs])

    def range(
        self, first: PartitionKey = None, last: PartitionKey = None, now: datetime | AsOf | None = None
    ) -> Iterator[PartitionKey]:
        """As `Definition.range`, in each dimension: from the first's part to the last's. A bound may leave parts None."""
        low, high = (self._bound(bound) for bound in (first, last))
        return _products([each.range(low[name], high[name], now) for name, each in self.pairs])

    def _bound(self, bound: PartitionKey) -> dict[str, PartitionKey]:
        read = self.parse(bound) if isinstance(bound, str) else bound
        return dict.fromkeys(self.dimensions) if read is None else self.named(read)

    def previous(self, key: PartitionKey, n: int = 1) -> PartitionKey:
        """As `Definition.previous`, along the one dimension of time."""
        parts, time = self.named(key), self.time
        if time is None:
            wrong(
                f"{self} has no single dimension of time, so there is no previous key", "Name the dimension."
            )
        before = self.dimensions[time].previous(parts[time], n)
        return None if before is None else tuple({**parts, time: before}.values())

    def window(self, key: PartitionKey) -> Span | None:
        """As `Definition.window`: that of the one dimension of time."""
        return None if self.time is None else self.dimensions[self.time].window(self.named(key)[self.time])


def _products(iterators: Collection[Iterator[Any]]) -> Iterator[tuple[Any, ...]]:
    """All products; the first dimension is read as it goes, the others are kept."""
    first, *others = iterators
    kept = [tuple(each) for each in others]
    return ((head, *tail) for head in first for tail in product(*kept))
