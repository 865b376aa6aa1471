"""`flowstone backfill`: begin, look, wait, and acts on all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowstone_celery.record import audit

if TYPE_CHECKING:
    from flowstone_celery.db.database import Database

    from .conftest import Cli

SHOP = """
from celery import Celery
from pathlib import Path
from flowstone_celery import Context, Daily, FlowStone

app = Celery("shop")
fs = FlowStone(app)


@fs.asset(partitions=Daily("2026-01-01", "2026-01-06"))
def orders(ctx: Context) -> int:
    if ctx.partition.day == 3 and not Path("open").exists():
        raise ValueError("the till is locked")
    return ctx.partition.day


@fs.asset
def free(ctx: Context):
    return str(ctx.partition)
"""


@pytest.fixture
def shop(project: Path, cli: Cli) -> Cli:
    (project / "shop.py").write_text(SHOP)
    return cli


def facts(cli: Cli, backfill: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cli("backfill", "show", backfill, "--json").stdout)
    return found


def begun(cli: Cli, *words: str) -> str:
    """The id of a backfill that waits for a worker."""
    return cli("backfill", "start", *words, "--no-wait", "--yes").stdout.strip()


def test_a_dry_run_tells_the_counts_and_begins_nothing(shop: Cli) -> None:
    shop("asset", "run", "orders", "-p", "2026-01-02", "--inline")
    told = shop("backfill", "start", "orders", "--dry-run")
    assert told.stdout.splitlines()[0] == "5 partitions: 4 to make, 1 present"
    assert "  2026-01-03" in told.stdout.splitlines()
    found = json.loads(
        shop("backfill", "start", "orders", "--from", "2026-01-04", "--dry-run", "--json").stdout
    )
    assert (found["total"], found["to_make"], found["skipped"]) == (2, ["2026-01-04", "2026-01-05"], 0)
    assert shop("backfill", "ls").stdout == "No backfills.\n"


def test_inline_it_ends_with_1_where_something_failed_and_retry_mends_it(shop: Cli, project: Path) -> None:
    done = shop("backfill", "start", "orders", "--inline", "--yes", "--json")
    assert done.exit_code == 1
    assert "5 partitions: 5 to make, 0 present" in done.stderr
    found = json.loads(done.stdout)
    assert (found["status"], found["succeeded"], found["failed"]) == ("failed", 4, 1)
    [failure] = found["failures"]
    assert failure["partition"] == "d:2026-01-03"
    assert "the till is locked" in failure["error"]["message"]
    assert "the till is locked" in shop("backfill", "show", found["id"]).stdout
    (project / "open").touch()
    mended = shop("backfill", "retry", found["id"])
    assert (mended.exit_code, mended.stdout) == (0, f"Retried 1 partition of backfill {found['id']}.\n")
    assert facts(shop, found["id"])["status"] == "completed"
    assert shop("backfill", "wait", found["id"]).exit_code == 0
    assert shop("backfill", "retry", found["id"]).exit_code == 4


def test_the_question_comes_behind_the_counts(shop: Cli) -> None:
    refused = shop("backfill", "start", "orders", "--no-wait", input="n\n")
    assert refused.exit_code == 2
    assert "5 partitions: 5 to make" in refused.stderr
    assert "Make 5 partitions of shop.orders?" in refused.stderr
    assert shop("backfill", "ls", "--json").stdout == ""
    nothing = shop("backfill", "start", "orders", "--mode", "failed", "--no-wait")
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert "0 to make, 5 left as they are" in nothing.stderr


def test_pause_resume_cancel_and_retry(shop: Cli, database: Database) -> None:
    one = begun(shop, "orders", "--max-concurrent", "2", "--reverse")
    assert shop("backfill", "pause", one[:30]).exit_code == 0
    assert shop("backfill", "pause", one).exit_code == 4
    assert facts(shop, one)["status"] == "paused"
    assert shop("backfill", "resume", one).exit_code == 0
    assert shop("backfill", "resume", one).exit_code == 4
    assert "Would cancel 5 partitions" in shop("backfill", "cancel", one, "--dry-run").stdout
    assert shop("backfill", "cancel", one, "--yes", "--reason", "no").exit_code == 0
    assert shop("backfill", "cancel", one, "--yes").exit_code == 4
    assert shop("backfill", "wait", one).exit_code == 1
    assert (facts(shop, one)["status"], facts(shop, one)["cancelled"]) == ("cancelled", 5)
    assert "Retried 5 partitions" in shop("backfill", "retry", one).stdout
    assert facts(shop, one)["status"] == "active"
    acts = [row["action"].partition(".")[2] for row in audit.of_resource(database, "backfill", one)]
    assert acts == ["start", "pause", "resume", "cancel", "retry"]


def test_acts_on_a_backfill_need_no_app(shop: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    one = begun(shop, "orders")
    monkeypatch.delenv("FLOWSTONE_APP")
    for verb in (["pause"], ["resume"], ["show"], ["cancel", "--yes"], ["retry"]):
        assert shop("backfill", verb[0], one, *verb[1:]).exit_code == 0


def test_waiting_has_an_end(shop: Cli) -> None:
    one = begun(shop, "orders", "-p", "2026-01-02", "-p", "2026-01-01")
    late = shop("backfill", "wait", one, "--timeout", "0.1")
    assert late.exit_code == 5
    assert "0 of 2 partitions" in late.stderr


def test_the_same_key_goes_on_with_the_same_backfill(shop: Cli) -> None:
    one = begun(shop, "orders", "--key", "k")
    assert begun(shop, "orders", "--key", "k") == one
    other = shop("backfill", "start", "orders", "--key", "k", "--mode", "all", "--no-wait", "--yes")
    assert (other.exit_code, "FS-2009" in other.stderr) == (4, True)


def test_lists_show_the_newest_first(shop: Cli) -> None:
    one, two = begun(shop, "orders"), begun(shop, "free", "--from", "2026-01-01", "--to", "2026-01-03")
    rows = [json.loads(line) for line in shop("backfill", "ls", "--json").stdout.splitlines()]
    assert [(row["id"], row["total"]) for row in rows] == [(two, 3), (one, 5)]
    assert two not in shop("backfill", "ls", "orders").stdout
    assert one in shop("backfill", "ls", "orders").stdout


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["nothing"], 3),
        (["orders", "-p", "2025-01-01"], 2),
        (["orders", "-p", "2026-01-01", "--to", "2026-01-02"], 2),
        (["orders", "--inline", "--no-wait"], 2),
        (["orders", "--mode", "new"], 2),
        (["orders", "--max-concurrent", "0"], 2),
        (["free"], 2),
    ],
)
def test_wrong_words_have_their_exit_codes(shop: Cli, words: list[str], code: int) -> None:
    assert shop("backfill", "start", *words, "--yes").exit_code == code
    assert shop("backfill", "ls", "--json").stdout == ""


def test_a_backfill_that_is_not_there_exits_3(shop: Cli) -> None:
    for verb in ("show", "wait", "pause", "resume", "retry"):
        assert shop("backfill", verb, "ffff").exit_code == 3
        assert shop("backfill", verb, "nonsense").exit_code == 3
