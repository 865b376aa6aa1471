"""One value, one maker: runs that meet at a slice make it once, one after the other, or side by side, as the asset says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from corelab import in_threads

from flowstone_celery import FlowStone
from flowstone_celery.core import doctor
from flowstone_celery.core.statements import SQL
from flowstone_celery.errors import DependencyCycle, RunFailed
from flowstone_celery.telemetry import add_sink, remove_sink

if TYPE_CHECKING:
    from flowstone_celery.assets.handle import Run
    from flowstone_celery.config import Settings
    from flowstone_celery.telemetry import Event

PATIENCE = 60.0


class Line:
    """Code that says when it begins, and goes on when it is let."""

    def __init__(self) -> None:
        self.calls = 0
        self.at_once = 0
        self.most_at_once = 0
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self._lock = threading.Lock()

    def __call__(self) -> int:
        with self._lock:
            self.calls += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            mine = self.calls
        self.begun.set()
        assert self.go_on.wait(PATIENCE)
        with self._lock:
            self.at_once -= 1
        return mine


def house(settings: Settings, declare: Callable[[FlowStone], object]) -> FlowStone:
    """A FlowStone with connections and a worker of its own, as another process would have."""
    found = FlowStone(mode="inline", namespace="test", settings=settings)
    declare(found)
    return found


@contextmanager
def houses(
    settings: Settings, count: int, declare: Callable[[FlowStone], object]
) -> Iterator[list[FlowStone]]:
    found = [house(settings, declare) for _ in range(count)]
    try:
        yield found
        assert doctor.examine(found[0].database) == []
    finally:
        for each in found:
            each.close()


def waiting_for_a_maker(fs: FlowStone, count: int) -> Callable[[], bool]:
    """Whether so many steps are ready, and none of them can begin: somebody makes what they are to make."""

    def look() -> bool:
        rows = fs.database.once(SQL["why_not_running"], run=None, limit=1000)
        return sum(row["status"] == "ready" for row in rows) >= count

    return look


def until(condition: Callable[[], bool]) -> None:
    ends = threading.Event()
    for _ in range(int(PATIENCE / 0.02)):
        if condition():
            return
        ends.wait(0.02)
    raise AssertionError("it did not happen")


@contextmanager
def heard(name: str) -> Iterator[list[Event]]:
    events: list[Event] = []

    def sink(event: Event) -> None:
        if event.name == name:
            events.append(event)

    add_sink(sink)
    try:
        yield events
    finally:
        remove_sink(sink)


def in_background(act: Callable[[], Any]) -> Callable[[], Any]:
    """Do it in a thread; calling the answer waits for its end and answers, or raises, what it did."""
    box: list[Any] = []

    def do() -> None:
        try:
            box.append(act())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            box.append(error)

    thread = threading.Thread(target=do)
    thread.start()

    def end() -> Any:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the thread did not end"
        if isinstance(box[0], BaseException):
            raise box[0]
        return box[0]

    return end


# --- share ------------------------------------------------------------------------------------------------------------------------


def test_twenty_runs_of_one_slice_at_once_call_its_code_once(flowstone_settings: Settings) -> None:
    line = Line()
    with (
        houses(flowstone_settings, 4, lambda fs: fs.asset(name="orders")(line)) as found,
        heard("flowstone.materialization.shared") as shared,
    ):
        ends = [in_background(lambda n=n: found[n % 4].run("orders")) for n in range(20)]
        until(waiting_for_a_maker(found[0], 19))
        line.go_on.set()
        runs: list[Run] = [end() for end in ends]
        assert line.calls == 1
        assert [run.get() for run in runs] == [1] * 20
        assert len({run.id for run in runs}) == 20
        outputs = [run.steps()[0]["output"] for run in runs]
        assert len({output["value"] for output in outputs}) == 1
        assert len(shared) == sum("made_by" in output for output in outputs) == 19
        assert {str(event.fields["made_by"]) for event in shared} < {run.id for run in runs}


def test_a_forced_run_waits_its_turn_and_makes_its_own(flowstone_settings: Settings) -> None:
    line = Line()
    with houses(flowstone_settings, 2, lambda fs: fs.asset(name="orders")(line)) as (one, two):
        first = in_background(lambda: one.run("orders"))
        assert line.begun.wait(PATIENCE)
        others = [
            in_background(act)
            for act in (lambda: two.run("orders", force=True), lambda: two.materialize("orders"))
        ]
        until(waiting_for_a_maker(one, 2))
        line.go_on.set()
        assert first().get() == 1
        assert {end().get() for end in others} == {2, 3}
        assert line.most_at_once == 1


def test_other_code_does_not_share(flowstone_settings: Settings) -> None:
    line = Line()
    old = house(flowstone_settings, lambda fs: fs.asset(name="orders", code_version="1")(line))
    new = house(flowstone_settings, lambda fs: fs.asset(name="orders", code_version="2")(line))
    try:
        first = in_background(lambda: old.run("orders"))
        assert line.begun.wait(PATIENCE)
        second = in_background(lambda: new.run("orders"))
        until(waiting_for_a_maker(old, 1))
        line.go_on.set()
        assert (first().get(), second().get()) == (1, 2)
    finally:
        old.close()
        new.close()


def test_a_failure_is_not_shared(flowstone_settings: Settings) -> None:
    line = Line()

    def orders() -> int:
        mine = line()
        if mine == 1:
            raise ValueError("the first is unlucky")
        return mine

    with houses(flowstone_settings, 2, lambda fs: fs.asset(orders)) as (one, two):
        first = in_background(lambda: one.run("orders"))
        assert line.begun.wait(PATIENCE)
        second = in_background(lambda: two.run("orders"))
        until(waiting_for_a_maker(one, 1))
        line.go_on.set()
        with pytest.raises(RunFailed, match="unlucky"):
            first().get()
        assert second().get() == 2


def test_a_maker_that_pauses_for_a_retry_is_succeeded_and_shares_then(flowstone_settings: Settings) -> None:
    line = Line()

    def orders() -> int:
        mine = line()
        if mine == 1:
            raise ValueError("try again later")
        return mine

    def declare(fs: FlowStone) -> None:
        fs.asset(retries=1, backoff="fixed", retry_delay=1.5, jitter=0)(orders)

    with houses(flowstone_settings, 2, declare) as (one, two):
        first = in_background(lambda: one.run("orders"))
        assert line.begun.wait(PATIENCE)
        second = in_background(lambda: two.run("orders"))
        until(waiting_for_a_maker(one, 1))
        line.go_on.set()
        assert second().get() == 2
        assert first().get() == 2
        assert line.calls == 2


def test_a_cancelled_maker_is_succeeded(flowstone_settings: Settings) -> None:
    line, ids = Line(), list[str]()

    def orders(ctx: Any) -> int:
        ids.append(str(ctx.run_id))
        mine = line()
        if mine == 1:
            for _ in range(int(PATIENCE / 0.05)):
                ctx.check()
                threading.Event().wait(0.05)
        return mine

    with houses(flowstone_settings, 2, lambda fs: fs.asset(orders)) as (one, two):
        first = in_background(lambda: one.run("orders"))
        assert line.begun.wait(PATIENCE)
        second = in_background(lambda: two.run("orders"))
        until(waiting_for_a_maker(one, 1))
        one.handle(ids[0]).cancel()
        line.go_on.set()
        assert first().state == "cancelled"
        assert second().get() == 2


DYING = """
import os, sys, time
from flowstone_celery import FlowStone
from flowstone_celery.config import Settings
fs = FlowStone(mode="inline", namespace="test", settings=Settings(database_url=os.environ["URL"]))

@fs.asset(name="orders", code_version="1")
def orders():
    print("begun", flush=True)
    time.sleep(600)

fs.run("orders")
"""


def test_a_maker_whose_process_was_killed_is_succeeded(flowstone_settings: Settings) -> None:
    def declare(fs: FlowStone) -> None:
        fs.asset(name="orders", code_version="1")(lambda: "made by another")

    process = subprocess.Popen(
        [sys.executable, "-c", DYING],
        env={**os.environ, "URL": flowstone_settings.database_url or ""},
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        with houses(flowstone_settings, 1, declare) as (fs,):
            waiting = in_background(lambda: fs.run("orders"))
            until(waiting_for_a_maker(fs, 1))
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert waiting().get() == "made by another"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


# --- queue and allow --------------------------------------------------------------------------------------------------------------


def test_queued_runs_make_their_own_one_after_the_other(flowstone_settings: Settings) -> None:
    line = Line()

    def declare(fs: FlowStone) -> None:
        fs.asset(name="orders", maker="queue")(line)

    with houses(flowstone_settings, 3, declare) as found:
        ends = [in_background(lambda fs=fs: fs.run("orders")) for fs in found]
        until(waiting_for_a_maker(found[0], 2))
        line.go_on.set()
        assert {end().get() for end in ends} == {1, 2, 3}
        assert line.most_at_once == 1


def test_allowed_runs_make_their_own_side_by_side(flowstone_settings: Settings) -> None:
    together = threading.Barrier(3)

    def declare(fs: FlowStone) -> None:
        fs.asset(name="orders", maker="allow")(lambda: together.wait(PATIENCE))

    with houses(flowstone_settings, 3, declare) as found:
        runs = in_threads(*(lambda fs=fs: fs.run("orders") for fs in found))
        assert {run.get() for run in runs} == {0, 1, 2}


# --- no deadlock ------------------------------------------------------------------------------------------------------------------


def test_runs_whose_needs_cross_come_to_their_ends(flowstone_settings: Settings) -> None:
    calls: list[str] = []

    def declare(fs: FlowStone) -> None:
        fs.asset(name="a")(lambda: calls.append("a"))
        fs.asset(name="b")(lambda: calls.append("b"))
        fs.asset(name="left", deps=["a", "b"])(lambda: calls.append("left"))
        fs.asset(name="right", deps=["b", "a"])(lambda: calls.append("right"))
        fs.asset(name="top", deps=["right", "left"])(lambda: calls.append("top"))

    with houses(flowstone_settings, 4, declare) as found:
        names = ("left", "right", "top", "top")
        runs = in_threads(
            *(lambda fs=fs, name=name: fs.run(name) for fs, name in zip(found, names, strict=True))
        )
        assert [run.state for run in runs] == ["succeeded"] * 4
        assert sorted(calls) == ["a", "b", "left", "right", "top"]


def test_code_that_waits_for_its_own_slice_is_told_so(fs: FlowStone) -> None:
    @fs.asset
    def orders() -> int:
        return int(fs.run("orders", force=True).get())

    with pytest.raises(RunFailed, match=r"test\.orders -> test\.orders") as caught:
        fs.run(orders).get()
    assert "would wait for itself" in str(caught.value)
    assert caught.value.facts["error"]["code"] == DependencyCycle.code
