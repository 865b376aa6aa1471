"""Handles on runs: shaped like AsyncResult, read from rows, made again from the id alone."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from flowstone_celery import Cancel, Context, FlowStone, Run, Skip
from flowstone_celery.errors import (
    Cancelled,
    ExecutionError,
    RunFailed,
    RunNotFound,
    ValueNotFound,
    WaitTimeout,
)

if TYPE_CHECKING:
    from flowstone_celery.assets.handle import Progress
    from flowstone_celery.testing.kit import TestKit


@pytest.fixture
def chain(fs: FlowStone) -> None:
    """orders → revenue → report."""
    fs.asset(name="orders")(lambda: [1, 2])
    fs.asset(name="revenue")(lambda orders: orders[0] + orders[1])
    fs.asset(name="report")(lambda revenue: f"revenue: {revenue}")


@pytest.mark.usefixtures("chain")
def test_a_handle_follows_its_run(fs_test: TestKit) -> None:
    run = fs_test.start("report")
    assert (run.state, run.status, run.ready()) == ("pending", "pending", False)
    assert run.progress().percent == 0
    fs_test.step()
    progress = run.progress()
    assert (progress.status, progress.total, progress.finished, progress.failed) == ("running", 3, 1, 0)
    assert round(progress.percent) == 33
    fs_test.drain(run)
    assert (run.state, run.ready(), run.successful(), run.failed()) == ("succeeded", True, True, False)
    assert run.get() == "revenue: 3"
    assert run.wait() is run
    assert run.progress().percent == 100
    assert run.why() == []


@pytest.mark.usefixtures("chain")
def test_handles_on_the_same_run_are_equal(fs: FlowStone, fs_test: TestKit) -> None:
    run, other = fs_test.run("orders"), fs_test.run("orders")
    same = fs.handle(run.id)
    assert same == run
    assert hash(same) == hash(run)
    assert run not in (other, run.id)
    assert fs.handle(run.uuid) == run
    assert repr(run) == f"<Run: {run.id}>"


@pytest.mark.usefixtures("chain")
def test_a_handle_is_made_in_another_process_from_the_id_alone(fs_test: TestKit) -> None:
    run = fs_test.run("report")
    code = (
        "import sys\n"
        "from flowstone_celery import FlowStone\n"
        "run = FlowStone(mode='inline').handle(sys.argv[1])\n"
        "print(run.state, run.progress().finished, run.get())\n"
    )
    environment = {"FLOWSTONE_DATABASE_URL": str(fs_test.settings.database_url)}
    told = subprocess.run(
        [sys.executable, "-c", code, run.id], env=environment, capture_output=True, text=True, check=True
    )
    assert told.stdout == "succeeded 3 revenue: 3\n"


def test_waiting_ends_in_time_and_says_why_nothing_moves(fs: FlowStone, fs_test: TestKit) -> None:
    fs.asset(name="orders")(lambda: 1)
    run = fs_test.start("orders", delay=3600)
    with pytest.raises(WaitTimeout, match=r"is pending still; test\.orders: it is due at \d{4}-") as caught:
        run.wait(0.05)
    assert caught.value.facts["run_id"] == run.id
    with pytest.raises(WaitTimeout, match="goes on by itself"):
        run.get(timeout=0)
    fs_test.drain(run)
    assert run.get() == 1


@pytest.mark.usefixtures("chain")
def test_waiting_tells_progress_while_another_thread_works(fs_test: TestKit) -> None:
    run = fs_test.start("report")
    seen: list[Progress] = []
    worker = threading.Thread(target=fs_test.drain, args=(run,))
    worker.start()
    assert run.get(timeout=30, on_progress=seen.append) == "revenue: 3"
    worker.join()
    assert seen[-1].finished == 3
    assert [each.finished for each in seen] == sorted(each.finished for each in seen)


def test_get_raises_what_failed_with_the_first_failure_as_its_cause(fs: FlowStone) -> None:
    @fs.asset
    def orders() -> int:
        raise KeyError("parcel")

    fs.asset(name="revenue")(lambda orders: orders)
    run = fs.run("revenue")
    with pytest.raises(RunFailed, match=r"step 'test\.orders' raised KeyError: 'parcel'") as caught:
        run.get()
    cause = caught.value.__cause__
    assert isinstance(cause, ExecutionError)
    assert cause.facts["type"] == "KeyError"
    assert "raise KeyError" in cause.facts["traceback"]
    assert "flowstone run show" in str(caught.value)
    assert fs.status("revenue").error["code"] == "FS-2003"  # type: ignore[index] # it has failed


@pytest.mark.usefixtures("chain")
def test_a_cancelled_run_ends_and_says_why(fs_test: TestKit) -> None:
    run = fs_test.start("report")
    fs_test.step()
    assert run.cancel(actor="ada", reason="not needed any more")
    assert run.state == "cancelled"
    assert not run.cancel()
    with pytest.raises(Cancelled, match="not needed any more"):
        run.get()
    fs_test.assert_audit("run.cancel", run, actor="ada")
    assert [step["status"] for step in run.steps()] == ["succeeded", "cancelled", "cancelled"]


def test_an_asset_that_cancels_its_run_is_quoted(fs: FlowStone) -> None:
    fs.asset(name="orders")(lambda: Cancel("the source\x00 is closed"))
    fs.asset(name="revenue")(lambda orders: orders)
    run = fs.run("revenue")
    assert run.state == "cancelled"
    with pytest.raises(Cancelled, match="the source\ufffd is closed"):
        run.get()


def test_a_skipped_target_has_no_value_and_says_why(fs: FlowStone) -> None:
    fs.asset(name="orders")(lambda: Skip("nothing new \ud800\x00"))
    run = fs.run("orders")
    assert run.successful()
    with pytest.raises(ValueNotFound, match="was skipped: nothing new"):
        run.get()


@pytest.mark.usefixtures("chain")
def test_events_go_on_behind_the_last_one_seen(fs_test: TestKit) -> None:
    run = fs_test.start("report")
    fs_test.step()
    first = list(run.events())
    fs_test.drain(run)
    rest = list(run.events(after=first[-1]["id"]))
    assert [*first, *rest] == list(run.events())
    assert rest[0]["event"] == "step.running"
    told = fs_test.events(run)
    assert told[:3] == ["run.pending", "run.running", "step.running test.orders"] or told[:2] == [
        "run.running",
        "step.running test.orders",
    ]
    assert told[-1] == "run.succeeded"
    assert told.count("step.succeeded test.report") == 1


@pytest.mark.parametrize("run_id", ["", "7", "not-an-id", "019aaaaa", 7, None])
def test_what_is_no_id_is_told_as_a_run_that_is_not_there(fs: FlowStone, run_id: object) -> None:
    with pytest.raises(RunNotFound, match=r"is not the id of a run.*flowstone run ls"):
        fs.handle(run_id)  # type: ignore[arg-type] # the mistake under test


def test_an_id_that_nobody_has_is_told_when_it_is_read(fs: FlowStone) -> None:
    run = fs.handle("00000000-0000-7000-8000-000000000000")
    for read in (lambda: run.state, run.wait, run.get, run.cancel, run.progress):
        with pytest.raises(RunNotFound, match="no run has the id"):
            read()
    assert list(run.events()) == []


def test_a_run_is_read_anew_each_time(fs: FlowStone, fs_test: TestKit) -> None:
    seen: list[str] = []

    @fs.asset
    def orders(ctx: Context) -> int:
        handle = fs.handle(ctx.run_id)
        assert isinstance(handle, Run)
        seen.append(handle.state)
        return 1

    run = fs_test.start(orders)
    seen.append(run.state)
    fs_test.drain(run)
    seen.append(run.state)
    assert seen == ["pending", "running", "succeeded"]
