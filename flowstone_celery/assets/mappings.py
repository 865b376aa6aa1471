"""Which partitions of what an asset needs belong to one partition of its own.

Without a mapping the definitions decide (`default`): the same key where both have it, the windows that share time where they differ in
length, all partitions where the asset itself has none, the dimension that both have. Where they do not tell, the declaration has to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from flowstone_celery.assets import partition as partitions
from flowstone_celery.assets.beside import beside, lies_within, neighbors, order_doubt, share_keys
from flowstone_celery.assets.definitions import AsOf, Definition, wrong
from flowstone_celery.assets.lists import Static
from flowstone_celery.assets.multi import Multi
from flowstone_celery.assets.windows import TimeWindows
from flowstone_celery.errors import InvalidMapping, InvalidPartition

if TYPE_CHECKING:
    from flowstone_celery.assets.partition import PartitionKey

Keys = Sequence["PartitionKey"]
_NEAREST = 10_000


class PartitionMapping:
    """Answers the upstream partitions of one key. `down` and `up` are the definitions of the asset and of what it needs, None for free keys."""

    def doubt(self, down: Definition | None, up: Definition | None) -> str:
        """Why it cannot lead from the one definition to the other; the empty text if it can."""
        raise NotImplementedError

    def many(self, down: Definition | None, up: Definition | None) -> bool:  # noqa: ARG002 - most lead to one, whatever the definitions
        """Whether one key can have several partitions upstream: then the function takes a mapping of values by key."""
        return False

    def keys(self, key: PartitionKey, down: Definition | None, up: Definition | None, now: AsOf) -> Keys:
        """The upstream keys, in order.

        Raises:
            InvalidPartition: what it leads to is no partition of `up`.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Same(PartitionMapping):
    """The same key. It is the default between equal definitions, and between assets that have none."""

    def doubt(self, down: Definition | None, up: Definition | None) -> str:
        """As `PartitionMapping.doubt`."""
        if up is None or down is None or share_keys(down, up):
            return ""
        if isinstance(down, Static) and isinstance(up, Static):
            lost = next(key for key in down.members if not up.contains(key))
            return f"the key {lost!r:.80} is none of those upstream"
        return "they do not share their keys"

    def keys(self, key: PartitionKey, down: Definition | None, up: Definition | None, now: AsOf) -> Keys:  # noqa: ARG002 - one contract for all
        """As `PartitionMapping.keys`."""
        return [key if up is None else up.check(key)]


@dataclass(frozen=True, slots=True)
class Whole(PartitionMapping):
    """The one value of an upstream asset that has no partitions. It is the default there."""

    def doubt(self, down: Definition | None, up: Definition | None) -> str:  # noqa: ARG002 - one contract for all
        """As `PartitionMapping.doubt`."""
        return "" if up is None else "upstream has partitions"

    def keys(self, key: PartitionKey, down: Definition | None, up: Definition | None, now: AsOf) -> Keys:  # noqa: ARG002 - as above
        """As `PartitionMapping.keys`."""
        return [None]


@dataclass(frozen=True, slots=True)
class All(PartitionMapping):
    """All partitions that there are upstream when the run is planned. It is the default for an asset without partitions."""

    def doubt(self, down: Definition | None, up: Definition | None) -> str:  # noqa: ARG002 - one contract for all
        """As `PartitionMapping.doubt`."""
        return "upstream has no partitions to take all of" if up is None else ""

    def many(self, down: Definition | None, up: Definition | None) -> bool:  # noqa: ARG002 - as above
        """As `PartitionMapping.many`: always."""
        return True

    def keys(self, key: PartitionKey, down: Definition | None, up: Definition | None, now: AsOf) -> Keys:
        """As `PartitionMapping.keys`."""
        if down is None and key is not None:
            raise InvalidPartition(
                f"the partition is {key!r:.80}, but an asset that takes all partitions of {up} has none itself",
                hint="Leave the partition out, or declare partitions=… for the asset.",
            )
        return [] if up is None else list(up.keys(now))


@dataclass(frozen=True, slots=True)
class Previous(PartitionMapping):
    """The key that comes `n` before; at the beginning there is none, and the parameter takes None."""

    n: int = 1

    def __post_init__(self) -> None:
        """Check the number.

        Raises:
            InvalidOption: it is no whole number from 1 up.
        """
        _check_count("Previous", "n", self.n, 1)

    def doubt(self, down: Definition | None, up: Definition | None) -> str:
        """As `PartitionMapping.doubt`."""
        return order_doubt(down, up)

    def keys(self, key: PartitionKey, down: Definition | None, up: Definition | None, now: AsOf) -> Keys:  # noqa: ARG002 - one contract for all
        """As `PartitionMapping.keys`; empty at the beginning."""
        assert up is not None, "as `doubt` has made sure"
        here = beside(key, down, up)
        before = up.previous(here[0], self.n) if here else None
        return [] if before is None else [before]


@dataclass(frozen=True, slots=True)
class Window(PartitionMapping):
    """The upstream windows that share time with the asset's own, and so many `before` and `after` them.

    It is, with none before and after, the default between windows of different length. Lists count by their order. What would lie
    outside the definition upstream is left out.
    """

    before: int = 0
    after: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InvalidOption: one is no whole number from 0 up.
        """
        _check_count("Window", "before", self.before, 0)
        _check_count("Window", "after", self.after, 0)

    def doubt(self, down: Definition | None, up: Definition | None) -> str:
        """As `PartitionMapping.doubt`."""
        return order_doubt(down, up)

    def many(self, down: Definition | None, up: Definition | None) -> bool:
        """As `PartitionMapping.many`: unless each window lies within one upstream, and none is asked for beside it."""
        return bool(self.before or self.after) or not lies_within(down, up)

    def keys(self, key: PartitionKey, down: Definition | None, up: Definition | None, now: AsOf) -> Keys:  # noqa: ARG002 - one contract for all
        """As `PartitionMapping.keys`."""
        assert up is not None, "as `doubt` has made sure"
        here = beside(key, down, up)
        if not here:
            return []
        before = neighbors(up, here[0], self.before, 1)
        return [*reversed(before), *here, *neighbors(up, here[-1], self.after, -1)]


@dataclass(frozen=True, slots=True)
class Explicit(PartitionMapping):
    """What a function of the key answers: a key, or a list of keys; texts are read as the upstream definition reads them."""

    fn: Callable[[Any], Any]

    def __post_init__(self) -> None:
        """Check the function.

        Raises:
            InvalidOption: it cannot be called.
        """
        if not callable(self.fn):
            wrong(
                f"Explicit takes a function of the key, not {self.fn!r:.80}",
                "Write Explicit(lambda day: day.replace(day=1)).",
            )

    def doubt(self, down: Definition | None, up: Definition | None) -> str:  # noqa: ARG002 - the function is asked, key by key
        """As `PartitionMapping.doubt`: never, before it is asked."""
        return ""

    def keys(self, key: PartitionKey, down: Definition | None, up: Definition | None, now: AsOf) -> Keys:  # noqa: ARG002 - one contract for all
        """As `PartitionMapping.keys`: each key once, in the order of the answer."""
        answer = self.fn(key)
        listed = [answer] if _is_key(answer) else list(answer)
        read = [each if up is None else up.read(each) for each in listed]
        by_text = {partitions.encode(each): each for each in read}
        return Several(by_text.values()) if not _is_key(answer) else list(by_text.values())


class Several(tuple[Any, ...]):
    """Keys that were answered as a list: the function takes a mapping of values, however many they are."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Dimension(PartitionMapping):
    """By one dimension of the asset's own key: that part is mapped, by default as the definitions say."""

    name: str
    mapping: PartitionMapping | None = None

    def doubt(self, down: Definition | None, up: Definition | None) -> str:
        """As `PartitionMapping.doubt`."""
        if not isinstance(down, Multi) or self.name not in down.dimensions:
            return f"the asset has no dimension {self.name!r}"
        part = down.dimensions[self.name]
        return "" if up is None else _pair_doubt(self.mapping, part, up)

    def many(self, down: Definition | None, up: Definition | None) -> bool:
        """As `PartitionMapping.many`."""
        part, mapping = self._inner(down, up)
        return mapping.many(part, up)

    def keys(self, key: PartitionKey, down: Definition | None, up: Definition | None, now: AsOf) -> Keys:
        """As `PartitionMapping.keys`."""
        assert isinstance(down, Multi), "as `doubt` has made sure"
        part, mapping = self._inner(down, up)
        return mapping.keys(down.named(key)[self.name], part, up, now)

    def _inner(self, down: Definition | None, up: Definition | None) -> tuple[Definition, PartitionMapping]:
        assert isinstance(down, Multi), "as `doubt` has made sure"
        part = down.dimensions[self.name]
        return part, self.mapping or (Same() if up is None else default(part, up))


@dataclass(frozen=True, slots=True, init=False)
class Dimensions(PartitionMapping):
    """Dimension by dimension of the upstream key: as given here, else from the one of the same name, else all of it."""

    given: tuple[tuple[str, PartitionMapping], ...]

    def __init__(self, **mappings: PartitionMapping) -> None:
        """Take the mappings by the names of the upstream dimensions.

        Raises:
            InvalidOption: one is no mapping.
        """
        for name, each in mappings.items():
            if not isinstance(each, PartitionMapping):
                wrong(
                    f"dimension {name!r} is mapped by {each!r:.80}, no mapping",
                    "Write Dimensions(day=Previous()).",
                )
        object.__setattr__(self, "given", tuple(mappings.items()))

    def doubt(self, down: Definition | None, up: Definition | None) -> str:
        """As `PartitionMapping.doubt`."""
        if not isinstance(up, Multi) or down is None:
            return "the asset and what it needs must both have partitions, the latter several dimensions"
        unknown = [name for name, _ in self.given if name not in up.dimensions]
        if unknown:
            return f"upstream has no dimension {unknown[0]!r}"
        try:
            inner = self._inner(down, up)
        except InvalidMapping as error:
            return error.message
        doubts = {name: mapping.doubt(part, up.dimensions[name]) for name, part, mapping in inner}
        return next((f"dimension {name!r}: {doubt}" for name, doubt in doubts.items() if doubt), "")

    def many(self, down: Definition | None, up: Definition | None) -> bool:
        """As `PartitionMapping.many`."""
        assert isinstance(up, Multi), "as `doubt` has made sure"
        return any(mapping.many(part, up.dimensions[name]) for name, part, mapping in self._inner(down, up))

    def keys(self, key: PartitionKey, down: Definition | None, up: Definition | None, now: AsOf) -> Keys:
        """As `PartitionMapping.keys`: the products of what each dimension leads to."""
        assert isinstance(up, Multi), "as `doubt` has made sure"
        named = down.named(key) if isinstance(down, Multi) else {}
        found = [
            mapping.keys(named.get(name, key), part, up.dimensions[name], now)
            for name, part, mapping in self._inner(down, up)
        ]
        return list(product(*found))

    def _inner(
        self, down: Definition | None, up: Multi
    ) -> list[tuple[str, Definition | None, PartitionMapping]]:
        """For each upstream dimension: from which definition, by which mapping."""
        given, own = dict(self.given), down.dimensions if isinstance(down, Multi) else {}
        return [
            (
                name,
                own.get(name, down),
                given.get(name) or (default(own[name], each) if name in own else All()),
            )
            for name, each in up.pairs
        ]


# --- the default --------------------------------------------------------------------------------------------------------------------


def default(down: Definition | None, up: Definition | None) -> PartitionMapping:
    """What the two definitions say by themselves.

    Raises:
        InvalidMapping: they do not tell; names both.
    """
    found = _default(down, up)
    if found is None:
        raise InvalidMapping(
            f"which partitions of {up} belong to one of {down} is not told by the two",
            hint='Say it: mappings={"name": Window(…), Explicit(…), All() or Dimension(…)}.',
        )
    return found


def _default(down: Definition | None, up: Definition | None) -> PartitionMapping | None:
    if up is None:
        return Same() if down is None else Whole()
    if down is None:
        return All()
    if share_keys(down, up):
        return Same()
    if isinstance(down, TimeWindows) and isinstance(up, TimeWindows):
        return Window() if None not in (down.rank, up.rank) and down.rank != up.rank else None
    if isinstance(down, Multi):
        return _from_multi(down, up)
    return _to_multi(down, up) if isinstance(up, Multi) else None


def _from_multi(down: Multi, up: Definition) -> PartitionMapping | None:
    if isinstance(up, Multi):
        shared = [name for name in up.dimensions if name in down.dimensions]
        return (
            Dimensions()
            if shared and all(_default(down.dimensions[n], up.dimensions[n]) for n in shared)
            else None
        )
    name = _only({name: _default(each, up) for name, each in down.pairs})
    return Dimension(name) if name else None


def _to_multi(down: Definition, up: Multi) -> PartitionMapping | None:
    found = {name: _default(down, each) for name, each in up.pairs}
    name = _only(found)
    mapping = found.get(name)
    return Dimensions(**{name: mapping}) if mapping else None


def _only(found: dict[str, PartitionMapping | None]) -> str:
    """The one dimension whose keys are shared; else the one that can be mapped at all; else none."""
    same = [name for name, mapping in found.items() if isinstance(mapping, Same)]
    able = [name for name, mapping in found.items() if mapping is not None]
    return same[0] if len(same) == 1 else able[0] if len(able) == 1 else ""


def _pair_doubt(mapping: PartitionMapping | None, down: Definition, up: Definition) -> str:
    if mapping is not None:
        return mapping.doubt(down, up)
    return (
        ""
        if _default(down, up)
        else f"which partitions of {up} belong to one of {down} is not told by the two"
    )


# --- answers and numbers ----------------------------------------------------------------------------------------------


def _is_key(answer: object) -> bool:
    return isinstance(answer, tuple | str) or not isinstance(answer, Iterable)


def _check_count(subject: str, name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _NEAREST:
        wrong(
            f"{name} of {subject} is a whole number from {least} to {_NEAREST}, not {value!r:.80}",
            f"Write {subject}({name}=2).",
        )
