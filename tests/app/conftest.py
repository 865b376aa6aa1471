"""Fixtures for what users see of FlowStone."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest
from onedb import flowstone_settings, module_settings  # noqa: F401 - fixtures: one database for a module, wiped

from flowstone_celery import FlowStone
from flowstone_celery.assets import declared

if TYPE_CHECKING:
    from flowstone_celery.testing.kit import TestKit


@pytest.fixture
def fs(fs_test: TestKit) -> FlowStone:
    """An inline FlowStone named `test`, on a database of this test's own; the doctor looks at the end."""
    return fs_test.fs


@pytest.fixture
def own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipelines and FlowStones as in a process that has just begun."""
    gc.collect()
    monkeypatch.setattr(declared, "_pipelines", [])
    monkeypatch.setattr(declared, "_houses", type(declared._houses)())
