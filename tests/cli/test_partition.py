"""`flowstone partition`: how partitions stand, the grid, and keys that are added and removed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.text import Text

from flowstone_celery.cli.grid import Block, Line, cells, drawn, facts, merged

if TYPE_CHECKING:
    from .conftest import Cli

SHOP = """
from celery import Celery
from flowstone_celery import Context, Daily, Dynamic, FlowStone, Multi, Static

app = Celery("shop")
fs = FlowStone(app)
DAY = Daily("2026-01-01", "2026-01-11")


@fs.asset(partitions=DAY)
def orders(ctx: Context) -> int:
    if ctx.partition.day == 3:
        raise ValueError("closed")
    return ctx.partition.day


@fs.asset(partitions=DAY)
def revenue(orders):
    return orders * 2


@fs.asset(partitions=Multi(region=Static(["eu", "us"]), day=DAY))
def stock(ctx: Context, orders):
    return [ctx.partitions["region"], orders]


@fs.asset(partitions=Dynamic("customers"))
def profile(ctx: Context):
    return ctx.partition


@fs.asset
def free(ctx: Context):
    return str(ctx.partition)
"""


@pytest.fixture
def shop(project: Path, cli: Cli) -> Cli:
    (project / "shop.py").write_text(SHOP)
    return cli


def rows(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def make(cli: Cli, *partitions: str, name: str = "revenue", code: int = 0) -> None:
    for partition in partitions:
        result = cli("asset", "run", name, "-p", partition, "--inline")
        assert result.exit_code == code, result.output


def test_partitions_are_listed_with_their_state_and_narrowed_by_it(shop: Cli) -> None:
    make(shop, "2026-01-02", "2026-01-05")
    make(shop, "2026-01-03", name="orders", code=1)
    everything = rows(shop("partition", "ls", "orders", "--json").stdout)
    assert [row["key"] for row in everything] == [f"2026-01-{day:02}" for day in range(1, 11)]
    assert [row["state"] for row in everything[:5]] == ["missing", "success", "failed", "missing", "success"]
    failed = rows(shop("partition", "ls", "orders", "--failed", "--json").stdout)
    assert [(row["key"], row["partition"], row["version"]) for row in failed] == [
        ("2026-01-03", "d:2026-01-03", None)
    ]
    missing = rows(
        shop(
            "partition", "ls", "revenue", "--missing", "--from", "2026-01-02", "--to", "2026-01-06", "--json"
        ).stdout
    )
    assert [row["key"][-2:] for row in missing] == ["03", "04", "06"]
    assert [
        row["key"][-2:] for row in rows(shop("partition", "ls", "orders", "--limit", "2", "--json").stdout)
    ] == ["09", "10"]
    assert "failed" in shop("partition", "ls", "orders").stdout


def test_stale_partitions_are_listed_by_themselves(shop: Cli) -> None:
    make(shop, "2026-01-02", "2026-01-05")
    assert shop("asset", "invalidate", "orders", "-p", "2026-01-02", "--yes").exit_code == 0
    stale = rows(shop("partition", "ls", "revenue", "--stale", "--json").stdout)
    assert [(row["key"], row["state"], row["freshness"]) for row in stale] == [
        ("2026-01-02", "success", "stale")
    ]
    assert "orders [2026-01-02] is stale" in shop("asset", "why", "revenue", "-p", "2026-01-02").stdout


def test_assets_are_listed_with_how_many_of_their_partitions_are_made(shop: Cli) -> None:
    make(shop, "2026-01-02")
    found = {row["asset"]: row for row in rows(shop("partition", "ls", "--json").stdout)}
    assert found.keys() == {"shop.orders", "shop.revenue", "shop.stock", "shop.profile"}
    assert (
        found["shop.revenue"]["keys"],
        found["shop.revenue"]["made"],
        found["shop.revenue"]["missing"],
    ) == (10, 1, 9)
    assert found["shop.revenue"]["partitions"] == "Daily('2026-01-01', end='2026-01-11')"
    assert "shop.stock" in shop("partition", "ls").stdout


def test_free_keys_are_listed_as_far_as_they_were_made(shop: Cli) -> None:
    make(shop, "2026-11-20", "x", name="free")
    assert [row["key"] for row in rows(shop("partition", "ls", "free", "--json").stdout)] == [
        "d:2026-11-20",
        "x",
    ]
    refused = shop("partition", "ls", "free", "--from", "x")
    assert refused.exit_code == 2
    assert "declares no partitions" in refused.stderr


def test_a_partition_that_is_none_is_refused_with_its_range(shop: Cli) -> None:
    refused = shop("asset", "run", "orders", "-p", "2026-02-01", "--inline")
    assert refused.exit_code != 0
    assert "it lies behind the last The last is 2026-01-10." in " ".join(refused.stderr.split())
    assert shop("partition", "ls", "orders", "--from", "soon").exit_code != 0


def test_dynamic_keys_are_added_and_removed_and_nothing_is_removed_unasked(shop: Cli) -> None:
    added = shop("partition", "add", "customers", "acme", "a:b|c", "--stdin", input="zoo\nacme\n")
    assert added.stdout == "customers: 3 keys ('a:b|c', 'acme', 'zoo') added\n"
    assert shop("partition", "add", "customers", "acme").stdout == "customers: 0 keys added; 1 as before\n"
    make(shop, "a:b|c", name="profile")
    assert [(row["key"], row["state"]) for row in rows(shop("partition", "ls", "profile", "--json").stdout)] == [
        ("a:b|c", "success"), ("acme", "missing"), ("zoo", "missing"),
    ]  # fmt: skip
    assert (
        shop("partition", "rm", "customers", "acme", "nobody", "--dry-run", "--json").stdout
        == '{"definition":"customers","would_be_removed":["acme"],"unchanged":1}\n'
    )
    assert shop("partition", "rm", "customers", "acme").exit_code == 2
    assert shop("partition", "rm", "customers", "acme", input="n\n").exit_code == 2
    assert (
        shop("partition", "rm", "customers", "acme", "--yes").stdout == "customers: 1 key ('acme') removed\n"
    )
    assert [row["key"] for row in rows(shop("partition", "ls", "profile", "--json").stdout)] == [
        "a:b|c",
        "zoo",
    ]
    wrong = shop("partition", "add", "customer", "x")
    assert "Did you mean 'customers'?" in wrong.stderr
    assert shop("partition", "add", "customers").exit_code == 2


def test_the_grid_shows_each_partition_by_shape(shop: Cli) -> None:
    make(shop, "2026-01-02", "2026-01-04")
    make(shop, "2026-01-03", name="orders", code=1)
    lines = shop("partition", "grid", "orders", "revenue").stdout.splitlines()
    assert lines[0] == "Daily('2026-01-01', end='2026-01-11')"
    assert lines[1].split() == ["2026-01-01"]
    assert lines[2] == "shop.orders   ·✔✘✔······"
    assert lines[3] == "shop.revenue  ·✔·✔······"
    assert lines[-1] == "· 15 missing   ✔ 4 success   ✘ 1 failed"
    make(shop, "us|2026-01-02", name="stock")
    several = shop("partition", "grid", "stock").stdout.splitlines()
    assert [line for line in several if line.startswith("shop.stock")] == [
        "shop.stock eu  ··········",
        "shop.stock us  ·✔········",
    ]
    (eu, us) = rows(shop("partition", "grid", "stock", "--json").stdout)
    assert us["cells"][1] == {
        "first": "2026-01-02",
        "last": "2026-01-02",
        "state": "success",
        "states": {"success": 1},
    }
    assert eu["asset"] == "shop.stock eu"


# --- drawing --------------------------------------------------------------------------------------------------------------------------


def plain(lines: Any) -> list[str]:
    return [line.plain if isinstance(line, Text) else line for line in lines]


def block(count: int, *states: str) -> Block:
    keys = [f"k{number:05}" for number in range(count)]
    return Block(
        "keys", keys, [Line("shop.a", [states[number * len(states) // count] for number in range(count)])]
    )


@pytest.mark.parametrize("count", [1, 7, 70, 71, 1_000, 100_000])
def test_a_grid_of_any_size_fits_its_width(count: int) -> None:
    found = block(count, "success", "missing")
    columns = cells(found, 80)
    assert [place for column in columns for place in column] == list(range(count))
    assert all(len(line) <= 80 for line in plain(drawn(found, 80))[2:])
    (line,) = facts(found, 80)
    assert sum(sum(cell["states"].values()) for cell in line["cells"]) == count


def test_a_column_of_several_shows_the_worst_of_them() -> None:
    assert merged(["success", "failed", "running"]) == "failed"
    assert merged(["success", "running", "missing"]) == "running"
    assert merged(["success", "missing"]) == "partial"
    assert merged(["success", "skipped"]) == "success"
    assert merged(["missing", "missing"]) == "missing"
    assert "each column stands for 14 partitions" in plain(drawn(block(1_000, "success"), 80))[-1]


def test_a_definition_without_a_key_yet_says_so() -> None:
    assert "no partition yet" in plain(drawn(Block("keys", [], [Line("shop.a", [])]), 80))[-1]


def test_an_asset_with_partitions_is_shown_and_told_of_without_naming_one(shop: Cli) -> None:
    make(shop, "2026-01-02", name="orders")
    shown = shop("asset", "show", "orders").stdout
    assert "Daily('2026-01-01', end='2026-01-11')" in shown
    assert "flowstone partition ls orders" in shown
    assert [row["asset"] for row in rows(shop("asset", "status", "--json").stdout)] == ["shop.free"]
    of_day = rows(shop("asset", "status", "-p", "2026-01-02", "--json").stdout)
    assert {row["asset"]: row["state"] for row in of_day} == {
        "shop.free": "missing", "shop.orders": "success", "shop.profile": "missing", "shop.revenue": "missing",
    }  # fmt: skip
    refused = shop("asset", "get", "orders")
    assert refused.exit_code != 0
    assert "none was named" in refused.stderr
