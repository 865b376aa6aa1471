"""Slices: one asset for one partition each. Which slices one needs, and in which order a set of them is made.

Nothing here reads rows: the moment, and what dynamic definitions hold then, come in as an `AsOf`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from flowstone_celery.assets import partition as partitions
from flowstone_celery.assets.definitions import AsOf, Definition
from flowstone_celery.assets.mappings import All, PartitionMapping, Previous, Same, Several, default
from flowstone_celery.assets.options import at
from flowstone_celery.errors import DependencyNotReady, FlowStoneError, InvalidMapping, InvalidPartition

if TYPE_CHECKING:
    from flowstone_celery.assets.asset import AssetSpec
    from flowstone_celery.assets.catalog import Catalog
    from flowstone_celery.assets.dependencies import Dependency
    from flowstone_celery.assets.partition import PartitionKey

_AHEAD = 2_000
_SHOWN = 5


class Slice(NamedTuple):
    """One asset for one partition: its qualified name, and the text of the key."""

    asset: str
    partition: str = ""


class Need(NamedTuple):
    """What a slice needs of one dependency."""

    dependency: Dependency
    asset: str
    """The qualified name."""
    slices: tuple[Slice, ...]
    """In the order of their keys; empty where there is nothing before the first."""
    many: bool
    """Whether the function takes a mapping of values by key, however many there are."""


@dataclass(frozen=True, slots=True)
class Link:
    """One dependency with the definitions at both ends and the mapping between them."""

    dependency: Dependency
    asset: str
    mapping: PartitionMapping
    down: Definition | None
    up: Definition | None
    keeps_text: bool
    """Whether the text of the one key is that of the other, with nothing to be checked."""

    @staticmethod
    def of(spec: AssetSpec, dependency: Dependency, upstream: AssetSpec) -> Link:
        """The link between two declarations.

        Raises:
            InvalidMapping: the mapping does not fit the definitions, or there is none where they do not tell; names both.
        """
        down, up = spec.partitions, upstream.partitions
        mapping = dependency.mapping or _default(spec, upstream)
        doubt = mapping.doubt(down, up)
        if doubt:
            raise InvalidMapping(
                f"asset {spec.qualified!r} ({_said(down)}) cannot take {upstream.qualified!r} ({_said(up)}) by {mapping}: {doubt}",
                hint=at(f"Choose another mapping: mappings={{{dependency.name!r}: …}}.", spec.place),
                asset=spec.qualified,
                dependency=upstream.qualified,
            )
        keeps = isinstance(mapping, Same) and (up is None or down == up)
        return Link(dependency, upstream.qualified, mapping, down, up, keeps)

    def need(self, text: str, now: AsOf, subject: str) -> Need:
        """What the slice with this partition needs of it.

        Raises:
            InvalidMapping: nothing, or what is no partition upstream, and the dependency may not be missing.
        """
        if self.keeps_text:
            return Need(self.dependency, self.asset, (Slice(self.asset, text),), False)
        keys = self._keys(partitions.decode(text), text, now, subject)
        slices = tuple(Slice(self.asset, partitions.encode(key)) for key in keys)
        many = self.mapping.many(self.down, self.up) or isinstance(keys, Several)
        return Need(self.dependency, self.asset, slices, many)

    def _keys(self, key: PartitionKey, text: str, now: AsOf, subject: str) -> Collection[PartitionKey]:
        try:
            keys = self.mapping.keys(key, self.down, self.up, now)
        except InvalidPartition as error:
            if self.dependency.optional:
                return ()
            self._nothing(subject, text, error.message, error.hint)
        except FlowStoneError:
            raise
        except Exception as error:  # noqa: BLE001 - a user's function was asked, which may raise anything
            self._nothing(subject, text, f"{self.mapping} raised {type(error).__name__}: {error}", None)
        if keys or self._may_be_empty():
            return keys
        return self._nothing(subject, text, "it maps to nothing there", None)

    def _may_be_empty(self) -> bool:
        return self.dependency.optional or isinstance(self.mapping, Previous | All)

    def _nothing(self, subject: str, text: str, why: str, hint: str | None) -> Collection[PartitionKey]:
        raise InvalidMapping(
            f"{subject!r} of partition {text!r} has no partition of {self.asset!r} ({_said(self.up)}) to be made from: {why}",
            hint=hint or f"Let it begin later, or name {self.dependency.name!r} in optional_deps.",
            asset=subject,
            partition=text,
            dependency=self.asset,
        ) from None


_Right: TypeAlias = "tuple[Definition | None, set[str]]"
"""A definition, and the texts of partitions that were found to be right."""


class Slices:
    """The slices of a catalog at one moment."""

    def __init__(self, catalog: Catalog, as_of: AsOf | None = None) -> None:
        """Look at these assets; without a moment, at the present one, at which no dynamic definition has a key."""
        self._catalog = catalog
        self.as_of = as_of or AsOf(lambda: datetime.now(UTC))
        self._all: dict[tuple[str, str], Need] = {}
        self._right: dict[Definition | None, _Right] = {}
        self._found_right: dict[str, _Right] = {}
        """By asset; those of equal definitions share what was found right."""

    def needs(self, slice_: Slice) -> tuple[tuple[Dependency, tuple[Slice, ...]], ...]:
        """For each dependency, in the order of the declaration, the slices that are needed of it.

        Raises:
            InvalidMapping: it needs of a dependency nothing, or what is no partition there.
        """
        return tuple((need.dependency, need.slices) for need in self.detailed(slice_))

    def detailed(self, slice_: Slice) -> tuple[Need, ...]:
        """As `needs`, with the names, and whether a mapping of values is taken."""
        return tuple(self._need(link, slice_) for link in self._catalog.links(slice_.asset))

    def _need(self, link: Link, slice_: Slice) -> Need:
        """All of something is the same for every slice: it is listed once, however many take it."""
        shared = isinstance(link.mapping, All) and (link.down is not None or not slice_.partition)
        found = self._all.get((slice_.asset, link.asset)) if shared else None
        if found is None:
            found = link.need(slice_.partition, self.as_of, slice_.asset)
            if shared:
                self._all[slice_.asset, link.asset] = found
        return found

    def check(self, slice_: Slice) -> None:
        """Return if there is, or may be made, such a slice at this moment.

        Raises:
            InvalidPartition: its partition is none of its asset, or its time has not come.
        """
        if slice_.asset not in self._found_right:
            definition = self._catalog.fetch(slice_.asset).partitions
            self._found_right[slice_.asset] = self._right.setdefault(definition, (definition, set()))
        definition, right = self._found_right[slice_.asset]
        if definition is not None and slice_.partition not in right:
            definition.check(partitions.decode(slice_.partition), self.as_of)
            right.add(slice_.partition)

    def missing(
        self, targets: Collection[Slice], present: Callable[[Collection[Slice]], Collection[Slice]]
    ) -> set[Slice]:
        """The targets and, on every way up from them, what is not present; behind what is, nobody looks.

        Args:
            targets: wanted whether they are present or not.
            present: answers which of these slices are. It is asked for many at a time, some of which turn out not to matter.
        """
        wanted, there = dict.fromkeys(targets), dict[Slice, bool]()
        ahead, unknown = list(wanted), dict[Slice, None]()
        while ahead or unknown:
            if not ahead:
                asked = self._some_closure(unknown)
                found = set(present(asked))
                there.update((each, each in found) for each in asked)
                ahead = [each for each in unknown if not there[each]]
                wanted.update(dict.fromkeys(ahead))
                unknown = {}
                continue
            for need in self.detailed(ahead.pop()):
                for each in need.slices:
                    if each in wanted or there.get(each):
                        continue
                    if each in there:
                        wanted[each] = None
                        ahead.append(each)
                    else:
                        unknown[each] = None
        return set(wanted)

    def _some_closure(self, starts: Iterable[Slice]) -> list[Slice]:
        """The starts, and of what they need as much as makes a question worth its way."""
        found = dict.fromkeys(starts)
        ahead = list(found)
        for each in ahead:
            if len(found) >= _AHEAD:
                break
            new = [one for need in self._known_needs(each) for one in need.slices if one not in found]
            found.update(dict.fromkeys(new))
            ahead.extend(new)
        return list(found)

    def _known_needs(self, slice_: Slice) -> tuple[Need, ...]:
        """What it needs, if it can be told: whether it cannot matters only once the slice is wanted."""
        try:
            return self.detailed(slice_)
        except (InvalidMapping, InvalidPartition):
            return ()

    def plan(
        self, targets: Iterable[Slice], wanted: Callable[[Slice], bool] = lambda _: True
    ) -> dict[Slice, tuple[Need, ...]]:
        """The targets and, as far as they are wanted, all that they need, each once and behind what it needs.

        Raises:
            InvalidMapping: as for `needs`.
            InvalidPartition: the time of a slice that would have to be made has not come.
        """
        by_asset: dict[str, dict[str, tuple[Need, ...] | None]] = {}
        for target in targets:
            by_asset.setdefault(target.asset, {})[target.partition] = None
        order = self._catalog.graph().plan(*by_asset)
        for asset in reversed(order):
            self._expand(asset, by_asset, wanted)
        return {
            Slice(asset, text): needs
            for asset in order
            if asset in by_asset
            for text, needs in _earlier_first(asset, by_asset[asset]).items()
        }

    def _expand(
        self,
        asset: str,
        by_asset: dict[str, dict[str, tuple[Need, ...] | None]],
        wanted: Callable[[Slice], bool],
    ) -> None:
        """Tell what the wanted slices of the asset need, among it, perhaps, earlier ones of its own."""
        own = by_asset.get(asset, {})
        ahead = list(own)
        for text in ahead:
            slice_ = Slice(asset, text)
            self.check(slice_)
            own[text] = needs = self.detailed(slice_)
            for need in needs:
                theirs = by_asset.setdefault(need.asset, {}) if need.slices else {}
                new = [
                    each.partition for each in need.slices if each.partition not in theirs and wanted(each)
                ]
                theirs.update(dict.fromkeys(new))
                if need.asset == asset:
                    ahead.extend(new)


def _earlier_first(asset: str, slices: Mapping[str, tuple[Need, ...] | None]) -> dict[str, tuple[Need, ...]]:
    """The slices of one asset, each behind the one before it, where it needs its own earlier ones."""
    before = {
        text: [one.partition for need in needs or () if need.asset == asset for one in need.slices]
        for text, needs in slices.items()
    }
    ordered: dict[str, tuple[Need, ...]] = {}
    for text in slices:
        chain, ahead = [], text
        while ahead in slices and ahead not in ordered:
            chain.append(ahead)
            ahead = next(iter(before[ahead]), ahead)
            if ahead == chain[-1]:
                break
        ordered.update((each, slices[each] or ()) for each in reversed(chain))
    return ordered


def as_slice(named: Slice | str, partition: str) -> Slice:
    """The slice itself, or that of a qualified name with a partition's text."""
    return named if isinstance(named, Slice) else Slice(named, partition)


def slice_of(spec: AssetSpec, given: PartitionKey) -> Slice:
    """The slice of an asset for a partition, which may be written as text where the asset declares its partitions.

    Raises:
        InvalidPartition: it is none of the asset; says what is wrong, the nearest key and the range.
    """
    if spec.partitions is None:
        return Slice(spec.qualified, partitions.encode(given))
    if given is None:
        raise InvalidPartition(
            f"{spec.qualified!r} has partitions, {spec.partitions}, and none was named",
            hint="Say which: partition=….",
            asset=spec.qualified,
        )
    return Slice(spec.qualified, partitions.encode(spec.partitions.read(given)))


def not_ready(target: Slice, absent: Sequence[Slice]) -> DependencyNotReady:
    """The error for a slice that is to be made alone while these, which it needs, have no value."""
    names = sorted({each.asset for each in absent})
    texts = sorted({each.partition for each in absent})
    shown = ", ".join(map(repr, texts[:_SHOWN])) + (
        f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    )
    short = target.asset.rpartition(".")[2]
    return DependencyNotReady(
        f"{target.asset!r} needs {', '.join(map(repr, names))}, without a value for partition {shown}",
        hint=f"make what is missing first: fs.run({short!r}) or fs.materialize_all({short!r})",
        asset=target.asset,
        missing=names,
        partition=target.partition,
    )


def _default(spec: AssetSpec, upstream: AssetSpec) -> PartitionMapping:
    try:
        return default(spec.partitions, upstream.partitions)
    except InvalidMapping as error:
        raise InvalidMapping(
            f"asset {spec.qualified!r} needs {upstream.qualified!r}: {error.message}",
            hint=at(error.hint or "", spec.place),
            asset=spec.qualified,
            dependency=upstream.qualified,
        ) from None


def _said(definition: Definition | None) -> str:
    return "free keys" if definition is None else str(definition)
