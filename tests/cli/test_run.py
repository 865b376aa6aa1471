"""`flowstone run`: list, look, wait, cancel."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from flowstone_celery.record import audit

if TYPE_CHECKING:
    from flowstone_celery.db.database import Database

    from .conftest import Cli


def begun(cli: Cli, name: str, *options: str) -> str:
    """The id of a run that waits for a worker."""
    return cli("asset", "run", name, "--no-wait", *options).stdout.strip()


def done(cli: Cli, name: str, *options: str) -> str:
    """The id of a run that has ended."""
    result = cli("asset", "run", name, "--inline", "--json", *options)
    return str(json.loads(result.stdout)["id"])


def listed(cli: Cli, *options: str) -> list[str]:
    return [json.loads(line)["id"] for line in cli("run", "ls", "--json", *options).stdout.splitlines()]


def test_list_is_newest_first_and_narrowed_by_filters(cli: Cli) -> None:
    good = done(cli, "orders", "--partition", "eu")
    bad = done(cli, "after", "--partition", "eu")
    waits = begun(cli, "report")
    assert listed(cli) == [waits, bad, good]
    assert listed(cli, "--status", "failed") == [bad]
    assert listed(cli, "--name", "orders") == [good]
    assert listed(cli, "--partition", "eu") == [bad, good]
    assert listed(cli, "--limit", "1") == [waits]
    assert listed(cli, "--before", bad) == [good]
    assert bad[:13] in cli("run", "ls").stdout


def test_show_tells_steps_reasons_and_the_error(cli: Cli) -> None:
    result = cli("run", "show", done(cli, "after"))
    assert result.exit_code == 0
    assert "└── ✘ shop.broken" in result.stdout
    assert "FS-2004" in result.stderr
    waits = cli("run", "show", begun(cli, "report", "--queue", "etl")).stdout
    assert "no worker listens on queue 'etl'" in waits


def test_show_as_json_has_run_steps_and_reasons(cli: Cli) -> None:
    found = json.loads(cli("run", "show", begun(cli, "revenue"), "--json").stdout)
    assert [step["name"] for step in found["steps"]] == ["shop.orders", "shop.revenue"]
    assert found["steps"][1]["parents"] == [found["steps"][0]["id"]]
    assert len(found["unfinished"]) == 2


def test_events_are_the_history_and_go_on_after_an_event(cli: Cli) -> None:
    run = done(cli, "orders")
    events = [json.loads(line) for line in cli("run", "events", run, "--json").stdout.splitlines()]
    names = [event["event"] for event in events]
    assert names == ["run.pending", "run.running", "step.running", "step.succeeded", "run.succeeded"]
    rest = cli("run", "events", run, "--json", "--after", str(events[2]["id"])).stdout.splitlines()
    assert len(rest) == 2
    assert "shop.orders succeeded" in cli("run", "events", run, "--follow").stdout


def test_wait_exits_by_how_the_run_ended(cli: Cli) -> None:
    assert cli("run", "wait", done(cli, "orders")).exit_code == 0
    failed = cli("run", "wait", done(cli, "after"))
    assert failed.exit_code == 1
    assert "the till is locked" in failed.stderr
    waiting = cli("run", "wait", begun(cli, "report"), "--timeout", "0.2")
    assert waiting.exit_code == 5
    assert "FS-2007" in waiting.stderr


def test_wait_for_a_cancelled_run_exits_1(cli: Cli) -> None:
    run = begun(cli, "report")
    cli("run", "cancel", run, "--yes")
    assert cli("run", "wait", run, "--json").exit_code == 1


@pytest.mark.parametrize("verb", ["show", "events", "wait", "cancel"])
def test_run_that_is_not_there_exits_3_and_what_is_no_id_2(cli: Cli, verb: str) -> None:
    missing = cli("run", verb, str(uuid4()))
    assert missing.exit_code == 3
    assert "FS-2008" in missing.stderr
    assert cli("run", verb, "yesterday").exit_code == 2


def test_cancel_asks_and_a_no_changes_nothing(cli: Cli) -> None:
    run = begun(cli, "report")
    refused = cli("run", "cancel", run, input="n\n")
    assert refused.exit_code == 2
    assert json.loads(cli("run", "show", run, "--json").stdout)["status"] == "pending"
    assert cli("run", "cancel", run, input="y\n").exit_code == 0
    assert json.loads(cli("run", "show", run, "--json").stdout)["status"] == "cancelled"


def test_cancel_with_nobody_to_ask_exits_2_and_names_yes(cli: Cli) -> None:
    result = cli("run", "cancel", begun(cli, "report"))
    assert result.exit_code == 2
    assert "--yes" in result.stderr


def test_cancel_is_audited_with_actor_and_reason(cli: Cli, database: Database) -> None:
    run = begun(cli, "report")
    cli("run", "cancel", run, "--yes", "--reason", "wrong day")
    (act,) = audit.of_resource(database, "run", run)
    assert act["actor"]
    assert act["details"] == {"reason": "wrong day"}


def test_cancel_of_an_ended_run_exits_4(cli: Cli) -> None:
    result = cli("run", "cancel", done(cli, "orders"), "--yes")
    assert result.exit_code == 4
    assert "FS-2011" in result.stderr


def test_cancel_of_all_acts_on_what_the_filters_let_through(cli: Cli) -> None:
    first, second = begun(cli, "report"), begun(cli, "report", "-p", "eu")
    other = begun(cli, "orders")
    told = cli("run", "cancel", "--all", "--name", "report", "--dry-run")
    assert "Would cancel 2 runs." in told.stdout
    assert "Cancelled 2 of 2 runs." in cli("run", "cancel", "--all", "--name", "report", "--yes").stdout
    assert set(listed(cli, "--status", "cancelled")) == {first, second}
    assert listed(cli, "--status", "pending") == [other]


def test_cancel_without_a_choice_exits_2(cli: Cli) -> None:
    assert cli("run", "cancel").exit_code == 2
    assert cli("run", "cancel", str(uuid4()), "--all").exit_code == 2


def test_runs_are_read_without_naming_an_app(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(cli, "orders")
    monkeypatch.delenv("FLOWSTONE_APP")
    assert listed(cli) == [run]
    assert cli("run", "cancel", run, "--yes").exit_code == 0
