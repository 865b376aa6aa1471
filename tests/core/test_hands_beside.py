"""Items that await: hundreds of one hand at a time, each with its own end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from corelab import QUEUE, Lab
from handlab import HandLab, Scatters

from flowstone_celery.outcomes import Cancel

if TYPE_CHECKING:
    from flowstone_celery.core.barrier_model import ItemClaim

SOON = 20.0


@pytest.fixture
def hands(lab: Lab) -> HandLab:
    return HandLab(lab)


def awaiting(count: int, code: Callable[[ItemClaim], Any], **policy: Any) -> Scatters:
    return Scatters(list(range(count)), code, awaiting=True, policy={"width": 200, **policy})


def test_hundreds_of_items_await_at_a_time_in_one_thread(hands: HandLab) -> None:
    at_once, most, threads = set[int](), [0], set[int]()

    async def code(item: ItemClaim) -> int:
        at_once.add(item.index)
        most[0] = max(most[0], len(at_once))
        threads.add(threading.get_ident())
        await asyncio.sleep(0.05)
        at_once.discard(item.index)
        return item.index

    kind = awaiting(1_000, code)
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind)) == "succeeded"
    assert kind.times == dict.fromkeys(range(1_000), 1)
    assert hands.results(run) == {n: n for n in range(1_000)}
    assert 100 <= most[0] <= 200
    assert threads == {threading.get_ident()}


def test_width_is_never_exceeded(hands: HandLab) -> None:
    at_once, most = set[int](), [0]

    async def code(item: ItemClaim) -> None:
        at_once.add(item.index)
        most[0] = max(most[0], len(at_once))
        await asyncio.sleep(0.001)
        at_once.discard(item.index)

    kind = awaiting(300, code, width=7)
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind)) == "succeeded"
    assert most[0] == 7


def test_an_item_that_awaits_too_long_fails_alone(hands: HandLab) -> None:
    cleaned: list[int] = []

    async def code(item: ItemClaim) -> int:
        if item.index != 3:
            return item.index
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(item.index)
        raise AssertionError("unreachable")

    kind = awaiting(50, code, timeout=0.3, max_attempts=2, failure_mode="partial", failure_threshold=0.1)
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind)) == "succeeded"
    found = hands.items(run)
    assert (found[3].status, found[3].attempt) == ("failed", 2)
    assert found[3].error is not None
    assert found[3].error["code"] == "FS-2005"
    assert sum(each.status == "succeeded" for each in found.values()) == 49
    assert cleaned == [3, 3]


def test_items_that_wait_end_when_their_run_is_cancelled(hands: HandLab) -> None:
    waiting = set[int]()

    async def code(item: ItemClaim) -> int:
        waiting.add(item.index)
        if len(waiting) == 20:
            await asyncio.to_thread(hands.lab.cancel, run)
        await asyncio.Event().wait()
        return 1

    kind = awaiting(20, code)
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind)) == "cancelled"
    assert hands.barrier(run).status == "cancelled"
    assert set(kind.times.values()) == {1}


def test_an_item_that_awaits_long_does_not_hold_its_neighbours(hands: HandLab) -> None:
    others = threading.Event()
    done: set[int] = set()

    async def code(item: ItemClaim) -> int:
        if item.index == 0:
            assert await asyncio.to_thread(others.wait, SOON)
        else:
            done.add(item.index)
            if len(done) == 29:
                others.set()
        return item.index

    kind = awaiting(30, code, width=2)
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind), hands.executor(kind)) == "succeeded"
    assert kind.times == dict.fromkeys(range(30), 1)


def test_places_are_filled_while_an_item_of_the_first_range_still_awaits(hands: HandLab) -> None:
    done: set[int] = set()
    others = asyncio.Event()

    async def code(item: ItemClaim) -> int:
        if item.index == 0:
            async with asyncio.timeout(SOON):
                await others.wait()
        else:
            await asyncio.sleep(0.002)
            done.add(item.index)
            if len(done) == 1_199:
                others.set()
        return item.index

    kind = awaiting(1_200, code, width=10)
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind)) == "succeeded"
    assert kind.times == dict.fromkeys(range(1_200), 1)
    assert hands.results(run) == {n: n for n in range(1_200)}


def test_what_was_claimed_ahead_and_cannot_begin_is_for_others(hands: HandLab) -> None:
    done: set[int] = set()
    others = threading.Event()

    async def code(item: ItemClaim) -> int:
        if item.index in (10, 11):
            assert await asyncio.to_thread(others.wait, SOON)
        else:
            await asyncio.sleep(0.01)
            done.add(item.index)
            if len(done) == 58:
                others.set()
        return item.index

    kind = awaiting(60, code, width=2)
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind), hands.executor(kind)) == "succeeded"
    assert kind.times == dict.fromkeys(range(60), 1)


def test_what_may_be_at_work_at_once_is_shared_by_the_processes(hands: HandLab) -> None:
    at_once, most, threads = set[int](), [0], set[int]()

    async def code(item: ItemClaim) -> None:
        at_once.add(item.index)
        most[0] = max(most[0], len(at_once))
        threads.add(threading.get_ident())
        await asyncio.sleep(0.02)
        at_once.discard(item.index)

    node = hands.lab.node(slots=2)
    kind = awaiting(400, code, width=20, max_concurrent=20)
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind, node), hands.executor(kind, node)) == "succeeded"
    assert len(threads) == 2
    assert 10 < most[0] <= 20


def test_an_item_that_awaits_can_cancel_its_run(hands: HandLab) -> None:
    async def code(item: ItemClaim) -> Any:
        return Cancel("enough") if item.index == 4 else item.index

    kind = awaiting(10, code)
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind)) == "cancelled"


def test_failures_of_items_that_await_are_tried_again(hands: HandLab) -> None:
    async def code(item: ItemClaim) -> Any:
        await asyncio.sleep(0)
        if item.attempt == 1:
            raise ValueError("again")
        return orjson.loads(item.key)

    kind = awaiting(100, code)
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind)) == "succeeded"
    assert kind.times == dict.fromkeys(range(100), 2)


def test_a_stop_lets_items_that_run_end_and_gives_back_the_rest(hands: HandLab) -> None:
    stopped: list[Any] = []

    async def code(item: ItemClaim) -> int:
        if item.index == 3 and not stopped:
            stopped.append(item)
            executor.stop()
        await asyncio.sleep(0.01)
        return item.index

    kind = awaiting(200, code, width=4)
    run = hands.scatter(kind)
    executor = hands.executor(kind)
    executor.work(None, QUEUE)
    assert len(kind.times) < 20
    assert hands.progress(run).succeeded == len(kind.times)
    assert hands.work(run, hands.executor(kind)) == "succeeded"
    assert kind.times == dict.fromkeys(range(200), 1)
