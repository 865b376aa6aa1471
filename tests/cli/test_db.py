"""`flowstone db`: schema and retention."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from flowstone_celery import faults
from flowstone_celery.core import doctor
from flowstone_celery.db.statements import Statement
from flowstone_celery.record import audit

if TYPE_CHECKING:
    from flowstone_celery.db.database import Database

    from .conftest import Cli


def sql(database: Database, text: str) -> None:
    database.once(Statement("tests", "act", frozenset(), text))


def test_current_tells_a_schema_that_fits(cli: Cli) -> None:
    result = cli("db", "current", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["up_to_date"] is True
    assert found["revision"] == found["head"]


def test_missing_schema_exits_69_until_it_is_migrated(cli: Cli, database: Database) -> None:
    sql(database, "DROP SCHEMA flowstone CASCADE")
    before = cli("db", "current")
    assert before.exit_code == 69
    assert "flowstone db migrate" in before.stdout
    refused = cli("run", "ls")
    assert refused.exit_code == 69
    assert "FS-5004" in refused.stderr
    assert "Migrated from nothing to" in cli("db", "migrate").stdout
    assert "is up to date" in cli("db", "migrate").stdout
    assert cli("run", "ls").exit_code == 0


def test_migrate_as_sql_touches_no_database(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOWSTONE_DATABASE_URL")
    result = cli("db", "migrate", "--sql")
    assert result.exit_code == 0
    assert 'CREATE TABLE "flowstone".steps' in result.stdout


def two_versions(cli: Cli, database: Database) -> None:
    """Two ended runs forty days old, of which the second made the current value, and one of today."""
    cli("asset", "run", "orders", "--inline")
    cli("asset", "run", "orders", "--inline", "--force")
    sql(database, "UPDATE flowstone.runs SET finished_at = finished_at - interval '40 days'")
    cli("asset", "run", "revenue", "--inline")


def test_prune_takes_old_runs_and_leaves_current_values(cli: Cli, database: Database) -> None:
    two_versions(cli, database)
    result = cli("db", "prune", "--older-than", "30d", "--yes")
    assert result.exit_code == 0
    assert "Deleted 2 runs" in result.stdout
    assert len(cli("run", "ls", "--json").stdout.splitlines()) == 1
    assert json.loads(cli("asset", "get", "orders", "--json").stdout) == [3, 4]
    assert doctor.examine(database) == []


def test_prune_is_audited_in_the_commit_of_its_batch(cli: Cli, database: Database) -> None:
    two_versions(cli, database)
    cli("db", "prune", "--older-than", "30d", "--yes")
    (act,) = audit.of_resource(database, "database", "runs")
    assert act["action"] == "db.prune"
    assert act["details"] == {"runs": 2, "older_than_seconds": 30 * 86_400}


def test_prune_as_dry_run_and_prune_refused_delete_nothing(cli: Cli, database: Database) -> None:
    two_versions(cli, database)
    assert "Would delete 2 runs" in cli("db", "prune", "--older-than", "30d", "--dry-run").stdout
    assert cli("db", "prune", "--older-than", "30d", input="n\n").exit_code == 2
    assert len(cli("run", "ls", "--json").stdout.splitlines()) == 3


def test_prune_that_dies_between_batches_is_finished_by_the_next(
    cli: Cli, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_versions(cli, database)
    monkeypatch.setattr("flowstone_celery.core.retention._RUNS", 1)
    with faults.arm("retention.between_batches"):
        died = cli("db", "prune", "--older-than", "30d", "--yes")
    assert died.exit_code == 70
    assert len(cli("run", "ls", "--json").stdout.splitlines()) == 2
    assert "Deleted 1 runs" in cli("db", "prune", "--older-than", "30d", "--yes").stdout
    assert doctor.examine(database) == []


def test_prune_killed_between_batches_is_finished_by_the_next(
    cli: Cli, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_versions(cli, database)
    monkeypatch.setenv("FLOWSTONE_FAULT", "retention.between_batches:1:kill9")
    one_by_one = "import sys; from flowstone_celery.cli import main; from flowstone_celery.core import retention; retention._RUNS = 1; sys.exit(main.main())"
    command = [sys.executable, "-c", one_by_one, "db", "prune", "--older-than", "30d", "--yes"]
    died = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert died.returncode == -signal.SIGKILL, died.stderr
    monkeypatch.delenv("FLOWSTONE_FAULT")
    assert len(cli("run", "ls", "--json").stdout.splitlines()) == 2
    assert "Deleted 1 runs" in cli("db", "prune", "--older-than", "30d", "--yes").stdout
    assert doctor.examine(database) == []


def test_prune_needs_an_age(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = cli("db", "prune", "--yes")
    assert refused.exit_code == 2
    assert "FLOWSTONE_RETENTION_DAYS" in refused.stderr
    assert cli("db", "prune", "--older-than", "next week").exit_code == 2


def test_age_comes_from_the_settings_if_it_is_not_given(
    cli: Cli, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWSTONE_RETENTION_DAYS", "30")
    two_versions(cli, database)
    assert "Would delete 2 runs that ended more than 30 d ago" in cli("db", "prune", "--dry-run").stdout
