"""Hands: the items of a scatter are done once each, in ranges, and one that takes long or fails harms no other."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from corelab import QUEUE, Lab
from handlab import HandLab, Scatters

from flowstone_celery.core.model import Done
from flowstone_celery.core.retry_policy import RetryPolicy
from flowstone_celery.core.wake import back_in_line
from flowstone_celery.errors import InvalidValue
from flowstone_celery.outcomes import Cancel, Fail, Retry, Skip, Value
from flowstone_celery.telemetry import recorded

if TYPE_CHECKING:
    from flowstone_celery.core.barrier_model import ItemClaim
    from flowstone_celery.core.executor import Executor
    from flowstone_celery.core.model import Claim

SOON = 20.0
"""Seconds for what another thread is about to do."""


@pytest.fixture
def hands(lab: Lab) -> HandLab:
    return HandLab(lab)


def numbers(count: int) -> list[int]:
    return list(range(count))


def key_of(item: ItemClaim) -> Any:
    return orjson.loads(item.key)


def until(event: threading.Event) -> None:
    assert event.wait(SOON), "it did not happen"


# --- each item once -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, 500, 1_700])
def test_each_item_is_done_once_and_its_result_is_kept(hands: HandLab, count: int) -> None:
    kind = Scatters(numbers(count), lambda item: key_of(item) * 2)
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind)) == "succeeded"
    assert kind.times == dict.fromkeys(range(count), 1)
    assert hands.results(run) == {n: n * 2 for n in range(count)}
    assert kind.gathered == ["s"]


def test_several_processes_share_the_items(hands: HandLab) -> None:
    entered, both = set[int](), threading.Event()

    def code(item: ItemClaim) -> int:
        entered.add(threading.get_ident())
        if len(entered) == 2:
            both.set()
        until(both)
        return item.index

    kind = Scatters(numbers(600), code)
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind), hands.executor(kind)) == "succeeded"
    assert kind.times == dict.fromkeys(range(600), 1)


def test_a_scatter_of_nothing_is_gathered_at_once(hands: HandLab) -> None:
    kind = Scatters([])
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind)) == "succeeded"
    assert kind.called == []
    assert hands.barrier(run).status == "completed"


def test_ranges_grow_as_items_turn_out_to_be_quick(hands: HandLab) -> None:
    watcher = Watcher()
    kind = Scatters(numbers(2_000))
    run = hands.scatter(kind)
    executor = hands.executor(kind)
    while hands.status(run) == "running":
        executor.work(None, QUEUE, observer=watcher)
    sizes = [int(text.split()[3]) - int(text.split()[1]) + 1 for text in watcher.seen if " to " in text]
    assert sizes[0] == 8
    assert max(sizes) > 100
    assert len(sizes) < 30


class Watcher:
    """Sees what a monitor would."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.results: list[str] = []
        self.tasks: list[tuple[str, str]] = []

    def started(self, claim: Claim) -> None:
        pass

    def does(self, claim: Claim, text: str) -> None:
        self.seen.append(text)

    def did(self, claim: Claim, text: str) -> None:
        self.results.append(text)

    def ended(self, claim: Claim, event: str, error: Any, seconds: float) -> None:
        self.tasks.append((claim.task, event))

    def pulse(self) -> None:
        pass


def test_a_hand_shows_what_it_is_at_and_what_it_has_done(hands: HandLab) -> None:
    kind, watcher = Scatters(["a", "b"]), Watcher()
    run = hands.scatter(kind)
    executor = hands.executor(kind)
    while hands.status(run) == "running":
        executor.work(None, QUEUE, observer=watcher)
    assert watcher.seen[0] in ('item 0: "a"', "items 0 to 1")
    assert "2 items, 0 failed" in watcher.results
    assert {task for task, _ in watcher.tasks} == {"lab.work[item]", "lab.work"}


def test_with_dispatch_item_each_item_is_a_claim_of_its_own(hands: HandLab) -> None:
    kind, watcher = Scatters(["a", "b", "c"], policy={"dispatch": "item"}), Watcher()
    run = hands.scatter(kind)
    executor = hands.executor(kind)
    while hands.status(run) == "running":
        executor.work(None, QUEUE, observer=watcher)
    assert sorted(watcher.seen) == ['item 0: "a"', 'item 1: "b"', 'item 2: "c"']
    assert watcher.results.count("1 items, 0 failed") == 3


# --- outcomes and failures --------------------------------------------------------------------------------------------------------


def test_outcomes_mean_for_an_item_what_they_mean_for_a_step(hands: HandLab) -> None:
    answers: dict[str, Any] = {
        "value": Value({"n": 1}),
        "plain": [1, 2],
        "skip": Skip("nothing there"),
        "fail": Fail("no", {"why": "x"}),
    }
    kind = Scatters(
        list(answers),
        lambda item: answers[key_of(item)],
        policy={"failure_mode": "partial", "failure_threshold": 0.5},
    )
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind)) == "succeeded"
    items = {each.key: each for each in hands.items(run).values()}
    assert {key: each.status for key, each in items.items()} == {
        "value": "succeeded",
        "plain": "succeeded",
        "skip": "succeeded",
        "fail": "failed",
    }
    assert hands.results(run) == {0: {"n": 1}, 1: [1, 2], 2: None}
    assert items["fail"].error is not None
    assert items["fail"].error["facts"]["why"] == "x"
    assert kind.times[3] == 1


def test_a_failing_item_is_tried_again_and_fails_at_its_last_attempt(hands: HandLab) -> None:
    def code(item: ItemClaim) -> int:
        if key_of(item) == 3:
            raise ValueError("never")
        if key_of(item) == 5 and item.attempt == 1:
            raise ValueError("once")
        return item.index

    kind = Scatters(
        numbers(20),
        code,
        policy={"failure_mode": "partial", "failure_threshold": 0.1, "max_attempts": 3},
    )
    run = hands.scatter(kind)
    with recorded() as events:
        assert hands.work(run, hands.executor(kind)) == "succeeded"
    assert {index: times for index, times in kind.times.items() if times > 1} == {3: 3, 5: 2}
    assert [attempt for index, attempt in kind.called if index == 3] == [1, 2, 3]
    found = hands.items(run)
    assert (found[3].status, found[3].attempt) == ("failed", 3)
    assert found[3].error is not None
    assert "never" in found[3].error["message"]
    assert found[5].status == "succeeded"
    assert hands.barrier(run).status == "partial_failure"
    told = [each.fields for each in events if each.name == "flowstone.scatter.instance_exception"]
    assert [each["index"] for each in told].count(3) == 3
    assert [each["retried"] for each in told if each["index"] == 3] == [True, True, False]


def test_a_retry_waits_for_its_pause_while_others_go_on(hands: HandLab) -> None:
    order: list[int] = []

    def code(item: ItemClaim) -> int:
        order.append(item.index)
        if item.index == 0 and item.attempt == 1:
            return Retry(after=30)  # type: ignore[return-value]
        return item.index

    kind = Scatters(numbers(40), code)
    run = hands.scatter(kind)
    executor = hands.executor(kind)
    while executor.work(None, QUEUE):
        pass
    assert sorted(order) == numbers(40)
    assert hands.progress(run).retrying == 1
    assert hands.status(run) == "running"
    hands.lab.clock.advance(seconds=31)
    assert hands.work(run, executor) == "succeeded"
    assert order[-1] == 0


def test_a_result_that_cannot_be_stored_fails_without_another_attempt(hands: HandLab) -> None:
    class Strict(Scatters):
        def items(self, hand: Any, barrier: Any, call: Any) -> Any:
            calls = super().items(hand, barrier, call)

            def refuse(item: ItemClaim, value: object) -> bytes:
                if item.index == 2:
                    raise InvalidValue("no JSON")
                return orjson.dumps(value)

            calls.ended = refuse  # type: ignore[method-assign]
            return calls

    kind = Strict(numbers(5), policy={"failure_mode": "partial", "failure_threshold": 0.5})
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind)) == "succeeded"
    assert kind.times[2] == 1
    assert hands.items(run)[2].status == "failed"


def test_where_the_surroundings_of_items_cannot_be_made_their_attempts_fail(hands: HandLab) -> None:
    kind = Scatters(numbers(3), policy={"max_attempts": 2}, broken=RuntimeError("no room"))
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind)) == "failed"
    assert kind.called == []
    failed = [each for each in hands.items(run).values() if each.status == "failed"]
    assert failed[0].error is not None
    assert "no room" in failed[0].error["message"]


def test_what_goes_wrong_around_the_items_is_told_and_fails_none_of_them(hands: HandLab) -> None:
    class Clumsy(Scatters):
        def items(self, hand: Any, barrier: Any, call: Any) -> Any:
            calls = super().items(hand, barrier, call)

            def close() -> None:
                raise RuntimeError("it slipped")

            calls.close = close
            return calls

    kind = Clumsy(numbers(20))
    run = hands.scatter(kind)
    with recorded() as events:
        assert hands.work(run, hands.executor(kind)) == "succeeded"
    assert kind.times == dict.fromkeys(range(20), 1)
    told = [each.fields for each in events if each.name == "flowstone.error"]
    assert told
    assert "it slipped" in str(told[0]["message"])


def test_an_item_can_cancel_its_run(hands: HandLab) -> None:
    kind = Scatters(numbers(50), lambda item: Cancel("enough") if item.index == 4 else item.index)
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind)) == "cancelled"
    assert hands.barrier(run).status == "cancelled"
    assert kind.gathered == []


# --- neighbours -----------------------------------------------------------------------------------------------------------------


def test_an_item_that_takes_long_does_not_hold_its_neighbours(hands: HandLab) -> None:
    others = threading.Event()
    done: set[int] = set()

    def code(item: ItemClaim) -> int:
        if item.index == 2:
            until(
                others
            )  # which only another process can do: the neighbours were given back, and so were not waiting
        else:
            done.add(item.index)
            if len(done) == 29:
                others.set()
        return item.index

    kind = Scatters(numbers(30), code)
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind), hands.executor(kind)) == "succeeded"
    assert kind.times == dict.fromkeys(range(30), 1)


def test_neighbours_that_have_ended_are_settled_while_one_takes_long(hands: HandLab) -> None:
    settled = threading.Event()

    def code(item: ItemClaim) -> int:
        if item.index == 5:
            hands.lab.wait_until(lambda: hands.progress(run).succeeded == 5, within=SOON)
            settled.set()
        return item.index

    kind = Scatters(numbers(6), code)
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind)) == "succeeded"
    assert settled.is_set()


def test_with_all_or_nothing_the_first_failure_stops_neighbours_that_run(hands: HandLab) -> None:
    running, kind = threading.Event(), Scatters(["slow", "bad"])

    def code(item: ItemClaim) -> int:
        if key_of(item) == "bad":
            until(running)
            return Fail("bad")  # type: ignore[return-value]
        running.set()
        asked_until_ended(kind)
        return 1

    kind.code = code
    kind.policy = {"dispatch": "item"}
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind), hands.executor(kind)) == "failed"
    assert {each.key: each.status for each in hands.items(run).values()} == {
        "bad": "failed",
        "slow": "cancelled",
    }
    assert kind.gathered == []


def asked_until_ended(kind: Scatters) -> None:
    """As code that asks now and then whether it is to end."""
    for _ in range(int(SOON * 100)):
        for call in list(kind.calls):
            call.check()
        threading.Event().wait(0.01)
    raise AssertionError("it was not ended")


def test_no_more_items_are_at_work_than_may_be_at_once(hands: HandLab) -> None:
    at_work, most, widths = [0], [0], [0]
    lock = threading.Lock()

    def code(item: ItemClaim) -> int:
        with lock:
            at_work[0] += 1
            most[0] = max(most[0], at_work[0])
        widths[0] = max(widths[0], hands.progress(run).running)
        threading.Event().wait(0.002)
        with lock:
            at_work[0] -= 1
        return item.index

    kind = Scatters(numbers(60), code, policy={"max_concurrent": 2})
    run = hands.scatter(kind)
    executors = [hands.executor(kind) for _ in range(4)]
    assert hands.work(run, *executors) == "succeeded"
    assert most[0] <= 2
    assert widths[0] <= 2
    assert kind.times == dict.fromkeys(range(60), 1)


def test_a_scatter_of_many_items_lets_a_small_run_in_after_a_slice(hands: HandLab) -> None:
    small: list[Any] = []

    def code(item: ItemClaim) -> int:
        if not small:
            small.append(hands.lab.start(hands.step("tiny", kind="plain")))
        threading.Event().wait(0.001)
        return item.index

    seen: list[int] = []

    def tiny(claim: Claim) -> Done:
        seen.append(hands.progress(run).succeeded)
        return Done()

    hands.lab.answers["tiny"] = tiny
    kind = Scatters(numbers(3_000), code)
    settings = replace(hands.lab.settings, slice_seconds=0.3)
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind, settings=settings)) == "succeeded"
    assert hands.status(small[0]) == "succeeded"
    assert seen[0] < 1_500


# --- its end --------------------------------------------------------------------------------------------------------------------


def test_a_stop_settles_what_has_ended_and_gives_back_the_rest(hands: HandLab) -> None:
    stopped: list[Executor] = []

    def code(item: ItemClaim) -> int:
        if item.index == 3 and not stopped:
            stopped.append(executor)
            executor.stop()
            threading.Event().wait(0.11)  # a part is due: the hand looks up
        return item.index

    kind = Scatters(numbers(8), code)
    run = hands.scatter(kind)
    executor = hands.executor(kind)
    executor.work(None, QUEUE)
    assert kind.times == dict.fromkeys(range(4), 1)
    assert hands.progress(run).succeeded == 4
    assert hands.work(run, hands.executor(kind)) == "succeeded"
    assert kind.times == dict.fromkeys(range(8), 1)
    assert {attempt for _, attempt in kind.called} == {1}


def test_a_process_that_is_asked_to_go_gives_back_the_item_that_runs(hands: HandLab) -> None:
    asked: list[int] = []

    def code(item: ItemClaim) -> int:
        if item.index == 3 and not asked:
            asked.append(3)
            raise KeyboardInterrupt
        return item.index

    kind = Scatters(numbers(8), code)
    run = hands.scatter(kind)
    with pytest.raises(KeyboardInterrupt):
        hands.executor(kind).work(None, QUEUE)
    assert hands.progress(run).succeeded == 3
    assert hands.work(run, hands.executor(kind)) == "succeeded"
    assert kind.times == {**dict.fromkeys(range(8), 1), 3: 2}
    assert {attempt for _, attempt in kind.called} == {1}


def test_a_cancelled_run_ends_its_items(hands: HandLab) -> None:
    kind = Scatters(numbers(30))

    def code(item: ItemClaim) -> int:
        if item.index == 1:
            hands.lab.cancel(run)
            asked_until_ended(kind)  # the keeper would tell it; without one it finds its barrier closed
        return item.index

    kind.code = code
    run = hands.scatter(kind)
    assert hands.work(run, hands.executor(kind)) == "cancelled"
    assert hands.barrier(run).status == "cancelled"
    assert set(kind.times) == {0, 1}


def test_a_hand_that_was_taken_for_lost_settles_nothing_any_more(hands: HandLab) -> None:
    first, others, held = threading.current_thread(), threading.Event(), threading.Event()

    def code(item: ItemClaim) -> str:
        if threading.current_thread() is first and item.index == 3:
            lose_all(hands.lab)
            held.set()
            until(others)
            return "too late"
        if item.index == 3:
            others.set()
        return "in time"

    kind = Scatters(numbers(8), code)
    run = hands.scatter(kind)
    watcher = Watcher()

    def second() -> None:
        until(held)
        executor = hands.executor(kind)
        while not others.is_set() or hands.status(run) == "running":
            back_in_line(hands.lab.database)
            executor.work(None, QUEUE)

    def work() -> None:
        hands.executor(kind).work(None, QUEUE, observer=watcher)
        others.set()

    thread = threading.Thread(target=second)
    thread.start()
    work()
    thread.join(SOON)
    assert hands.status(run) == "succeeded"
    assert hands.results(run) == dict.fromkeys(range(8), "in time")
    assert ("lab.work[item]", "stale") in watcher.tasks
    assert hands.progress(run).succeeded == 8


def lose_all(lab: Lab) -> None:
    """Nobody has heard of any worker process for longer than its lease."""
    lab.sql("UPDATE flowstone.workers SET alive_until = flowstone.now() - interval '1 second'")
    lab.steady()
    lab.pacer().step()
    lab.sql("UPDATE flowstone.workers SET alive_until = flowstone.now() + interval '1 day'")


def test_a_hand_with_nothing_to_do_is_called_when_there_is(hands: HandLab) -> None:
    def code(item: ItemClaim) -> int:
        if item.attempt == 1:
            raise ValueError("again")
        return item.index

    policy = {"retry": RetryPolicy("fixed", 5.0, 5.0, 0.0)}
    kind = Scatters(numbers(4), code, policy=policy)
    run = hands.scatter(kind)
    executor = hands.executor(kind)
    while executor.work(None, QUEUE):
        pass
    parked = {row["parked"] for row in hands.rows(run) if row["phase"] == "item" and row["status"] == "ready"}
    assert parked == {"idle"}
    hands.lab.clock.advance(seconds=6)
    assert hands.work(run, executor) == "succeeded"


# --- telling --------------------------------------------------------------------------------------------------------------------


def test_a_scatter_tells_its_start_its_parts_and_its_end(hands: HandLab) -> None:
    kind = Scatters(numbers(12))
    with recorded() as events:
        run = hands.scatter(kind)
        hands.work(run, hands.executor(kind))
    told = [each for each in events if each.name.startswith("flowstone.scatter.")]
    names = [each.name.removeprefix("flowstone.scatter.") for each in told]
    assert names[0] == "start"
    assert names[-2:] == ["complete", "gather_ready"]
    assert sum(each.fields["items"] for each in told if each.name.endswith(".part")) == 12  # type: ignore[misc]
    assert told[0].fields["count"] == 12
    assert told[-2].fields["completed"] == 12
