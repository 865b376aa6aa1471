"""Work in the calling process: the same core without Celery and without a keeper."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from flowstone_celery import Context, FlowStone
from flowstone_celery.core import doctor
from flowstone_celery.errors import RunFailed, StepTimeout, WrongState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowstone_celery.config import Settings


@pytest.fixture
def fs(flowstone_settings: Settings) -> Iterator[FlowStone]:
    """An inline FlowStone in real time: without the test kit."""
    house = FlowStone(namespace="shop", mode="inline", settings=flowstone_settings)
    yield house
    assert doctor.examine(house.database) == []
    house.close()


def test_inline_work_of_an_attached_app_needs_no_broker(flowstone_settings: Settings) -> None:
    app = Celery("shop", broker="redis://127.0.0.1:1/0")  # nobody listens there
    fs = FlowStone(app, settings=flowstone_settings)
    fs.asset(name="orders", queue="etl")(lambda: 1)
    revenue = fs.asset(name="revenue")(lambda orders: orders + 1)
    run = fs.run(revenue, inline=True)
    assert run.get() == 2
    assert {step["queue"] for step in run.steps()} == {"flowstone.inline"}
    fs.close()


def test_a_queue_in_the_call_does_not_send_inline_work_away(fs: FlowStone) -> None:
    fs.asset(name="orders")(lambda: 1)
    assert fs.run("orders", queue="etl").get() == 1


def test_a_whole_process_works_inline(flowstone_settings: Settings) -> None:
    script = """
        import sys
        from flowstone_celery import FlowStone, Context
        fs = FlowStone(mode="inline", namespace="shop")
        @fs.asset(retries=1, retry_delay=0.01)
        def orders(ctx: Context) -> list[int]:
            if ctx.attempt == 1:
                raise ConnectionError("away")
            return [1, 2]
        @fs.asset
        async def revenue(orders: list[int]) -> int:
            return sum(orders)
        print(fs.run(revenue, partition=7).get(), fs.status(revenue, partition=7).state)
        print(sorted({"celery", "kombu", "redis"} & set(sys.modules)))
    """
    assert _python(script, flowstone_settings).stdout == "3 success\n[]\n"


def test_threads_of_a_process_work_side_by_side(fs: FlowStone) -> None:
    together = threading.Barrier(2, timeout=20)

    @fs.asset
    def orders(ctx: Context) -> int:
        together.wait()  # only if both are at work at once
        return int(str(ctx.partition))

    values: list[int] = []
    threads = [
        threading.Thread(target=lambda key=key: values.append(fs.run(orders, partition=key).get()))
        for key in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(values) == [1, 2]


def test_an_asset_may_start_runs_of_others(fs: FlowStone) -> None:
    fs.asset(name="orders")(lambda ctx: ctx.partition)

    @fs.asset
    def total() -> int:
        return sum(fs.run("orders", partition=day).get() for day in range(3))

    assert fs.run(total).get() == 3


# --- timeouts: nothing interrupts from outside ---------------------------------------------------------------------------------


def test_a_timeout_ends_code_that_asks(fs: FlowStone) -> None:
    @fs.asset(timeout=0.05)
    def orders(ctx: Context) -> int:
        while True:
            ctx.check()
            time.sleep(0.001)

    with pytest.raises(RunFailed, match=r"longer than its timeout of 0\.05 s") as caught:
        fs.run(orders).get()
    assert isinstance(caught.value.__cause__, StepTimeout)


def test_a_timeout_ends_a_coroutine_at_its_await_and_lets_it_tidy_up(fs: FlowStone) -> None:
    tidied: list[str] = []

    @fs.asset(timeout=0.05)
    async def orders() -> int:
        try:
            await asyncio.sleep(60)
        finally:
            tidied.append("closed")
        return 1

    with pytest.raises(RunFailed, match="longer than its timeout"):
        fs.run(orders).get()
    assert tidied == ["closed"]


def test_each_attempt_has_its_own_time(fs: FlowStone) -> None:
    @fs.asset(timeout=0.3, retries=1, retry_delay=0)
    def orders(ctx: Context) -> int:
        while ctx.attempt == 1:
            ctx.check()
            time.sleep(0.01)
        ctx.check()
        return ctx.attempt

    assert fs.run(orders).get() == 2


def test_a_timeout_does_not_end_code_that_never_asks(fs: FlowStone) -> None:
    @fs.asset(timeout=0.01)
    def orders() -> str:
        time.sleep(0.05)
        return "made, though late"

    assert fs.run(orders).get() == "made, though late"


def test_a_run_that_is_cancelled_from_elsewhere_ends_code_that_asks(fs: FlowStone) -> None:
    begun = threading.Event()

    @fs.asset
    def orders(ctx: Context) -> int:
        begun.set()
        while True:
            ctx.check()
            time.sleep(0.01)

    fs.asset(name="revenue")(lambda orders: orders)
    run = fs.materialize_all
    states: list[str] = []
    worker = threading.Thread(target=lambda: states.append(run("revenue").state))
    worker.start()
    assert begun.wait(20)
    running = fs.status("orders").run_id
    assert running is not None
    assert fs.handle(running).cancel(reason="enough")
    worker.join(20)
    assert states == ["cancelled"]


# --- processes that go away -----------------------------------------------------------------------------------------------------

_SHOP = """
    from flowstone_celery import FlowStone
    fs = FlowStone(mode="inline", namespace="shop")
    @fs.asset
    def orders() -> str:
        return "x" * 200_000
    @fs.asset
    def revenue(orders: str) -> int:
        return len(orders)
"""


@pytest.mark.parametrize(
    "point",
    ["claim.after_commit", "settle.value_written", "settle.before_commit", "continue.after_commit"],
)
def test_resume_goes_on_where_a_killed_process_left_off(flowstone_settings: Settings, point: str) -> None:
    dead = _python(
        f"{_SHOP}\n    fs.run(revenue)",
        flowstone_settings,
        FLOWSTONE_FAULT=f"{point}:1:kill9",
        FLOWSTONE_INLINE_VALUE_BYTES="0",
        check=False,
    )
    assert dead.returncode == -signal.SIGKILL
    fs = FlowStone(mode="inline", namespace="shop", settings=flowstone_settings)
    fs.asset(name="orders")(lambda: "x" * 200_000)
    fs.asset(name="revenue")(lambda orders: len(orders))  # noqa: PLW0108 - the parameter's name is the dependency
    try:
        [row] = [fs.status("revenue")]
        assert row.run_id is not None
        run = fs.handle(row.run_id)
        assert not run.ready()
        assert fs.resume(run.id).get() == 200_000
        ended = [event for event in run.events() if event["event"] == "step.succeeded"]
        assert len(ended) == 2
        assert doctor.examine(fs.database) == []
    finally:
        fs.close()


def test_a_caller_that_is_interrupted_gives_its_step_back(fs: FlowStone) -> None:
    @fs.asset
    def orders(ctx: Context) -> int:
        if ctx.attempt == 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)  # the interrupt lands here
        return 1

    with pytest.raises(KeyboardInterrupt):
        fs.run(orders)
    run_id = fs.status(orders).run_id
    assert run_id is not None
    assert fs.status(orders).state == "pending"
    assert fs.resume(run_id).get() == 1


def test_resume_refuses_a_run_that_is_for_workers(fs: FlowStone, flowstone_settings: Settings) -> None:
    other = FlowStone(Celery("shop", broker="memory://"), settings=flowstone_settings)
    run = other.asset(name="orders")(lambda: 1).delay()
    with pytest.raises(WrongState, match=r"stands on queue 'celery'.*start one that listens"):
        other.resume(run.id)
    assert run.state == "pending"
    run.cancel()
    other.close()


def test_a_process_that_does_not_know_the_asset_keeps_the_step_and_says_so(
    fs: FlowStone, flowstone_settings: Settings
) -> None:
    fs.asset(name="orders")(lambda: 1)
    run = fs.begin(["shop.orders"], "", only=None, drain=False)
    stranger = FlowStone(mode="inline", namespace="shop", settings=flowstone_settings)
    with pytest.raises(WrongState, match=r"task 'shop\.orders', unknown here.*import the module"):
        stranger.resume(run.id)
    stranger.close()
    assert fs.resume(run.id).get() == 1


def test_of_several_runs_that_stand_each_is_done_when_it_is_asked_for(fs: FlowStone) -> None:
    fs.asset(name="orders")(lambda: 1)
    runs = [fs.begin(["shop.orders"], f"p{n}", only=None, drain=False) for n in range(3)]
    fs.resume(runs[0].id)
    runs.append(fs.begin(["shop.orders"], "p3", only=None, drain=False))
    for run in runs[1:]:
        assert fs.resume(run.id).successful()


def _python(script: str, settings: Settings, *, check: bool = True, **environment: str) -> Any:
    """Run the script in a process of its own, on this test's database."""
    given = {**os.environ, "FLOWSTONE_DATABASE_URL": str(settings.database_url), **environment}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=given,
        capture_output=True,
        text=True,
        check=check,
        timeout=60,
    )
