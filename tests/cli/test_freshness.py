"""`flowstone asset why` and `invalidate`, and how the other verbs tell what is stale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Cli


@pytest.fixture
def made(cli: Cli) -> Cli:
    """The report and all it stands on are there."""
    assert cli("asset", "run", "report", "--inline").exit_code == 0
    return cli


def test_why_says_of_a_fresh_value_that_it_is_fresh(made: Cli) -> None:
    result = made("asset", "why", "report")
    assert (result.exit_code, result.stdout.split(" ", 1)[1].strip()) == (0, "shop.report is fresh")


def test_why_draws_the_way_to_where_it_began(made: Cli) -> None:
    made("asset", "invalidate", "orders", "--yes", "--reason", "the export was cut off")
    lines = [line.strip() for line in made("asset", "why", "report").stdout.splitlines()]
    assert [line.split("shop.")[1] for line in lines[:3]] == [
        "report is stale",
        "revenue is stale",
        "orders is stale",
    ]
    assert lines[3].endswith(": the export was cut off")
    assert "invalidated it at" in lines[3]


def test_why_as_json_names_every_stale_slice_behind_it(made: Cli) -> None:
    made("asset", "invalidate", "orders", "--yes")
    found = json.loads(made("asset", "why", "report", "--json").stdout)
    assert (found["asset"], found["state"], found["reasons"][0]["kind"]) == (
        "shop.report",
        "stale",
        "input_stale",
    )
    assert [each["asset"] for each in found["reasons"][0]["path"]] == ["shop.revenue", "shop.orders"]
    assert [each["asset"] for each in found["behind"]] == ["shop.revenue", "shop.orders"]
    assert found["behind"][1]["reasons"][0]["kind"] == "invalidated"


def test_why_of_what_was_never_made(cli: Cli) -> None:
    assert "it was never made" in cli("asset", "why", "report").stdout


def test_invalidate_shows_first_and_asks(made: Cli) -> None:
    shown = made("asset", "invalidate", "orders", "--cascade", "--dry-run")
    assert shown.stdout.split()[3:] == ["shop.orders", "shop.report", "shop.revenue"]
    assert made("asset", "invalidate", "orders", input="n\n").exit_code != 0
    assert "fresh" in made("asset", "why", "orders").stdout
    done = json.loads(made("asset", "invalidate", "orders", "--cascade", "--yes", "--json").stdout)
    assert (done["invalidated"], len(done["slices"])) == (3, 3)
    again = made("asset", "invalidate", "orders", "--yes")
    assert "Nothing to invalidate" in again.stdout


def test_list_and_status_tell_what_is_stale(made: Cli) -> None:
    made("asset", "invalidate", "revenue", "--yes")
    listed = [json.loads(line) for line in made("asset", "ls", "--json").stdout.splitlines()]
    assert {each["asset"]: each["stale"] for each in listed if each["stale"]} == {
        "shop.revenue": 1,
        "shop.report": 1,
    }
    rows = [json.loads(line) for line in made("asset", "status", "--json").stdout.splitlines()]
    assert {each["asset"]: each["freshness"] for each in rows} == {
        "shop.orders": "fresh",
        "shop.revenue": "stale",
        "shop.report": "stale",
        "shop.broken": "missing",
        "shop.after": "missing",
    }
    assert "stale shop.report" in " ".join(made("asset", "status", "report").stdout.split())


def test_run_makes_what_is_stale_and_leaves_the_rest(made: Cli, project: Path) -> None:
    made("asset", "invalidate", "revenue", "--yes")
    result = made("asset", "run", "report", "--inline")
    assert "shop.revenue succeeded" in result.stdout
    assert "shop.orders" not in result.stdout
    assert "has a fresh value already" in made("asset", "run", "report", "--inline").stdout
