"""Keys of dynamic definitions: rows, added and removed at run time, each change with its audit row. And how many slices stand at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

from flowstone_celery.db.statements import load
from flowstone_celery.record import audit

if TYPE_CHECKING:
    from flowstone_celery.db.database import Database, Row, Tx
    from flowstone_celery.db.statements import Statement

SQL = load("flowstone_celery.record", "partitions.sql")

T = TypeVar("T")

_BATCH = 10_000
_TOLD = 1_000


@dataclass(frozen=True, slots=True)
class Head:
    """One settled version, without its content."""

    id: int
    asset: str
    partition: str
    digest: str
    run_id: UUID | None = None
    """The run that made it, where that was asked."""


def now(database: Database) -> datetime:
    """The moment, by the database's clock."""
    row = database.first(SQL["now"])
    assert row is not None, "a clock always answers"
    moment: datetime = row["now"]
    return moment


# --- keys of dynamic definitions ----------------------------------------------------------------------------------------------------


def add(database: Database, definition: str, keys: Sequence[str], *, actor: str) -> list[str]:
    """The keys are there; answers those that were not before. Keys are texts as partitions are stored."""
    return _change(database, SQL["add_keys"], "partition.add", definition, keys, actor)


def remove(database: Database, definition: str, keys: Sequence[str], *, actor: str) -> list[str]:
    """The keys are gone, their values stay; answers those that were there."""
    return _change(database, SQL["remove_keys"], "partition.remove", definition, keys, actor)


def _change(
    database: Database, statement: Statement, action: str, definition: str, keys: Sequence[str], actor: str
) -> list[str]:
    def work(tx: Tx) -> list[str]:
        # In one order, so that two who change the same keys wait for each other and never in a circle.
        ordered = sorted(set(keys))
        changed = [
            row["key"]
            for part in _parts(ordered)
            for row in tx.rows(statement, definition=definition, keys=part, actor=actor)
        ]
        if changed:
            audit.add(
                tx,
                actor=actor,
                action=action,
                resource_type="partitions",
                resource_id=definition,
                details={"keys": changed[:_TOLD], "count": len(changed)},
            )
        return changed

    return database.attempt(work)


def keys(database: Database, definition: str, *, until: datetime | None = None) -> list[str]:
    """The keys that there are, or those of them that had been added at a moment."""
    return [row["key"] for row in database.once(SQL["keys"], definition=definition, until=until)]


# --- many slices at once ------------------------------------------------------------------------------------------------------------


def present(database: Database, slices: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Head]:
    """Which of these slices (asset, partition text) have a value, and which."""
    found: dict[tuple[str, str], Head] = {}
    for part in _parts(slices):
        names = {"assets": [asset for asset, _ in part], "partitions": [text for _, text in part]}
        for row in database.once(SQL["present"], **names):
            slice_ = (row["asset"], row["partition"])
            found[slice_] = Head(row["value_id"], *slice_, row["digest"], row["run_id"])
    return found


def heads(database: Database, ids: Sequence[int]) -> dict[int, Head]:
    """These versions without their content, by id; those that are gone are missing."""
    return {row["id"]: Head(**row) for part in _parts(ids) for row in database.once(SQL["heads"], ids=part)}


def standing(database: Database, asset: str) -> dict[str, Row]:
    """How each slice of the asset stands that was ever begun, by partition text: `value_id`, `made_at`, and of the newest attempt
    `status`, `phase`, `run_id`, `error`.
    """
    return {row["partition"]: row for row in database.once(SQL["standing"], asset=asset)}


def _parts(members: Iterable[T]) -> Iterator[list[T]]:
    """The members in parts of a size that one statement takes."""
    left = iter(members)
    while part := list(islice(left, _BATCH)):
        yield part
