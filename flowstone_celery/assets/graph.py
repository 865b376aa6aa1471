"""Who needs whom: every edge is resolved once, then order, closures, cycles and drawings are read from it.

Names are qualified throughout. Nothing here recurses, and every answer is the same whatever order the assets were declared in.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

from flowstone_celery.assets.options import at
from flowstone_celery.errors import (
    DependencyCycle,
    InvalidOption,
    UnknownAsset,
    UnknownDependency,
    did_you_mean,
)

if TYPE_CHECKING:
    from flowstone_celery.assets.asset import AssetSpec


_SHOWN = 20


class GraphFormat(StrEnum):
    """What a graph can be drawn as."""

    ASCII = "ascii"
    MERMAID = "mermaid"
    DOT = "dot"


class AssetGraph:
    """The dependencies between these assets; a snapshot, which does not see assets that are declared later."""

    def __init__(self, specs: Iterable[AssetSpec]) -> None:
        """Take the assets; nothing is resolved or checked until it is asked for."""
        self._specs = {spec.qualified: spec for spec in sorted(specs, key=lambda spec: spec.qualified)}

    def check(self) -> None:
        """Return if every dependency exists and none leads back to where it began.

        Raises:
            UnknownDependency: an asset needs one that is not declared; the facts `asset` and `dependency` name both.
            DependencyCycle: assets need each other; the fact `path` names them in order, the first again at the end.
        """
        _ = self.order

    def resolve(self, spec: AssetSpec, name: str) -> str:
        """The qualified name of a dependency: a short name is looked for in the asset's own namespace, a dotted one as it is.

        Raises:
            UnknownDependency: there is no such asset.
        """
        qualified = name if "." in name else f"{spec.namespace}.{name}"
        if qualified not in self._specs:
            raise UnknownDependency(
                f"asset {spec.name!r} needs {name!r}, which is not defined",
                hint=at(self._nearest(spec, name), spec.place),
                asset=spec.qualified,
                dependency=name,
            )
        return qualified

    @cached_property
    def order(self) -> tuple[str, ...]:
        """All assets, each behind everything that it needs; among equals by name."""
        waiting = {name: len(needs) for name, needs in self._needs.items()}
        ready = [name for name, count in waiting.items() if count == 0]
        order: list[str] = []
        while ready:
            name = heapq.heappop(ready)
            order.append(name)
            for user in self._users[name]:
                waiting[user] -= 1
                if waiting[user] == 0:
                    heapq.heappush(ready, user)
        if len(order) < len(self._specs):
            self._refuse_cycle(set(self._specs).difference(order))
        return tuple(order)

    def needs(self, name: str) -> tuple[str, ...]:
        """What the asset needs itself, in the order of its declaration."""
        return tuple(self._needs[self._known(name)])

    def needed_by(self, name: str) -> tuple[str, ...]:
        """The assets that need this one themselves, by name."""
        return tuple(self._users[self._known(name)])

    def upstream(self, name: str) -> frozenset[str]:
        """Everything that the asset needs, directly or through others; without itself."""
        return _reached([self._known(name)], self._needs) - {name}

    def downstream(self, name: str) -> frozenset[str]:
        """Everything that needs the asset, directly or through others; without itself."""
        return _reached([self._known(name)], self._users) - {name}

    def plan(self, *targets: str) -> tuple[str, ...]:
        """The targets and everything that they need, each behind what it needs."""
        wanted = _reached([self._known(name) for name in targets], self._needs)
        return tuple(name for name in self.order if name in wanted)

    def render(self, format: str = GraphFormat.ASCII, *, target: str | None = None) -> str:  # noqa: A002 - the word of CLI and API
        """A drawing of all assets, or of one target and what it needs: `ascii`, `mermaid` or `dot`.

        Raises:
            InvalidOption: the format is another one.
            UnknownAsset: the target is not declared.
        """
        if format not in _DRAWERS:
            hint = did_you_mean(str(format), _DRAWERS) or f"Use one of {', '.join(_DRAWERS)}."
            raise InvalidOption(f"a graph cannot be drawn as {format!r}", hint=hint, option="format")
        names = self.order if target is None else self.plan(target)
        return _DRAWERS[format](names, self._edges(names))

    # --- edges ----------------------------------------------------------------------------------------------------------------

    @cached_property
    def _needs(self) -> dict[str, dict[str, bool]]:
        """For each asset what it needs, and whether that may be missing. Its own earlier partitions are no edge."""
        return {
            name: {
                need: each.optional
                for each in spec.dependencies
                if (need := self.resolve(spec, each.name)) != name or each.mapping is None
            }
            for name, spec in self._specs.items()
        }

    @cached_property
    def _users(self) -> dict[str, list[str]]:
        users: dict[str, list[str]] = {name: [] for name in self._specs}
        for name, needs in self._needs.items():
            for need in needs:
                users[need].append(name)
        return users

    def _edges(self, names: Iterable[str]) -> dict[str, dict[str, bool]]:
        return {name: self._needs[name] for name in names}

    # --- refusals -------------------------------------------------------------------------------------------------------------

    def _known(self, name: str) -> str:
        if name not in self._specs:
            raise UnknownAsset(
                f"no asset {name!r} is declared", hint=did_you_mean(name, self._specs), asset=name
            )
        return name

    def _nearest(self, spec: AssetSpec, name: str) -> str:
        elsewhere = [other for other, each in self._specs.items() if each.name == name.rpartition(".")[2]]
        if elsewhere:
            return f"Did you mean {' or '.join(map(repr, elsewhere))}? List it: deps=[{elsewhere[0]!r}]."
        others = [each for each in self._specs.values() if each is not spec]
        names = [each.name for each in others if each.namespace == spec.namespace]
        near = did_you_mean(name, [*names, *(each.qualified for each in others)])
        return near or "Declare it, or give the parameter a default."

    def _refuse_cycle(self, left: set[str]) -> None:
        """Follow needs inside what could not be ordered until a name comes again; there the circle closes."""
        seen: dict[str, int] = {}
        name = min(left)
        while name not in seen:
            seen[name] = len(seen)
            name = min(left.intersection(self._needs[name]))
        circle = list(seen)[seen[name] :]
        first = circle.index(min(circle))
        path = [*circle[first:], *circle[:first], circle[first]]
        raise DependencyCycle(
            f"assets need each other in a circle: {_shown(path)}",
            hint=at("Take one of these dependencies away.", self._specs[path[0]].place),
            path=path,
        )


def _reached(starts: Iterable[str], edges: Mapping[str, Iterable[str]]) -> frozenset[str]:
    """The starts and all that is reached from them."""
    reached = set(starts)
    open_ = list(reached)
    while open_:
        new = set(edges[open_.pop()]) - reached
        reached |= new
        open_.extend(new)
    return frozenset(reached)


def _shown(path: list[str]) -> str:
    """The path as arrows; of a very long one its ends, the whole stands in the facts."""
    shown = path if len(path) <= _SHOWN else [*path[: _SHOWN // 2], "...", *path[-_SHOWN // 2 :]]
    return " -> ".join(shown)


# --- drawings -------------------------------------------------------------------------------------------------------------------

_Edges = Mapping[str, Mapping[str, bool]]


def _ascii(names: Iterable[str], edges: _Edges) -> str:
    """One line for each asset, behind what it needs; a question mark stands behind what may be missing."""
    return "\n".join(
        f"{_printable(name)} <- {', '.join(_printable(need) + '?' * optional for need, optional in edges[name].items())}"
        if edges[name]
        else _printable(name)
        for name in names
    )


def _mermaid(names: Iterable[str], edges: _Edges) -> str:
    ids = {name: f"n{number}" for number, name in enumerate(names)}
    nodes = [f'  {ids[name]}["{_mermaid_text(name)}"]' for name in ids]
    arrows = [
        f"  {ids[need]} {'-.->' if optional else '-->'} {ids[name]}"
        for name in ids
        for need, optional in edges[name].items()
    ]
    return "\n".join(["flowchart LR", *nodes, *arrows])


def _dot(names: Iterable[str], edges: _Edges) -> str:
    listed = list(names)
    nodes = [f"  {_dot_text(name)};" for name in listed]
    arrows = [
        f"  {_dot_text(need)} -> {_dot_text(name)}{' [style=dashed]' if optional else ''};"
        for name in listed
        for need, optional in edges[name].items()
    ]
    return "\n".join(["digraph assets {", "  rankdir=LR;", *nodes, *arrows, "}"])


def _printable(name: str) -> str:
    return "".join(char if char.isprintable() else f"\\x{ord(char):x}" for char in name)


def _mermaid_text(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_. -]", lambda found: f"#{ord(found[0])};", name)


def _dot_text(name: str) -> str:
    escaped = _printable(name).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


_DRAWERS: dict[str, Callable[[Iterable[str], _Edges], str]] = {
    GraphFormat.ASCII: _ascii,
    GraphFormat.MERMAID: _mermaid,
    GraphFormat.DOT: _dot,
}
