"""pytest fixtures (entry point `flowstone`): servers for the session, a migrated database for each test, and `fs_test`.

A project says which FlowStone its tests are about by a fixture of its own:

    @pytest.fixture
    def flowstone_app():
        from shop import fs
        return fs

Heavy imports happen inside the fixtures: a test run that uses none of them pays nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowstone_celery.app import FlowStone
    from flowstone_celery.testing.databases import Databases
    from flowstone_celery.testing.kit import TestKit


@pytest.fixture(scope="session")
def flowstone_databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """Real servers for this session: FLOWSTONE_TEST_DATABASE_URL and FLOWSTONE_TEST_BROKER_URL, else embedded ones."""
    from flowstone_celery.testing.databases import serving

    with serving(
        tmp_path_factory.mktemp("flowstone") / ".flowstone",
        database_url=os.environ.get("FLOWSTONE_TEST_DATABASE_URL"),
        broker_url=_of_this_process(os.environ.get("FLOWSTONE_TEST_BROKER_URL")),
    ) as databases:
        yield databases


def _of_this_process(broker_url: str | None) -> str | None:
    """With pytest-xdist each process counts down to a Redis database of its own: they would take each other's messages."""
    server, slash, number = (broker_url or "").rpartition("/")
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    if not server.startswith("redis") or not number.isdigit() or not worker.isdigit():
        return broker_url
    return f"{server}{slash}{max(0, int(number) - int(worker))}"


@pytest.fixture
def flowstone_settings(flowstone_databases: Databases) -> Iterator[Any]:
    """Settings that point at a fresh, migrated database of this test and at the session's broker."""
    with flowstone_databases.fresh() as settings:
        yield settings


@pytest.fixture
def flowstone_app() -> FlowStone:
    """The FlowStone under test; override it in your conftest.py. By default one of its own, inline, with no assets yet."""
    from flowstone_celery import FlowStone

    return FlowStone(namespace="test", mode="inline")


@pytest.fixture
def fs_test(flowstone_app: FlowStone, flowstone_settings: Any) -> Iterator[TestKit]:
    """The test kit: start, drain, move the clock, crash; at the end the doctor must find nothing."""
    from flowstone_celery.testing.kit import TestKit

    kit = TestKit(flowstone_app, flowstone_settings)
    try:
        yield kit
        kit.assert_healthy()
    finally:
        kit.close()
