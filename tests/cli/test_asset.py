"""`flowstone asset`: what is declared, how it stands, and making it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Cli


def test_list_shows_every_asset_with_its_needs(cli: Cli) -> None:
    result = cli("asset", "ls")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.stdout.splitlines()[1:]}
    assert set(lines) == {"shop.orders", "shop.revenue", "shop.report", "shop.broken", "shop.after"}
    assert "shop.orders" in lines["shop.revenue"]
    assert "The sum." in lines["shop.revenue"]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["re*"], ["shop.report", "shop.revenue"]),
        (["shop.orders"], ["shop.orders"]),
        (["--tag", "raw"], ["shop.orders"]),
        (["--owner", "bob"], []),
    ],
)
def test_list_is_narrowed_by_filters_and_writes_an_object_a_line(
    cli: Cli, filters: list[str], expected: list[str]
) -> None:
    result = cli("asset", "ls", "--json", *filters)
    assert [json.loads(line)["asset"] for line in result.stdout.splitlines()] == expected


def test_list_without_a_database_still_lists_and_says_what_it_lacks(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLOWSTONE_DATABASE_URL")
    result = cli("asset", "ls")
    assert result.exit_code == 0
    assert "shop.orders" in result.stdout
    assert "no database is configured" in result.stderr


def test_run_makes_what_is_missing_first_and_tells_each_step(cli: Cli) -> None:
    result = cli("asset", "run", "report", "--inline")
    assert result.exit_code == 0, result.output
    order = [
        result.stdout.index(f"{name} succeeded") for name in ("shop.orders", "shop.revenue", "shop.report")
    ]
    assert order == sorted(order)
    assert cli("asset", "get", "report").stdout == "sold for 7\n"
    assert json.loads(cli("asset", "get", "orders", "--json").stdout) == [3, 4]


def test_run_makes_nothing_that_is_there_unless_forced(cli: Cli) -> None:
    cli("asset", "run", "revenue", "--inline")
    again = cli("asset", "run", "revenue", "--inline")
    assert again.exit_code == 0
    assert "has a fresh value already" in again.stdout
    forced = cli("asset", "run", "revenue", "--inline", "--force")
    assert "shop.revenue succeeded" in forced.stdout
    assert "shop.orders" not in forced.stdout
    anew = cli("asset", "run", "revenue", "--inline", "--all")
    assert "shop.orders succeeded" in anew.stdout


def test_run_for_a_partition_leaves_the_others_alone(cli: Cli) -> None:
    cli("asset", "run", "orders", "--inline", "--partition", "2026-11-20")
    (there,) = map(
        json.loads, cli("asset", "status", "orders", "-p", "2026-11-20", "--json").stdout.splitlines()
    )
    (other,) = map(
        json.loads, cli("asset", "status", "orders", "-p", "2026-11-21", "--json").stdout.splitlines()
    )
    assert (there["state"], other["state"]) == ("success", "missing")


def test_failed_run_exits_1_with_code_cause_and_what_to_look_at(cli: Cli) -> None:
    result = cli("asset", "run", "after", "--inline")
    assert result.exit_code == 1
    assert "FS-2004" in result.stderr
    assert "the till is locked" in result.stderr
    assert "flowstone run show" in result.stderr
    assert "Traceback" not in result.output


def test_verbose_shows_the_users_own_traceback(cli: Cli) -> None:
    result = cli("asset", "run", "after", "--inline", "-v")
    assert result.exit_code == 1
    assert 'raise ValueError("the till is locked")' in result.stderr


def test_run_as_json_writes_one_object_on_stdout(cli: Cli) -> None:
    result = cli("asset", "run", "orders", "--inline", "--json")
    found = json.loads(result.stdout)
    assert (found["name"], found["status"], found["total_steps"]) == ("shop.orders", "succeeded", 1)
    assert "shop.orders succeeded" in result.stderr


def test_only_refuses_what_lacks_a_dependency_with_exit_4(cli: Cli) -> None:
    result = cli("asset", "run", "revenue", "--inline", "--only")
    assert result.exit_code == 4
    assert "FS-2002" in result.stderr
    assert "shop.orders" in result.stderr


def test_key_of_another_request_exits_4(cli: Cli) -> None:
    first = cli("asset", "run", "orders", "--no-wait", "--key", "tonight")
    same = cli("asset", "run", "orders", "--no-wait", "--key", "tonight")
    assert first.stdout == same.stdout
    other = cli("asset", "run", "report", "--no-wait", "--key", "tonight")
    assert other.exit_code == 4
    assert "FS-2009" in other.stderr


def test_no_wait_prints_the_id_alone_and_the_run_is_there(cli: Cli) -> None:
    result = cli("asset", "run", "orders", "--no-wait", "--queue", "etl")
    assert result.exit_code == 0
    found = json.loads(cli("run", "show", result.stdout.strip(), "--json").stdout)
    assert found["status"] == "pending"
    assert found["steps"][0]["queue"] == "etl"


def test_waiting_in_vain_exits_5_and_says_why(cli: Cli) -> None:
    result = cli("asset", "run", "orders", "--queue", "etl", "--timeout", "0.3s")
    assert result.exit_code == 5
    assert "FS-2101" in result.stderr
    assert "-Q etl" in result.stderr


@pytest.mark.parametrize(
    "options",
    [["--all", "--only"], ["--inline", "--no-wait"], ["--inline", "--queue", "etl"], ["--timeout", "soon"]],
)
def test_options_that_contradict_each_other_exit_2(cli: Cli, options: list[str]) -> None:
    assert cli("asset", "run", "orders", *options).exit_code == 2


def test_unknown_asset_exits_3_and_the_nearest_is_named(cli: Cli) -> None:
    for verb in (["show"], ["run"], ["get"], ["status"], ["graph"]):
        result = cli("asset", *verb, "orderz")
        assert result.exit_code == 3, verb
        assert "FS-1001" in result.stderr
        assert "Did you mean 'orders'?" in result.stderr


def test_missing_value_exits_3_and_says_how_to_make_it(cli: Cli) -> None:
    result = cli("asset", "get", "orders")
    assert result.exit_code == 3
    assert "flowstone asset run shop.orders" in result.stderr


def test_bad_partition_exits_2(cli: Cli) -> None:
    result = cli("asset", "run", "orders", "--partition", "2026-02-30")
    assert result.exit_code == 2
    assert "FS-1007" in result.stderr


def test_show_tells_declaration_and_versions(cli: Cli) -> None:
    cli("asset", "run", "orders", "--inline")
    found = json.loads(cli("asset", "show", "orders", "--json").stdout)
    assert found["asset"] == "shop.orders"
    assert found["needed by"] == ["shop.broken", "shop.revenue"]
    assert len(found["versions"]) == 1
    people = cli("asset", "show", "orders").stdout
    assert "ann" in people
    assert "shop.py:" in people


def test_graph_is_drawn_in_three_forms(cli: Cli) -> None:
    assert "shop.revenue <- shop.orders" in cli("asset", "graph").stdout
    assert cli("asset", "graph", "--format", "mermaid").stdout.startswith("flowchart LR")
    assert cli("asset", "graph", "--format", "dot").stdout.startswith("digraph")
    assert "broken" not in cli("asset", "graph", "report").stdout


def test_service_that_is_away_exits_69(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWSTONE_DATABASE_URL", "postgresql://nobody:geheim@127.0.0.1:1/none")
    result = cli("asset", "status")
    assert result.exit_code == 69
    assert "FS-5002" in result.stderr
    assert "geheim" not in result.output


def test_no_database_at_all_names_both_ways_out(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    monkeypatch.delenv("FLOWSTONE_DATABASE_URL")
    result = cli("asset", "run", "orders")
    assert result.exit_code == 69
    assert "flowstone up" in result.stderr
    assert "FLOWSTONE_DATABASE_URL" in result.stderr
    assert not (project / ".flowstone").exists()
