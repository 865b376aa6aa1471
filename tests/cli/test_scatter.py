"""`flowstone scatter`: look at scatters and their items; retry, accept, cancel."""

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
from flowstone_celery import FlowStone, Scatter

app = Celery("shop")
fs = FlowStone(app)


@fs.asset
def urls():
    return [f"/{number}" for number in range(12)]


@fs.asset(scatter=Scatter(over="urls", max_attempts=1, failure_mode="partial"))
def pages(item):
    if item in ("/3", "/7") and not Path("mended").exists():
        raise ConnectionError(f"{item} is away")
    return item * 2


@pages.gather
def joined(gathered):
    return len(gathered)


@fs.asset(scatter=Scatter(over="urls", failure_threshold="50%", max_attempts=1, max_concurrent=3, timeout=9))
def sizes(item):
    return 1 / int(item[1:])


@fs.asset
def report(pages):
    return f"{pages} pages"
"""


@pytest.fixture
def shop(project: Path, cli: Cli) -> Cli:
    (project / "shop.py").write_text(SHOP)
    return cli


def made(cli: Cli, name: str, *, code: int = 0) -> dict[str, Any]:
    """The scatter of this asset, made here and now."""
    done = cli("asset", "run", name, "--inline")
    assert done.exit_code == code, done.output
    return json.loads(cli("scatter", "ls", "--limit", "1", "--json").stdout)


def facts(cli: Cli, scatter: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cli("scatter", "show", str(scatter), "--json").stdout)
    return found


def lines(cli: Cli, *words: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in cli("scatter", *words, "--json").stdout.splitlines()]


# --- look -------------------------------------------------------------------------------------------------------------------------


def test_list_tells_how_far_each_is_newest_first(shop: Cli) -> None:
    assert shop("scatter", "ls").stdout == "No scatters.\n"
    one, two = made(shop, "sizes"), made(shop, "pages", code=1)
    assert [each["id"] for each in lines(shop, "ls")] == [two["id"], one["id"]]
    first, second = shop("scatter", "ls").stdout.splitlines()[1:]
    assert first.split()[:6] == [str(two["id"]), "✘", "failed", "shop.pages", f"{two['succeeded']}/12", "2"]
    assert second.split()[:6] == [str(one["id"]), "◐", "partial_failure", "shop.sizes", "11/12", "1"]


def test_list_is_narrowed_and_goes_on_behind_its_last(shop: Cli) -> None:
    one, two = made(shop, "sizes"), made(shop, "pages", code=1)
    assert [each["id"] for each in lines(shop, "ls", "sizes")] == [one["id"]]
    assert [each["id"] for each in lines(shop, "ls", "--status", "failed")] == [two["id"]]
    assert [each["id"] for each in lines(shop, "ls", "--before", str(two["id"]))] == [one["id"]]
    assert [each["id"] for each in lines(shop, "ls", "--run", two["run"][:13], "--limit", "1")] == [two["id"]]
    assert lines(shop, "ls", "sizes", "--run", two["run"]) == []
    assert lines(shop, "ls", "--run", two["run"], "--before", str(two["id"])) == []


def test_show_tells_counts_the_rate_against_its_threshold_and_failures_first(shop: Cli) -> None:
    found = made(shop, "sizes")
    told = shop("scatter", "show", str(found["id"])).stdout
    assert "1 of 12 (8.33%), 50% may fail" in told
    assert "12/12 items · 1 failed" in told
    assert "partial, 1 attempt, at most 3 at once, 9 s each" in told
    failure = told.splitlines()[-1].split()
    assert failure[:4] == ["0", "/0", "✘", "failed"]
    assert "ZeroDivisionError" in told.splitlines()[-1]
    shown = facts(shop, found["id"])
    assert (shown["failure_rate"], shown["failure_threshold"]) == (pytest.approx(1 / 12), 0.5)
    assert (shown["status"], shown["succeeded"], shown["failed"], shown["pending"]) == (
        "partial_failure",
        11,
        1,
        0,
    )
    assert [each["key"] for each in shown["failures"]] == ["/0"]
    assert shown["policy"]["max_concurrent"] == 3
    assert 0 < shown["seconds"] < 60


def test_what_was_gathered_is_printed_as_a_list_and_what_failed_beside_it(shop: Cli) -> None:
    found = made(shop, "sizes")
    got = shop("asset", "get", "sizes")
    assert json.loads(got.stdout) == [pytest.approx(1 / number) for number in range(1, 12)]
    assert f"without 1 item that failed: flowstone scatter items {found['id']} --status failed" in got.stderr
    told = shop("asset", "show", "sizes").stdout
    assert "over urls, partial, 1 attempt, at most 3 at once, 9 s each" in told


def test_items_are_paged_by_their_index(shop: Cli) -> None:
    found = str(made(shop, "sizes")["id"])
    page = lines(shop, "items", found, "--limit", "5")
    assert [each["index"] for each in page] == [0, 1, 2, 3, 4]
    assert [each["key"] for each in page] == ["/0", "/1", "/2", "/3", "/4"]
    assert [each["status"] for each in page] == ["failed", *["succeeded"] * 4]
    assert page[1]["attempt"] == 1
    assert page[1]["seconds"] >= 0
    rest = shop("scatter", "items", found, "--after", "4", "--limit", "5")
    assert len(rest.stdout.splitlines()) == 6
    assert rest.stderr == f"  flowstone scatter items {found} --after 9\n"
    last = shop("scatter", "items", found, "--after", "9", "--limit", "5")
    assert (len(last.stdout.splitlines()), last.stderr) == (3, "")
    [failed] = lines(shop, "items", found, "--status", "failed")
    assert "division by zero" in failed["error"]["message"]
    assert shop("scatter", "items", found, "--status", "pending").stdout == "No items.\n"


def test_the_tree_of_a_run_has_a_bar_and_no_hands(shop: Cli) -> None:
    run = made(shop, "sizes")["run"]
    told = shop("run", "show", run).stdout
    assert "2/2 steps" in told
    assert "12/12 items · 1 failed" in told
    assert "[item]" not in told
    assert {each["name"] for each in json.loads(shop("run", "show", run, "--json").stdout)["steps"]} == {
        "shop.urls",
        "shop.sizes",
    }


def test_lines_tell_how_a_scatter_goes_and_nothing_of_its_hands(shop: Cli) -> None:
    told = shop("asset", "run", "sizes", "--inline").stdout
    assert "2 steps" in told
    assert "shop.sizes waiting: 12 items" in told
    assert "shop.sizes scatter partial_failure: 12/12 items · 1 failed" in told
    # Its call and its gathering: what hands claim is not told.
    assert told.count("shop.sizes running") == 2


# --- act --------------------------------------------------------------------------------------------------------------------------


def test_retry_does_failed_items_again_and_what_stands_on_them(shop: Cli, project: Path) -> None:
    found = made(shop, "report", code=1)
    before = {each["index"]: each["ended_at"] for each in lines(shop, "items", str(found["id"]))}
    (project / "mended").touch()
    done = shop("scatter", "retry", str(found["id"]))
    assert (done.exit_code, done.stderr) == (0, f"  flowstone run wait {found['run']}\n")
    assert done.stdout.startswith(
        f"Retried {12 - found['succeeded']} items of scatter {found['id']}: round 2"
    )
    shown = facts(shop, found["id"])
    assert (shown["status"], shown["succeeded"], shown["failed"], shown["round"]) == ("completed", 12, 0, 2)
    after = {each["index"]: each["ended_at"] for each in lines(shop, "items", str(found["id"]))}
    assert after[0] == before[0]
    assert shop("asset", "get", "report").stdout.strip().strip('"') == "12 pages"
    again = shop("scatter", "retry", str(found["id"]))
    assert (again.exit_code, "FS-" in again.stderr) == (4, True)


def test_what_succeeded_is_accepted_with_reason_and_actor(shop: Cli, database: Database) -> None:
    found = made(shop, "report", code=1)
    scatter, good = str(found["id"]), found["succeeded"]
    assert f"Would accept {good} of 12 items" in shop("scatter", "accept", scatter, "--dry-run").stdout
    assert shop("scatter", "accept", scatter, input="n\n").exit_code == 2
    assert facts(shop, found["id"])["status"] == "failed"
    done = shop("scatter", "accept", scatter, "--yes", "--reason", "good enough")
    assert f"Accepted {good} of 12 items of scatter {scatter}: round 2" in done.stdout
    assert facts(shop, found["id"])["status"] == "partial_failure"
    assert shop("asset", "get", "report").stdout.strip().strip('"') == f"{good} pages"
    [act] = audit.of_resource(database, "barrier", scatter)
    assert (act["action"], act["details"]["reason"]) == ("barrier.accept", "good enough")
    assert act["actor"] not in ("", "python")
    refused = shop("scatter", "accept", scatter, "--yes")
    assert (refused.exit_code, f"flowstone scatter retry {scatter}" in refused.stderr) == (4, True)


def test_acts_on_what_has_ended_well_are_refused(shop: Cli, project: Path) -> None:
    (project / "mended").touch()
    scatter = str(made(shop, "pages")["id"])
    for words in (["retry"], ["accept", "--yes"], ["cancel", "--yes"]):
        refused = shop("scatter", words[0], scatter, *words[1:])
        assert refused.exit_code == 4
        assert "is completed" in refused.stderr


@pytest.mark.parametrize("verb", ["show", "items", "retry", "accept", "cancel"])
def test_a_scatter_that_is_not_there_exits_3_and_what_is_no_id_2(shop: Cli, verb: str) -> None:
    assert shop("scatter", verb, "123456").exit_code == 3
    assert shop("scatter", verb, "ten").exit_code == 2
    assert shop("scatter", verb, str(2**63)).exit_code == 2


def test_looking_needs_no_app(shop: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    scatter = str(made(shop, "sizes")["id"])
    monkeypatch.delenv("FLOWSTONE_APP")
    for words in (["ls"], ["ls", "shop.sizes"], ["show", scatter], ["items", scatter]):
        assert shop("scatter", *words).exit_code == 0
