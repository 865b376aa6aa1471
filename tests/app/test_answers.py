"""What an asset's function may answer, and what its attempts come to."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from flowstone_celery import Cancel, Context, Fail, FlowStone, Retry, Skip, Value, telemetry
from flowstone_celery.errors import RunFailed

if TYPE_CHECKING:
    from flowstone_celery.testing.kit import TestKit


def test_a_bare_value_and_one_with_metadata_are_both_values(fs: FlowStone, fs_test: TestKit) -> None:
    fs.asset(name="bare")(lambda: {"a": 1})
    fs.asset(name="told")(lambda: Value({"a": 1}, metadata={"rows": 3, "note": None}))
    fs.asset(name="nothing")(lambda: None)
    assert fs.run("bare").get() == fs.run("told").get() == {"a": 1}
    assert fs_test.assert_materialized("told")["metadata"] == {"rows": 3, "note": None}
    assert fs_test.assert_materialized("bare")["metadata"] is None
    assert fs.run("nothing").get() is None
    assert fs.exists("nothing")


def test_skip_ends_what_needs_it_and_not_what_can_do_without(fs: FlowStone) -> None:
    fs.asset(name="orders")(lambda: Skip("holiday"))
    fs.asset(name="needs")(lambda orders: orders)
    fs.asset(name="can_do", optional_deps=["orders"])(lambda orders: [orders])
    run = fs.materialize_all(fs.asset(name="both", optional_deps=["needs"])(lambda needs, can_do: can_do))
    assert run.get() == [None]
    assert {step["name"]: step["status"] for step in run.steps()} == {
        "test.orders": "skipped",
        "test.needs": "skipped",
        "test.can_do": "succeeded",
        "test.both": "succeeded",
    }
    assert fs.status("orders").error["message"] == "holiday"  # type: ignore[index] # it says why


def test_retry_comes_back_after_its_own_pause_and_counts(fs: FlowStone, fs_test: TestKit) -> None:
    attempts: list[int] = []

    @fs.asset(retries=2)
    def orders(ctx: Context) -> object:
        attempts.append(ctx.attempt)
        return Retry(timedelta(minutes=10), reason="not there yet") if ctx.attempt < 3 else "there"

    begun = fs_test.clock.now()
    run = fs.run(orders)
    assert run.get() == "there"
    assert attempts == [1, 2, 3]
    assert timedelta(minutes=20) <= run.row["finished_at"] - begun < timedelta(minutes=21)


def test_retry_without_retries_left_fails_with_its_reason(fs: FlowStone) -> None:
    fs.asset(name="orders")(lambda: Retry(reason="not there yet"))
    with pytest.raises(RunFailed, match="not there yet"):
        fs.run("orders").get()


def test_fail_ends_at_once_whatever_retries_are_left(fs: FlowStone) -> None:
    attempts: list[int] = []

    @fs.asset(retries=5)
    def orders(ctx: Context) -> object:
        attempts.append(ctx.attempt)
        return Fail("the contract is gone", {"customer": 7})

    with pytest.raises(RunFailed, match="the contract is gone") as caught:
        fs.run(orders).get()
    assert attempts == [1]
    assert caught.value.facts["error"]["facts"] == {"customer": 7}


def test_cancel_ends_the_whole_run(fs: FlowStone) -> None:
    fs.asset(name="orders")(lambda: Cancel("shop closed"))
    fs.asset(name="prices")(lambda: 1)
    fs.asset(name="revenue")(lambda orders, prices: 0)
    run = fs.materialize_all("revenue")
    assert run.state == "cancelled"
    assert fs.status("revenue").state == "cancelled"


def test_an_outcome_class_in_place_of_an_instance_is_told(fs: FlowStone) -> None:
    fs.asset(name="orders")(lambda: Skip)
    with pytest.raises(RunFailed, match=r"the answer is the class Skip"):
        fs.run("orders").get()


# --- retries --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backoff", "pauses"),
    [("fixed", [10, 10, 10, 10]), ("linear", [10, 20, 30, 35]), ("exponential", [10, 20, 35, 35])],
)
def test_pauses_between_attempts_follow_the_backoff_up_to_the_cap(
    fs: FlowStone, fs_test: TestKit, backoff: str, pauses: list[int]
) -> None:
    @fs.asset(retries=4, backoff=backoff, retry_delay=10, retry_cap=35, jitter=0)
    def orders(ctx: Context) -> int:
        if ctx.attempt < 5:
            raise ConnectionError("the source is away")
        return ctx.attempt

    run = fs.run(orders)
    assert run.get() == 5
    waited = [event["detail"]["delay"] for event in run.events() if event["event"] == "step.retry"]
    assert waited == pauses


def test_a_retry_waits_for_the_clock(fs: FlowStone, fs_test: TestKit) -> None:
    @fs.asset(retries=1, retry_delay=60, jitter=0)
    def orders(ctx: Context) -> int:
        if ctx.attempt == 1:
            raise ConnectionError("away")
        return 2

    run = fs_test.start(orders)
    assert fs_test.drain(run, advance=False) == 1
    assert "retry 1" in run.why()[0]["reason"]
    fs_test.clock.advance(seconds=59)
    assert fs_test.drain(run, advance=False) == 0
    fs_test.clock.advance(seconds=2)
    assert fs_test.drain(run, advance=False) == 1
    assert run.get() == 2


def test_when_retries_are_used_up_the_last_error_is_told(fs: FlowStone) -> None:
    @fs.asset(retries=2)
    def orders(ctx: Context) -> int:
        raise ValueError(f"attempt {ctx.attempt}")

    with pytest.raises(RunFailed, match="attempt 3"):
        fs.run(orders).get()


# --- coroutines -----------------------------------------------------------------------------------------------------------------


def test_a_coroutine_function_makes_a_value(fs: FlowStone) -> None:
    @fs.asset
    async def page(ctx: Context) -> str:
        await asyncio.sleep(0)
        return f"page {ctx.partition}"

    @fs.asset
    async def words(page: str) -> int:
        return len(page.split())

    assert fs.run(words, partition=7).get() == 2


def test_inline_work_serves_a_caller_that_runs_a_loop_of_its_own(fs: FlowStone) -> None:
    threads: list[str] = []

    @fs.asset
    async def page() -> str:
        threads.append(threading.current_thread().name)
        await asyncio.sleep(0)
        return "page"

    async def notebook() -> Any:
        return fs.run(page).get()

    assert asyncio.run(notebook()) == "page"
    assert threads != ["MainThread"]


def test_what_a_coroutine_raises_is_an_attempt(fs: FlowStone) -> None:
    @fs.asset(retries=1)
    async def page(ctx: Context) -> int:
        if ctx.attempt == 1:
            raise TimeoutError("slow")
        return ctx.attempt

    assert fs.run(page).get() == 2


# --- what is told ---------------------------------------------------------------------------------------------------------------


def test_a_materialization_tells_how_long_it_took(fs: FlowStone) -> None:
    @fs.asset
    async def page() -> str:
        await asyncio.sleep(0.02)
        return "page"

    with telemetry.recorded() as events:
        fs.run(page)
    told = [event.fields for event in events if event.name == "flowstone.materialization.stop"]
    assert told[0]["asset"] == "test.page"
    assert float(str(told[0]["duration_ms"])) >= 20
