"""Reading assets: values, and how their slices stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flowstone_celery.assets.slices import Slice
from flowstone_celery.core.statements import SQL
from flowstone_celery.errors import ValueNotFound
from flowstone_celery.io.manager import Slot, Stored
from flowstone_celery.record import partitions as ledger
from flowstone_celery.record import values
from flowstone_celery.states import materialization

if TYPE_CHECKING:
    from flowstone_celery.db.database import Database
    from flowstone_celery.io.manager import Shelf
    from flowstone_celery.record.values import AssetValue

MISSING = "missing"


@dataclass(frozen=True, slots=True)
class AssetStatus:
    """How an asset's slice stands."""

    asset: str
    partition: str
    state: str
    """pending, running, success, failed, skipped, cancelled, … (FS-40), or `missing`."""
    version: int | None
    """Of the value that it has now, whatever the newest attempt came to."""
    materialized_at: datetime | None
    run_id: UUID | None
    """The run of the newest attempt."""
    error: Mapping[str, Any] | None


class AssetReader:
    """Reads by qualified name and partition text."""

    def __init__(self, database: Database, shelf: Shelf) -> None:
        """Look in this database, and load by the managers of this shelf."""
        self._database = database
        self._shelf = shelf

    def get(self, asset: str, partition: str) -> Any:
        """The current value.

        Raises:
            ValueNotFound: there is none.
        """
        value = values.current(self._database, asset, partition)
        if value is None:
            raise value_missing(asset, partition)
        return self._load(value)

    def of_run(self, asset: str, partition: str, run_id: UUID) -> Any:
        """The value that this run made.

        Raises:
            ValueNotFound: it made none.
        """
        value = values.of_run(self._database, asset, partition, run_id)
        if value is None:
            raise value_missing(asset, partition, run_id)
        return self._load(value)

    def present(self, assets: Iterable[str], partition: str) -> dict[str, UUID]:
        """Which of these have a value, with the run that made it."""
        found = values.current_of_many(self._database, list(assets), partition)
        return {name: run_id for name, (_, run_id) in found.items()}

    def standing(self, slices: Iterable[Slice]) -> dict[Slice, UUID]:
        """Which of these slices have a value, and the run that made it."""
        found = ledger.present(self._database, slices)
        return {Slice(*each): head.run_id for each, head in found.items() if head.run_id is not None}

    def status(self, asset: str, partition: str) -> AssetStatus:
        """How the slice stands: its newest attempt, and the value it has."""
        step = self._database.first(SQL["latest_of_name"], name=asset, partition=partition)
        value = values.current(self._database, asset, partition)
        state = (
            materialization(step["status"], step["phase"]).value if step else "success" if value else MISSING
        )
        return AssetStatus(
            asset,
            partition,
            state,
            version=value.id if value else None,
            materialized_at=value.settled_at if value else None,
            run_id=step["run_id"] if step else value.run_id if value else None,
            error=step["error"] if step else None,
        )

    def _load(self, value: AssetValue) -> Any:
        slot = Slot(value.asset, value.partition, value.run_id, value.step_id, value.fence)
        return self._shelf[value.io].load(
            slot, Stored(value.size, value.digest, value.content, value.pointer)
        )


def value_missing(asset: str, partition: str, run_id: UUID | None = None) -> ValueNotFound:
    """The error for a value that is not there."""
    of_run = f" made by run {run_id}" if run_id else ""
    return ValueNotFound(
        f"{asset!r} has no value for partition {partition!r}{of_run}",
        hint=f"make it: flowstone asset run {asset}" + (f" --partition {partition}" if partition else ""),
        asset=asset,
        partition=partition,
    )
