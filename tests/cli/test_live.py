"""The tree of a run: each step below what it needs, with what became of its worker."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from flowstone_celery import FlowStone
from flowstone_celery.cli.live import Story, followed, put_events, tree_of

if TYPE_CHECKING:
    from flowstone_celery.testing.kit import TestKit


@pytest.fixture
def flowstone_app() -> FlowStone:
    fs = FlowStone(namespace="shop", mode="inline")

    @fs.asset
    def orders() -> int:
        return 1

    @fs.asset
    def prices() -> int:
        return 2

    @fs.asset(retries=1, retry_delay=5, jitter=0)
    def revenue(orders: int, prices: int, ctx: Any) -> int:
        if ctx.attempt == 1:
            raise ValueError("the till is locked")
        return orders * prices

    return fs


def drawn(what: Any, *, terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), width=200, force_terminal=terminal, color_system=None)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_each_step_stands_below_the_last_thing_it_needs(fs_test: TestKit) -> None:
    run = fs_test.start("revenue")
    lines = drawn(tree_of(run)).splitlines()
    assert lines[0].startswith("○ shop.revenue  pending · 0/3 steps")
    assert lines[1:] == [
        "├── ○ shop.orders  ready",
        "└── ○ shop.prices  ready",
        "    └── ◌ shop.revenue  blocked",
    ]


def test_step_whose_worker_died_waits_and_then_is_taken_over(fs_test: TestKit) -> None:
    run = fs_test.start("revenue")
    with fs_test.crash_at("user.start"):
        fs_test.step()
    story = Story(run)
    waits = drawn(tree_of(run, story))
    assert "shop.orders  ready  its process died, waits for another worker" in waits
    fs_test.drain(run)
    assert "taken over" in drawn(tree_of(run, story))
    assert "attempt 2" in drawn(tree_of(run, story))


def test_long_run_shows_what_is_urgent_and_counts_the_rest(fs_test: TestKit) -> None:
    run = fs_test.start("revenue")
    fs_test.step()
    shown = drawn(tree_of(run, lines=1))
    assert "shop.prices  ready" in shown
    assert "✔ shop.orders" not in shown
    assert "… and 2 more" in shown


def test_lines_tell_retries_and_takeovers(fs_test: TestKit) -> None:
    run = fs_test.start("revenue")
    with fs_test.crash_at("user.start"):
        fs_test.step()
    fs_test.drain(run)
    console = Console(file=io.StringIO(), width=200)
    put_events(console, Story(run).news())
    assert isinstance(console.file, io.StringIO)
    told = console.file.getvalue()
    assert "shop.orders released: its process died" in told
    assert "shop.revenue retry: attempt 1, again in 5.0 s" in told
    assert "the till is locked" in told
    assert "shop.revenue running: attempt 2" in told


@pytest.mark.parametrize("terminal", [True, False])
def test_followed_run_is_told_to_its_end(fs_test: TestKit, terminal: bool) -> None:
    run = fs_test.start("revenue")
    console = Console(file=io.StringIO(), width=200, force_terminal=terminal, color_system=None)
    with followed(run, console) as say:
        say("no worker listens")
        fs_test.drain(run)
    assert isinstance(console.file, io.StringIO)
    told = console.file.getvalue()
    assert "no worker listens" in told
    assert "✔" in told
    assert ("succeeded · 3/3 steps" if terminal else "run succeeded") in told
