"""All declared resources of one house: each name once, each behind what it requires."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

from flowstone_celery.assets.options import at
from flowstone_celery.assets.resource import ResourceSpec
from flowstone_celery.errors import DependencyCycle, DuplicateResource, UnknownResource, did_you_mean


class ResourceBook:
    """The declared resources of one house: each name once."""

    def __init__(self) -> None:
        """Begin empty."""
        self._specs: dict[str, ResourceSpec] = {}
        self._orders: dict[tuple[str, ...], tuple[ResourceSpec, ...]] = {}

    def add(self, spec: ResourceSpec) -> ResourceSpec:
        """The declaration, from now on found by its name. What it requires may be declared later.

        Raises:
            DuplicateResource: its name is taken; names both places.
            DependencyCycle: it closes a circle; names its path.
        """
        taken = self._specs.get(spec.name)
        if taken is not None:
            raise twice(taken, spec)
        _refuse_cycle({**self._specs, spec.name: spec}, spec)
        self._specs[spec.name] = spec
        self._orders = {}
        return spec

    def __iter__(self) -> Iterator[ResourceSpec]:
        """The declarations by name."""
        return iter(sorted(self._specs.values(), key=lambda spec: spec.name))

    def fetch(self, name: str, *, by: str = "", place: str = "") -> ResourceSpec:
        """The resource of this name; `by` says who asks, for the sentence of the error.

        Raises:
            UnknownResource: there is none; suggests the nearest.
        """
        if name in self._specs:
            return self._specs[name]
        near = did_you_mean(name, self._specs) or (
            f"Declared are: {', '.join(sorted(self._specs))}."
            if self._specs
            else "Declare it with @fs.resource, and see that its module is imported."
        )
        asks = f"{by} requires" if by else "there is"
        missing = f"the resource {name!r}, which is not declared" if by else f"no resource {name!r}"
        raise UnknownResource(f"{asks} {missing}", hint=at(near, place), resource=name)

    def order(self, names: Iterable[str], *, known: Iterable[str] = ()) -> tuple[ResourceSpec, ...]:
        """These and all that they require, each once, behind what it requires; behind `known` nothing is looked for.

        Raises:
            UnknownResource: one of them is not declared.
        """
        asked, ends = tuple(names), frozenset(known)
        if ends:
            return self._ordered(asked, ends)
        found = self._orders.get(asked)
        if found is None:
            found = self._orders[asked] = self._ordered(asked, ends)
        return found

    def _ordered(self, names: tuple[str, ...], ends: frozenset[str]) -> tuple[ResourceSpec, ...]:
        needs: dict[str, tuple[str, ...]] = {}
        ahead = [(name, "", "") for name in reversed(names)]
        while ahead:
            name, by, where = ahead.pop()
            if name in needs:
                continue
            spec = self.fetch(name, by=by, place=where)
            needs[name] = () if name in ends else spec.requires
            ahead += [(each, f"resource {name!r}", spec.place) for each in reversed(needs[name])]
        return tuple(self._specs[name] for name in TopologicalSorter(needs).static_order())

    def check(self, asks: Iterable[tuple[str, tuple[str, ...], str]] = ()) -> None:
        """Return if whatever is required is declared: by resources, and by these (who, names, place).

        Raises:
            UnknownResource: names who requires what, and the nearest name.
        """
        wants = [*((f"resource {each.name!r}", each.requires, each.place) for each in self), *asks]
        for who, names, where in wants:
            for name in names:
                self.fetch(name, by=who, place=where)


def twice(first: ResourceSpec, second: ResourceSpec) -> DuplicateResource:
    """The error that names both places."""
    return DuplicateResource(
        f"resource {second.name!r} is declared twice, first at {first.place}",
        hint=at("Rename one of them with name=…, or import the module under one name only.", second.place),
        resource=second.name,
        places=[first.place, second.place],
    )


def _refuse_cycle(specs: Mapping[str, ResourceSpec], last: ResourceSpec) -> None:
    sorter = TopologicalSorter({name: spec.requires for name, spec in specs.items()})
    try:
        sorter.prepare()
    except CycleError as error:
        ring = list(reversed(error.args[1]))[:-1]
        first = ring.index(last.name)
        path = [*ring[first:], *ring[:first], last.name]
        raise DependencyCycle(
            f"resources require each other: {' → '.join(path)}",
            hint=at("Take one of them out of the circle.", last.place),
            path=path,
        ) from None
