"""A scatter while it goes on: its bar below its step, lines on a pipe, and its cancel from the terminal."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from flowstone_celery import FlowStone, Scatter
from flowstone_celery.cli.bars import Bars
from flowstone_celery.cli.live import Story, followed, put_events, tree_of
from flowstone_celery.record import audit

if TYPE_CHECKING:
    from flowstone_celery.assets.handle import Run
    from flowstone_celery.testing.kit import TestKit

    from .conftest import Cli

ITEMS = 40


@pytest.fixture
def flowstone_app() -> FlowStone:
    fs = FlowStone(namespace="shop", mode="inline")
    fs.asset(name="urls")(lambda: list(range(ITEMS)))

    @fs.asset(
        scatter=Scatter(
            over="urls", failure_threshold=0.5, max_attempts=2, retry_delay=60, jitter=0, dispatch="item"
        )
    )
    def pages(item: int) -> int:
        return 100 // (item - 1)

    @fs.asset
    def report(pages: Any) -> int:
        return len(pages)

    return fs


def open_scatter(kit: TestKit) -> Run:
    """A run whose step has scattered; nobody has done an item."""
    run = kit.start("report")
    assert kit.step()
    assert kit.step()
    assert [each.status for each in run.scatters()] == ["open"]
    return run


def done_items(kit: TestKit, run: Run, count: int) -> None:
    """Hands do items, each for itself, until so many have ended."""
    [scatter] = run.scatters()
    while (now := scatter.progress()).succeeded + now.failed < count:
        assert kit.step()


def drawn(what: Any) -> str:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_an_open_scatter_has_a_bar_below_its_step_and_its_hands_are_no_steps(fs_test: TestKit) -> None:
    run = open_scatter(fs_test)
    done_items(fs_test, run, 10)
    lines = drawn(tree_of(run)).splitlines()
    assert lines[0].startswith("● shop.report  running · 1/3 steps")
    assert lines[1].startswith("└── ✔ shop.urls")
    assert lines[2].startswith("    └── ◇ shop.pages  waiting")
    bar, counts = lines[3].strip("│├ └─").split(" ", 1)
    assert counts.startswith(f"10/{ITEMS} items · 1 retrying")
    assert (bar.count("━"), bar.count("─")) == (6, 18)
    assert lines[4:] == ["        └── ◌ shop.report  blocked"]


def test_a_bar_knows_how_fast_it_goes_and_when_it_ends(fs_test: TestKit) -> None:
    run, now = open_scatter(fs_test), 100.0
    bars = Bars(run, clock=lambda: now)
    assert "/s" not in str(bars.by_step())
    done_items(fs_test, run, 10)
    now += 5
    [bar] = bars.by_step().values()
    assert "2.0/s" in str(bar)
    assert "15.0 s left" in str(bar)


def test_a_line_comes_with_each_tenth_after_long_silence_and_at_the_end(fs_test: TestKit) -> None:
    run, now = open_scatter(fs_test), 100.0
    bars = Bars(run, clock=lambda: now)
    assert bars.news() == []
    for count in (3, 4, 5):
        done_items(fs_test, run, count)
        told = [str(each) for each in bars.news()]
        assert len(told) == (count == 4)
    now += 29
    assert bars.news() == []
    now += 2
    [silent] = bars.news()
    assert f"shop.pages scatter: 5/{ITEMS} items" in str(silent)
    fs_test.drain(run)
    [last] = bars.news()
    assert str(last) == f"◐ shop.pages scatter partial_failure: {ITEMS}/{ITEMS} items · 1 failed"
    assert bars.news() == []


def test_lines_of_a_run_leave_out_what_hands_went_through(fs_test: TestKit) -> None:
    run = open_scatter(fs_test)
    fs_test.drain(run)
    console = Console(file=io.StringIO(), width=200)
    put_events(console, Story(run).news())
    assert isinstance(console.file, io.StringIO)
    told = console.file.getvalue()
    assert f"shop.pages waiting: {ITEMS} items" in told
    assert [line.split("shop.pages ")[1] for line in told.splitlines() if "shop.pages running" in line] == [
        "running",
        "running: gathers",
    ]
    assert "shop.pages succeeded\n" in told
    assert len(run.steps()) == 3
    progress = run.progress()
    assert (progress.total, progress.finished) == (3, 3)


def test_a_closed_scatter_that_is_done_again_is_read_again(fs_test: TestKit) -> None:
    run = open_scatter(fs_test)
    fs_test.drain(run)
    bars = Bars(run)
    assert "1 failed" in str(bars.by_step())
    [scatter] = run.scatters()
    scatter.retry(drain=False)
    assert fs_test.step()
    assert f"{ITEMS - 1}/{ITEMS} items" in str(bars.by_step())
    assert "failed" not in str(bars.by_step())


@pytest.mark.parametrize("terminal", [True, False])
def test_followed_run_shows_its_scatter_to_the_end(fs_test: TestKit, terminal: bool) -> None:
    run = fs_test.start("report")
    console = Console(file=io.StringIO(), width=200, force_terminal=terminal, color_system=None)
    with followed(run, console):
        fs_test.drain(run)
    assert isinstance(console.file, io.StringIO)
    told = console.file.getvalue()
    assert f"{ITEMS}/{ITEMS} items · 1 failed" in told
    assert "3/3 steps" in told if terminal else "shop.pages scatter partial_failure" in told


# --- the cancel of one that is open -----------------------------------------------------------------------------------------------


def test_an_open_scatter_is_looked_at_and_cancelled_from_the_terminal(fs_test: TestKit, cli: Cli) -> None:
    run = open_scatter(fs_test)
    done_items(fs_test, run, 5)
    [scatter] = run.scatters()
    assert f"5/{ITEMS} items · 1 retrying" in cli("scatter", "show", str(scatter.id)).stdout
    assert [each.index for each in scatter.items("retry")] == [1]
    waiting = cli("scatter", "items", str(scatter.id), "--status", "retry").stdout.splitlines()[1]
    assert waiting.split()[:4] == ["1", "1", "○", "retry"]
    assert "Would cancel 35 items" in cli("scatter", "cancel", str(scatter.id), "--dry-run").stdout
    assert cli("scatter", "retry", str(scatter.id)).exit_code == 4
    assert cli("scatter", "accept", str(scatter.id), "--yes").exit_code == 4
    done = cli("scatter", "cancel", str(scatter.id), "--yes", "--reason", "wrong list")
    assert (done.exit_code, done.stdout) == (0, f"Cancelled 35 items of scatter {scatter.id}.\n")
    fs_test.drain(run)
    assert (scatter.status, run.state) == ("cancelled", "cancelled")
    assert len(list(scatter.items("cancelled"))) == 35
    [act] = audit.of_resource(fs_test.database, "barrier", str(scatter.id))
    assert (act["action"], act["details"]["reason"]) == ("barrier.cancel", "wrong list")
    assert cli("scatter", "cancel", str(scatter.id), "--yes").exit_code == 4


def test_a_cancelled_scatter_is_gone_on_with_by_its_retry(fs_test: TestKit, cli: Cli) -> None:
    run = open_scatter(fs_test)
    done_items(fs_test, run, 5)
    [scatter] = run.scatters()
    cli("scatter", "cancel", str(scatter.id), "--yes")
    fs_test.drain(run)
    done = {each.index: each.ended_at for each in scatter.items("succeeded")}
    scatter.retry(drain=False)
    fs_test.drain(run)
    assert (scatter.status, run.state) == ("partial_failure", "succeeded")
    after = {each.index: each.ended_at for each in scatter.items("succeeded")}
    assert len(after) == ITEMS - 1
    assert {index: after[index] for index in done} == done
