"""Lineage: which exact versions a value was made from, and what was made from it (FS-43, FS-44)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowstone_celery.record.values import SQL

if TYPE_CHECKING:
    from flowstone_celery.db.database import Database
    from flowstone_celery.record.values import AssetValue

_DEEPEST = 100


@dataclass(frozen=True, slots=True)
class Link:
    """One version at a distance from another: 1 for what was consumed directly."""

    asset: str
    partition: str
    value_id: int
    depth: int
    pruned: bool = False
    """Whether retention has removed this version: its name and id are all that is known of it."""


def upstream(database: Database, value: AssetValue, *, depth: int = _DEEPEST) -> list[Link]:
    """What the value was made from, nearest first."""
    return [Link(**row) for row in database.once(SQL["upstream"], value=value.id, depth=depth)]


def downstream(database: Database, value: AssetValue, *, depth: int = _DEEPEST) -> list[Link]:
    """What was made from the value, nearest first."""
    rows = database.once(
        SQL["downstream"], asset=value.asset, partition=value.partition, value=value.id, depth=depth
    )
    return [Link(**row) for row in rows]
