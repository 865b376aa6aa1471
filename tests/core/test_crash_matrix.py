"""A crash at every commit edge: whatever dies there, the work ends as if nothing had happened.

Each point of `faults.POINTS` is either crashed here, without Celery, or named with the tests that crash it in real processes: a new
point belongs to one of the two before the suite is green.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from actlab import doer
from corelab import Lab, sql, step
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from flowstone_celery import faults
from flowstone_celery.core import acts, lanes, runs
from flowstone_celery.core.interrupts import Board
from flowstone_celery.core.joining import Joiner
from flowstone_celery.core.model import NewRun, Place, place_name
from flowstone_celery.faults import POINTS, FaultInjectedError
from flowstone_celery.states import Act
from flowstone_celery.testing.kit import TestKit

IN_REAL_PROCESSES = {
    "publish.before_flush": "needs a broker",
    "publish.after_flush": "needs a broker",
    "retention.between_batches": "belongs to the command that prunes",
    "scatter.page_added": "tests/app/test_scatter_readers.py",
    "range.after_commit": "tests/core/test_hands_that_die.py",
    "part.before_commit": "tests/core/test_hands_that_die.py",
    "part.after_commit": "tests/core/test_hands_that_die.py",
}
IN_A_RUN = (
    "run.create.before_commit", "run.create.after_commit", "worker.received", "claim.after_commit", "user.start", "user.end",
    "settle.value_written", "settle.before_commit", "settle.after_commit", "continue.after_commit", "promise.after_commit",
)  # fmt: skip
"""Points that a run of three assets passes."""


# --- a run of three assets --------------------------------------------------------------------------------------------------------


def _shop(fs_test: TestKit) -> Any:
    """Three assets in a chain; the middle value is large enough to be written ahead."""
    fs = fs_test.fs

    @fs.asset
    def orders() -> list[int]:
        return [1, 2, 3]

    @fs.asset
    def bulk(orders: list[int]) -> str:
        import random

        return "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=200_000))

    @fs.asset
    def report(orders: list[int], bulk: str) -> dict[str, int]:
        return {"orders": len(orders), "bulk": len(bulk)}

    return report


ONCE = {"run.create.before_commit", "run.create.after_commit", "settle.value_written"}
CRASHES = [(point, nth) for point in IN_A_RUN for nth in (1, 2) if nth == 1 or point not in ONCE]


@pytest.mark.parametrize(("point", "nth"), CRASHES)
def test_a_run_that_crashes_there_succeeds_all_the_same(fs_test: TestKit, point: str, nth: int) -> None:
    report = _shop(fs_test)
    with fs_test.crash_at(point, nth=nth):
        fs_test.start(report)
        while fs_test.step() if point in ("settle.after_commit", "promise.after_commit") else fs_test.drain():
            pass
    run = _the_run(fs_test) or fs_test.start(report)
    fs_test.drain(run)
    assert run.get() == {"orders": 3, "bulk": 200_000}
    crashed = [row["name"] for row in run.steps() if row["crashes"]]
    assert len(crashed) <= 1
    assert all(row["failures"] == 0 for row in run.steps())
    fs_test.assert_healthy()


def _the_run(fs_test: TestKit) -> Any:
    rows = [row for row in runs.page(fs_test.database) if row["partition"] == ""]
    return fs_test.fs.handle(rows[0]["id"]) if rows else None


def test_a_value_whose_attempt_crashed_is_never_seen(fs_test: TestKit) -> None:
    report = _shop(fs_test)
    with fs_test.crash_at("settle.value_written"):
        fs_test.start(report)
        fs_test.drain()
    assert not fs_test.fs.exists("bulk")
    [row] = fs_test.database.once(
        sql("SELECT fence, settled_at FROM flowstone.asset_values WHERE asset = 'test.bulk'")
    )
    assert (row["fence"], row["settled_at"]) == (1, None)
    fs_test.drain()
    assert fs_test.assert_materialized("bulk")["settled_at"] is not None


# --- cancel, sweep, keeper --------------------------------------------------------------------------------------------------------


def _cancelled(lab: Lab, tmp_path: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    run = lab.start(*[step(f"s{n}") for n in range(9)])

    def check() -> None:
        assert lab.run(run)["status"] == "cancelled"
        assert set(lab.statuses(run).values()) == {"cancelled"}

    return partial(lab.cancel, run), check


def _woken(lab: Lab, tmp_path: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    lab.start(*[step(f"s{n}") for n in range(3)], promise=False)

    def check() -> None:
        assert lab.scalar("SELECT count(*) FROM flowstone.steps WHERE sent_at IS NOT NULL") == 3

    return lambda: lab.pacer().step(), check


def _lost(lab: Lab, tmp_path: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    claim = lab.running(lab.worker())
    lab.sql("UPDATE flowstone.workers SET alive_until = flowstone.now() - interval '1 second'")

    def act() -> None:
        lab.steady()
        lab.pacer().step()

    def check() -> None:
        row = lab.steps(claim.run_id)["a"]
        assert (row["status"], row["losses"]) == ("ready", 1)

    return act, check


def _dead(lab: Lab, tmp_path: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A process of the keeper's node is gone; each try is another keeper's, as after a restart."""
    node = lab.node()
    gone = Place(place_name(), 2**22 + 1, 1)
    claims = [lab.running(lab.worker(node, place=gone), name=name) for name in ("a", "b")]

    def check() -> None:
        for claim in claims:
            row = lab.steps(claim.run_id)[claim.name]
            assert (row["status"], row["crashes"], row["losses"]) == ("ready", 1, 0)
        assert lab.sql("SELECT DISTINCT status FROM flowstone.workers") == [{"status": "dead"}]

    return lambda: lab.keeper(Board(tmp_path), node).step(), check


def _let_in(lab: Lab, tmp_path: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The first run of a lane has ended, and nobody has let the second in yet."""
    first = lab.start(step("first"), lane="l")
    second = lab.start(step("second"), lane="l")
    lab.sql("UPDATE flowstone.runs SET lane = NULL WHERE id = %(run)s", run=first)

    def check() -> None:
        assert lab.run(second)["admitted"]
        assert lab.steps(second)["second"]["parked"] is None

    return lambda: lanes.admit(lab.database, lab.postbox, lab.settings, "", "l"), check


def _retried(lab: Lab, tmp_path: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    run = lab.start(*[step(f"s{n}") for n in range(3)])
    lab.cancel(run)
    lab.postbox.take()

    def check() -> None:
        assert lab.run(run)["round"] == 2
        assert all(row["sent_at"] for row in lab.steps(run).values())

    return lambda: acts.retry(doer(lab), run, actor="tester"), check


def _paused(lab: Lab, tmp_path: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    run = lab.start(*[step(f"s{n}") for n in range(3)])

    def check() -> None:
        assert lab.drain() == 0
        assert {row["parked"] for row in lab.steps(run).values()} == {"paused"}

    return lambda: acts.pause(doer(lab), run, actor="tester"), check


def _resumed(lab: Lab, tmp_path: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    run = lab.start(*[step(f"s{n}") for n in range(3)])
    acts.pause(doer(lab), run, actor="tester")

    def check() -> None:
        assert {row["parked"] for row in lab.steps(run).values()} == {None}

    return lambda: acts.resume(doer(lab), run, actor="tester"), check


def _late(lab: Lab, tmp_path: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    run = lab.start(*[step(f"s{n}") for n in range(9)], deadline_in=60.0)
    lab.clock.advance(seconds=61)

    def check() -> None:
        assert lab.run(run)["status"] == "failed"
        assert set(lab.statuses(run).values()) == {"cancelled"}

    return lambda: acts.expire(doer(lab)), check


def _joined(lab: Lab, tmp_path: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A run is started, and another cancelled, in a transaction of somebody else."""
    run = lab.start(*[step(f"s{n}") for n in range(3)])
    lab.postbox.take()
    joiner = Joiner(lab.database, lab.settings, lambda: lab.postbox, lambda _: None)
    started: list[UUID] = []

    def act() -> None:
        engine = create_engine(str(lab.settings.database_url))
        try:
            with Session(engine) as session, session.begin():
                joiner.ask(session, run, Act.CANCEL, actor="tester")
                started.append(joiner.start(session, NewRun("plain", "joined", [step("a")]))[0])
        finally:
            engine.dispose()

    def check() -> None:
        assert lab.run(run)["status"] == "cancelled"
        assert lab.steps(started[0])["a"]["sent_at"] is not None

    return act, check


OUTSIDE_A_RUN = {
    "join.after_commit": _joined,
    "request.after_commit": _joined,
    "lane.after_admit": _let_in,
    "retry.after_commit": _retried,
    "pause.after_run_row": _paused,
    "resume.after_run_row": _resumed,
    "deadline.after_run_row": _late,
    "cancel.after_run_row": _cancelled,
    "cancel.between_batches": _cancelled,
    "promise.before_commit": _woken,
    "sweep.before_commit": _lost,
    "keeper.beat": _dead,
    "keeper.before_release": _dead,
    "release.before_commit": _dead,
    "release.after_commit": _dead,
}


@contextmanager
def _crash(point: str) -> Iterator[None]:
    with faults.arm(point, "raise") as fault, suppress(FaultInjectedError):
        yield
    assert fault.hits, f"{point} was not reached"


@pytest.mark.parametrize("point", OUTSIDE_A_RUN)
def test_what_crashes_outside_a_run_is_done_by_the_next(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    monkeypatch.setattr(runs, "_CANCEL_BATCH", 4)
    act, check = OUTSIDE_A_RUN[point](lab, tmp_path)
    with _crash(point):
        act()
    lab.clock.advance(seconds=4)  # whoever held the pacer's row is gone
    if point.partition(".")[0] in (
        "cancel",
        "lane",
        "retry",
        "pause",
        "resume",
        "deadline",
        "join",
        "request",
    ):
        lab.pacer().step()
    else:
        act()
    lab.clock.advance(seconds=4)
    check()
    lab.pacer().step()
    check()
    lab.drain()
    assert lab.findings() == []


def test_the_wake_ups_of_released_steps_are_sent_by_the_sweep(lab: Lab, tmp_path: Path) -> None:
    act, _ = _dead(lab, tmp_path)
    lab.postbox.take()
    with _crash("release.after_commit"):
        act()
    assert lab.postbox.take() == []
    lab.clock.advance(seconds=4)
    lab.pacer().step()
    assert sorted(each.name for each in lab.postbox.take()) == ["a", "b"]


# --- the whole --------------------------------------------------------------------------------------------------------------------


def test_every_crash_point_has_its_test() -> None:
    assert set(POINTS) == {*IN_A_RUN, *OUTSIDE_A_RUN, *IN_REAL_PROCESSES}


def test_a_step_that_crashes_at_every_attempt_fails_at_the_limit_and_says_so(fs_test: TestKit) -> None:
    @fs_test.fs.asset(retries=9)
    def poison() -> int:
        return 1

    run = fs_test.start(poison)
    for _ in range(fs_test.settings.crash_limit):
        with fs_test.crash_at("user.start"):
            fs_test.drain()
    fs_test.drain()
    [row] = run.steps()
    assert (row["status"], row["error"]["code"], row["crashes"], row["failures"]) == (
        "failed",
        "FS-2010",
        3,
        0,
    )
    assert run.state == "failed"
