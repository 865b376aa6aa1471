"""Backfills: which partitions are asked for, which of them are made, and what becomes of them; on real rows, inline."""

from __future__ import annotations

import threading
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onedb import sql

from flowstone_celery import Context, Daily, Dynamic, FlowStone, Multi, Static
from flowstone_celery.assets.mappings import Previous
from flowstone_celery.core import backfills
from flowstone_celery.errors import (
    BackfillNotFound,
    DependencyNotReady,
    IdempotencyConflict,
    InvalidOption,
    InvalidPartition,
    UnknownOption,
    WaitTimeout,
)
from flowstone_celery.record import audit

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowstone_celery.assets.backfill import Backfill
    from flowstone_celery.testing.kit import TestKit

DAY = Daily("2026-01-01", "2026-01-11")


def day(number: int) -> date:
    return date(2026, 1, number)


class Shop:
    """orders and revenue by day; a closed day fails. What was called, in order."""

    def __init__(self, fs: FlowStone) -> None:
        self.closed: set[date] = set()
        self.calls: list[tuple[str, Any]] = []

        @fs.asset(partitions=DAY)
        def orders(ctx: Context) -> int:
            self.calls.append(("orders", ctx.partition))
            if ctx.partition in self.closed:
                raise ValueError("closed")
            return ctx.partition.day

        @fs.asset(partitions=DAY)
        def revenue(orders: int, ctx: Context) -> int:
            self.calls.append(("revenue", ctx.partition))
            return orders * 10

        @fs.asset
        def free(ctx: Context) -> str:
            self.calls.append(("free", ctx.partition))
            return str(ctx.partition)

        self.orders, self.revenue, self.free = orders, revenue, free

    def made(self, name: str) -> list[Any]:
        return [key for each, key in self.calls if each == name]


@pytest.fixture
def shop(fs: FlowStone) -> Shop:
    return Shop(fs)


def counts(found: Backfill) -> tuple[int, ...]:
    now = found.progress()
    return now.total, now.succeeded, now.failed, now.cancelled, now.waiting, now.skipped


# --- which partitions -------------------------------------------------------------------------------------------------------------


def test_without_words_all_that_the_definition_has_is_made_in_order(shop: Shop, fs: FlowStone) -> None:
    done = fs.backfill(shop.revenue)
    assert counts(done) == (10, 10, 0, 0, 0, 0)
    assert done.status == "completed"
    assert shop.made("revenue") == [day(n) for n in range(1, 11)]
    assert fs.get("revenue", partition=day(7)) == 70


@pytest.mark.parametrize(
    ("words", "days"),
    [
        ({"partitions": [day(3), day(2), day(3)]}, [3, 2]),
        ({"partitions": ["2026-01-04"]}, [4]),
        ({"partitions": (day(2), day(4))}, [2, 3, 4]),
        ({"partitions": ("2026-01-09", "2026-02-20")}, [9, 10]),
        ({"start": day(9)}, [9, 10]),
        ({"end": "2026-01-02"}, [1, 2]),
        ({"start": day(5), "end": day(6)}, [5, 6]),
        ({"partitions": lambda: [day(5)]}, [5]),
        ({"partitions": lambda definition: definition.range(None, day(2))}, [1, 2]),
        ({"partitions": lambda definition=None: (day(n) for n in (8, 7))}, [8, 7]),
        ({"start": day(3), "end": day(5), "reverse": True}, [5, 4, 3]),
        ({"partitions": []}, []),
    ],
)
def test_partitions_come_as_a_list_a_range_a_pair_or_a_function(
    shop: Shop, fs: FlowStone, words: dict[str, Any], days: list[int]
) -> None:
    done = fs.backfill("orders", **words)
    assert shop.made("orders") == [day(n) for n in days]
    assert (done.status, done.progress().percent) == ("completed", 100.0)


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        ({"partitions": range(3, 6)}, [3, 4, 5]),
        ({"partitions": (3, 5)}, [3, 4, 5]),
        ({"partitions": ["eu", 7, ("a", 1)]}, ["eu", 7, ("a", 1)]),
        ({"start": day(30), "end": date(2026, 2, 2)}, [day(30), day(31), date(2026, 2, 1), date(2026, 2, 2)]),
    ],
)
def test_without_a_definition_lists_and_pairs_of_days_and_numbers_are_taken(
    shop: Shop, fs: FlowStone, words: dict[str, Any], keys: list[Any]
) -> None:
    fs.backfill(shop.free, **words)
    assert shop.made("free") == keys


def test_dynamic_and_several_dimensions(fs: FlowStone) -> None:
    made: list[Any] = []

    @fs.asset(partitions=Dynamic("customers"))
    def profile(ctx: Context) -> None:
        made.append(ctx.partition)

    @fs.asset(partitions=Multi(region=Static(["eu", "us"]), day=DAY))
    def stock(ctx: Context) -> None:
        made.append(ctx.partition)

    fs.partitions.add("customers", "ann", "bob")
    fs.backfill(profile)
    with pytest.raises(InvalidPartition, match="1 of the 2 keys"):
        fs.backfill(profile, ["ann", "cleo"], mode="all")
    assert made == ["ann", "bob"]
    fs.backfill(stock, (("eu", day(1)), ("us", day(2))))
    assert made[2:] == [("eu", day(1)), ("eu", day(2)), ("us", day(1)), ("us", day(2))]


def test_all_keys_outside_the_definition_are_told_before_anything_begins(shop: Shop, fs: FlowStone) -> None:
    wrong = [date(2025, 12, n) for n in range(1, 21)]
    with pytest.raises(InvalidPartition) as told:
        fs.backfill(shop.orders, [day(1), *wrong, "yesterday"])
    assert "21 of the 22 keys" in told.value.message
    assert "and 16 more" in told.value.message
    assert told.value.facts["keys"] == [*map(str, wrong), "yesterday"]
    assert shop.calls == []
    assert list(fs.backfill.ls()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"mode": "mising"}, "'missing'"),
        ({"max_concurrent": 0}, "whole number"),
        ({"max_concurrent": True}, "whole number"),
        ({"partitions": "2026-01-01"}, "not a list"),
        ({"partitions": 7}, "not a list"),
        ({"partitions": (day(1),)}, "first and the last"),
        ({"partitions": [day(1)], "start": day(1)}, "contradict"),
        ({"partitions": lambda a, b: []}, "takes 2 arguments"),
        ({"partitions": lambda: 1 / 0}, "ZeroDivisionError"),
        ({"partitions": lambda: None}, "answered None"),
        ({"deadline": -1}, "deadline"),
    ],
)
def test_wrong_words_are_told_and_nothing_begins(
    shop: Shop, fs: FlowStone, words: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidOption) as told:
        fs.backfill(shop.orders, **words)
    assert said in str(told.value)
    assert list(fs.backfill.ls()) == []


def test_what_a_backfill_has_not_is_told(shop: Shop, fs: FlowStone) -> None:
    with pytest.raises(UnknownOption, match="lane"):
        fs.backfill(shop.orders, lane="mine")
    with pytest.raises(UnknownOption, match="max_concurent"):
        fs.backfill(shop.orders, max_concurent=2)
    with pytest.raises(InvalidPartition, match="declares no partitions"):
        fs.backfill(shop.free)
    with pytest.raises(InvalidPartition, match="runs backwards"):
        fs.backfill(shop.orders, start=day(5), end=day(3))
    with pytest.raises(BackfillNotFound):
        fs.backfill.handle("nonsense")
    with pytest.raises(BackfillNotFound):
        _ = fs.backfill.handle("00000000-0000-0000-0000-000000000001").status


# --- which of them are made -------------------------------------------------------------------------------------------------------


def test_missing_skips_what_has_a_value_and_names_it(shop: Shop, fs: FlowStone) -> None:
    fs.run(shop.orders, partition=day(2))
    plan = fs.backfill.plan(shop.orders, end=day(3))
    assert (plan.total, plan.keys, plan.skipped) == (3, [day(1), day(3)], ("d:2026-01-02",))
    done = fs.backfill.start(plan)
    assert done.skipped == [day(2)]
    assert counts(done) == (2, 2, 0, 0, 0, 1)
    assert shop.made("orders") == [day(2), day(1), day(3)]


def test_all_makes_each_target_anew_and_its_fresh_inputs_not(shop: Shop, fs: FlowStone) -> None:
    fs.backfill(shop.revenue, end=day(2))
    shop.calls.clear()
    fs.backfill(shop.revenue, end=day(3), mode="all")
    assert shop.made("revenue") == [day(1), day(2), day(3)]
    assert shop.made("orders") == [day(3)]


def test_stale_makes_what_a_run_would_make(shop: Shop, fs: FlowStone) -> None:
    fs.backfill(shop.revenue, end=day(3))
    fs.invalidate(shop.orders, partition=day(2))
    shop.calls.clear()
    done = fs.backfill(shop.revenue, end=day(4), mode="stale")
    assert done.skipped == [day(1), day(3)]
    assert shop.calls == [("orders", day(2)), ("orders", day(4)), ("revenue", day(4))]
    assert fs.freshness(shop.revenue, partition=day(2)).state.value == "fresh"


def test_failed_makes_those_whose_newest_attempt_failed(shop: Shop, fs: FlowStone) -> None:
    shop.closed = {day(2), day(4)}
    fs.backfill(shop.orders, end=day(5))
    shop.closed = set()
    fs.run(shop.orders, partition=day(4))
    shop.calls.clear()
    done = fs.backfill(shop.orders, mode="failed")
    assert shop.made("orders") == [day(2)]
    assert len(done.skipped) == 9


def test_inputs_must_be_there_without_with_deps(shop: Shop, fs: FlowStone) -> None:
    with pytest.raises(DependencyNotReady, match=r"orders"):
        fs.backfill(shop.revenue, end=day(2), with_deps=False)
    fs.backfill(shop.orders, end=day(2))
    fs.invalidate(shop.orders, partition=day(1))
    fs.backfill(shop.revenue, end=day(2), with_deps=False)
    assert shop.made("orders") == shop.made("revenue") == [day(1), day(2)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_the_modes_choose_as_a_model_does(shop_of_states: Shop, data: st.DataObject) -> None:
    shop, fs = shop_of_states, shop_of_states.fs  # type: ignore[attr-defined]
    asked = data.draw(st.lists(st.integers(1, 10), unique=True))
    mode = data.draw(st.sampled_from(["missing", "failed", "stale", "all"]))
    reverse = data.draw(st.booleans())
    plan = fs.backfill.plan(shop.orders, [day(n) for n in asked], mode=mode, reverse=reverse)
    chosen = {
        "all": set(range(1, 11)),
        "missing": {n for n in range(1, 11) if n not in STATES["fresh"] | STATES["stale"]},
        "failed": STATES["failed"],
        "stale": {n for n in range(1, 11) if n not in STATES["fresh"]},
    }[mode]
    expected = [day(n) for n in asked if n in chosen]
    assert plan.keys == (expected[::-1] if reverse else expected)
    assert plan.total == len(asked)


STATES = {"fresh": {1, 2, 5}, "stale": {3, 4}, "failed": {6, 7}}


@pytest.fixture
def shop_of_states(fs: FlowStone) -> Shop:
    shop = Shop(fs)
    shop.fs = fs  # type: ignore[attr-defined]
    shop.closed = {day(n) for n in STATES["failed"]}
    fs.backfill(shop.orders, [day(n) for numbers in STATES.values() for n in numbers])
    for n in STATES["stale"]:
        fs.invalidate(shop.orders, partition=day(n))
    return shop


# --- what becomes of them ---------------------------------------------------------------------------------------------------------


def test_a_failed_partition_stops_no_other_and_is_retried_alone(shop: Shop, fs: FlowStone) -> None:
    shop.closed = {day(2), day(5)}
    done = fs.backfill(shop.revenue, max_concurrent=2)
    assert counts(done) == (10, 8, 2, 0, 0, 0)
    assert done.status == "failed"
    failures = done.failures()
    assert [each.key for each in failures] == [day(2), day(5)]
    assert "closed" in (failures[0].error or {})["message"]
    shop.closed = {day(5)}
    shop.calls.clear()
    assert done.retry() == 2
    assert shop.calls == [("orders", day(2)), ("revenue", day(2)), ("orders", day(5))]
    assert counts(done)[:3] == (10, 9, 1)
    assert [each.status for each in done.results()].count("failed") == 1


def test_what_two_partitions_need_is_made_once(fs: FlowStone) -> None:
    calls: list[str] = []

    @fs.asset
    def rates() -> int:
        calls.append("rates")
        return 2

    @fs.asset(partitions=Static(["eu", "us", "asia"]))
    def price(rates: int, ctx: Context) -> int:
        calls.append(str(ctx.partition))
        return rates

    fs.backfill(price)
    assert calls == ["rates", "eu", "us", "asia"]


def test_partitions_that_need_the_one_before_are_made_in_order_each_in_a_short_run(fs: FlowStone) -> None:
    calls: list[date] = []
    broken: set[date] = set()

    @fs.asset(partitions=DAY, deps=["balance"], mappings={"balance": Previous()}, optional_deps=[])
    def balance(ctx: Context) -> int:
        calls.append(ctx.partition)
        if ctx.partition in broken:
            raise ValueError("no")
        return ctx.partition.day

    broken.add(day(6))
    done = fs.backfill(balance, start=day(3), max_concurrent=8)
    assert calls == [day(n) for n in range(1, 7)]
    assert [len(run.steps()) for run in done.runs()] == [3, *[1] * 7]
    assert counts(done)[:3] == (8, 3, 5)
    broken.clear()
    done.retry()
    assert calls[6:] == [day(n) for n in range(6, 11)]
    with pytest.raises(InvalidOption, match="reverse"):
        fs.backfill(balance, reverse=True)


def test_a_deadline_is_that_of_the_whole(shop: Shop, fs: FlowStone) -> None:
    until = datetime.now(UTC) + timedelta(hours=1)
    done = fs.backfill(shop.orders, end=day(2), deadline=until, priority=3, metadata={"why": "audit"})
    for run in done.runs():
        assert abs((run.row["deadline_at"] - until).total_seconds()) < 5
        assert (run.row["priority"], run.row["input"]["metadata"]) == (3, {"why": "audit"})


# --- who begins, dies, and goes on ------------------------------------------------------------------------------------------------


class Death(BaseException):
    """A client that dies between two parts."""


def dying(after: int) -> Callable[[int, int], None]:
    def die(begun: int, _total: int) -> None:
        if begun >= after:
            raise Death

    return die


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from flowstone_celery.assets import backfill

    monkeypatch.setattr(backfill, "_PART", 3)
    monkeypatch.setattr(backfill, "_LOOK_AHEAD", 3)


@pytest.mark.usefixtures("small_parts")
def test_the_same_key_goes_on_where_a_client_died(shop: Shop, fs: FlowStone) -> None:
    with pytest.raises(Death):
        fs.backfill(shop.orders, key="nightly", on_begun=dying(6))
    [left] = fs.backfill.ls(shop.orders)
    assert (left.progress().unbegun, left.status) == (4, "active")
    again = fs.backfill(shop.orders, key="nightly")
    assert again == left
    assert counts(again) == (10, 10, 0, 0, 0, 0)
    assert shop.made("orders") == [day(n) for n in range(1, 11)]
    assert fs.backfill(shop.orders, key="nightly") == left
    assert len(shop.calls) == 10


@pytest.mark.usefixtures("small_parts")
def test_resume_goes_on_from_the_id_alone(shop: Shop, fs: FlowStone) -> None:
    with pytest.raises(Death):
        fs.backfill(shop.revenue, on_begun=dying(3))
    [left] = fs.backfill.ls()
    assert not fs.backfill.handle(left.id).resume()
    assert counts(left) == (10, 10, 0, 0, 0, 0)


def test_a_key_that_was_used_for_something_else_is_told_with_both(shop: Shop, fs: FlowStone) -> None:
    first = fs.backfill(shop.orders, end=day(2), key="k")
    for words in ({"end": day(3)}, {"end": day(2), "mode": "all"}, {"end": day(2), "max_concurrent": 9}):
        with pytest.raises(IdempotencyConflict, match=first.id):
            fs.backfill(shop.orders, key="k", **words)
    with pytest.raises(IdempotencyConflict):
        fs.backfill(shop.revenue, end=day(2), key="k")
    assert fs.backfill(shop.orders, end=day(3), key="k", tenant="other") != first


@pytest.mark.usefixtures("small_parts")
def test_clients_with_one_key_at_once_begin_each_partition_once(shop: Shop, fs: FlowStone) -> None:
    keys = [f"p{n}" for n in range(40)]
    found: list[Backfill] = []

    def begin() -> None:
        plan = fs.backfill.plan(shop.free, keys, key="one")
        found.append(fs.backfill.start(plan, drain=False))

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(set(found)) == 1
    assert [each.key for each in found[0].results()] == keys


# --- acts -------------------------------------------------------------------------------------------------------------------------


def begun(fs: FlowStone, asset: Any, **words: Any) -> Backfill:
    return fs.backfill.start(fs.backfill.plan(asset, **words), drain=False)


def test_no_more_than_its_width_are_let_in(shop: Shop, fs: FlowStone, fs_test: TestKit) -> None:
    found = begun(fs, shop.orders, max_concurrent=3)
    let_in = "SELECT count(*) AS n FROM flowstone.runs WHERE admitted AND finished_at IS NULL"
    most = 0
    while fs_test.step():
        [row] = sql(fs.database, let_in)
        most = max(most, int(str(row["n"])))
    assert most == 3
    assert counts(found)[1] == 10


@pytest.mark.usefixtures("small_parts")
def test_pause_holds_all_of_it_and_resume_lets_it_go_on(shop: Shop, fs: FlowStone, fs_test: TestKit) -> None:
    found = begun(fs, shop.orders, max_concurrent=2)
    fs_test.step()
    assert found.pause()
    assert not found.pause()
    assert not fs_test.step()
    assert (found.status, counts(found)[1]) == ("paused", 1)
    with pytest.raises(WaitTimeout, match="1 of 10"):
        found.wait(0.05)
    assert found.resume()
    assert counts(found) == (10, 10, 0, 0, 0, 0)
    acts = [row["action"] for row in audit.of_resource(fs.database, "backfill", found.id)]
    assert acts == ["backfill.start", "backfill.pause", "backfill.resume"]


@pytest.mark.usefixtures("small_parts")
def test_what_is_paused_while_a_client_begins_it_begins_no_more(shop: Shop, fs: FlowStone) -> None:
    def pausing(done: int, _total: int) -> None:
        if done == 6:
            [found] = fs.backfill.ls()
            found.pause()

    plan = fs.backfill.plan(shop.orders)
    found = fs.backfill.start(plan, on_begun=pausing)
    assert (found.progress().unbegun, found.status, shop.calls) == (4, "paused", [])
    found.resume()
    assert counts(found) == (10, 10, 0, 0, 0, 0)


@pytest.mark.usefixtures("small_parts")
def test_cancel_ends_all_of_it_and_retry_begins_the_rest(shop: Shop, fs: FlowStone, fs_test: TestKit) -> None:
    with pytest.raises(Death):
        fs.backfill.start(fs.backfill.plan(shop.orders), drain=False, on_begun=dying(6))
    [found] = fs.backfill.ls()
    fs_test.step()
    assert found.cancel(reason="wrong prices")
    assert not found.cancel()
    assert (found.status, counts(found)) == ("cancelled", (10, 1, 0, 9, 0, 0))
    assert found.wait().status == "cancelled"
    assert not found.resume()
    assert not fs_test.step()
    assert found.retry() == 5
    assert counts(found) == (10, 10, 0, 0, 0, 0)
    assert not found.cancel()


def test_wait_tells_how_far_it_is(shop: Shop, fs: FlowStone, fs_test: TestKit) -> None:
    found = begun(fs, shop.orders)
    worker = threading.Thread(target=fs_test.drain)
    worker.start()
    seen: list[float] = []
    assert found.wait(30, on_progress=lambda now: seen.append(now.percent)).succeeded == 10
    worker.join()
    assert seen == sorted(seen)
    assert seen[-1] == 100.0


def test_backfills_are_found_by_the_beginning_of_their_id(shop: Shop, fs: FlowStone) -> None:
    one, two = begun(fs, shop.orders, end=day(1)), begun(fs, shop.free, partitions=[1])
    assert list(fs.backfill.ls()) == [two, one]
    assert list(fs.backfill.ls(shop.orders)) == [one]
    assert backfills.find(fs.database, two.id[:30]) == two.uuid
    with pytest.raises(InvalidOption, match="several"):
        backfills.find(fs.database, one.id[:4])
    with pytest.raises(BackfillNotFound):
        backfills.find(fs.database, "ffffff")


def test_runs_that_retention_took_are_counted_as_such(shop: Shop, fs: FlowStone) -> None:
    done = fs.backfill(shop.orders, end=day(3))
    sql(
        fs.database,
        "UPDATE flowstone.runs SET created_at = '2020-01-01', started_at = '2020-01-01', finished_at = '2020-01-01'",
    )
    from flowstone_celery.core import retention

    retention.prune(fs.database, retention.Policy(keep=1, key_life=1), actor="test")
    now = done.progress()
    assert (now.pruned, now.waiting, now.percent, now.status) == (3, 0, 100.0, "completed")
    assert done.retry() == 0
    assert len(shop.calls) == 3
