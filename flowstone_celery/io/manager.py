"""The contract of an IO manager, and the shelf of managers by name."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable
from uuid import UUID

from flowstone_celery.errors import FlowStoneError, InvalidOption, InvalidValue, StorageError, did_you_mean
from flowstone_celery.telemetry import emit


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


@contextmanager
def watched(act: Literal["load", "store"], manager: str, slot: Slot) -> Iterator[dict[str, Any]]:
    """One `load` or `store` of a manager: told when it begins and when it ends; an error says whose it is.

    Raises:
        InvalidValue: the manager's `store` raised TypeError or ValueError: it cannot store such a value.
        StorageError: the manager raised something else of its own; the attempt is tried again.
        FlowStoneError: what the manager says in our words goes on as it is.
    """
    about = {"io": manager, "asset": slot.asset, "partition": slot.partition}
    begun, told = time.monotonic(), dict[str, Any]()
    emit("flowstone.io.load.start" if act == "load" else "flowstone.io.store.start", **about)
    try:
        yield told
    except Exception as error:
        told["error"] = repr(error)
        if isinstance(error, FlowStoneError):
            raise
        raise _own_error(act, manager, slot, error) from error
    finally:
        told["duration_ms"] = (time.monotonic() - begun) * 1000
        emit("flowstone.io.load.stop" if act == "load" else "flowstone.io.store.stop", **about, **told)


def kept(manager: str, slot: Slot, stored: Stored) -> Stored:
    """What a manager's `store` answered, if a row can hold it: told here, while it is still an attempt that can fail.

    Raises:
        StorageError: it is no `Stored`, or says neither or both of content and pointer, or other than bytes, text and numbers.
    """
    fit = (
        isinstance(stored, Stored)
        and (stored.content is None) is not (stored.pointer is None)
        and isinstance(stored.content, bytes | None)
        and isinstance(stored.pointer, Mapping | None)
        and isinstance(stored.digest, str)
        and isinstance(stored.size, int)
        and stored.size >= 0
    )
    if fit:
        return stored
    raise StorageError(
        f"IO manager {manager!r} answered {stored!r:.200} for asset {slot.asset!r}, which no row can hold",
        hint="store answers Stored(size, digest, content=bytes) or Stored(size, digest, pointer={plain JSON})",
        io=manager,
        asset=slot.asset,
        partition=slot.partition,
    )


def _own_error(act: str, manager: str, slot: Slot, error: Exception) -> FlowStoneError:
    unfit = act == "store" and isinstance(error, TypeError | ValueError)
    return (InvalidValue if unfit else StorageError)(
        f"IO manager {manager!r} could not {act} the value of asset {slot.asset!r}, partition {slot.partition!r}: {error!r:.500}",
        hint="return what this manager stores, or name another: io=…"
        if unfit
        else "see whether its place can be reached; the attempt is tried again while there are retries",
        io=manager,
        asset=slot.asset,
        partition=slot.partition,
    )


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
