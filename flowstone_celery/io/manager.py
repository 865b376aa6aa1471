"""The contract of an IO manager, and the shelf of managers by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable
from uuid import UUID

from flowstone_celery.errors import InvalidOption, did_you_mean


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one attempt may put its value: unique, never used twice."""

    asset: str
    partition: str
    run_id: UUID
    step_id: int
    fence: int

    @property
    def key(self) -> str:
        """A text that tells this attempt from all others."""
        return f"{self.step_id}-{self.fence}"


@dataclass(frozen=True, slots=True)
class Stored:
    """What a manager made of a value: the bytes themselves for the row, or a pointer to where they lie. One of the two."""

    size: int
    digest: str
    """SHA-256 of the content, in hex."""
    content: bytes | None = None
    pointer: Mapping[str, Any] | None = None


@runtime_checkable
class IOManager(Protocol):
    """Stores, loads and deletes the values of assets."""

    name: str

    def store(self, slot: Slot, value: object) -> Stored:
        """Put the value into the slot, or encode it for the row.

        Raises:
            InvalidValue: the value is of a type that this manager cannot store.
            StorageError: the place is away; the attempt is tried again.
        """

    def load(self, slot: Slot, stored: Stored) -> object:
        """The value back.

        Raises:
            ValueNotFound: nothing is there any more.
            CorruptRow: what is there is not what was stored.
        """

    def delete(self, slot: Slot, stored: Stored) -> None:
        """Remove what lies outside the row; nothing, if it lies in it."""


class Shelf:
    """IO managers by name."""

    def __init__(self, *managers: IOManager) -> None:
        """Begin with these managers."""
        self._managers = {manager.name: manager for manager in managers}

    def add(self, manager: IOManager) -> None:
        """Put a manager on the shelf under its own name; a later one of the same name takes its place."""
        self._managers[manager.name] = manager

    def __getitem__(self, name: str) -> IOManager:
        """The manager of this name.

        Raises:
            InvalidOption: there is none.
        """
        if name not in self._managers:
            raise InvalidOption(
                f"no IO manager is called {name!r}",
                hint=did_you_mean(name, self._managers) or f"there are: {', '.join(self._managers)}",
            )
        return self._managers[name]

    def __contains__(self, name: object) -> bool:
        """Whether a manager has this name."""
        return name in self._managers

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._managers)
