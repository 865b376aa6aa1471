"""Fixtures of our own tests; the public ones come from `flowstone_celery.testing.plugin`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from corelab import Lab, laboratory

from flowstone_celery.db.database import Database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowstone_celery.config import Settings
    from flowstone_celery.testing.databases import Databases


@pytest.fixture
def database(flowstone_settings: Settings) -> Iterator[Database]:
    """A fresh, migrated database."""
    assert flowstone_settings.database_url
    found = Database(flowstone_settings.database_url)
    yield found
    found.dispose()


@pytest.fixture(scope="module")
def module_lab(flowstone_databases: Databases) -> Iterator[Lab]:
    """One laboratory for a module's tests."""
    with laboratory(flowstone_databases) as found:
        yield found


@pytest.fixture
def lab(module_lab: Lab) -> Iterator[Lab]:
    """The module's laboratory, empty; whatever the test did, the doctor finds nothing afterwards."""
    module_lab.wipe()
    yield module_lab
    assert module_lab.findings() == []
