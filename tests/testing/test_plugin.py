"""The pytest plugin in a project of its own: pytest runs inside pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from flowstone_celery.testing.databases import Databases

_SHOP = """
from celery import Celery
from flowstone_celery import FlowStone

app = Celery("shop", broker="memory://")
fs = FlowStone(app)

@fs.asset
def orders(ctx):
    return [1, 2]

@fs.asset
def revenue(orders):
    return sum(orders)
"""
_CONFTEST = """
import pytest

@pytest.fixture
def flowstone_app():
    from shop import fs
    return fs
"""
_TESTS = """
from shop import fs, revenue

def test_plain_call_needs_nothing():
    assert revenue([5]) == 5

def test_revenue(fs_test):
    run = fs_test.run(revenue, partition=7)
    assert run.get() == 3
    fs_test.assert_materialized("orders", partition=7)

def test_each_test_has_a_database_of_its_own(fs_test):
    fs_test.refute_materialized(revenue, partition=7)

def test_broken(fs_test):
    from sqlalchemy import text
    fs_test.run(revenue)
    with fs_test.database.engine.begin() as connection:
        connection.execute(text("DELETE FROM flowstone.history"))

def test_afterwards_the_app_is_as_it_was():
    assert fs.mode == "celery"
"""


@pytest.fixture
def project(tmp_path: Path, flowstone_databases: Databases) -> subprocess.CompletedProcess[str]:
    """A user's project, tested on the servers of this session."""
    for name, text in {"shop.py": _SHOP, "conftest.py": _CONFTEST, "test_shop.py": _TESTS}.items():
        (tmp_path / name).write_text(text)
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "FLOWSTONE_TEST_DATABASE_URL": flowstone_databases.admin_url,
        "FLOWSTONE_TEST_BROKER_URL": flowstone_databases.broker_url,
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rA",
        "-p",
        "no:cacheprovider",
        "-W",
        "error",
        "--rootdir",
        str(tmp_path),
    ]
    return subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


def test_a_project_names_its_own_flowstone_and_the_doctor_has_the_last_word(
    project: subprocess.CompletedProcess[str],
) -> None:
    assert "5 passed, 1 error" in project.stdout, project.stdout + project.stderr
    assert "ERROR test_shop.py::test_broken" in project.stdout
    assert "the doctor found:" in project.stdout
    assert "but its history says nothing" in project.stdout
