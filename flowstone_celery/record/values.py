"""Values of assets: settled with their lineage, read by version."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson

from flowstone_celery.db.statements import load

if TYPE_CHECKING:
    from flowstone_celery.db.database import Database, Row, Tx

SQL = load("flowstone_celery.record", "values.sql")


@dataclass(frozen=True, slots=True)
class Upstream:
    """One version that a value was made from."""

    asset: str
    partition: str
    value_id: int


@dataclass(frozen=True, slots=True)
class NewValue:
    """A value that is about to be settled, with everything that is recorded of it."""

    asset: str
    partition: str
    run_id: UUID
    step_id: int
    fence: int
    io: str
    size: int
    digest: str
    content: bytes | None
    pointer: Mapping[str, Any] | None
    metadata: Mapping[str, Any] | None = None
    code_version: str | None = None
    code_digest: str | None = None
    recipe: str | None = None
    """What it is made of, as one text: code and content of the inputs."""
    upstream: Sequence[Upstream] = ()


@dataclass(frozen=True, slots=True)
class AssetValue:
    """A settled version of an asset's value."""

    id: int
    asset: str
    partition: str
    run_id: UUID
    step_id: int
    fence: int
    io: str
    size: int
    digest: str
    content: bytes | None
    pointer: Mapping[str, Any] | None
    metadata: Mapping[str, Any] | None
    code_version: str | None
    settled_at: datetime
    recipe: str | None = None

    @staticmethod
    def of(row: Row) -> AssetValue:
        """Read a row of `asset_values`."""
        return AssetValue(**{name: row[name] for name in AssetValue.__dataclass_fields__})


class RecentValues:
    """Versions that this process settled lately, so that a chain need not read back what it just wrote.

    A version never changes, and only the stored bytes are kept: each reader decodes an object of its own.
    """

    _MOST = 128
    _LARGEST = 65_536

    def __init__(self) -> None:
        """Begin empty."""
        self._values: OrderedDict[int, AssetValue] = OrderedDict()

    def keep(self, version: int, value: NewValue) -> None:
        """Remember a version that is committed, if it is small."""
        if value.content is None or len(value.content) > self._LARGEST:
            return
        shared = {
            name: getattr(value, name) for name in AssetValue.__dataclass_fields__ if hasattr(value, name)
        }
        self._values[version] = AssetValue(**shared, id=version, settled_at=datetime.now(UTC))
        while len(self._values) > self._MOST:
            self._values.popitem(last=False)

    def find(self, versions: Sequence[int]) -> dict[int, AssetValue]:
        """Those of these versions that are remembered."""
        return {version: found for version in versions if (found := self._values.get(version)) is not None}


def settle(tx: Tx, value: NewValue, *, prepared: int | None = None) -> int | None:
    """The value is settled, traced and current, in the caller's transaction; answers its version.

    None: the prepared value is gone or was settled already.
    """
    if prepared is None:
        return settle_later(tx, value)()
    names = ("asset", "partition", "run", "step")
    keys = {name: own for name, own in _columns(value).items() if name in names}
    row = tx.row(SQL["settle_prepared"], value=prepared, **keys, **_traced(value))
    return row["id"] if row else None


def settle_later(tx: Tx, value: NewValue) -> Callable[[], int]:
    """As `settle`, asked for with what else is on its way; call the answer for the version.

    The output of the step that is settled in the same transaction gets the version as `value` by itself.
    """
    asked = tx.later(SQL["settle_value"], **_columns(value), **_traced(value))

    def version() -> int:
        number: int = asked()[0]["id"]
        return number

    return version


def _traced(value: NewValue) -> dict[str, object]:
    return {
        "up_assets": [each.asset for each in value.upstream],
        "up_partitions": [each.partition for each in value.upstream],
        "up_values": [each.value_id for each in value.upstream],
    }


def prepare(database: Database, value: NewValue) -> int:
    """A large value is written out of sight, in a transaction of its own; `settle` makes it visible."""
    row = database.first(SQL["prepare"], **_columns(value))
    assert row is not None, "an attempt settles once, after it prepared"
    prepared: int = row["id"]
    return prepared


def _columns(value: NewValue) -> dict[str, object]:
    return {
        "asset": value.asset,
        "partition": value.partition,
        "run": value.run_id,
        "step": value.step_id,
        "fence": value.fence,
        "io": value.io,
        "content": value.content,
        "pointer": _json(value.pointer),
        "size": value.size,
        "digest": value.digest,
        "metadata": _json(value.metadata),
        "code_version": value.code_version,
        "code_digest": value.code_digest,
        "recipe": value.recipe,
    }


def _json(value: object) -> str | None:
    return None if value is None else orjson.dumps(value).decode()


def by_ids(database: Database, ids: Sequence[int]) -> dict[int, AssetValue]:
    """These versions, by id; those that are gone are missing."""
    return (
        {row["id"]: AssetValue.of(row) for row in database.once(SQL["by_ids"], ids=list(ids))} if ids else {}
    )


def current(database: Database, asset: str, partition: str) -> AssetValue | None:
    """The newest settled version, or None."""
    row = database.first(SQL["current"], asset=asset, partition=partition)
    return AssetValue.of(row) if row else None


def current_of_many(database: Database, assets: Sequence[str], partition: str) -> dict[str, tuple[int, UUID]]:
    """Which of these assets have a value for the partition: version and the run that made it, by asset."""
    rows = database.once(SQL["current_of_many"], assets=list(assets), partition=partition)
    return {row["asset"]: (row["value_id"], row["run_id"]) for row in rows}


def of_run(database: Database, asset: str, partition: str, run_id: UUID) -> AssetValue | None:
    """The version that this run answers with for the slice, whoever made it; None if there is none."""
    row = database.first(SQL["of_run"], asset=asset, partition=partition, run=run_id)
    return AssetValue.of(row) if row else None


def versions(database: Database, asset: str, partition: str, *, limit: int = 20) -> list[Row]:
    """The newest versions, without their contents."""
    return database.once(SQL["versions"], asset=asset, partition=partition, limit=limit)


def summary(database: Database) -> dict[str, Row]:
    """For each asset: `partitions` with a value, and when the `newest` was made."""
    return {row["asset"]: row for row in database.once(SQL["summary"])}
