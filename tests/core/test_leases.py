"""Leases, the pacer and the keeper: what is lost comes back, what lives keeps its work, however the clocks and the processes stand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from corelab import AT_ONCE, LONG, QUEUE, Lab, in_threads, step

from flowstone_celery.core import steps
from flowstone_celery.core.interrupts import Board
from flowstone_celery.core.keeper import Keeper
from flowstone_celery.core.model import Claim, Place, pid_started, place_name, proc_state
from flowstone_celery.core.statements import SQL
from flowstone_celery.core.workers import Node

LEASE = 2.0

# --- lost leases ------------------------------------------------------------------------------------------------------------------


def _expire(lab: Lab, worker: int) -> None:
    lab.sql(
        "UPDATE flowstone.workers SET alive_until = flowstone.now() - interval '1 second' WHERE id = %(id)s",
        id=worker,
    )


def _extend(lab: Lab, worker: int) -> None:
    lab.database.once(SQL["beat"], node=uuid4(), alive=[worker], lease=LONG)


def _lost(lab: Lab, *, crash: int = 0, **options: Any) -> Claim:
    """A claim of a worker whose lease has ended."""
    claim = lab.running(lab.worker(), **options)
    _expire(lab, claim.worker_id)
    return claim


def test_a_lost_lease_is_taken_back_and_counted_as_a_loss(lab: Lab) -> None:
    claim = _lost(lab)
    lab.steady()
    lab.pacer().step()
    row = lab.steps(claim.run_id)["a"]
    assert (row["status"], row["losses"], row["crashes"], row["failures"], row["note"]) == (
        "ready",
        1,
        0,
        0,
        "lease lost",
    )
    assert [each.step for each in lab.postbox.take()][-1] == claim.id, "and its wake-up is sent"
    assert lab.events(claim.run_id)[-1] == "step.released a"


def test_no_lease_is_lost_while_the_pacer_has_not_been_steady_for_a_lease(lab: Lab) -> None:
    claim = _lost(lab)
    pacer = lab.pacer()
    pacer.step()
    assert lab.statuses(claim.run_id) == {"a": "running"}, "nobody paced before"
    lab.sql("UPDATE flowstone.pacer SET steady_since = flowstone.now() - interval '1.5 seconds'")
    pacer.step()
    assert lab.statuses(claim.run_id) == {"a": "running"}, "steady, but not for a lease yet"
    lab.sql("UPDATE flowstone.pacer SET steady_since = flowstone.now() - interval '2.1 seconds'")
    pacer.step()
    assert lab.statuses(claim.run_id) == {"a": "ready"}


def test_a_gap_between_beats_starts_the_steady_time_anew(lab: Lab) -> None:
    claim = _lost(lab)
    lab.steady()
    lab.sql("UPDATE flowstone.pacer SET beat_at = flowstone.now() - interval '10 minutes'")
    lab.pacer().step()
    assert lab.statuses(claim.run_id) == {"a": "running"}, (
        "the database was away: the others' beats could not arrive"
    )


def test_a_lease_that_ended_may_be_extended_while_nobody_took_the_step(lab: Lab) -> None:
    claim = _lost(lab)
    _extend(lab, claim.worker_id)
    lab.steady()
    lab.pacer().step()
    assert lab.succeed(claim.held) is not None
    assert lab.run(claim.run_id)["status"] == "succeeded"


def test_a_lease_that_ended_still_settles_under_the_same_fence(lab: Lab) -> None:
    """The process was stopped past its lease and goes on; nobody took its step."""
    claim = _lost(lab)
    assert lab.claim_next(claim.worker_id) is None, "it claims nothing new"
    assert lab.succeed(claim.held) is not None


def test_a_step_that_keeps_losing_its_worker_waits_longer_each_time_and_fails_at_the_limit(lab: Lab) -> None:
    run = lab.start(step("a"))
    pauses = []
    for _ in range(lab.settings.loss_limit - 1):
        claim = lab.claim(lab.worker(), lab.id_of(run, "a"))
        assert claim is not None
        _expire(lab, claim.worker_id)
        lab.steady()
        assert (
            len(
                lab.database.once(
                    SQL["release_lost"], lease=LEASE, loss_limit=lab.settings.loss_limit, limit=10
                )
            )
            == 1
        )
        pauses.append(
            lab.scalar("SELECT extract(epoch FROM due_at - flowstone.now())::float8 FROM flowstone.steps")
        )
        lab.sql("UPDATE flowstone.steps SET due_at = flowstone.now()")
    assert [round(pause) for pause in pauses[:8]] == [0, 2, 4, 8, 16, 32, 60, 60]
    claim = lab.claim(lab.worker(), lab.id_of(run, "a"))
    assert claim is not None
    _expire(lab, claim.worker_id)
    lab.steady()
    lab.pacer().step()
    row = lab.steps(run)["a"]
    assert (row["status"], row["error"]["code"], row["losses"], row["crashes"]) == (
        "failed",
        "FS-2010",
        20,
        0,
    )
    assert "lost its worker 20 times" in row["error"]["message"]
    assert lab.run(run)["status"] == "failed"


# --- pacers -----------------------------------------------------------------------------------------------------------------------


def test_one_pacer_holds_the_row_and_another_takes_over_when_it_falls_silent(lab: Lab) -> None:
    first, second = lab.pacer(), lab.pacer()
    first.step()
    second.step()
    assert (first._holding, second._holding) == (True, False)
    lab.clock.advance(seconds=5)
    second._pace_again = 0.0
    second.step()
    assert second._holding


def test_two_pacers_at_once_take_a_lost_step_back_once(lab: Lab) -> None:
    claims = [_lost(lab) for _ in range(10)]
    lab.steady()
    pacers = [lab.pacer() for _ in range(4)]
    in_threads(*[pacer._sweep for pacer in pacers])
    assert {lab.steps(claim.run_id)["a"]["losses"] for claim in claims} == {1}
    sent = [each.step for each in lab.postbox.take()]
    assert sorted(sent[len(claims) :]) == sorted(set(sent[len(claims) :])), "and wake it once"


def test_the_pacer_looks_again_when_the_next_step_is_due(lab: Lab) -> None:
    pacer = lab.pacer()
    assert pacer.step() == pytest.approx(lab.settings.pacer_poll_seconds)
    lab.start(step("soon", due_in=0.1))
    assert 0 < pacer.step() <= 0.1
    lab.clock.advance(seconds=1)
    pacer.step()
    assert [each.name for each in lab.postbox.take()] == ["soon"]


def test_silence_is_no_death_for_processes_that_slept_together(lab: Lab) -> None:
    """A laptop was closed for hours: whoever wakes first must not bury the others before they can beat."""
    node, worker = lab.node(), lab.worker(lease=-8 * 3600.0)
    lab.sql("UPDATE flowstone.nodes SET alive_until = flowstone.now() - interval '8 hours'")
    lab.sql(
        "UPDATE flowstone.pacer SET beat_at = flowstone.now() - interval '8 hours', steady_since = flowstone.now() - interval '9 hours'"
    )
    lab.pacer().step()
    assert lab.scalar("SELECT status FROM flowstone.workers WHERE id = %(id)s", id=worker) == "live"
    assert lab.scalar("SELECT status FROM flowstone.nodes WHERE key = %(key)s", key=node.key) == "live"


def test_what_stays_silent_for_long_under_a_steady_pacer_is_forgotten(lab: Lab) -> None:
    lab.node()
    lab.worker(lease=60.0)
    lab.clock.advance(hours=30)
    lab.sql(
        "UPDATE flowstone.pacer SET beat_at = flowstone.now(), steady_since = flowstone.now() - interval '9 hours'"
    )
    lab.pacer().step()
    assert lab.sql("SELECT DISTINCT status FROM flowstone.workers") == [{"status": "dead"}]
    assert lab.sql("SELECT DISTINCT status FROM flowstone.nodes") == [{"status": "gone"}]


# --- the keeper, with real processes --------------------------------------------------------------------------------------------------


class Child:
    """A real process that sleeps, known to the database as a worker of a node."""

    def __init__(self, lab: Lab, node: Node, *, lease: float = LONG) -> None:
        self.process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
        self.pid = self.process.pid
        started = pid_started(self.pid)
        assert started is not None
        self.worker = lab.worker(node, lease=lease, place=Place(place_name(), self.pid, started))

    def kill(self) -> None:
        """Dead, and gone from the process table."""
        self.process.kill()
        self.process.wait()

    def kill_unnoticed(self) -> None:
        """Dead, but its parent has not looked yet: a zombie."""
        self.process.kill()
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)


@pytest.fixture
def node(lab: Lab) -> Node:
    return lab.node(slots=4)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


@pytest.fixture
def keeper(lab: Lab, node: Node, board: Board) -> Keeper:
    return lab.keeper(board, node)


@pytest.fixture
def child(lab: Lab, node: Node) -> Iterator[Child]:
    found = Child(lab, node)
    yield found
    if found.process.poll() is None:
        found.process.send_signal(signal.SIGCONT)
        found.kill()


def _alive_for(lab: Lab, worker: int) -> float:
    text = "SELECT extract(epoch FROM alive_until - flowstone.now())::float8 FROM flowstone.workers WHERE id = %(id)s"
    return float(lab.scalar(text, id=worker))


def test_what_a_dead_process_held_is_released_within_one_step(lab: Lab, keeper: Keeper, child: Child) -> None:
    claim = lab.running(child.worker)
    keeper.step()
    assert lab.statuses(claim.run_id) == {"a": "running"}
    child.kill()
    lab.postbox.take()
    keeper._look_again = 0.0
    keeper.step()
    row = lab.steps(claim.run_id)["a"]
    assert (row["status"], row["crashes"], row["losses"], row["failures"]) == ("ready", 1, 0, 0)
    assert lab.scalar("SELECT status FROM flowstone.workers WHERE id = %(id)s", id=child.worker) == "dead"
    assert [each.step for each in lab.postbox.take()] == [claim.id]


def test_a_zombie_is_dead(lab: Lab, keeper: Keeper, child: Child) -> None:
    claim = lab.running(child.worker)
    child.kill_unnoticed()
    state = proc_state(child.pid)
    assert state is not None
    assert state[0] == "Z"
    keeper.step()
    assert lab.statuses(claim.run_id) == {"a": "ready"}


def test_another_process_under_a_dead_one_s_pid_is_not_it(
    lab: Lab, keeper: Keeper, node: Node, child: Child
) -> None:
    started = pid_started(child.pid)
    assert started is not None
    former = lab.worker(node, place=Place(place_name(), child.pid, started - 1))
    claim = lab.running(former)
    keeper.step()
    assert lab.statuses(claim.run_id) == {"a": "ready"}
    assert lab.scalar("SELECT status FROM flowstone.workers WHERE id = %(id)s", id=child.worker) == "live"


def test_a_living_process_keeps_its_lease_and_a_stopped_one_does_not(
    lab: Lab, keeper: Keeper, node: Node, child: Child
) -> None:
    other = Child(lab, node, lease=0.5)
    try:
        lab.sql("UPDATE flowstone.workers SET alive_until = flowstone.now() + interval '0.5 seconds'")
        child.process.send_signal(signal.SIGSTOP)
        lab.wait_until(lambda: (proc_state(child.pid) or ("",))[0] == "T")
        keeper.step()
        assert _alive_for(lab, child.worker) <= 0.5
        assert 1.0 < _alive_for(lab, other.worker) <= LEASE
        child.process.send_signal(signal.SIGCONT)
        lab.wait_until(lambda: (proc_state(child.pid) or ("T",))[0] != "T")
        keeper._look_again = keeper._beat_again = 0.0
        keeper.step()
        assert 1.0 < _alive_for(lab, child.worker) <= LEASE
    finally:
        other.kill()


def test_a_step_that_takes_its_process_down_too_often_ends_as_failed(
    lab: Lab, keeper: Keeper, node: Node
) -> None:
    run = lab.start(step("poison", max_failures=5), step("needs it", 0))
    for nth in range(1, lab.settings.crash_limit + 1):
        child = Child(lab, node)
        claim = lab.claim(child.worker, lab.id_of(run, "poison"))
        assert claim is not None, f"crash {nth}"
        child.kill()
        keeper._look_again = 0.0
        keeper.step()
    row = lab.steps(run)["poison"]
    assert (row["status"], row["error"]["code"], row["crashes"], row["losses"], row["failures"]) == (
        "failed",
        "FS-2010",
        3,
        0,
        0,
    )
    assert "took its worker process down 3 times" in row["error"]["message"]
    assert lab.statuses(run)["needs it"] == "failed"
    assert lab.run(run)["status"] == "failed"


def test_an_announced_stop_counts_neither_as_crash_nor_as_loss(
    lab: Lab, keeper: Keeper, child: Child
) -> None:
    claim = lab.running(child.worker)
    keeper.announce_stop()
    child.kill()
    keeper.leave()
    row = lab.steps(claim.run_id)["a"]
    assert (row["status"], row["crashes"], row["losses"], row["note"]) == (
        "ready",
        0,
        0,
        "its worker stopped",
    )
    assert lab.scalar("SELECT status FROM flowstone.nodes WHERE key = %(key)s", key=keeper.node.key) == "gone"


def test_a_fallen_node_counts_as_a_loss(lab: Lab, keeper: Keeper, child: Child) -> None:
    claim = lab.running(child.worker)
    keeper.parent_gone = True
    child.kill()
    keeper.step()
    row = lab.steps(claim.run_id)["a"]
    assert (row["status"], row["crashes"], row["losses"]) == ("ready", 0, 1)


def test_the_dead_of_another_node_are_left_to_its_keeper_while_that_lives(
    lab: Lab, keeper: Keeper, board: Board, child: Child
) -> None:
    """Else a poison step would be counted as lost by whichever keeper of the machine looks first."""
    claim = lab.running(child.worker)
    child.kill()
    neighbor = lab.keeper(board, lab.node())
    neighbor.step()
    assert lab.statuses(claim.run_id) == {"a": "running"}
    keeper.step()
    assert lab.steps(claim.run_id)["a"]["crashes"] == 1


def test_the_dead_of_a_node_whose_keeper_died_too_are_released_by_a_neighbor(
    lab: Lab, keeper: Keeper, board: Board, child: Child
) -> None:
    claim = lab.running(child.worker)
    child.kill()
    lab.sql(
        "UPDATE flowstone.nodes SET keeper_pid = %(pid)s WHERE key = %(key)s",
        pid=child.pid,
        key=keeper.node.key,
    )
    neighbor = lab.keeper(board, lab.node())
    neighbor.step()
    row = lab.steps(claim.run_id)["a"]
    assert (row["status"], row["losses"], row["crashes"]) == ("ready", 1, 0)


def test_processes_of_another_machine_are_none_of_its_business(lab: Lab, keeper: Keeper, node: Node) -> None:
    far = lab.worker(node, place=Place("another machine", 2**22 + 1, 1))
    claim = lab.running(far)
    keeper.step()
    assert lab.statuses(claim.run_id) == {"a": "running"}
    lab.succeed(claim.held)


def test_a_step_at_its_limit_whose_process_still_lives_is_left_alone(
    lab: Lab, keeper: Keeper, child: Child
) -> None:
    claim = lab.running(child.worker)
    lab.sql("UPDATE flowstone.steps SET crashes = 2, losses = 19 WHERE id = %(id)s", id=claim.id)
    keeper.step()
    assert lab.succeed(claim.held) is not None


# --- interrupts ---------------------------------------------------------------------------------------------------------------------


def _overdue(lab: Lab, claim: Claim, seconds: float) -> None:
    text = "UPDATE flowstone.steps SET deadline_at = flowstone.now() - make_interval(secs => %(s)s) WHERE id = %(id)s"
    lab.sql(text, s=seconds, id=claim.id)


def test_what_is_past_its_time_stands_on_the_board_and_is_taken_off_when_it_has_ended(
    lab: Lab, keeper: Keeper, board: Board, child: Child
) -> None:
    claim = lab.running(child.worker, timeout=30.0)
    keeper.step()
    assert board.demands(child.pid) == {}
    _overdue(lab, claim, 0.1)
    keeper._look_again = 0.0
    keeper.step()
    assert board.demands(child.pid) == {f"{claim.id}:{claim.fence}": "timeout"}
    lab.succeed(claim.held)
    keeper._look_again = 0.0
    keeper.step()
    assert board.demands(child.pid) == {}


@pytest.mark.parametrize(("tries", "status", "failures"), [(1, "failed", 1), (3, "ready", 1)])
def test_past_the_grace_a_timeout_is_settled_from_outside(
    lab: Lab, keeper: Keeper, child: Child, tries: int, status: str, failures: int
) -> None:
    claim = lab.running(child.worker, timeout=30.0, max_failures=tries, retry=AT_ONCE)
    _overdue(lab, claim, lab.settings.grace_seconds + 0.1)
    keeper.step()
    row = lab.steps(claim.run_id)["a"]
    assert (row["status"], row["failures"], row["error"]["code"]) == (status, failures, "FS-2005")
    assert lab.succeed(claim.held) is None, "the stubborn process settles nothing any more"
    assert child.process.poll() is None


def test_a_keeper_that_may_kill_ends_the_stubborn_process(
    lab: Lab, node: Node, board: Board, child: Child
) -> None:
    claim = lab.running(child.worker, timeout=30.0)
    _overdue(lab, claim, lab.settings.grace_seconds + 0.1)
    lab.keeper(board, node, may_kill=True).step()
    assert child.process.wait(10) == -signal.SIGKILL
    assert lab.statuses(claim.run_id) == {"a": "failed"}


def test_running_work_of_a_cancelled_run_is_interrupted_and_past_the_grace_cancelled(
    lab: Lab, keeper: Keeper, board: Board, child: Child
) -> None:
    claim = lab.running(child.worker)
    lab.cancel(claim.run_id)
    keeper.step()
    assert board.demands(child.pid) == {f"{claim.id}:{claim.fence}": "cancelled"}
    lab.sql("UPDATE flowstone.runs SET cancelled_at = flowstone.now() - interval '1 minute'")
    keeper._look_again = 0.0
    keeper.step()
    assert lab.run(claim.run_id)["status"] == "cancelled"


def test_a_keeper_without_a_database_waits_for_it(
    lab: Lab, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "_database", type(lab.database)("postgresql://nobody@127.0.0.1:1/none"))
    assert 0 < keeper.step() <= 1


def test_the_executor_of_a_dead_worker_claims_nothing(lab: Lab) -> None:
    executor = lab.executor()
    lab.start(step("a"))
    lab.database.once(SQL["bury"], workers=[executor.worker_id])
    assert executor.work(None, QUEUE) == 0
    assert lab.database.attempt(lambda tx: steps.promise(tx, QUEUE, min_wakeups=8)) == []
