"""Barriers at odds with what goes on around them: other makers, lanes, sweeps over many, runs that have ended, parents of the same child."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from actlab import doer
from barrierlab import HAND, Scattering, begin, failed, keys, new, release, retried, scattered
from corelab import QUEUE, Lab, sql, step
from handlab import HandLab, Scatters

from flowstone_celery.core import acts, barrier_sweep, barriers, lanes, runs, steps
from flowstone_celery.core.barrier_model import Scattered
from flowstone_celery.core.wake import back_in_line
from flowstone_celery.states import StepStatus

if TYPE_CHECKING:
    from uuid import UUID

    from flowstone_celery.core.barrier_model import Barrier, ItemClaim
    from flowstone_celery.core.hands import ItemCalls
    from flowstone_celery.core.model import Call, Claim
    from flowstone_celery.db.database import Tx


def held_by(lab: Lab, run: UUID, name: str, worker: int) -> Claim:
    claim = lab.claim(worker, lab.id_of(run, name))
    assert claim is not None, lab.reasons(run)
    return claim


def scattering_in(lab: Lab, run: UUID, worker: int, items: int = 3) -> Scattering:
    begun = Scattering(lab, run, worker, held_by(lab, run, "pages", worker))
    begun.scatter(Scattered(new(), keys(items)))
    return begun


def fails(begun: Scattering) -> None:
    """Its first item fails, and the run with it."""
    hand = begun.hand()
    begun.settle(hand, begun.held(hand), [failed(0)])
    begun.finish(hand)


def accept(begun: Scattering) -> None:
    assert begun.tx(lambda tx: barriers.accept(tx, begun.barrier, "tester", "fine")) is not None


# --- acceptance -----------------------------------------------------------------------------------------------------------------


def test_what_is_accepted_while_another_run_makes_the_value_waits_for_it(lab: Lab) -> None:
    begun = begin(lab, sole=True)
    begun.scatter(Scattered(new(), keys(2)))
    fails(begun)
    rival = begin(lab, sole=True)
    accept(begun)
    assert lab.claim(begun.worker, begun.claim.id) is None
    assert lab.reasons(begun.run)["pages"] == f"run {rival.run} makes the same value now"


def test_a_parent_does_not_fail_for_a_child_that_was_accepted_beside_another_maker(lab: Lab) -> None:
    run, worker = lab.start(step("up"), step("pages", 0, sole=True), promise=False), lab.worker()
    lab.succeed(held_by(lab, run, "up", worker).held)
    begun = scattering_in(lab, run, worker)
    fails(begun)
    acts.retry(doer(lab), run, begin_at=["up"], actor="t")
    up = held_by(lab, run, "up", worker)
    begun.tx(
        lambda tx: steps.end(tx, up.held, StepStatus.FAILED, {"message": "no"}, name="up", failed_attempts=1)
    )
    accept(begun)
    assert lab.statuses(run) == {"up": "ready", "pages": "blocked"}
    begin(lab, sole=True)
    assert lab.succeed(held_by(lab, run, "up", worker).held) is not None


def test_what_is_accepted_behind_its_lane_is_not_the_maker_for_those_in_the_lane(lab: Lab) -> None:
    worker = lab.worker()

    def nightly() -> UUID:
        run = lab.start(step("pages", sole=True), promise=False, lane="nightly")
        lanes.admit(lab.database, lab.postbox, lab.settings, lab.run(run)["tenant"], "nightly")
        back_in_line(lab.database)
        return run

    begun = scattering_in(lab, nightly(), worker)
    fails(begun)
    inside = nightly()
    assert lab.run(inside)["admitted"]
    accept(begun)
    lanes.sweep(lab.database, lab.postbox, lab.settings)
    back_in_line(lab.database)
    assert held_by(lab, inside, "pages", worker).run_id == inside


def test_a_barrier_that_was_given_up_is_not_accepted_in_place_of_its_successor(lab: Lab) -> None:
    begun = scattered(lab, 3)
    fails(begun)
    given_up = begun.barrier
    acts.retry(doer(lab), begun.run, everything=True, actor="t")
    begun.claim = held_by(lab, begun.run, "pages", begun.worker)
    begun.scatter(Scattered(new(), keys(5)))
    fails(begun)
    assert begun.barrier != given_up
    assert begun.tx(lambda tx: barriers.accept(tx, given_up, "tester", "fine")) is None
    assert barriers.retry(lab.database, given_up, "tester") is None


# --- sweeps -----------------------------------------------------------------------------------------------------------------------


def test_the_sweep_comes_to_those_behind_a_hundred_that_need_nothing(lab: Lab) -> None:
    for _ in range(100):
        scattered(lab, 1)
    last = scattered(lab, 1)
    hand = lab.claim(last.worker, last.hands("ready")[0]["id"], knows=[HAND])
    assert hand is not None
    last.settle(hand, last.held(hand), [retried(0, delay=60)])
    last.aside(hand)
    lab.sql("UPDATE flowstone.items SET due_at = flowstone.now()")
    assert barrier_sweep.sweep(lab.database) == [QUEUE]


def test_an_open_barrier_of_a_run_that_has_ended_is_closed(lab: Lab) -> None:
    """Its reader opened it while the run's cancel looked for open ones."""
    begun = begin(lab, max_failures=3)
    opened = begun.tx(lambda tx: barriers.open_barrier(tx, begun.claim, new()))
    assert opened is not None
    begun.barrier = opened
    lab.sql("UPDATE flowstone.barriers SET status = 'cancelled', closed_at = flowstone.now()")
    release(lab, begun.worker)
    runs.cancel(lab.database, begun.run, actor="t")
    runs.cancel_steps(lab.database, begun.run)
    lab.sql("UPDATE flowstone.barriers SET status = 'open', closed_at = NULL")
    assert lab.run(begun.run)["status"] == "cancelled"
    barrier_sweep.sweep(lab.database)
    assert begun.status == "cancelled"


# --- locks ------------------------------------------------------------------------------------------------------------------------


def test_a_barrier_that_fails_and_a_parent_of_the_same_child_meet_in_one_order(lab: Lab) -> None:
    """Children before the run, as every settlement: otherwise each waits for the other."""
    run, worker = lab.start(step("pages"), step("other"), step("child", 0, 1), promise=False), lab.worker()
    begun = scattering_in(lab, run, worker, 8)
    hand = begun.hand()
    held = begun.held(hand)
    child, locked = lab.id_of(run, "child"), threading.Event()

    def parent() -> None:
        def work(tx: Tx) -> None:
            tx.rows(sql("SELECT 1 FROM flowstone.steps WHERE id = %(child)s FOR NO KEY UPDATE"), child=child)
            locked.set()
            lab.wait_until_one_waits_for_a_lock()
            tx.run(sql("UPDATE flowstone.runs SET error = error WHERE id = %(run)s"), run=run)

        with lab.database.transaction() as tx:
            work(tx)

    thread = threading.Thread(target=parent)
    thread.start()
    assert locked.wait(10)
    with lab.database.transaction() as tx:
        part = barriers.settle_part(tx, hand, held, [failed(0)])
    thread.join()
    assert part is not None
    assert part.closed
    assert lab.statuses(run)["child"] == "failed"


# --- stale fences, and time that is nobody's --------------------------------------------------------------------------------------


def test_a_late_part_of_a_dead_predecessor_is_stale_once_the_hand_has_ended(lab: Lab) -> None:
    begun = scattered(lab, 1)
    dead = begun.hand()
    held = begun.held(dead)
    release(lab, dead.worker_id)
    heir = lab.claim(lab.worker(), dead.id, knows=[HAND])
    assert heir is not None
    begun.tx(lambda tx: barriers.cancel(tx, begun.barrier, "tester", "enough"))
    assert begun.finish(heir) is not None
    with lab.database.transaction() as tx:
        assert barriers.settle_part(tx, dead, held, [failed(0)]) is None


def test_the_time_of_items_does_not_run_while_what_they_need_is_loaded(lab: Lab) -> None:
    """The keeper would kill a process that loads for long, and the next one, until its items are taken for deadly."""
    deadlines: list[bool] = []

    class Slow(Scatters):
        def items(self, hand: Claim, barrier: Barrier, call: Call) -> ItemCalls:
            deadlines.append(has_deadline(hand))
            return super().items(hand, barrier, call)

    def has_deadline(hand: Claim) -> bool:
        return bool(
            lab.scalar("SELECT deadline_at IS NOT NULL FROM flowstone.steps WHERE id = %(id)s", id=hand.id)
        )

    def item(item: ItemClaim) -> int:
        del item
        deadlines.append(
            bool(
                lab.scalar(
                    "SELECT bool_or(deadline_at IS NOT NULL) FROM flowstone.steps WHERE phase = 'item'"
                )
            )
        )
        return 1

    hands = HandLab(lab)
    kind = Slow([1], code=item, policy={"timeout": 20.0})
    executor = hands.executor(kind)
    run = hands.scatter(kind, executor)
    assert hands.work(run, executor) == "succeeded"
    assert deadlines == [False, True]
