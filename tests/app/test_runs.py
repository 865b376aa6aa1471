"""The verbs: run, materialize, materialize_all, get, exists, status; and what a call may carry."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onedb import sql

from flowstone_celery import Context, FlowStone, Skip
from flowstone_celery.assets import partition as partitions
from flowstone_celery.errors import (
    DependencyNotReady,
    IdempotencyConflict,
    InvalidOption,
    UnknownAsset,
    UnknownOption,
    ValueNotFound,
)

if TYPE_CHECKING:
    from flowstone_celery.testing.kit import TestKit

DAY = date(2026, 11, 20)


@pytest.fixture
def calls(fs: FlowStone) -> list[str]:
    """The shop: orders and prices → revenue → report. Answers the list of the calls that are made."""
    made: list[str] = []

    @fs.asset
    def orders(ctx: Context) -> list[int]:
        made.append("orders")
        return [1, 2, 3]

    @fs.asset
    def prices() -> int:
        made.append("prices")
        return 10

    @fs.asset
    def revenue(orders: list[int], prices: int) -> int:
        made.append("revenue")
        return sum(orders) * prices

    @fs.asset
    def report(revenue: int) -> str:
        made.append("report")
        return f"revenue: {revenue}"

    return made


# --- materialize ----------------------------------------------------------------------------------------------------------------


def test_materialize_refuses_while_dependencies_are_missing_and_names_them(
    fs: FlowStone, calls: list[str]
) -> None:
    fs.materialize("orders", partition=DAY)
    with pytest.raises(DependencyNotReady, match=r"'test\.prices'.*d:2026-11-20") as caught:
        fs.materialize("revenue", partition=DAY)
    assert caught.value.facts["missing"] == ["test.prices"]
    assert "fs.run('revenue')" in str(caught.value)
    assert calls == ["orders"]


def test_materialize_makes_this_asset_alone(fs: FlowStone, calls: list[str]) -> None:
    for name in ("orders", "prices", "revenue"):
        fs.materialize(name)
    assert calls == ["orders", "prices", "revenue"]
    assert fs.get("revenue") == 60


def test_materialize_all_makes_everything_once_in_order(fs: FlowStone, calls: list[str]) -> None:
    run = fs.materialize_all("report")
    assert run.get() == "revenue: 60"
    assert sorted(calls[:2]) == ["orders", "prices"]
    assert calls[2:] == ["revenue", "report"]
    assert len({step["run_id"] for step in run.steps()}) == 1
    fs.materialize_all("report")
    assert len(calls) == 8


# --- run ------------------------------------------------------------------------------------------------------------------------


def test_run_makes_what_is_missing_first(fs: FlowStone, calls: list[str]) -> None:
    fs.materialize("prices")
    assert fs.run("revenue").get() == 60
    assert calls == ["prices", "orders", "revenue"]


def test_run_answers_the_value_that_is_there_with_the_run_that_made_it(
    fs: FlowStone, calls: list[str]
) -> None:
    first = fs.run("report")
    again = fs.run("report")
    assert again == first
    assert again.get() == "revenue: 60"
    assert len(calls) == 4


def test_the_handle_of_a_dependency_that_is_there_answers_its_own_value(
    fs: FlowStone, calls: list[str]
) -> None:
    first = fs.run("report")
    orders = fs.run("orders")
    assert orders.id == first.id
    assert orders.get() == [1, 2, 3]
    assert first.get() == "revenue: 60"


def test_a_value_is_there_even_if_the_run_that_made_it_failed_later(fs: FlowStone) -> None:
    fs.asset(name="orders")(lambda: [1])

    @fs.asset
    def revenue(orders: list[int]) -> int:
        raise ValueError("no")

    assert fs.run("revenue").failed()
    assert fs.run("orders").get() == [1]


def test_force_makes_the_target_again_and_nothing_else(fs: FlowStone, calls: list[str]) -> None:
    first = fs.run("report")
    forced = fs.run("report", force=True)
    assert forced != first
    assert calls[4:] == ["report"]
    assert [step["name"] for step in forced.steps()] == ["test.report"]


def test_a_missing_value_far_up_is_made_first_and_spares_what_it_leaves_as_it_was(
    fs: FlowStone, calls: list[str]
) -> None:
    fs.run("revenue")
    sql(fs.database, "DELETE FROM flowstone.asset_current WHERE asset = 'test.orders'")
    calls.clear()
    run = fs.run("report")
    assert [step["name"] for step in run.steps()] == ["test.orders", "test.revenue", "test.report"]
    assert calls == ["orders", "report"]


def test_without_dependencies_run_is_materialize(fs: FlowStone, calls: list[str]) -> None:
    with pytest.raises(DependencyNotReady, match=r"'test\.orders', 'test\.prices'"):
        fs.run("revenue", with_deps=False)
    assert calls == []


def test_dependencies_arrive_by_parameter_or_only_come_first(fs: FlowStone) -> None:
    fs.asset(name="orders")(lambda: 5)
    fs.asset(name="warmup")(lambda: None)

    @fs.asset(deps=["warmup", "orders"])
    def revenue(orders: int, factor: int = 2) -> int:
        return orders * factor

    run = fs.run(revenue)
    assert run.get() == 10
    assert [step["name"] for step in run.steps()] == ["test.orders", "test.warmup", "test.revenue"]


def test_an_optional_dependency_without_a_value_arrives_as_none(fs: FlowStone) -> None:
    @fs.asset
    def forecast() -> object:
        return Skip("no data yet")

    @fs.asset
    def broken() -> int:
        raise ValueError("no")

    @fs.asset(optional_deps=["forecast", "broken"])
    def report(forecast: int | None, broken: int | None) -> list[int | None]:
        return [forecast, broken]

    assert fs.materialize(report).get() == [None, None]
    run = fs.materialize_all(report)
    assert run.wait().state == "failed"  # because `broken` did
    assert fs.get(report) == [None, None]


def test_partitions_stand_side_by_side(fs: FlowStone) -> None:
    fs.asset(name="orders")(lambda ctx: f"orders of {ctx.partition}")
    fs.run("orders", partition=DAY)
    assert fs.exists("orders", partition=DAY)
    assert not fs.exists("orders", partition=DAY + timedelta(days=1))
    assert not fs.exists("orders")
    assert fs.get("orders", partition=DAY) == "orders of 2026-11-20"


# --- get, exists, status --------------------------------------------------------------------------------------------------------


def test_status_has_a_word_for_every_stage_of_a_slice(fs: FlowStone, fs_test: TestKit) -> None:
    seen: list[str] = []

    @fs.asset
    def first() -> int:
        seen.append(fs.status("first").state)
        return 1

    @fs.asset
    def second(first: int) -> object:
        raise ValueError("no")

    @fs.asset
    def third() -> object:
        return Skip("nothing new")

    assert fs.status("first").state == "missing"
    run = fs_test.start("second")
    assert (fs.status("first").state, fs.status("second").state) == ("pending", "pending")
    assert fs_test.step()
    fs_test.drain(run)
    fs_test.run("third")
    assert seen == ["running"]
    assert fs.status("first").state == "success"
    assert fs.status("second").state == "failed"
    assert fs.status("third").state == "skipped"
    fs_test.start("third").cancel()
    assert fs.status("third").state == "cancelled"


def test_status_tells_the_newest_attempt_and_the_value_that_is_there(fs: FlowStone) -> None:
    fail = False

    @fs.asset
    def orders() -> int:
        if fail:
            raise ValueError("the source is away")
        return 1

    made = fs.run(orders)
    good = fs.status(orders)
    fail = True
    failed = fs.run(orders, force=True)
    now = fs.status(orders)
    assert (good.state, good.run_id) == ("success", made.uuid)
    assert (now.state, now.run_id, now.version) == ("failed", failed.uuid, good.version)
    assert now.error is not None
    assert "the source is away" in now.error["message"]
    assert now.materialized_at == good.materialized_at
    assert fs.get(orders) == 1


def test_a_value_that_is_not_there_and_a_name_that_nobody_declared(fs: FlowStone, calls: list[str]) -> None:
    with pytest.raises(ValueNotFound, match="flowstone asset run"):
        fs.get("orders")
    for verb in (fs.get, fs.exists, fs.status, fs.run, fs.materialize, fs.materialize_all):
        with pytest.raises(UnknownAsset, match="Did you mean 'orders'"):
            verb("order")


# --- partitions -----------------------------------------------------------------------------------------------------------------

keys = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.dates(date(1, 1, 1))
    | st.datetimes()
    | st.datetimes(datetime(1900, 1, 1), timezones=st.timezones())  # noqa: DTZ001 - hypothesis wants naive bounds
    | st.text(st.characters(exclude_characters="\x00", exclude_categories=("Cs",)), max_size=40),
    lambda members: st.tuples(members) | st.tuples(members, members),
    max_leaves=4,
)


def test_the_key_that_code_sees_is_the_key_that_was_given(fs: FlowStone) -> None:
    seen: list[Any] = []

    @fs.asset
    def orders(ctx: Context) -> int:
        seen.append(ctx.partition)
        return 1

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(keys)
    def through_a_whole_run(key: Any) -> None:
        run = fs.run(orders, partition=key, force=True)
        assert run.get() == 1
        assert fs.exists(orders, partition=key)
        assert seen[-1] == key
        assert type(seen[-1]) is type(key)
        assert run.row["partition"] == partitions.encode(key)

    through_a_whole_run()


# --- what a call may carry ------------------------------------------------------------------------------------------------------


def test_the_context_tells_who_which_and_how_often(fs: FlowStone, fs_test: TestKit) -> None:
    seen: list[Context] = []

    @fs.asset(retries=1)
    def orders(whatever: Context) -> int:
        seen.append(whatever)
        if whatever.attempt == 1:
            raise ValueError("once")
        return 1

    asked = {"why": "audit", "depth": [1, {"a": None}]}
    run = fs.run(orders, partition=DAY, metadata=asked, requested_by="ada")
    first, second = seen
    assert (first.asset, first.partition, first.run_id) == ("test.orders", DAY, run.uuid)
    assert (first.metadata, first.requested_by) == (asked, "ada")
    assert (first.attempt, second.attempt) == (1, 2)
    assert second.fence > first.fence
    assert second.step_id == first.step_id == run.steps()[0]["id"]
    assert first.idempotency_key != second.idempotency_key
    assert first.started_at.tzinfo is UTC
    assert first.log.name == "flowstone.asset.test.orders"
    first.check()


def test_a_key_answers_the_same_run_for_the_same_request_only(fs: FlowStone, calls: list[str]) -> None:
    first = fs.run("orders", key="nightly", force=True)
    again = fs.run("orders", key="nightly", force=True)
    assert again == first
    assert calls == ["orders"]
    with pytest.raises(IdempotencyConflict, match="stands for run"):
        fs.run("prices", key="nightly", force=True)
    with pytest.raises(IdempotencyConflict, match="stands for run"):
        fs.run("orders", key="nightly", force=True, metadata={"other": True})


def test_delay_starts_a_durable_run_with_what_is_missing(fs: FlowStone, calls: list[str]) -> None:
    revenue = fs.asset(name="copy")(lambda revenue: revenue)
    run = revenue.delay()
    assert run.successful()
    assert run.get() == 60
    assert revenue.delay() != run
    assert calls.count("orders") == 1


def test_apply_async_takes_celerys_words(fs: FlowStone, fs_test: TestKit) -> None:
    orders = fs.asset(name="orders")(lambda ctx: [ctx.partition, ctx.metadata])
    run = orders.apply_async((DAY,), priority=7, task_id="abc", metadata={"a": 1})
    assert run.get() == [DAY, {"a": 1}]
    assert run.steps()[0]["priority"] == 7
    assert run.row["idempotency_key"] == "abc"
    assert orders.apply_async(kwargs={"partition": DAY}, priority=7, task_id="abc", metadata={"a": 1}) == run
    assert orders.apply_async(None, None).get() == [None, {}]


@pytest.mark.parametrize(
    "when", [{"countdown": 3600}, {"countdown": timedelta(hours=1)}, {"eta": "in an hour"}], ids=str
)
def test_countdown_and_eta_are_due_times_of_the_row(
    fs: FlowStone, fs_test: TestKit, when: dict[str, Any]
) -> None:
    orders = fs.asset(name="orders")(lambda: 1)
    begun = fs_test.clock.now()
    given = {"eta": datetime.now(UTC) + timedelta(hours=1)} if "eta" in when else when
    before = time.monotonic()
    run = orders.apply_async(**given)
    assert run.successful()
    assert time.monotonic() - before < 10
    passed = run.row["finished_at"] - begun
    assert timedelta(minutes=59, seconds=55) < passed < timedelta(minutes=60, seconds=30)


def test_a_moment_that_is_past_is_now(fs: FlowStone) -> None:
    orders = fs.asset(name="orders")(lambda: 1)
    assert orders.apply_async(eta=datetime(2020, 1, 1, tzinfo=UTC)).successful()
    assert orders.apply_async(countdown=-5).successful()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"eta": datetime(2030, 1, 1)}, "naive"),  # noqa: DTZ001 - the mistake under test
        ({"eta": "tomorrow"}, "not a datetime"),
        ({"countdown": "soon"}, "number of seconds"),
        ({"args": (1, 2)}, "one argument, its partition"),
        ({"args": (1,), "kwargs": {"partition": 1}}, "one argument, its partition"),
        ({"kwargs": {"day": 1}}, "one argument, its partition"),
        ({"priority": "high"}, "priority of a run is a whole number"),
        ({"metadata": "x"}, "not a dict"),
    ],
    ids=str,
)
def test_a_call_in_a_wrong_form_starts_nothing(fs: FlowStone, options: dict[str, Any], why: str) -> None:
    orders = fs.asset(name="orders")(lambda: 1)
    with pytest.raises(InvalidOption, match=why):
        orders.apply_async(**options)
    assert fs.status(orders).state == "missing"


def test_an_unknown_option_of_a_call_names_the_nearest(fs: FlowStone, calls: list[str]) -> None:
    orders = fs.asset(name="again")(lambda: 1)
    with pytest.raises(UnknownOption, match="Did you mean 'countdown'"):
        orders.apply_async(count_down=5)
    for verb in (fs.run, fs.materialize, fs.materialize_all):
        with pytest.raises(UnknownOption, match="Did you mean 'priority'"):
            verb("orders", prioritty=5)
    fs.run("orders")
    with pytest.raises(UnknownOption, match="Did you mean 'partition'"):
        fs.run("orders", partiton=DAY)  # told although there is a value


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"priority": 1.5}, "priority of a run"),
        ({"queue": ""}, "queue of a run"),
        ({"key": 7}, "key of a run"),
        ({"key": "a\x00b"}, "key of a run"),
        ({"requested_by": "x" * 300}, "requested_by of a run"),
        ({"delay": -1}, "delay of a run"),
        ({"delay": float("nan")}, "delay of a run"),
        ({"delay": "1"}, "delay of a run"),
        ({"metadata": {"at": DAY}}, r"\$\.at is datetime\.date"),
        ({"metadata": {"a": ["x", {"b": "\x00"}]}}, r"\$\.a\[1\]\.b holds text"),
        ({"metadata": {1: 2}}, "key of type int"),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_is_told_before_anything_starts(
    fs: FlowStone, calls: list[str], options: dict[str, Any], why: str
) -> None:
    with pytest.raises(InvalidOption, match=why) as caught:
        fs.run("orders", **options)
    assert caught.value.hint
    assert calls == []


def test_two_flowstones_of_one_process_keep_to_their_own_assets(fs: FlowStone, fs_test: TestKit) -> None:
    other = FlowStone(namespace="other", mode="inline", settings=fs_test.settings)
    fs.asset(name="orders")(lambda: "test")
    other.asset(name="orders")(lambda: "other")
    try:
        assert fs.run("orders").get() == "test"
        assert other.run("orders").get() == "other"
        assert other.get("orders") == "other"
        with pytest.raises(UnknownAsset):
            fs.get("other.orders")
    finally:
        other.close()


def test_a_run_id_is_a_time_ordered_uuid(fs: FlowStone, calls: list[str]) -> None:
    first, second = fs.run("orders"), fs.run("prices")
    assert UUID(first.id).version == 7
    assert first.id < second.id
