"""`fs.partitions`: which partitions assets have now, and the keys of dynamic definitions, which people add and remove."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from flowstone_celery.assets import partition as partitions
from flowstone_celery.assets.definitions import AsOf
from flowstone_celery.assets.lists import Dynamic
from flowstone_celery.assets.multi import Multi
from flowstone_celery.errors import InvalidPartition, did_you_mean
from flowstone_celery.record import partitions as ledger

if TYPE_CHECKING:
    from flowstone_celery.assets.asset import AssetSpec
    from flowstone_celery.assets.catalog import Catalog
    from flowstone_celery.assets.definitions import Definition
    from flowstone_celery.assets.partition import PartitionKey
    from flowstone_celery.db.database import Database


def moment_of(database: Database, moment: datetime | None = None) -> AsOf:
    """What holds now by the database's clock, or what held at a moment: read when it is asked for."""

    def dynamic(name: str) -> Iterator[str]:
        return (str(partitions.decode(text)) for text in ledger.keys(database, name, until=moment))

    return AsOf(moment or (lambda: ledger.now(database)), dynamic)


class Partitions:
    """The partitions of a FlowStone's assets."""

    def __init__(self, catalog: Catalog, database: Callable[[], Database]) -> None:
        """Look at these assets; the database is opened when it is needed."""
        self._catalog = catalog
        self._database = database

    def now(self) -> AsOf:
        """What holds now, for definitions: the time, and the keys of dynamic definitions."""
        return moment_of(self._database())

    def of(self, asset: Any) -> Definition:
        """The definition of an asset's partitions (the asset or its name).

        Raises:
            InvalidPartition: it has none, and so any key will do.
        """
        spec = self._spec(asset)
        if spec.partitions is None:
            raise InvalidPartition(
                f"{spec.qualified!r} declares no partitions: any key will do",
                hint='Declare them: @fs.asset(partitions=Daily("2026-01-01")).',
                asset=spec.qualified,
            )
        return spec.partitions

    def keys(self, asset: Any) -> Iterator[PartitionKey]:
        """The keys that an asset has now, in order.

        Raises:
            InvalidPartition: it declares no partitions.
        """
        return self.of(asset).keys(self.now())

    def range(
        self, asset: Any, first: PartitionKey = None, last: PartitionKey = None
    ) -> Iterator[PartitionKey]:
        """Those of an asset's keys that lie from the first to the last, both included, as far as there are any now.

        Raises:
            InvalidPartition: it declares no partitions, or a bound cannot be one.
        """
        return self.of(asset).range(first, last, now=self.now())

    def add(self, definition: str | Dynamic, *keys: str, actor: str = "python") -> list[str]:
        """The dynamic definition has these keys; answers those that are new. The act is audited.

        Args:
            definition: the dynamic definition or its name, which a declared asset uses.
            *keys: texts, any but with NUL.
            actor: who does it, for the audit log.

        Raises:
            InvalidPartition: no asset uses a dynamic definition of this name, or a key cannot be one.
        """
        return self._change(ledger.add, definition, keys, actor)

    def remove(self, definition: str | Dynamic, *keys: str, actor: str = "python") -> list[str]:
        """The dynamic definition has these keys no more; answers those that it had. Their values stay, and are back with the key.

        Raises:
            InvalidPartition: as for `add`.
        """
        return self._change(ledger.remove, definition, keys, actor)

    def _change(
        self,
        act: Callable[..., list[str]],
        definition: str | Dynamic,
        keys: Iterable[str],
        actor: str,
    ) -> list[str]:
        known = self.dynamic(definition)
        texts = [partitions.encode(known.check(key)) for key in keys]
        changed = act(self._database(), known.name, texts, actor=actor) if texts else []
        return sorted(str(partitions.decode(text)) for text in changed)

    def dynamic(self, name: str | Dynamic) -> Dynamic:
        """The dynamic definition of this name.

        Raises:
            InvalidPartition: no declared asset uses one.
        """
        wanted = name.name if isinstance(name, Dynamic) else name
        known = {each.name: each for spec in self._catalog.list() for each in _dynamics(spec.partitions)}
        if wanted not in known:
            there = f"There are {', '.join(map(repr, sorted(known)))}." if known else "There is none."
            raise InvalidPartition(
                f"no asset has partitions of the dynamic definition {wanted!r}",
                hint=did_you_mean(str(wanted), known) or there,
                definition=str(wanted),
            )
        return known[wanted]

    def _spec(self, asset: Any) -> AssetSpec:
        return self._catalog.fetch(asset if isinstance(asset, str) else asset.name)


def _dynamics(definition: Definition | None) -> list[Dynamic]:
    parts = definition.dimensions.values() if isinstance(definition, Multi) else [definition]
    return [each for each in parts if isinstance(each, Dynamic)]
