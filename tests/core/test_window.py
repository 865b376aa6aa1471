"""Steps side by side: many await in one thread, each is claimed, interrupted and settled as if it were alone."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from corelab import AT_ONCE, QUEUE, TASK, Lab, step
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowstone_celery import faults
from flowstone_celery.core import steps
from flowstone_celery.core.interrupts import SIGNAL, Board, Interrupts
from flowstone_celery.core.model import Answer, Call, Claim, Done
from flowstone_celery.core.statements import SQL
from flowstone_celery.outcomes import Cancel, Fail, Retry, Skip
from flowstone_celery.worker.seat import PoolInterrupts

if TYPE_CHECKING:
    from uuid import UUID

    from flowstone_celery.core.executor import Executor
    from flowstone_celery.core.model import NewStep

ASYNC = "lab.async"
Code = Callable[[Claim], Awaitable[Any]]


@dataclass
class Work:
    """One step of the handler below."""

    handler: Handler
    claim: Claim

    async def run(self) -> object:
        self.handler.running += 1
        self.handler.most = max(self.handler.most, self.handler.running)
        self.handler.threads.add(threading.get_ident())
        try:
            return await self.handler.codes.get(self.claim.name, self.handler.otherwise)(self.claim)
        finally:
            self.handler.running -= 1

    def answer(self, result: Any) -> Answer:
        return result if isinstance(result, Answer) else Done()

    def close(self) -> None:
        self.handler.closed.append(self.claim.name)


@dataclass
class Handler:
    """Steps of kind `async`, whose code a test gives by name."""

    codes: dict[str, Code] = field(default_factory=dict)
    running: int = 0
    most: int = 0
    threads: set[int] = field(default_factory=set)
    closed: list[str] = field(default_factory=list)
    held_up: dict[str, threading.Event] = field(default_factory=dict)

    def __call__(self, claim: Claim, call: Call) -> Answer:
        raise AssertionError("a step that awaits is never called alone")

    def awaiting(self) -> list[str]:
        return [ASYNC]

    def begin(self, claim: Claim, call: Call) -> Work:
        if claim.name in self.held_up:
            assert self.held_up[claim.name].wait(20)
        return Work(self, claim)

    async def otherwise(self, claim: Claim) -> None:
        await asyncio.sleep(0.01)


@pytest.fixture
def handler() -> Handler:
    return Handler()


def awaits(name: str = "a", *needs: int, **options: Any) -> NewStep:
    return step(name, *needs, **{"kind": "async", "task": ASYNC, **options})


def executor(lab: Lab, handler: Handler, *, interrupts: Interrupts | None = None, **options: Any) -> Executor:
    return lab.executor(
        options.pop("node", None),
        handlers={"async": handler},
        knows=lambda: (TASK, ASYNC),
        settings=replace(lab.settings, **{"slice_seconds": 60.0, **options}),
        interrupts=interrupts or Interrupts(),
    )


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def started(lab: Lab) -> list[str]:
    rows = lab.sql(
        "SELECT s.name FROM flowstone.history h JOIN flowstone.steps s ON s.id = h.step_id "
        "WHERE h.event = 'step.running' ORDER BY h.id"
    )
    return [row["name"] for row in rows]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in other threads
            await asyncio.sleep(0.005)


# --- side by side -----------------------------------------------------------------------------------------------------------------


def test_two_hundred_steps_await_side_by_side_in_one_thread(lab: Lab, handler: Handler) -> None:
    async def nap(_: Claim) -> None:
        await asyncio.sleep(0.05)

    handler.otherwise = nap  # type: ignore[method-assign]
    run = lab.start(*(awaits(f"s{n}") for n in range(200)))
    begun = time.monotonic()
    assert executor(lab, handler).work(None, QUEUE) == 200
    assert time.monotonic() - begun < 200 * 0.05 / 2
    assert lab.run(run)["status"] == "succeeded"
    assert handler.threads == {threading.get_ident()}
    assert 1 < handler.most <= 100
    assert len(handler.closed) == 200


def test_no_more_run_at_a_time_than_the_window_is_wide(lab: Lab, handler: Handler) -> None:
    async def crowd(_: Claim) -> None:
        await until(lambda: handler.most >= 7)
        await asyncio.sleep(0.01)

    handler.otherwise = crowd  # type: ignore[method-assign]
    lab.start(*(awaits(f"s{n}") for n in range(40)))
    assert executor(lab, handler, async_width=7).work(None, QUEUE) == 40
    assert handler.most == 7


def test_the_urgent_begins_first(lab: Lab, handler: Handler) -> None:
    lab.start(*(awaits(f"s{n}") for n in range(30)), awaits("urgent", priority=5), promise=False)
    executor(lab, handler, async_width=4).work(None, QUEUE)
    assert "urgent" in started(lab)[:2]


def test_a_window_goes_past_wake_ups_that_stand_behind_it(lab: Lab, handler: Handler) -> None:
    """The first rows of the run are promised to messages that no process is free to read."""
    run = lab.start(*(awaits(f"s{n}") for n in range(260)))
    assert lab.postbox.take()
    assert executor(lab, handler, async_width=20).work(None, QUEUE) == 260
    assert lab.run(run)["status"] == "succeeded"


def test_what_a_step_opens_takes_its_place_while_others_run(lab: Lab, handler: Handler) -> None:
    over = asyncio.Event()

    async def first(_: Claim) -> None:
        async with asyncio.timeout(20):
            await over.wait()

    async def last(_: Claim) -> None:
        over.set()

    handler.codes = {"long": first, "c": last}
    run = lab.start(awaits("long"), awaits("a"), awaits("b", 1), awaits("c", 2))
    assert executor(lab, handler).work(None, QUEUE) == 4
    assert set(lab.statuses(run).values()) == {"succeeded"}


def test_steps_that_do_not_await_follow_the_window(lab: Lab, handler: Handler) -> None:
    running: list[int] = []

    def alone(_: Claim) -> Done:
        running.append(handler.running)
        return Done()

    lab.answers = {"plain": alone, "fold": alone}
    run = lab.start(
        awaits("a"), step("plain"), awaits("b"), step("fold", 0, 2), awaits("end", 3), promise=False
    )
    executor(lab, handler).work(None, QUEUE)
    assert set(lab.statuses(run).values()) == {"succeeded"}
    assert running == [0, 0]


def test_each_step_has_context_variables_of_its_own(lab: Lab, handler: Handler) -> None:
    name: ContextVar[str] = ContextVar("name", default="")
    seen: dict[str, tuple[str, str]] = {}

    async def code(claim: Claim) -> None:
        before = name.get()
        name.set(claim.name)
        await asyncio.sleep(0.02)
        seen[claim.name] = before, name.get()

    handler.codes = {"a": code, "b": code, "c": code}
    lab.start(awaits("a"), awaits("b"), awaits("c", 0))
    executor(lab, handler).work(None, QUEUE)
    assert seen == {each: ("", each) for each in "abc"}


def test_a_loop_that_runs_already_is_left_alone(lab: Lab, handler: Handler) -> None:
    run = lab.start(awaits("a"), awaits("b"))

    async def server() -> int:
        return executor(lab, handler).work(None, QUEUE)

    assert asyncio.run(server()) == 2
    assert lab.run(run)["status"] == "succeeded"


# --- how they end -----------------------------------------------------------------------------------------------------------------


def _raising(error: BaseException) -> Code:
    async def code(_: Claim) -> None:
        await asyncio.sleep(0)
        raise error

    return code


def _answering(*answers: Answer) -> Code:
    async def code(claim: Claim) -> Answer:
        await asyncio.sleep(0)
        return answers[min(claim.attempt, len(answers)) - 1]

    return code


def test_each_ends_as_it_would_alone(lab: Lab, handler: Handler) -> None:
    handler.codes = {
        "raises": _raising(ValueError("boom")),
        "exits": _raising(SystemExit(3)),
        "cancels itself": _raising(asyncio.CancelledError()),
        "fails": _answering(Fail("never")),
        "skips": _answering(Skip("nothing new")),
        "retries": _answering(Retry(after=0), Done()),
    }
    names = [*handler.codes, *(f"fine{n}" for n in range(20))]
    run = lab.start(*(awaits(name, max_failures=2, retry=AT_ONCE) for name in names))
    executor(lab, handler).work(None, QUEUE)
    found = lab.steps(run)
    assert {name: found[name]["status"] for name in handler.codes} == {
        "raises": "failed",
        "exits": "failed",
        "cancels itself": "failed",
        "fails": "failed",
        "skips": "skipped",
        "retries": "succeeded",
    }
    assert [found[name]["failures"] for name in handler.codes] == [2, 2, 2, 1, 0, 1]
    assert {found[f"fine{n}"]["status"] for n in range(20)} == {"succeeded"}


def test_a_step_that_cancels_takes_its_run_with_it_and_no_other(lab: Lab, handler: Handler) -> None:
    handler.codes = {"cancels": _answering(Cancel("enough"))}
    ending, other = lab.start(awaits("cancels"), awaits("b", 0)), lab.start(awaits("a"), awaits("b"))
    executor(lab, handler).work(None, QUEUE)
    assert lab.run(ending)["status"] == "cancelled"
    assert lab.run(other)["status"] == "succeeded"


def test_one_that_was_taken_over_writes_nothing_and_its_neighbors_do(lab: Lab, handler: Handler) -> None:
    taken: list[Claim] = []

    async def lose(claim: Claim) -> None:
        lab.database.attempt(lambda tx: steps.give_back(tx, claim.held, "taken"))
        found = lab.claim(lab.worker(), claim.id, knows=[ASYNC])
        assert found is not None
        taken.append(found)

    handler.codes = {"lost": lose}
    run = lab.start(awaits("lost"), *(awaits(f"s{n}") for n in range(5)))
    executor(lab, handler).work(None, QUEUE)
    statuses = lab.statuses(run)
    assert statuses.pop("lost") == "running"
    assert set(statuses.values()) == {"succeeded"}
    lab.succeed(taken[0].held)


def test_one_that_cannot_be_written_fails_and_its_neighbors_do_not(lab: Lab, handler: Handler) -> None:
    def refuse(_: object) -> dict[str, Any]:
        raise RuntimeError("no room")

    handler.codes = {"wrong": _answering(Done(write=refuse))}
    run = lab.start(awaits("wrong"), *(awaits(f"s{n}") for n in range(5)))
    executor(lab, handler).work(None, QUEUE)
    statuses = lab.statuses(run)
    assert statuses.pop("wrong") == "failed"
    assert set(statuses.values()) == {"succeeded"}


def test_a_database_that_hangs_up_meanwhile_loses_nothing(lab: Lab, handler: Handler) -> None:
    away = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )

    async def hang_up(_: Claim) -> None:
        for _nth in range(20):
            await asyncio.to_thread(lab.sql, away)
            await asyncio.sleep(0.01)

    handler.codes = {"a": hang_up}
    run = lab.start(
        awaits("a"), *(awaits(f"s{n}") for n in range(60)), *(awaits(f"t{n}", n) for n in range(30))
    )
    executor(lab, handler, async_width=10).work(None, QUEUE)
    while lab.run(run)["status"] == "running":
        executor(lab, handler).work(None, QUEUE)
    assert set(lab.statuses(run).values()) == {"succeeded"}
    assert {row["attempt"] for row in lab.steps(run).values()} == {1}


@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_mix_ends_as_it_must(lab: Lab, data: st.DataObject) -> None:
    lab.wipe()
    handler = Handler()
    kinds = data.draw(st.lists(st.sampled_from(["fine", "plain", "fails", "retries", "skips"]), max_size=25))
    codes = {
        "fails": _answering(Fail("no")),
        "retries": _answering(Retry(after=0), Done()),
        "skips": _answering(Skip()),
    }
    plan = []
    for nth, kind in enumerate(kinds):
        needs = data.draw(st.sets(st.integers(0, nth - 1), max_size=2)) if nth else set()
        name = f"{kind}{nth}"
        handler.codes.update({name: codes[kind]} if kind in codes else {})
        make = step if kind == "plain" else awaits
        plan.append(make(name, *needs, max_failures=3, retry=AT_ONCE))
    run = lab.start(*plan, awaits("end"))
    worker = executor(
        lab,
        handler,
        async_width=data.draw(st.integers(1, 9)),
        slice_seconds=data.draw(st.sampled_from([0.0, 0.01, 60])),
    )
    while worker.work(None, QUEUE):
        pass
    ends: dict[int, str] = {}
    for nth, (kind, each) in enumerate(zip(kinds, plan, strict=True)):
        own = {"fails": "failed", "skips": "skipped"}.get(kind, "succeeded")
        fallen = {ends[n] for n in each.needs} - {"succeeded"}
        ends[nth] = own if not fallen else fallen.pop() if len(fallen) == 1 else "fallen"
    found = lab.statuses(run)
    for nth, each in enumerate(plan):
        assert found[each.name] == ends[nth] or (
            ends[nth] == "fallen" and found[each.name] in ("failed", "skipped")
        )
        ends[nth] = found[each.name]
    assert lab.findings() == []


def test_slow_loading_keeps_no_end_from_being_settled(lab: Lab, handler: Handler) -> None:
    loaded = threading.Event()

    async def last(_: Claim) -> None:
        await until(lambda: sum(row["status"] == "succeeded" for row in lab.steps(run).values()) == 10)
        loaded.set()

    handler.held_up, handler.codes = {"slow": loaded}, {"last": last}
    run = lab.start(awaits("slow"), awaits("last"), *(awaits(f"s{n}") for n in range(10)))
    executor(lab, handler).work(None, QUEUE)
    assert set(lab.statuses(run).values()) == {"succeeded"}


@pytest.mark.parametrize("point", ["claim.after_commit", "settle.before_commit", "settle.after_commit"])
@pytest.mark.parametrize("nth", [1, 4])
def test_a_death_at_any_edge_leaves_every_step_whole(
    lab: Lab, handler: Handler, point: str, nth: int
) -> None:
    run = lab.start(*(awaits(f"s{n}") for n in range(8)), awaits("end", *range(8)))
    dying = executor(lab, handler, async_width=4)
    with faults.arm(point, "raise", nth=nth), pytest.raises(faults.FaultInjectedError):
        dying.work(None, QUEUE)
    _die(lab, dying.worker_id)
    while executor(lab, handler).work(None, QUEUE):
        pass
    assert set(lab.statuses(run).values()) == {"succeeded"}
    assert {row["crashes"] for row in lab.steps(run).values()} <= {0, 1}


# --- interrupts -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def keeping(lab: Lab, board: Board) -> Iterator[Any]:
    """A node whose keeper looks all the time."""
    node, over = lab.node(knows=(TASK, ASYNC)), threading.Event()
    keeper = lab.keeper(board, node)

    def look() -> None:
        while not over.wait(0.05):
            keeper._look()

    thread = threading.Thread(target=look)
    thread.start()
    yield node
    over.set()
    thread.join()


async def _for_ever(_: Claim) -> None:
    await asyncio.Event().wait()


def test_a_timeout_ends_the_one_that_is_late(lab: Lab, handler: Handler, board: Board, keeping: Any) -> None:
    cleaned: list[str] = []

    async def late(claim: Claim) -> None:
        try:
            await _for_ever(claim)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(claim.name)

    async def patient(_: Claim) -> None:
        await until(lambda: lab.steps(run)["late"]["status"] == "failed")

    handler.codes = {"late": late, "patient": patient}
    run = lab.start(awaits("late", timeout=0.2), awaits("patient"))
    executor(lab, handler, node=keeping, interrupts=Interrupts(board)).work(None, QUEUE)
    assert lab.statuses(run) == {"late": "failed", "patient": "succeeded"}
    assert "StepTimeout" in str(lab.steps(run)["late"]["error"])
    assert cleaned == ["late"]


def test_a_cancelled_run_ends_its_own_steps_only(
    lab: Lab, handler: Handler, board: Board, keeping: Any
) -> None:
    async def cancel(_: Claim) -> None:
        lab.cancel(ending)
        await until(lambda: lab.run(ending)["status"] == "cancelled")

    handler.codes = {"long": _for_ever, "cancels": cancel}
    ending, other = lab.start(awaits("long"), awaits("b", 0)), lab.start(awaits("cancels"), awaits("b"))
    executor(lab, handler, node=keeping, interrupts=Interrupts(board)).work(None, QUEUE)
    assert lab.statuses(ending) == {"long": "cancelled", "b": "cancelled"}
    assert lab.run(other)["status"] == "succeeded"


@pytest.fixture
def listening(board: Board) -> Iterator[PoolInterrupts]:
    former = signal.getsignal(SIGNAL)
    interrupts = PoolInterrupts(board)
    interrupts.listen()
    yield interrupts
    signal.signal(SIGNAL, former)


def test_a_signal_breaks_into_the_code_it_is_meant_for_and_cancels_no_other(
    lab: Lab, handler: Handler, board: Board, listening: PoolInterrupts
) -> None:
    """The code that blocks the loop is left at once, though it never awaits."""
    interrupted: list[str] = []

    async def block(claim: Claim) -> None:
        board.post(os.getpid(), {f"{claim.id}:{claim.fence}": "timeout"})
        threading.Timer(0.05, os.kill, (os.getpid(), SIGNAL)).start()
        try:
            ends = time.monotonic() + 20
            while time.monotonic() < ends:
                time.sleep(0.01)  # noqa: ASYNC251 - that is the point
        except BaseException as error:
            interrupted.append(type(error).__name__)
            raise

    async def neighbor(_: Claim) -> None:
        await asyncio.sleep(0.01)
        await until(lambda: interrupted)

    handler.codes = {"blocks": block, "n1": neighbor, "n2": neighbor}
    run = lab.start(awaits("n1"), awaits("blocks"), awaits("n2"))
    executor(lab, handler, interrupts=listening).work(None, QUEUE)
    assert interrupted == ["Interrupted"]
    assert lab.statuses(run) == {"blocks": "failed", "n1": "succeeded", "n2": "succeeded"}


def test_a_process_that_is_told_to_go_gives_back_all_that_it_runs(
    lab: Lab, handler: Handler, board: Board
) -> None:
    interrupts = PoolInterrupts(board)

    async def leave(claim: Claim) -> None:
        await until(lambda: handler.running == 6)
        interrupts.leave()
        await _for_ever(claim)

    handler.codes = {"leave": leave, **{f"s{n}": _for_ever for n in range(5)}}
    run = lab.start(awaits("leave"), *(awaits(f"s{n}") for n in range(5)), awaits("later", 0))
    executor(lab, handler, interrupts=interrupts).work(None, QUEUE)
    rows = lab.steps(run)
    assert {name: row["status"] for name, row in rows.items()} == {
        "later": "blocked", **dict.fromkeys(handler.codes, "ready"),
    }  # fmt: skip
    assert {(row["failures"], row["crashes"], row["losses"]) for row in rows.values()} == {(0, 0, 0)}
    assert {rows[name]["note"] for name in handler.codes} == {"the worker stops"}


def test_what_asks_the_process_to_go_is_raised_when_all_is_given_back(lab: Lab, handler: Handler) -> None:
    handler.codes = {"asked": _raising(KeyboardInterrupt()), "s": _for_ever, "t": _for_ever}
    run = lab.start(*(awaits(name) for name in handler.codes))
    with pytest.raises(KeyboardInterrupt):
        executor(lab, handler).work(None, QUEUE)
    assert set(lab.statuses(run).values()) == {"ready"}


def test_a_drain_lets_what_runs_end_and_begins_nothing(lab: Lab, handler: Handler, board: Board) -> None:
    async def drain(_: Claim) -> None:
        await until(lambda: handler.running == 3)
        board.drain()

    handler.codes = {"s0": drain}
    lab.postbox.take()
    run = lab.start(*(awaits(f"s{n}") for n in range(20)), promise=False)
    count = executor(lab, handler, interrupts=Interrupts(board), async_width=3).work(None, QUEUE)
    rows = lab.steps(run)
    done = [row for row in rows.values() if row["status"] == "succeeded"]
    rest = [row for row in rows.values() if row["status"] == "ready"]
    assert 3 <= len(done) == count < 20
    assert {row["attempt"] for row in rest} == {0}
    assert len(done) + len(rest) == 20
    assert lab.postbox.take(), "the rest is handed to wake-ups"


# --- the slice --------------------------------------------------------------------------------------------------------------------


def test_the_slices_end_ends_starting(lab: Lab, handler: Handler) -> None:
    run = lab.start(*(awaits(f"s{n}") for n in range(30)), promise=False)
    count = executor(lab, handler, async_width=2, slice_seconds=0.05).work(None, QUEUE)
    assert 0 < count < 30
    assert sorted(lab.statuses(run).values()) == ["ready"] * (30 - count) + ["succeeded"] * count
    assert lab.postbox.take()


def test_the_starts_of_a_slice_are_limited(lab: Lab, handler: Handler) -> None:
    lab.start(*(awaits(f"s{n}") for n in range(200)), promise=False)
    assert 5 <= executor(lab, handler, slice_starts=5).work(None, QUEUE) < 150


def test_one_start_is_one_step(lab: Lab, handler: Handler) -> None:
    lab.start(awaits("a"), awaits("b"), awaits("c", 0))
    assert executor(lab, handler).work(None, QUEUE, going_on=False) == 1


def test_a_long_step_keeps_its_window_open_for_others_until_it_ends(lab: Lab, handler: Handler) -> None:
    """After the slice the process can do nothing else while the long one runs; once it has ended, nothing begins any more."""
    chained: list[str] = []
    runs: dict[str, UUID] = {}

    async def long(_: Claim) -> None:
        await asyncio.sleep(0.2)
        runs["late"] = lab.start(awaits("late"))
        await until(lambda: lab.run(runs["late"])["status"] == "succeeded")
        runs["later"] = lab.start(awaits("tail"))
        await until(lambda: "tail" in chained)

    async def tail(claim: Claim) -> None:
        """Begun beside the long one, it outlives it: nothing may begin for its sake."""
        chained.append(claim.name)
        await until(lambda: lab.steps(first)["long"]["status"] == "succeeded")
        runs["too late"] = lab.start(awaits("too late"), promise=False)
        await asyncio.sleep(1.2)

    handler.codes = {"long": long, "tail": tail}
    first = lab.start(awaits("long"))
    assert executor(lab, handler, slice_seconds=0.1).work(None, QUEUE) == 3
    assert lab.statuses(runs["later"]) == {"tail": "succeeded"}
    assert lab.statuses(runs["too late"]) == {"too late": "ready"}


# --- deaths -----------------------------------------------------------------------------------------------------------------------


def _die(lab: Lab, worker: int, *, crash: int = 1) -> None:
    limits = {"crash_limit": lab.settings.crash_limit, "loss_limit": lab.settings.loss_limit}
    lab.database.once(
        SQL["release_dead"], workers=[worker], crash=crash, loss=1 - crash, reason="died", **limits
    )
    lab.database.once(SQL["bury"], workers=[worker])


def test_a_crash_is_counted_only_of_a_step_that_was_alone(lab: Lab) -> None:
    run = lab.start(step("a"), step("b"))
    for _ in range(lab.settings.crash_limit + 1):
        worker = lab.worker()
        assert lab.claim_next(worker)
        assert lab.claim_next(worker)
        _die(lab, worker)
    assert {row["status"] for row in lab.steps(run).values()} == {"ready"}
    assert {row["crashes"] for row in lab.steps(run).values()} == {0}
    worker = lab.worker()
    claim = lab.claim_next(worker)
    assert claim is not None
    _die(lab, worker)
    assert lab.steps(run)[claim.name]["crashes"] == 1


def test_losses_in_company_never_reach_the_limit(lab: Lab) -> None:
    run = lab.start(step("a"), step("b"))
    lab.sql("UPDATE flowstone.steps SET losses = %(n)s", n=lab.settings.loss_limit - 1)
    worker = lab.worker()
    assert lab.claim_next(worker)
    assert lab.claim_next(worker)
    _die(lab, worker)
    assert set(lab.statuses(run).values()) == {"ready"}
    assert {row["losses"] for row in lab.steps(run).values()} == {lab.settings.loss_limit - 1}


def test_a_step_that_a_process_died_with_runs_alone_from_then_on(lab: Lab, handler: Handler) -> None:
    beside: dict[str, int] = {}

    async def look(claim: Claim) -> None:
        for _ in range(5):
            beside[claim.name] = max(beside.get(claim.name, 0), handler.running)
            await asyncio.sleep(0.01)

    handler.codes = {f"s{n}": look for n in range(8)}
    run = lab.start(*(awaits(name) for name in handler.codes), promise=False)
    lab.sql("UPDATE flowstone.steps SET losses = 1 WHERE name IN ('s0', 's3')")
    lab.sql("UPDATE flowstone.steps SET crashes = 1 WHERE name = 's5'")
    assert executor(lab, handler).work(None, QUEUE) == 8
    assert set(lab.statuses(run).values()) == {"succeeded"}
    assert {name: beside[name] for name in ("s0", "s3", "s5")} == {"s0": 1, "s3": 1, "s5": 1}
    assert max(beside.values()) > 1
