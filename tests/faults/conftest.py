"""Fixtures of the fault tests: servers for each module, a cluster for each test, its logs with each failure."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import pytest
from faults.cluster import Cluster, Measured, cluster
from faults.figures import Noted, noting, print_table

from flowstone_celery.testing.databases import Databases, serving


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, Any]:
    report = yield
    found = getattr(item, "funcargs", {}).get("fleet")
    if report.failed and isinstance(found, Cluster):
        report.sections.append(("logs of the cluster", found.story()))
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    print_table(terminalreporter)


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Noted:
    """Notes a figure of a goal; the table stands at the end of the run."""
    return noting(request.node)


@pytest.fixture(scope="module")
def servers_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """Servers that a module's tests may stop and start."""
    with serving(tmp_path_factory.mktemp("faults") / ".flowstone") as found:
        yield found


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Notes a figure; `pytest -rP` shows it."""
    return lambda name, figure: print(f"measured: {request.node.name}: {name} = {figure}")


@pytest.fixture
def fleet(servers_of_module: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster without workers."""
    with cluster(servers_of_module, tmp_path_factory.mktemp("fleet")) as found:
        yield found
