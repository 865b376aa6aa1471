"""What a handle can do to its run, and what a run can be given at its start: deadline, lane, key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from flowstone_celery.errors import (
    DeadlineExceeded,
    IdempotencyConflict,
    InvalidOption,
    RunFailed,
    UnknownOption,
    WrongState,
)

if TYPE_CHECKING:
    from flowstone_celery.app import FlowStone
    from flowstone_celery.testing.kit import TestKit


class Shop:
    """orders → revenue → report; revenue fails while it is closed."""

    def __init__(self, fs: FlowStone) -> None:
        self.open = True
        self.price = 1
        self.calls: list[str] = []

        @fs.asset
        def orders() -> int:
            self.calls.append("orders")
            return self.price

        @fs.asset
        def revenue(orders: int) -> int:
            self.calls.append("revenue")
            if not self.open:
                raise ValueError("closed")
            return orders * 10

        @fs.asset
        def report(revenue: int) -> str:
            self.calls.append("report")
            return f"sold for {revenue}"

        self.report = report


@pytest.fixture
def shop(fs: FlowStone) -> Shop:
    return Shop(fs)


# --- the next round ---------------------------------------------------------------------------------------------------------------


def test_a_retry_keeps_what_succeeded_and_answers_the_same_handle(shop: Shop, fs: FlowStone) -> None:
    shop.open = False
    run = fs.run(shop.report)
    with pytest.raises(RunFailed, match="closed"):
        run.get()
    shop.open = True
    assert run.retry() is run
    assert (run.round, run.state) == (2, "succeeded")
    assert run.get() == "sold for 10"
    assert shop.calls == ["orders", "revenue", "revenue", "report"]


def test_a_named_step_is_made_again_with_what_stands_on_it_and_get_answers_the_new_value(
    shop: Shop, fs: FlowStone
) -> None:
    run = fs.run(shop.report)
    assert run.get() == "sold for 10"
    shop.price = 2
    run.retry(begin_at=["orders"])
    assert run.get() == "sold for 20"
    run.retry(begin_at=shop.report)
    assert shop.calls.count("report") == 3
    assert shop.calls.count("orders") == 2
    assert run.round == 3


def test_force_makes_all_of_it_again(shop: Shop, fs: FlowStone) -> None:
    run = fs.run(shop.report)
    shop.price = 3
    assert run.retry(force=True).get() == "sold for 30"
    assert fs.get(shop.report) == "sold for 30"


def test_a_run_that_succeeded_is_told_how_it_is_made_again(shop: Shop, fs: FlowStone) -> None:
    run = fs.run(shop.report)
    with pytest.raises(WrongState, match="has succeeded") as told:
        run.retry()
    assert "force=True" in told.value.hint
    assert "begin_at" in told.value.hint
    assert run.round == 1


def test_a_run_that_goes_on_still_is_told(shop: Shop, fs_test: TestKit) -> None:
    run = fs_test.start(shop.report)
    with pytest.raises(WrongState, match="is pending") as told:
        run.retry(force=True)
    assert "cancel" in told.value.hint


def test_a_step_that_the_run_has_not_is_told_with_the_nearest(shop: Shop, fs: FlowStone) -> None:
    run = fs.run(shop.report)
    with pytest.raises(InvalidOption, match="no step 'ordres'") as told:
        run.retry(begin_at=["ordres"])
    assert "orders" in told.value.hint


def test_a_cancelled_run_goes_on_where_it_stood(shop: Shop, fs_test: TestKit) -> None:
    run = fs_test.start(shop.report)
    fs_test.step()
    run.cancel(reason="wrong day")
    assert run.retry().get() == "sold for 10"
    assert shop.calls.count("orders") == 1


def test_a_paused_run_begins_nothing_until_it_is_resumed(shop: Shop, fs: FlowStone, fs_test: TestKit) -> None:
    run = fs_test.start(shop.report)
    assert run.pause()
    assert run.paused
    fs_test.drain()
    assert shop.calls == []
    assert "paused" in run.why()[0]["reason"]
    assert run.resume()
    assert fs.resume(run.id).get() == "sold for 10"


# --- deadlines --------------------------------------------------------------------------------------------------------------------


def test_a_run_past_its_deadline_fails_and_says_so(shop: Shop, fs_test: TestKit) -> None:
    run = fs_test.start(shop.report, deadline=timedelta(minutes=1))
    fs_test.clock.advance(seconds=61)
    fs_test.sweep()
    with pytest.raises(RunFailed, match="deadline") as told:
        run.get(5)
    assert isinstance(told.value.__cause__, DeadlineExceeded)
    assert run.retry(deadline=60).get() == "sold for 10"


def test_the_deadline_of_a_retry_is_its_own(shop: Shop, fs: FlowStone) -> None:
    run = fs.run(shop.report, deadline=3_600)
    assert run.row["deadline_at"] is not None
    assert run.retry(force=True).row["deadline_at"] is None


@pytest.mark.parametrize(
    ("deadline", "told"),
    [
        (datetime.now(UTC) - timedelta(days=1), "has passed"),
        (datetime.now(), "no time zone"),  # noqa: DTZ005 - the mistake that is to be told
        (-1, "seconds above 0"),
        (0, "seconds above 0"),
        (timedelta(0), "seconds above 0"),
        ("tomorrow", "seconds above 0"),
        (True, "seconds above 0"),
        (float("nan"), "seconds above 0"),
    ],
)
def test_what_is_no_deadline_is_told_at_the_call(shop: Shop, fs: FlowStone, deadline: Any, told: str) -> None:
    for start in (fs.run, fs.materialize_all, shop.report.apply_async):
        with pytest.raises(InvalidOption, match=told):
            start(**({} if start == shop.report.apply_async else {"asset": "report"}), deadline=deadline)
    run = fs.run(shop.report)
    with pytest.raises(InvalidOption, match=told):
        run.retry(force=True, deadline=deadline)
    assert run.round == 1


def test_a_moment_is_a_deadline_too(shop: Shop, fs: FlowStone) -> None:
    ends = datetime.now(UTC) + timedelta(hours=1)
    run = fs.run(shop.report, deadline=ends)
    assert abs((run.row["deadline_at"] - ends).total_seconds()) < 60


# --- lanes ------------------------------------------------------------------------------------------------------------------------


def test_runs_of_one_lane_go_one_after_the_other(shop: Shop, fs_test: TestKit, fs: FlowStone) -> None:
    first = fs_test.start(shop.report, lane="customer-17")
    second = fs_test.start(shop.report, lane="customer-17")
    other = fs_test.start(shop.report, lane="customer-18")
    assert [run.row["admitted"] for run in (first, second, other)] == [True, False, True]
    assert "customer-17" in second.why()[0]["reason"]
    assert first.id in second.why()[0]["reason"]
    fs_test.drain()
    assert [run.state for run in (first, second, other)] == ["succeeded"] * 3
    assert first.row["finished_at"] <= second.row["started_at"]


def test_a_wider_lane_lets_in_more(shop: Shop, fs_test: TestKit) -> None:
    runs = [fs_test.start(shop.report, lane="wide", lane_width=2) for _ in range(3)]
    assert [run.row["admitted"] for run in runs] == [True, True, False]


@pytest.mark.parametrize(
    "given", [{"lane": 7}, {"lane": " "}, {"lane": "l", "lane_width": 0}, {"lane_width": True}]
)
def test_what_is_no_lane_is_told(shop: Shop, fs: FlowStone, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match="lane"):
        fs.run(shop.report, **given)


def test_celerys_way_to_start_takes_them_too(shop: Shop, fs: FlowStone) -> None:
    run = shop.report.apply_async(lane="l", deadline=60)
    assert (run.row["lane"], run.row["deadline_at"] is not None) == ("l", True)
    with pytest.raises(UnknownOption, match="lanes"):
        shop.report.apply_async(lanes="l")


# --- keys -------------------------------------------------------------------------------------------------------------------------


def test_a_key_used_for_something_else_is_told_with_both(shop: Shop, fs: FlowStone) -> None:
    first = fs.run("report", key="k", metadata={"day": 1})
    with pytest.raises(IdempotencyConflict) as told:
        fs.run("report", key="k", metadata={"day": 2}, priority=5, force=True)
    text = told.value.message
    assert first.id in text
    assert 'metadata was {"day":1}, now it is {"day":2}' in text
    assert "priority was not given, now it is 5" in text
    with pytest.raises(IdempotencyConflict) as told:
        fs.run("orders", key="k", force=True)
    assert told.value.facts["before"]["name"].endswith(".report")
    assert told.value.facts["now"]["name"].endswith(".orders")


def test_the_same_request_with_another_deadline_is_the_same_request(shop: Shop, fs: FlowStone) -> None:
    first = fs.run("report", key="k", deadline=60, force=True)
    assert fs.run("report", key="k", deadline=90, force=True) == first
    with pytest.raises(IdempotencyConflict, match="lane was not given"):
        fs.run("report", key="k", lane="l", force=True)
