"""Fixtures of our own tests; the public ones come from `flowstone_celery.testing.plugin`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from flowstone_celery.db.database import Database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowstone_celery.config import Settings


@pytest.fixture
def database(flowstone_settings: Settings) -> Iterator[Database]:
    """A fresh, migrated database."""
    assert flowstone_settings.database_url
    found = Database(flowstone_settings.database_url)
    yield found
    found.dispose()
