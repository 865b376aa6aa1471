"""`flowstone init`: a small project that runs, with its test."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from flowstone_celery.cli.verbs import CONFLICT, Verb, tell_error
from flowstone_celery.errors import WrongState

_SHOP: Final = '''"""A shop: orders come in, revenue and a report are made from them."""

from __future__ import annotations

from celery import Celery

from flowstone_celery import FlowStone

app = Celery("shop")
fs = FlowStone(app)


@fs.asset
def orders() -> list[dict[str, object]]:
    """What was sold; replace this by reading your own source."""
    return [
        {"item": "tea", "amount": 3, "price": 4},
        {"item": "cake", "amount": 2, "price": 7},
    ]


@fs.asset(retries=2)
def revenue(orders: list[dict[str, int]]) -> int:
    """The sum over all orders. A dependency is named by its parameter."""
    return sum(order["amount"] * order["price"] for order in orders)


@fs.asset
def report(orders: list[dict[str, object]], revenue: int) -> str:
    """One line for people."""
    return f"{len(orders)} orders, {revenue} in all"
'''

_TEST: Final = '''"""Tests on a real database, which starts and stops by itself; a plain call needs no service at all."""

from __future__ import annotations

import pytest

import shop


@pytest.fixture
def flowstone_app():
    return shop.fs


def test_revenue_is_amount_times_price():
    assert shop.revenue([{"amount": 3, "price": 4}]) == 12


def test_report_is_made_with_all_it_needs(fs_test):
    run = fs_test.run("report")
    assert run.get() == "2 orders, 26 in all"
    assert fs_test.fs.get("revenue") == 26
'''

_PROJECT: Final = """[project]
name = "shop"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["flowstone-celery[embedded,flower]"]

[project.optional-dependencies]
dev = ["pytest>=8.3"]

[tool.setuptools]
py-modules = ["shop"]

[tool.pytest.ini_options]
testpaths = ["."]
pythonpath = ["."]
"""

FILES: Final = {"shop.py": _SHOP, "test_shop.py": _TEST, "pyproject.toml": _PROJECT}
"""What `init` writes, by name."""


@click.command(cls=Verb)
@click.argument("folder", default=".", type=click.Path(file_okay=False, path_type=Path), metavar="[DIR]")
@click.pass_context
def init(ctx: click.Context, /, *, folder: Path) -> None:
    """Write a small project into DIR: shop.py, its test, a pyproject.toml. Nothing is overwritten."""
    taken = [name for name in FILES if (folder / name).exists()]
    if taken:
        tell_error(
            WrongState(
                f"{folder} has {' and '.join(taken)} already, and nothing is overwritten",
                hint="Choose another folder: flowstone init DIR.",
            )
        )
        ctx.exit(CONFLICT)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
        click.echo(f"  {folder / name}")
    go = "" if folder.resolve() == Path.cwd() else f"  cd {folder}\n"
    click.echo(f"Next:\n{go}  flowstone -A shop dev                 (servers, worker, beat, Flower)")
    click.echo("  flowstone -A shop asset run report    (in a second terminal)\n  pytest")
