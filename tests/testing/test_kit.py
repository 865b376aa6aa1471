"""The test kit: the real core, worked by hand, on a clock that the test moves."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from onedb import flowstone_settings, module_settings, sql  # noqa: F401 - fixtures: one database, wiped

from flowstone_celery import Context, FlowStone
from flowstone_celery.testing.kit import TestKit

if TYPE_CHECKING:
    from flowstone_celery.config import Settings


@pytest.fixture
def calls(fs_test: TestKit) -> list[str]:
    """orders → revenue → report, and what was called."""
    made: list[str] = []

    @fs_test.fs.asset
    def orders(ctx: Context) -> str:
        made.append(ctx.idempotency_key)
        return "x" * 10

    @fs_test.fs.asset
    def revenue(orders: str) -> int:
        made.append("revenue")
        return len(orders)

    @fs_test.fs.asset
    def report(revenue: int) -> str:
        made.append("report")
        return f"{revenue}"

    return made


def test_start_begins_and_works_nothing(fs_test: TestKit, calls: list[str]) -> None:
    run = fs_test.start("report", partition=7)
    assert (run.state, calls) == ("pending", [])
    assert [row["name"] for row in fs_test.unfinished()] == ["test.orders", "test.revenue", "test.report"]
    alone = fs_test.start("orders", all_deps=False)
    assert len(alone.steps()) == 1


def test_step_works_exactly_one(fs_test: TestKit, calls: list[str]) -> None:
    run = fs_test.start("report")
    assert [fs_test.step() for _ in range(4)] == [True, True, True, False]
    assert run.get() == "10"
    assert len(calls) == 3


def test_drain_works_one_run_or_all(fs_test: TestKit, calls: list[str]) -> None:
    first, second = fs_test.start("report"), fs_test.start("orders", partition=2)
    assert fs_test.drain(second) == 1
    assert (first.state, second.state) == ("pending", "succeeded")
    assert fs_test.drain() == 3
    assert first.successful()


def test_drain_without_a_run_moves_to_what_is_due_later_too(fs_test: TestKit) -> None:
    @fs_test.fs.asset(retries=2, retry_delay=3600)
    def orders(ctx: Context) -> int:
        if ctx.attempt < 3:
            raise ConnectionError("away")
        return ctx.attempt

    runs = [fs_test.start(orders, partition=1), fs_test.start(orders, partition=2, delay=86_400)]
    begun = fs_test.clock.now()
    assert fs_test.drain() == 6
    assert [run.get() for run in runs] == [3, 3]
    assert fs_test.clock.now() - begun > timedelta(days=1)


def test_drain_sees_what_is_due_in_a_moment(fs_test: TestKit) -> None:
    @fs_test.fs.asset(retries=30, retry_delay=0.0001)
    def orders(ctx: Context) -> int:
        if ctx.attempt < 31:
            raise ConnectionError("away")
        return ctx.attempt

    assert fs_test.run(orders).get() == 31


def test_what_is_due_later_becomes_due_when_the_clock_moves(fs_test: TestKit, calls: list[str]) -> None:
    run = fs_test.start("orders", all_deps=False, delay=timedelta(hours=2))
    assert not fs_test.step()
    assert "it is due at" in fs_test.unfinished()[0]["reason"]
    before = fs_test.clock.now()
    assert fs_test.clock.advance(hours=1) - before >= timedelta(hours=1)
    assert not fs_test.step()
    fs_test.clock.advance(timedelta(minutes=59), minutes=2)
    assert fs_test.step()
    ended = [event["at"] for event in run.events()][-1]
    assert ended - before >= timedelta(hours=2)


def test_the_clock_does_not_go_back(fs_test: TestKit) -> None:
    with pytest.raises(ValueError, match="cannot go back"):
        fs_test.clock.advance(seconds=-1)


# --- crashes --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "point",
    [
        "claim.after_commit",
        "user.start",
        "user.end",
        "settle.before_commit",
        "settle.after_commit",
        "continue.after_commit",
    ],
)
def test_after_a_crash_everything_is_made_once(fs_test: TestKit, calls: list[str], point: str) -> None:
    run = fs_test.start("report")
    with fs_test.crash_at(point):
        fs_test.drain(run)
    fs_test.assert_healthy()
    fs_test.drain(run)
    assert run.get() == "10"
    told = fs_test.events(run)
    for name in ("orders", "revenue", "report"):
        assert told.count(f"step.succeeded test.{name}") == 1
    assert (
        len(sql(fs_test.database, "SELECT 1 FROM flowstone.asset_values WHERE settled_at IS NOT NULL")) == 3
    )
    assert len({key for key in calls if "/" in key}) == 1, "attempts that a crash caused share their key"


def test_a_large_value_that_was_written_and_not_settled_is_never_seen(
    flowstone_settings: Settings,  # noqa: F811 - the fixture of this name
) -> None:
    from dataclasses import replace

    kit = TestKit(
        FlowStone(namespace="test", mode="inline"), replace(flowstone_settings, inline_value_bytes=0)
    )
    try:
        page = kit.fs.asset(name="page")(lambda: "page")
        run = kit.start(page)
        with kit.crash_at("settle.value_written"):
            kit.drain(run)
        kit.refute_materialized(page)
        kit.drain(run)
        assert run.get() == "page"
        kit.assert_healthy()
    finally:
        kit.close()


def test_crash_at_the_nth_arrival(fs_test: TestKit, calls: list[str]) -> None:
    run = fs_test.start("report")
    with fs_test.crash_at("user.start", nth=3):
        fs_test.drain(run)
    assert [step["status"] for step in run.steps()] == ["succeeded", "succeeded", "ready"]


def test_a_crash_point_that_is_not_reached_fails_the_test(fs_test: TestKit, calls: list[str]) -> None:
    with (
        pytest.raises(AssertionError, match=r"'cancel\.between_batches' was not reached 1 time"),
        fs_test.crash_at("cancel.between_batches"),
    ):
        fs_test.run("orders")


def test_code_that_crashes_for_ever_fails_at_the_limit(fs_test: TestKit, calls: list[str]) -> None:
    run = fs_test.start("orders")
    for _ in range(fs_test.settings.crash_limit):
        assert not run.ready()
        with fs_test.crash_at("user.start"):
            fs_test.drain(run)
    assert run.failed()
    assert "FS-2010" in str(run.steps()[0]["error"])


# --- verbs of the app -----------------------------------------------------------------------------------------------------------


def test_the_apps_own_verbs_work_on_the_virtual_clock(fs_test: TestKit) -> None:
    @fs_test.fs.asset(retries=1, retry_delay=7200, jitter=0)
    def orders(ctx: Context) -> int:
        if ctx.attempt == 1:
            raise ConnectionError("away")
        return ctx.attempt

    before = fs_test.clock.now()
    assert fs_test.fs.run(orders).get() == 2
    assert fs_test.clock.now() - before >= timedelta(hours=2)


def test_the_flowstone_is_as_it_was_afterwards(flowstone_settings: Settings) -> None:  # noqa: F811 - the fixture
    fs = FlowStone(namespace="test", mode="inline", settings=flowstone_settings)
    settings = fs.settings
    kit = TestKit(fs, flowstone_settings)
    kit.close()
    assert (fs.mode, fs.settings) == ("inline", settings)
    fs.close()


def test_timeouts_and_cancellations_end_code_that_asks(fs_test: TestKit) -> None:
    fs = fs_test.fs

    @fs.asset(timeout=0.05)
    def slow(ctx: Context) -> int:
        while True:
            ctx.check()

    @fs.asset
    def unwanted(ctx: Context) -> int:
        fs.handle(ctx.run_id).cancel(reason="enough")
        while True:
            ctx.check()

    run = fs_test.run(slow)
    assert run.failed()
    assert "longer than its timeout" in str(run.steps()[0]["error"])
    assert fs_test.run(unwanted).state == "cancelled"


# --- assertions -----------------------------------------------------------------------------------------------------------------


def test_assertions_name_what_they_missed(fs_test: TestKit, calls: list[str]) -> None:
    run = fs_test.run("orders", partition=7)
    assert fs_test.assert_materialized("orders", partition=7)["run_id"] == run.uuid
    with pytest.raises(AssertionError, match=r"asset 'test\.orders' has no value for partition 8"):
        fs_test.assert_materialized("orders", partition=8)
    with pytest.raises(AssertionError, match="has a value for partition 7"):
        fs_test.refute_materialized("orders", partition=7)
    with pytest.raises(AssertionError, match=r"no act 'run\.cancel' on run"):
        fs_test.assert_audit("run.cancel", run)
    late = fs_test.start("orders", delay=60)
    late.cancel(actor="ada")
    with pytest.raises(AssertionError, match="done by 'ada', not 'bob'"):
        fs_test.assert_audit("run.cancel", late, actor="bob")
    with pytest.raises(AssertionError, match="the run ended as cancelled"):
        fs_test.wait_for(lambda: False, late)


def test_waiting_in_vain_says_why(fs_test: TestKit, calls: list[str]) -> None:
    run = fs_test.start("orders", delay=3600)
    with pytest.raises(AssertionError, match=r"run is pending.*it is due at"):
        fs_test.wait_for(run.ready, run, within=0.05)


def test_the_doctor_quotes_the_broken_row(fs_test: TestKit, calls: list[str]) -> None:
    run = fs_test.run("orders")
    sql(fs_test.database, "UPDATE flowstone.runs SET failed_steps = 1")
    with pytest.raises(AssertionError, match=rf"the doctor found:\n  \w+: run {run.id}"):
        fs_test.assert_healthy()
    sql(fs_test.database, "UPDATE flowstone.runs SET failed_steps = 0")


def test_a_sweep_by_hand_finishes_what_is_cancelling(fs_test: TestKit, calls: list[str]) -> None:
    run = fs_test.start("report")
    with fs_test.crash_at("cancel.after_run_row"):
        run.cancel()
    assert run.state == "cancelling"
    fs_test.sweep()
    assert run.state == "cancelled"
