"""A project of its own for each test, on the session's servers, and the command line run in this process."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from flowstone_celery.assets import declared
from flowstone_celery.cli.main import group

if TYPE_CHECKING:
    from flowstone_celery.config import Settings

Cli = Callable[..., Result]

SHOP = '''
from celery import Celery
from flowstone_celery import Context, FlowStone

app = Celery("shop")
fs = FlowStone(app)


@fs.asset(tags=["raw"], owner="ann")
def orders(ctx: Context) -> list:
    """What was sold."""
    return [3, 4]


@fs.asset(description="The sum.")
def revenue(orders):
    return sum(orders)


@fs.asset
def report(revenue) -> str:
    return f"sold for {revenue}"


@fs.asset
def broken(orders):
    raise ValueError("the till is locked")


@fs.asset
def after(broken):
    return broken
'''


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flowstone_settings: Settings) -> Iterator[Path]:
    """A folder with shop.py, in which commands are run; the environment names the test's database and broker."""
    (tmp_path / "shop.py").write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("FLOWSTONE_DATABASE_URL", flowstone_settings.database_url or "")
    monkeypatch.setenv("FLOWSTONE_REDIS_URL", flowstone_settings.redis_url or "")
    monkeypatch.setenv("FLOWSTONE_APP", "shop")
    # A command is a process of its own; here it shares one with tests whose FlowStones may still be about.
    monkeypatch.setattr(declared, "_houses", weakref.WeakSet())
    before = set(sys.modules)
    yield tmp_path
    house = getattr(sys.modules.get("shop"), "fs", None)
    if house is not None:
        house.close()
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def cli(project: Path) -> Cli:
    """Run `flowstone …` in the project; errors that escape are raised here."""

    def run(*args: str, **options: Any) -> Result:
        return CliRunner().invoke(group, list(args), prog_name="flowstone", catch_exceptions=False, **options)

    return run
