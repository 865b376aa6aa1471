"""Acts on all runs that a filter names."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from flowstone_celery.errors import InvalidOption

if TYPE_CHECKING:
    from flowstone_celery.app import FlowStone
    from flowstone_celery.testing.kit import TestKit


@pytest.fixture
def shop(fs: FlowStone) -> dict[str, Any]:
    state: dict[str, Any] = {"open": True}

    @fs.asset
    def orders() -> int:
        if not state["open"]:
            raise ValueError("closed")
        return 1

    @fs.asset
    def prices() -> int:
        return 1

    state.update(orders=orders, prices=prices)
    return state


def test_only_what_the_filter_names_is_counted_and_cancelled(
    shop: dict[str, Any], fs: FlowStone, fs_test: TestKit
) -> None:
    mine = [fs_test.start(shop["orders"], partition=f"p{n}", lane="mine") for n in range(3)]
    other = fs_test.start(shop["prices"])
    which = fs.runs(lane="mine")
    assert which.count() == 3
    assert list(which) == mine[::-1]
    assert which.cancel(reason="wrong day") == 3
    assert which.cancel() == 0
    assert [run.state for run in mine] == ["cancelled"] * 3
    assert other.state == "pending"
    fs_test.assert_audit("run.cancel", mine[0], actor="python")


def test_all_that_failed_is_retried_once(shop: dict[str, Any], fs: FlowStone, fs_test: TestKit) -> None:
    shop["open"] = False
    failed = [fs.run(shop["orders"], partition=f"p{n}") for n in range(3)]
    fine = fs.run(shop["prices"])
    shop["open"] = True
    assert fs.runs(status="failed", name="orders").count() == 3
    assert fs.runs(name="orders").retry() == 3
    assert fs.runs(name="orders").retry() == 0
    fs_test.drain()
    assert [(run.state, run.round) for run in failed] == [("succeeded", 2)] * 3
    assert fine.round == 1


def test_paused_runs_are_found_by_it_and_go_on(shop: dict[str, Any], fs: FlowStone, fs_test: TestKit) -> None:
    runs = [fs_test.start(shop["orders"], partition=f"p{n}") for n in range(3)]
    assert fs.runs(partition="p1").pause() == 1
    assert list(fs.runs(paused=True)) == [runs[1]]
    assert fs.runs().pause() == 2
    assert fs.runs().resume() == 3
    assert fs.runs(paused=True).count() == 0


def test_a_span_of_time_narrows_too(shop: dict[str, Any], fs: FlowStone) -> None:
    fs.run(shop["orders"])
    now = datetime.now(UTC)
    assert fs.runs(since=now - timedelta(hours=1)).count() == 1
    assert fs.runs(until=now - timedelta(hours=1)).count() == 0


def test_more_than_a_page_is_acted_on(
    shop: dict[str, Any], fs: FlowStone, fs_test: TestKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowstone_celery.core.acts._PAGE", 2)
    for number in range(5):
        fs_test.start(shop["orders"], partition=f"p{number}")
    assert fs.runs(status=["pending", "running"]).cancel() == 5


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"status": "faild"}, "faild"),
        ({"since": datetime(2026, 11, 20)}, "time zone"),  # noqa: DTZ001 - the mistake that is to be told
        ({"until": "today"}, "time zone"),
    ],
)
def test_what_is_no_filter_is_told(fs: FlowStone, given: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidOption, match=told):
        fs.runs(**given)
