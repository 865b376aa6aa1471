"""What goes into a step: for each dependency the exact versions, and the arguments that are made of them.

A version is the one that this run made of the slice, else the one that stands. A dependency on one slice is loaded before the call;
one on several arrives as a mapping that loads a value when it is read, so that a thousand partitions never lie in memory at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from flowstone_celery.assets import partition as partitions
from flowstone_celery.assets.definitions import AsOf
from flowstone_celery.assets.keyring import moment_of
from flowstone_celery.assets.slices import Need, Slice, Slices
from flowstone_celery.errors import CorruptRow, DependencyNotReady
from flowstone_celery.io.manager import Slot, Stored, watched
from flowstone_celery.record import partitions as ledger
from flowstone_celery.record import values
from flowstone_celery.record.values import AssetValue, RecentValues

if TYPE_CHECKING:
    from flowstone_celery.assets.asset import AssetSpec
    from flowstone_celery.assets.catalog import Catalog
    from flowstone_celery.assets.dependencies import Dependency
    from flowstone_celery.assets.partition import PartitionKey
    from flowstone_celery.core.model import Claim
    from flowstone_celery.db.database import Database
    from flowstone_celery.io.manager import Shelf
    from flowstone_celery.record.partitions import Head

PLANNED_AT = "planned_at"
"""In a run's input: the moment as of which its slices were told, where that matters."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a step takes of one dependency: versions in the order of their keys, none where it may be missing and is."""

    dependency: Dependency
    versions: Sequence[AssetValue | Head]
    many: bool


class Inputs:
    """Finds and loads what claimed steps need."""

    def __init__(self, catalog: Catalog, shelf: Shelf, database: Database) -> None:
        """Look assets up in the catalog, versions in the database, and load them by the managers of the shelf."""
        self._catalog = catalog
        self._shelf = shelf
        self._database = database
        self.recent = RecentValues()

    def find(self, claim: Claim) -> list[Taken]:
        """The exact versions of each dependency, in the order of the declaration.

        Raises:
            DependencyNotReady: a slice has no value and is not optional.
            CorruptRow: the value that this run made of a slice is gone.
        """
        needs = Slices(self._catalog, self._as_of(claim)).detailed(Slice(claim.name, claim.partition))
        made = {Slice(each.name, each.partition): (each.output or {}).get("value") for each in claim.inputs}
        single = [made.get(one) for need in needs if not need.many for one in need.slices]
        found = self.versions([version for version in single if version is not None])
        return [
            self._several(claim, need, made) if need.many else self._one(claim, need, made, found)
            for need in needs
        ]

    def versions(self, ids: Sequence[int]) -> dict[int, AssetValue]:
        """These versions: from what this process made lately, else from the database."""
        recent = self.recent.find(ids)
        return {**recent, **values.by_ids(self._database, [each for each in ids if each not in recent])}

    def arguments(self, taken: Sequence[Taken], only: Collection[str] | None = None) -> dict[str, object]:
        """The arguments of the function, by parameter; with `only`, of these parameters."""
        return {
            each.dependency.parameter: self.argument(each)
            for each in taken
            if each.dependency.parameter is not None and (only is None or each.dependency.parameter in only)
        }

    def recorded(self, spec: AssetSpec, record: Mapping[str, Any]) -> list[Taken]:
        """The versions that `record_of` wrote down, in the order of the declaration; a dependency that is new is taken as missing.

        Raises:
            CorruptRow: one of them is gone.
        """
        noted = [(each, record.get(each.name) or {}) for each in spec.dependencies]
        single = [
            version for _, note in noted if not note.get("many") for version in note.get("versions", ())
        ]
        many = [version for _, note in noted if note.get("many") for version in note.get("versions", ())]
        found: dict[int, AssetValue | Head] = {**self.versions(single), **ledger.heads(self._database, many)}
        for version in (*single, *many):
            if version not in found:
                raise _gone(version)
        return [
            Taken(each, [found[version] for version in note.get("versions", ())], bool(note.get("many")))
            for each, note in noted
        ]

    # --- which versions -----------------------------------------------------------------------------------------------------------

    def _as_of(self, claim: Claim) -> AsOf:
        """The moment at which the run was planned: what has come about since changes nothing of what its steps take."""
        planned = (claim.run_input or {}).get(PLANNED_AT)
        return moment_of(self._database, None if planned is None else datetime.fromisoformat(planned))

    def _one(
        self, claim: Claim, need: Need, made: Mapping[Slice, int | None], found: Mapping[int, AssetValue]
    ) -> Taken:
        if not need.slices:
            return Taken(need.dependency, (), False)
        slice_ = need.slices[0]
        value = (
            found.get(made[slice_] or 0)
            if slice_ in made
            else values.current(self._database, slice_.asset, slice_.partition)
        )
        if value is None and not need.dependency.optional:
            self._refuse(claim, slice_, in_run=slice_ in made)
        return Taken(need.dependency, () if value is None else (value,), False)

    def _several(self, claim: Claim, need: Need, made: Mapping[Slice, int | None]) -> Taken:
        """Only the versions' heads: their content is read when it is wanted."""
        ids = [version for one in need.slices if (version := made.get(one)) is not None]
        heads = ledger.heads(self._database, ids)
        current = ledger.present(self._database, [one for one in need.slices if one not in made])
        found = {one: heads.get(made[one] or 0) if one in made else current.get(one) for one in need.slices}
        for slice_, head in found.items():
            if head is None and not need.dependency.optional:
                self._refuse(claim, slice_, in_run=slice_ in made)
        return Taken(need.dependency, [head for head in found.values() if head is not None], True)

    def _refuse(self, claim: Claim, slice_: Slice, *, in_run: bool) -> None:
        about = {"asset": claim.name, "dependency": slice_.asset, "partition": slice_.partition}
        if in_run:
            raise CorruptRow(
                f"the value of {slice_.asset!r} (partition {slice_.partition!r}) that run {claim.run_id} made is gone; {claim.name!r} needs it",
                hint="somebody deleted its row: run it again with force=True",
                **about,
            )
        raise DependencyNotReady(
            f"{claim.name!r} needs {slice_.asset!r}, which has no value for partition {slice_.partition!r}",
            hint=f"make what is missing first: fs.run({claim.name!r}) does so by itself",
            **about,
        )

    # --- their values -------------------------------------------------------------------------------------------------------------

    def argument(self, taken: Taken) -> object:
        """What is passed of one dependency."""
        if taken.many:
            return Values(
                {partitions.decode(each.partition): each.id for each in taken.versions}, self._load_id
            )
        return self._load(taken.versions[0]) if taken.versions else None

    def _load_id(self, version: int) -> object:
        found = self.versions([version]).get(version)
        if found is None:
            raise _gone(version)
        return self._load(found)

    def _load(self, value: AssetValue | Head) -> object:
        assert isinstance(value, AssetValue), "heads are loaded by their id"
        slot = Slot(value.asset, value.partition, value.run_id, value.step_id, value.fence)
        stored = Stored(value.size, value.digest, value.content, value.pointer)
        with watched("load", value.io, slot) as told:
            loaded = self._shelf[value.io].load(slot, stored)
            told["bytes"] = value.size
        return loaded


def record_of(taken: Sequence[Taken]) -> dict[str, Any]:
    """Which versions were taken, as JSON: those who go on with the work take the same."""
    return {
        each.dependency.name: {"versions": [version.id for version in each.versions], "many": each.many}
        for each in taken
    }


def _gone(version: int) -> CorruptRow:
    return CorruptRow(
        f"version {version}, which a running step reads, is gone", hint="somebody deleted its row"
    )


class Values(Mapping["PartitionKey", Any]):
    """The values of several partitions by key, in order, for reading; each is loaded anew whenever it is read, and none is kept."""

    def __init__(self, versions: Mapping[PartitionKey, int], load: Callable[[int], object]) -> None:
        """Take the version of each key, and what loads one."""
        self._versions = versions
        self._load = load

    def __getitem__(self, key: PartitionKey) -> Any:
        """The value of this partition, loaded now."""
        return self._load(self._versions[key])

    def __iter__(self) -> Iterator[PartitionKey]:
        """The keys, in order."""
        return iter(self._versions)

    def __len__(self) -> int:
        """How many partitions have a value."""
        return len(self._versions)

    def __repr__(self) -> str:
        """How many, and which are the first; no value is loaded."""
        keys = list(self._versions)
        return f"<values of {len(keys)} partitions: {', '.join(map(str, keys[:3]))}{', …' if len(keys) > 3 else ''}>"
