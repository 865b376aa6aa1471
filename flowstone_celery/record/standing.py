"""How the values of many slices stand, in few statements; and the mark of those that somebody called wrong (FS-21)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flowstone_celery.db.statements import load

if TYPE_CHECKING:
    from flowstone_celery.db.database import Database

SQL = load("flowstone_celery.record", "standing.sql")

_CHUNK = 10_000

Key = tuple[str, str]
"""Asset and partition text."""


@dataclass(frozen=True, slots=True)
class Current:
    """The value that a slice has now, without its content."""

    value_id: int
    digest: str
    recipe: str | None
    code_version: str | None
    code_digest: str | None
    settled_at: datetime
    run_id: UUID
    invalidated_at: datetime | None
    invalidation: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Used:
    """A version that went into another."""

    version: int
    digest: str | None
    """None: the version is no longer kept."""


def currents(database: Database, keys: Iterable[Key]) -> dict[Key, Current]:
    """The values that these slices have now; those without one are missing."""
    found: dict[Key, Current] = {}
    for chunk in _chunks(keys):
        assets, partitions = [key[0] for key in chunk], [key[1] for key in chunk]
        for row in database.once(SQL["currents"], assets=assets, partitions=partitions):
            key = (row.pop("asset"), row.pop("partition"))
            found[key] = Current(**row)
    return found


def consumed_by(database: Database, versions: Iterable[int]) -> dict[int, dict[Key, Used]]:
    """What each of these versions was made from."""
    found: dict[int, dict[Key, Used]] = {}
    for chunk in _chunks(versions):
        found.update((version, {}) for version in chunk)
        for row in database.once(SQL["consumed_by"], versions=chunk):
            found[row["value_id"]][row["asset"], row["partition"]] = Used(row["version"], row["digest"])
    return found


def slices_of(database: Database, assets: Collection[str]) -> list[Key]:
    """The slices of these assets that have a value, by name and partition text."""
    rows = database.once(SQL["slices_of"], assets=list(assets))
    return [(row["asset"], row["partition"]) for row in rows]


def reach(database: Database, asset: str, partition: str, *, cascade: bool) -> list[Key]:
    """What `invalidate` would mark."""
    rows = database.once(SQL["reach"], asset=asset, partition=partition, cascade=cascade)
    return [(row["asset"], row["partition"]) for row in rows]


def invalidate(
    database: Database,
    asset: str,
    partition: str,
    *,
    cascade: bool,
    reason: str,
    actor: str,
    actor_type: str = "user",
) -> list[Key]:
    """The current value is marked, with `cascade` every current one that was made from it too; answers what was marked now."""
    rows = database.once(
        SQL["invalidate"],
        asset=asset,
        partition=partition,
        cascade=cascade,
        reason=reason,
        actor=actor,
        actor_type=actor_type,
    )
    return [(row["asset"], row["partition"]) for row in rows]


def _chunks(members: Iterable[Any]) -> Iterator[Sequence[Any]]:
    ahead = iter(members)
    while chunk := list(islice(ahead, _CHUNK)):
        yield chunk
