"""The contract of IO managers, held against ours and against one that a user might write."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from flowstone_celery.errors import CorruptRow, InvalidValue, ValueNotFound
from flowstone_celery.io.database import DatabaseIO
from flowstone_celery.io.manager import IOManager, Shelf, Slot, Stored
from flowstone_celery.io.memory import MemoryIO


class FilesIO:
    """JSON files in a folder: the example of docs/how-to/write-an-io-manager.md."""

    name = "files"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def store(self, slot: Slot, value: object) -> Stored:
        """Written under a name of the attempt's own, never over another."""
        try:
            content = json.dumps(value).encode()
        except TypeError as error:
            raise InvalidValue(f"{slot.asset!r} returned what JSON cannot hold: {error}") from error
        path = self.folder / f"{slot.asset}-{slot.key}.json"
        path.write_bytes(content)
        return Stored(len(content), hashlib.sha256(content).hexdigest(), pointer={"file": path.name})

    def load(self, slot: Slot, stored: Stored) -> object:
        """Read back, if it is what was written."""
        path = self.folder / (stored.pointer or {})["file"]
        if not path.exists():
            raise ValueNotFound(f"{path.name} is gone")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != stored.digest:
            raise CorruptRow(f"{path.name} is not what was stored")
        return json.loads(content)

    def delete(self, slot: Slot, stored: Stored) -> None:
        """Gone, and gone again does no harm."""
        (self.folder / (stored.pointer or {})["file"]).unlink(missing_ok=True)


@pytest.fixture(params=["database", "memory", "files"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> IOManager:
    """Each of them in turn."""
    made: dict[str, IOManager] = {
        "database": DatabaseIO(10_000_000),
        "memory": MemoryIO(),
        "files": FilesIO(tmp_path),
    }
    return made[request.param]


def slot(fence: int = 1, step: int = 7) -> Slot:
    return Slot("shop.orders", "d:2026-11-20", uuid4(), step, fence)


VALUES: list[Any] = [
    None,
    0,
    "",
    [],
    {},
    True,
    "é\u2028\U0001f600",
    1.5,
    [1, [2, {"a": None}]],
    "x" * 100_000,
]


def test_it_keeps_the_contract_and_has_a_name(manager: IOManager) -> None:
    assert isinstance(manager, IOManager)
    assert Shelf(manager)[manager.name] is manager


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_what_is_stored_is_loaded(manager: IOManager, value: object) -> None:
    stored = manager.store(slot(), value)
    assert manager.load(slot(), stored) == value
    assert stored.size >= 0
    assert (stored.content is None) != (stored.pointer is None), "in the row or elsewhere, one of the two"


def test_two_attempts_do_not_write_over_each_other(manager: IOManager) -> None:
    first = manager.store(slot(1), "first")
    second = manager.store(slot(2), "second")
    other = manager.store(slot(1, step=8), "other step")
    assert manager.load(slot(1), first) == "first"
    assert manager.load(slot(2), second) == "second"
    assert manager.load(slot(1, step=8), other) == "other step"


def test_delete_takes_only_its_own_and_may_be_repeated(manager: IOManager) -> None:
    first, second = manager.store(slot(1), "first"), manager.store(slot(2), "second")
    manager.delete(slot(1), first)
    manager.delete(slot(1), first)
    assert manager.load(slot(2), second) == "second"
    if first.content is None:
        with pytest.raises(ValueNotFound):
            manager.load(slot(1), first)


def test_what_it_cannot_store_is_refused_or_kept_whole(manager: IOManager) -> None:
    value = object()
    if manager.name == "memory":
        assert manager.load(slot(), manager.store(slot(), value)) is value
    else:
        with pytest.raises(InvalidValue, match="object"):
            manager.store(slot(), value)


def test_memory_of_another_process_is_told(tmp_path: Path) -> None:
    made = MemoryIO().store(slot(), 1)
    pointer = {**(made.pointer or {}), "pid": 1}
    with pytest.raises(ValueNotFound, match='io="database"'):
        MemoryIO().load(slot(), Stored(0, "", pointer=pointer))
