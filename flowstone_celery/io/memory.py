"""Values as plain objects of this process (FS-34): the smallest manager, for unit tests and inline work."""

from __future__ import annotations

import os

from flowstone_celery.errors import ValueNotFound
from flowstone_celery.io.manager import Slot, Stored


class MemoryIO:
    """Keeps any object, unchanged, while this process lives."""

    name = "memory"

    def __init__(self) -> None:
        """Begin empty."""
        self._values: dict[str, object] = {}

    def store(self, slot: Slot, value: object) -> Stored:
        """The object is kept as it is."""
        self._values[slot.key] = value
        return Stored(size=0, digest="", pointer={"pid": os.getpid(), "key": slot.key})

    def load(self, slot: Slot, stored: Stored) -> object:
        """The same object.

        Raises:
            ValueNotFound: another process made it, or it was deleted.
        """
        pointer = stored.pointer or {}
        if pointer.get("pid") != os.getpid() or slot.key not in self._values:
            raise ValueNotFound(
                f"the value of {slot.asset!r} (partition {slot.partition!r}) lies in the memory of process {pointer.get('pid')}",
                hint='io="memory" serves one process; use io="database" for work that several processes share',
                asset=slot.asset,
                partition=slot.partition,
            )
        return self._values[slot.key]

    def delete(self, slot: Slot, stored: Stored) -> None:  # noqa: ARG002 - the contract's shape
        """The object is forgotten."""
        self._values.pop(slot.key, None)
