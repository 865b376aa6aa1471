"""`flowstone doctor`: one line for each check, a way out for each that is not well."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from flowstone_celery.core.workers import Node, report_node
from flowstone_celery.db.statements import Statement

if TYPE_CHECKING:
    from click.testing import Result

    from flowstone_celery.db.database import Database

    from .conftest import Cli


def sql(database: Database, text: str) -> None:
    database.once(Statement("tests", "act", frozenset(), text))


def found(result: Result, check: str) -> list[dict[str, Any]]:
    """The findings of one check."""
    findings = [json.loads(line) for line in result.stdout.splitlines()]
    return [each for each in findings if each["check"] == check]


def test_healthy_installation_exits_0_with_every_check_told(cli: Cli) -> None:
    result = cli("doctor", "--json")
    assert result.exit_code == 0, result.output
    levels = {json.loads(line)["check"]: json.loads(line)["level"] for line in result.stdout.splitlines()}
    assert levels == {
        "app": "ok",
        "settings": "ok",
        "database": "ok",
        "schema": "ok",
        "invariants": "ok",
        "workers": "warn",
        "unfinished": "ok",
        "broker": "ok",
        "visibility": "ok",
        "disk": "ok",
    }
    assert "celery -A shop worker" in cli("doctor").stdout


def test_database_that_is_away_exits_69_and_the_rest_is_still_looked_at(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWSTONE_DATABASE_URL", "postgresql://nobody:geheim@127.0.0.1:1/none")
    result = cli("doctor", "--json")
    assert result.exit_code == 69
    (database,) = found(result, "database")
    assert (database["level"], "FLOWSTONE_DATABASE_URL" in database["fix"]) == ("away", True)
    assert found(result, "broker")
    assert "geheim" not in result.output


def test_broker_that_is_away_exits_69(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWSTONE_REDIS_URL", "redis://127.0.0.1:1/0")
    result = cli("doctor", "--json")
    assert result.exit_code == 69
    (broker,) = found(result, "broker")
    assert (broker["level"], "flowstone up" in broker["fix"]) == ("away", True)


def test_missing_schema_is_broken_and_names_migrate(cli: Cli, database: Database) -> None:
    sql(database, "DROP SCHEMA flowstone CASCADE")
    result = cli("doctor", "--json")
    assert result.exit_code == 1
    (schema,) = found(result, "schema")
    assert (schema["level"], schema["fix"]) == ("broken", "flowstone db migrate")


def test_row_that_breaks_an_invariant_is_named(cli: Cli, database: Database) -> None:
    cli("asset", "run", "orders", "--inline")
    sql(database, "UPDATE flowstone.runs SET failed_steps = 1")
    result = cli("doctor", "--json")
    assert result.exit_code == 1
    (row,) = found(result, "invariants")
    assert row["says"].startswith("outcome_of_runs: run ")


def worker(database: Database, *knows: str) -> None:
    """A node that lives for a minute and knows these tasks."""
    node = Node(uuid4(), "celery@test", os.getpid(), "prefork", ("celery",), knows, 2)
    report_node(database, node, keeper_pid=os.getpid(), lease=60)


def test_worker_that_does_not_know_an_asset_is_broken(cli: Cli, database: Database) -> None:
    worker(database, "shop.orders", "shop.revenue", "shop.report", "shop.after")
    result = cli("doctor", "--json")
    assert result.exit_code == 1
    unknown, alive = found(result, "workers")
    assert "'shop.broken'" in unknown["says"]
    assert "restart" in unknown["fix"]
    assert alive["says"] == "1 alive, 0 of 2 slots busy, on celery"


def test_steps_that_nobody_takes_are_counted_by_reason(cli: Cli) -> None:
    for _ in range(2):
        cli("asset", "run", "orders", "--no-wait", "--queue", "etl")
    (reason,) = found(cli("doctor", "--json"), "unfinished")
    assert reason["says"] == "2 steps: no worker listens on queue 'etl'"
    assert reason["level"] == "warn"


def test_production_without_secrets_is_broken(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWSTONE_ENV", "production")
    result = cli("doctor", "--json")
    assert result.exit_code == 1
    assert any("FLOWSTONE_SECRET_KEYS is not set" in each["says"] for each in found(result, "settings"))


def test_variable_that_nobody_reads_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWSTONE_LEASE_SECOND", "9")
    (settings,) = found(cli("doctor", "--json"), "settings")
    assert settings["level"] == "warn"
    assert "FLOWSTONE_LEASE_SECONDS" in settings["says"]


def test_timeout_above_the_brokers_visibility_is_a_warning(cli: Cli, project: Any) -> None:
    page = project / "shop.py"
    page.write_text(page.read_text().replace("@fs.asset\ndef report", "@fs.asset(timeout=7200)\ndef report"))
    (visibility,) = found(cli("doctor", "--json"), "visibility")
    assert visibility["level"] == "warn"
    assert "visibility_timeout" in visibility["fix"]


def test_broken_app_is_a_finding_and_the_rest_is_still_looked_at(cli: Cli, project: Any) -> None:
    (project / "shop.py").write_text("import nothing_of_this_name\n")
    result = cli("doctor", "--json")
    assert result.exit_code == 1
    (app,) = found(result, "app")
    assert "shop.py:1" in app["says"]
    assert found(result, "schema")[0]["level"] == "ok"
