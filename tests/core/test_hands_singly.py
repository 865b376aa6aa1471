"""Items that travel singly: each is settled with its hand, in one transaction; where that cannot be, one after the other."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from barrierlab import release
from corelab import QUEUE, Lab
from handlab import KNOWS, HandLab, Scatters

from flowstone_celery.core import barriers
from flowstone_celery.core.executor import Slice
from flowstone_celery.core.settle import GiveBack
from flowstone_celery.outcomes import Cancel, Fail

if TYPE_CHECKING:
    from flowstone_celery.core.barrier_model import ItemClaim

SINGLY = {"dispatch": "item"}
TOGETHER = """
SELECT count(DISTINCT i.index) FROM flowstone.items i JOIN flowstone.history h ON h.xmin::text = i.xmin::text AND h.event = 'step.released'
"""


@pytest.fixture
def hands(lab: Lab) -> HandLab:
    return HandLab(lab)


@pytest.mark.parametrize("awaiting", [False, True])
def test_an_item_is_settled_with_its_hand_in_one_transaction(
    lab: Lab, hands: HandLab, awaiting: bool
) -> None:
    async def awaited(item: ItemClaim) -> Any:
        return orjson.loads(item.key)

    code: dict[str, Any] = {"code": awaited} if awaiting else {}
    kind = Scatters(list(range(150)), awaiting=awaiting, policy=SINGLY, **code)
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind)) == "succeeded"
    assert hands.results(run) == {n: n for n in range(150)}
    assert kind.times == dict.fromkeys(range(150), 1)
    # The last of each of its two pages is settled by itself: the barrier is looked at behind it.
    assert lab.scalar(TOGETHER) == 148


def test_an_item_that_fails_for_good_is_counted_at_once(hands: HandLab) -> None:
    kind = Scatters(list(range(30)), lambda item: Fail("no") if item.index == 3 else 1, policy=SINGLY)
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind)) == "failed"
    assert hands.barrier(run).failed == 1
    assert len(kind.called) < 30


def test_an_item_is_tried_again_until_its_attempts_are_over(hands: HandLab) -> None:
    def code(item: ItemClaim) -> int:
        if item.index % 5 == 0 and item.attempt < 3:
            raise ValueError("not yet")
        return item.index

    kind = Scatters(list(range(20)), code, policy={**SINGLY, "max_attempts": 3})
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind)) == "succeeded"
    assert kind.times == {n: 3 if n % 5 == 0 else 1 for n in range(20)}
    assert {n: each.attempt for n, each in hands.items(run).items()} == kind.times


def test_what_the_rows_refuse_fails_that_item_alone(hands: HandLab) -> None:
    def code(item: ItemClaim) -> int:
        if item.index == 7:
            raise ValueError("a text that no row holds: \x00")
        return item.index

    policy = {**SINGLY, "max_attempts": 1, "failure_mode": "partial", "failure_threshold": 0.5}
    kind = Scatters(list(range(20)), code, policy=policy)
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind)) == "succeeded"
    assert [n for n, each in hands.items(run).items() if each.status == "failed"] == [7]
    assert kind.times == dict.fromkeys(range(20), 1)


def test_an_item_that_cancels_takes_its_run_along(hands: HandLab) -> None:
    kind = Scatters(list(range(20)), lambda item: Cancel("enough") if item.index == 2 else 1, policy=SINGLY)
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind)) == "cancelled"
    assert len(kind.called) < 20


def test_a_hand_that_was_lost_meanwhile_settles_nothing(lab: Lab, hands: HandLab) -> None:
    def code(item: ItemClaim) -> int:
        if len(kind.called) == 1:
            release(lab, lab.scalar("SELECT worker_id FROM flowstone.steps WHERE status = 'running'"))
        return 1

    kind = Scatters(list(range(5)), code, policy=SINGLY)
    run = hands.scatter(kind)
    hands.executor(kind).work(None, QUEUE, going_on=False)
    assert len(kind.called) == 1
    assert hands.progress(run).succeeded == 0


def test_a_hand_whose_end_cannot_be_written_goes_back_to_the_line_with_what_it_holds(
    lab: Lab, hands: HandLab
) -> None:
    kind = Scatters([1, 2, 3])
    executor = hands.executor(kind)
    run = hands.scatter(kind, executor)
    hand = lab.claim_next(executor.worker_id, knows=KNOWS)
    assert hand is not None
    assert hand.phase == "item"
    with lab.database.transaction() as tx:
        assert barriers.claim_range(tx, hand, wanted=2, width=1) is not None
    turn = Slice(time.monotonic() + 1, 0, lambda: False, lambda: KNOWS)
    executor.end(hand, GiveBack("a NUL: \x00"), turn, None, None, time.monotonic())
    assert lab.scalar("SELECT status FROM flowstone.steps WHERE id = %(id)s", id=hand.id) == "ready"
    assert hands.work(run, executor) == "succeeded"
    assert len(hands.results(run)) == 3
