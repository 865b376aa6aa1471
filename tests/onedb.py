"""One database for all tests of a module, emptied before each: fixtures to import where a database for each test is too slow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from flowstone_celery.db.database import Database
from flowstone_celery.db.statements import Statement
from flowstone_celery.testing.clock import VirtualClock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowstone_celery.config import Settings
    from flowstone_celery.testing.databases import Databases

# Children first. DELETE, not TRUNCATE: on small tables it is ten times quicker.
_TABLES = [
    "lineage",
    "asset_current",
    "asset_values",
    "audit",
    "history",
    "step_edges",
    "steps",
    "runs",
    "workers",
    "nodes",
    "partition_keys",
    "backfills",
    "barriers",
    "barrier_pages",
    "barrier_keys",
    "item_claims",
    "items",
]


def sql(database: Database, text: str, **values: object) -> list[dict[str, object]]:
    """Rows of a statement of the test's own."""
    return database.once(Statement("tests", "own", frozenset(), text), **values)


@pytest.fixture(scope="module")
def module_settings(flowstone_databases: Databases) -> Iterator[Settings]:
    """A migrated database for this module."""
    with flowstone_databases.fresh() as settings:
        yield settings


@pytest.fixture
def flowstone_settings(module_settings: Settings) -> Settings:
    """The module's database, empty and at the real time."""
    assert module_settings.database_url
    database = Database(module_settings.database_url)
    try:
        VirtualClock(database).reset()
        for table in _TABLES:
            sql(database, f"DELETE FROM flowstone.{table}")
    finally:
        database.dispose()
    return module_settings
