"""All declared assets: each name once, found by its short or its qualified name."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from flowstone_celery.assets.graph import AssetGraph
from flowstone_celery.assets.options import at
from flowstone_celery.assets.resource_book import ResourceBook
from flowstone_celery.assets.scatter_spec import check_complete
from flowstone_celery.assets.slices import Link
from flowstone_celery.core.barrier_model import item_task
from flowstone_celery.errors import DuplicateAsset, UnknownAsset, WrongState, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flowstone_celery.assets.asset import AssetSpec


def tasks_of(spec: AssetSpec) -> tuple[str, ...]:
    """The names of an asset's Celery tasks: its own, and, if it scatters, that of its items."""
    name = spec.qualified
    return (name,) if spec.scatter is None else (name, item_task(name))


class Catalog:
    """The assets of one application."""

    def __init__(self) -> None:
        """Begin empty."""
        self.resources = ResourceBook()
        self._specs: dict[str, AssetSpec] = {}
        self._by_short: dict[str, list[str]] = {}
        self._graph: AssetGraph | None = None
        self._links: dict[str, tuple[Link, ...]] = {}
        self._awaiting: tuple[str, ...] | None = None
        self._tasks: tuple[str, ...] | None = None

    def add(self, spec: AssetSpec) -> AssetSpec:
        """The declaration, from now on found by its names. Its dependencies may be declared later.

        Raises:
            DuplicateAsset: its qualified name is taken; names both places.
        """
        taken = self._specs.get(spec.qualified)
        if taken is not None:
            raise DuplicateAsset(
                f"asset {spec.qualified!r} is declared twice, first at {taken.place or 'a place without source'}",
                hint=at("Rename one of them, or import the module under one name only.", spec.place),
                asset=spec.qualified,
                places=[taken.place, spec.place],
            )
        self._specs[spec.qualified] = spec
        self._by_short.setdefault(spec.name, []).append(spec.qualified)
        self._graph, self._awaiting, self._tasks, self._links = None, None, None, {}
        return spec

    def replace(self, was: AssetSpec, spec: AssetSpec) -> None:
        """The declaration stands for the one that was; nothing, if that one is not here."""
        if self._specs.get(was.qualified) is was:
            self._specs[spec.qualified] = spec
            self._graph, self._awaiting, self._tasks, self._links = None, None, None, {}

    def fetch(self, name: str) -> AssetSpec:
        """The asset of this qualified name, or the only one of this short name.

        Raises:
            UnknownAsset: there is none, or a short name has several.
        """
        if name in self._specs:
            return self._specs[name]
        found = sorted(self._by_short.get(name, ()))
        if len(found) == 1:
            return self._specs[found[0]]
        if found:
            raise UnknownAsset(
                f"asset name {name!r} stands for several assets",
                hint=f"Use the qualified name: {' or '.join(map(repr, found))}.",
                asset=name,
                candidates=found,
            )
        near = did_you_mean(name, [*self._by_short, *self._specs])
        hint = near or "Is the module that declares it imported?"
        raise UnknownAsset(f"no asset {name!r} is declared", hint=hint, asset=name)

    def resolve(self, spec: AssetSpec, name: str) -> str:
        """The qualified name of a dependency that the asset declares.

        Raises:
            UnknownDependency: there is no such asset.
        """
        return self.graph().resolve(spec, name)

    def list(self) -> tuple[AssetSpec, ...]:
        """All assets, by qualified name."""
        return tuple(self._specs[name] for name in sorted(self._specs))

    @property
    def awaiting(self) -> tuple[str, ...]:
        """The qualified names of those whose steps call an `async def`; told once until the next is declared.

        Not those that scatter: their items await, they themselves do not.
        """
        found = self._awaiting
        if found is None:
            found = self._awaiting = tuple(
                name for name, each in self._specs.items() if each.is_async and each.scatter is None
            )
        return found

    @property
    def tasks(self) -> tuple[str, ...]:
        """The Celery tasks of all assets: their names, and for those that scatter the task of their items."""
        found = self._tasks
        if found is None:
            found = self._tasks = tuple(task for each in self._specs.values() for task in tasks_of(each))
        return found

    def startable(self, task: str) -> AssetSpec:
        """The asset of this task, for which a run may be started.

        Raises:
            WrongState: it is the task of items.
            UnknownAsset: there is none.
        """
        if task not in self._specs and task in self.tasks:
            raise WrongState(
                f"{task!r} does the items of a scatter, and starts nothing by itself",
                hint="send the asset's own task: it scatters, and its items follow",
            )
        return self.fetch(task)

    @property
    def names(self) -> tuple[str, ...]:
        """All qualified names."""
        return tuple(self._specs)

    def digest(self) -> str:
        """Twelve digits that are equal where all assets and their code are: a declared `code_version` stands for the code."""
        lines = (f"{each.qualified} {each.code_version or each.code_digest}\n" for each in self.list())
        return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]

    def graph(self) -> AssetGraph:
        """The graph of all assets as they are now; built once until the next is declared."""
        graph = self._graph
        if graph is None:
            graph = self._graph = AssetGraph(self._specs.values())
        return graph

    def links(self, name: str) -> tuple[Link, ...]:
        """What the asset needs, each with the mapping between its partitions and theirs; told once until the next is declared.

        Raises:
            UnknownDependency: an asset needs one that is not declared.
            InvalidMapping: the partitions of the two do not fit together.
            DeclarationError: it scatters, and nothing tells its items.
        """
        found = self._links.get(name)
        if found is None:
            spec = self.fetch(name)
            check_complete(spec)
            found = self._links[name] = tuple(
                Link.of(spec, each, self._specs[self.resolve(spec, each.name)]) for each in spec.dependencies
            )
        return found

    def check(self) -> None:
        """Return if all declarations fit together.

        Raises:
            UnknownDependency: an asset needs one that is not declared.
            DependencyCycle: assets need each other.
            InvalidMapping: the partitions of an asset and of what it needs do not fit together.
            UnknownResource: an asset or a resource requires one that is not declared.
        """
        self.graph().check()
        for name in self._specs:
            self.links(name)
        self.check_resources(self._specs)

    def check_resources(self, names: Iterable[str]) -> None:
        """Return if what these assets require is declared.

        Raises:
            UnknownResource: it is not; names asset and resource, and the nearest name.
        """
        specs = map(self.fetch, names)
        self.resources.check((f"asset {each.qualified!r}", each.requires, each.place) for each in specs)
