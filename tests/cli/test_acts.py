"""`flowstone run cancel | retry | rerun | pause | resume`: by id, in short, and by filter."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from flowstone_celery.core import doctor
from flowstone_celery.record import audit

if TYPE_CHECKING:
    from flowstone_celery.db.database import Database

    from .conftest import Cli


def begun(cli: Cli, name: str, *options: str) -> str:
    """The id of a run that waits for a worker."""
    return cli("asset", "run", name, "--no-wait", *options).stdout.strip()


def shown(cli: Cli, run: str, field: str) -> object:
    return json.loads(cli("run", "show", run, "--json").stdout)[field]


def test_the_short_ids_that_are_listed_can_be_used(cli: Cli) -> None:
    runs = [begun(cli, "report", "-p", f"p{n}") for n in range(3)]
    lines = cli("run", "ls").stdout.splitlines()
    for run in runs:
        [short] = [
            word for line in lines for word in line.split() if run.startswith(word) and len(word) >= 13
        ]
        assert cli("run", "show", short, "--json").exit_code == 0
        assert shown(cli, short, "id") == run


def test_a_beginning_that_fits_several_is_told_with_them(cli: Cli) -> None:
    runs = [begun(cli, "report", "-p", f"p{n}") for n in range(2)]
    told = cli("run", "show", runs[0][:4])
    assert told.exit_code == 2
    assert all(run in told.stderr for run in runs)
    assert cli("run", "show", "ffff").exit_code == 3
    assert cli("run", "show", "zzzz").exit_code == 2


def test_retry_and_rerun_begin_the_next_round(cli: Cli, database: Database) -> None:
    run = begun(cli, "report")
    cli("run", "cancel", run, "--yes")
    assert "Would retry 1 run." in cli("run", "retry", run, "--dry-run").stdout
    assert shown(cli, run, "status") == "cancelled"
    done = cli("run", "retry", run[:18], "--yes", "--deadline", "2h")
    assert (done.exit_code, done.stdout) == (0, "Retried 1 of 1 run.\n")
    assert shown(cli, run, "status") == "pending"
    assert [act["action"] for act in audit.of_resource(database, "run", run)] == ["run.cancel", "run.retry"]
    refused = cli("run", "retry", run, "--yes")
    assert refused.exit_code == 4
    assert "FS-2011" in refused.stderr


def test_rerun_from_a_step_does_it_and_what_stands_on_it_again(cli: Cli) -> None:
    run = json.loads(cli("asset", "run", "report", "--inline", "--json").stdout)["id"]
    refused = cli("run", "retry", run, "--yes")
    assert refused.exit_code == 4
    assert f"run rerun {run}" in refused.stderr
    unknown = cli("run", "rerun", run, "--from", "revenu", "--yes")
    assert unknown.exit_code == 2
    assert "revenue" in unknown.stderr
    assert "Would do run" in cli("run", "rerun", run, "--from", "revenue", "--dry-run").stdout
    done = cli("run", "rerun", run, "--from", "revenue", "--yes")
    assert (done.exit_code, done.stdout) == (0, f"Round 2 of run {run} has begun.\n")
    assert cli("run", "rerun", run, "--yes").exit_code == 0
    assert shown(cli, run, "status") == "succeeded"
    starts = [
        line for line in cli("run", "events", run, "--json").stdout.splitlines() if '"step.running"' in line
    ]
    assert len(starts) == 3 + 2 + 3


def test_pause_and_resume_by_filter(cli: Cli) -> None:
    mine, other = begun(cli, "report", "-p", "eu"), begun(cli, "report", "-p", "us")
    assert "Paused 1 of 1 run." in cli("run", "pause", "--all-matching", "-p", "eu", "--yes").stdout
    assert "pending, paused" in cli("run", "ls").stdout
    assert cli("run", "pause", mine, "--yes").exit_code == 4
    assert cli("run", "resume", other, "--yes").exit_code == 4
    assert "Resumed 1 of 1 run." in cli("run", "resume", "--all-matching", "--yes").stdout
    assert "No run fits" in cli("run", "resume", "--all-matching", "--yes").stdout


def test_a_filter_by_time_and_name_tells_the_count_and_asks(cli: Cli, database: Database) -> None:
    for number in range(12):
        begun(cli, "report", "-p", f"p{number}")
    asked = cli("run", "cancel", "--all-matching", "--since", "1h", "--name", "report", input="n\n")
    assert asked.exit_code == 2
    assert "and 2 more" in asked.stderr
    assert "Cancel 12 runs?" in asked.stderr
    assert "No run fits" in cli("run", "cancel", "--all-matching", "--until", "2020-01-01", "--yes").stdout
    assert "No run fits" in cli("run", "cancel", "--all-matching", "--status", "failed", "--yes").stdout
    assert (
        "Cancelled 12 of 12 runs."
        in cli("run", "cancel", "--all-matching", "--since", "2020-01-01", "--yes").stdout
    )
    assert doctor.examine(database) == []


def test_acts_need_no_app(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(cli, "report")
    monkeypatch.delenv("FLOWSTONE_APP")
    for verb in ("pause", "resume", "cancel", "retry"):
        assert cli("run", verb, run, "--yes").exit_code == 0


@pytest.mark.parametrize("verb", ["retry", "pause", "resume"])
def test_acts_without_a_choice_exit_2(cli: Cli, verb: str) -> None:
    assert cli("run", verb).exit_code == 2
    assert cli("run", verb, "--all-matching", "--since", "someday").exit_code == 2
