"""Why a value is not fresh: one small class for each reason, each with its sentence."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, TypeAlias
from uuid import UUID

from flowstone_celery.assets import partition as partitions
from flowstone_celery.assets.slices import Slice

if TYPE_CHECKING:
    from collections.abc import Iterator


class Freshness(StrEnum):
    """How a slice's value stands to its code and its inputs."""

    FRESH = "fresh"
    STALE = "stale"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class NeverMade:
    """The slice has no value."""

    kind: ClassVar[str] = "never_made"

    @property
    def sentence(self) -> str:
        """What it says."""
        return "it was never made"


@dataclass(frozen=True, slots=True)
class Invalidated:
    """Somebody called the value wrong."""

    by: str
    at: datetime
    reason: str
    together_with: Slice | None = None
    """The slice that was named, where this one was reached from it."""
    kind: ClassVar[str] = "invalidated"

    @property
    def sentence(self) -> str:
        """What it says."""
        with_ = f" together with {shown(self.together_with)}" if self.together_with else ""
        moment = self.at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"{self.by} invalidated it{with_} at {moment}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True)
class CodeChanged:
    """It was made by other code."""

    was: str
    now: str
    kind: ClassVar[str] = "code_changed"

    @property
    def sentence(self) -> str:
        """What it says."""
        return f"its code changed from version {self.was} to {self.now}"


@dataclass(frozen=True, slots=True)
class InputChanged:
    """The content of an input is another than the one that was used."""

    input: Slice
    used: int | None
    """The version that was used; None: the slice was not among the inputs."""
    stands: int | None
    """The version that stands now; None: the slice is no longer among the inputs."""
    kind: ClassVar[str] = "input_changed"

    @property
    def sentence(self) -> str:
        """What it says."""
        name = shown(self.input)
        if self.used is None:
            return f"{name} is an input now (version {self.stands}) and was none when it was made"
        if self.stands is None:
            return f"{name}, of which version {self.used} was used, is no input any more"
        return f"{name} changed: version {self.used} was used, version {self.stands} stands now"


@dataclass(frozen=True, slots=True)
class DependencyAdded:
    """It was made without a dependency that is declared now."""

    dependency: str
    kind: ClassVar[str] = "dependency_added"

    @property
    def sentence(self) -> str:
        """What it says."""
        return f"the dependency {self.dependency} was added"


@dataclass(frozen=True, slots=True)
class DependencyRemoved:
    """It was made from a dependency that is declared no more."""

    dependency: str
    kind: ClassVar[str] = "dependency_removed"

    @property
    def sentence(self) -> str:
        """What it says."""
        return f"the dependency {self.dependency} was removed"


@dataclass(frozen=True, slots=True)
class InputMissing:
    """An input that it needs has no value."""

    input: Slice
    cause: Standing = field(repr=False, compare=False)
    kind: ClassVar[str] = "input_missing"

    @property
    def sentence(self) -> str:
        """What it says."""
        return f"its input {shown(self.input)} has no value"


@dataclass(frozen=True, slots=True)
class InputStale:
    """An input is stale itself."""

    input: Slice
    cause: Standing = field(repr=False, compare=False)
    kind: ClassVar[str] = "input_stale"

    @property
    def path(self) -> tuple[Slice, ...]:
        """From the input up to the slice where it began."""
        return tuple(each.slice for each in self.cause.way())

    @property
    def root(self) -> Reason:
        """What happened there."""
        *_, last = self.cause.way()
        return last.reasons[0]

    @property
    def sentence(self) -> str:
        """What it says."""
        *way, root = self.path
        if not way:
            return f"its input {shown(root)} is stale: {self.root.sentence}"
        between = [*map(shown, way[1 : _SHOWN + 1]), *(["…"] if len(way) > _SHOWN + 1 else [])]
        through = f" (by way of {', '.join(between)})" if between else ""
        return (
            f"its input {shown(self.input)} is stale, because of {shown(root)}{through}: {self.root.sentence}"
        )


Reason: TypeAlias = (
    NeverMade
    | Invalidated
    | CodeChanged
    | InputChanged
    | DependencyAdded
    | DependencyRemoved
    | InputMissing
    | InputStale
)

_SHOWN = 5


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """How one slice stands: whether its value is fresh, and if not, why."""

    slice: Slice
    state: Freshness
    reasons: tuple[Reason, ...] = ()
    """Its own first, those that come from stale inputs behind them; none if it is fresh."""
    version: int | None = None
    """The version of the value that it has."""
    made_at: datetime | None = None
    run_id: UUID | None = None
    """The run that made it."""

    @property
    def asset(self) -> str:
        """The qualified name."""
        return self.slice.asset

    @property
    def partition(self) -> str:
        """The text of the partition's key."""
        return self.slice.partition

    @property
    def is_fresh(self) -> bool:
        """Whether nothing speaks against its value."""
        return self.state is Freshness.FRESH

    @property
    def sentence(self) -> str:
        """One line for people."""
        why = "; ".join(reason.sentence for reason in self.reasons)
        return f"{shown(self.slice)} is {self.state}" + (f": {why}" if why else "")

    def way(self) -> Iterator[Standing]:
        """Itself, and the stale inputs one behind the other up to where it began."""
        here = self
        yield here
        while isinstance(first := here.reasons[0] if here.reasons else None, InputStale):
            here = first.cause
            yield here


def shown(slice_: Slice) -> str:
    """The slice for people: the asset, its partition in brackets."""
    if not slice_.partition:
        return slice_.asset
    key = partitions.decode(slice_.partition)
    return f"{slice_.asset} [{key.isoformat() if isinstance(key, date) else key}]"
