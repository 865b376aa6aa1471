"""Assets with partitions, run for real: what arrives, what is recorded, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from onedb import sql

from flowstone_celery import (
    Context,
    Daily,
    Dynamic,
    FlowStone,
    Hourly,
    Multi,
    Previous,
    Skip,
    Static,
    Weekly,
    Window,
)
from flowstone_celery.assets.slices import Slice
from flowstone_celery.errors import (
    DependencyNotReady,
    InvalidMapping,
    InvalidPartition,
    RunFailed,
)
from flowstone_celery.record import audit

DAY = Daily("2026-01-05", "2026-01-19", tz="Europe/Prague")


def lineage(fs: FlowStone, asset: str, partition: str) -> set[tuple[Any, Any]]:
    rows = sql(
        fs.database,
        "SELECT upstream_asset, upstream_partition FROM flowstone.lineage WHERE asset = %(asset)s AND partition = %(partition)s",
        asset=asset,
        partition=partition,
    )
    return {(row["upstream_asset"], row["upstream_partition"]) for row in rows}


def test_several_partitions_arrive_as_a_mapping_in_order_and_are_loaded_when_read(fs: FlowStone) -> None:
    seen: list[Any] = []

    @fs.asset(partitions=DAY)
    def orders(ctx: Context) -> list[int]:
        assert ctx.window
        seen.append((ctx.partition, ctx.window.start.isoformat(), ctx.window.length))
        return [ctx.partition.day]  # type: ignore[union-attr]

    @fs.asset(partitions=Weekly("2026-01-05", "2026-01-19", tz="Europe/Prague"))
    def weeks(orders: Mapping[date, list[int]]) -> dict[str, int]:
        assert not isinstance(orders, dict)
        with pytest.raises(TypeError):
            orders[date(2026, 1, 5)] = [1]  # type: ignore[index]
        assert list(orders) == sorted(orders)
        return {str(day): sum(found) for day, found in orders.items()}

    @fs.asset
    def report(weeks: Mapping[date, dict[str, int]]) -> int:
        return sum(sum(week.values()) for week in weeks.values())

    assert fs.run(weeks, partition="2026-01-12").get() == {f"2026-01-{day}": day for day in range(12, 19)}
    assert seen[0] == (date(2026, 1, 12), "2026-01-12T00:00:00+01:00", timedelta(days=1))
    assert lineage(fs, "test.weeks", "d:2026-01-12") == {
        ("test.orders", f"d:2026-01-{day}") for day in range(12, 19)
    }
    # The report makes what is missing of the other week, and nothing of this one.
    run = fs.run(report)
    assert run.get() == sum(range(5, 19))
    assert {(step["name"], step["partition"]) for step in run.steps()} == {
        ("test.report", ""), ("test.weeks", "d:2026-01-05"), *(("test.orders", f"d:2026-01-{day:02}") for day in range(5, 12))
    }  # fmt: skip
    assert lineage(fs, "test.report", "") == {("test.weeks", "d:2026-01-05"), ("test.weeks", "d:2026-01-12")}


def test_an_asset_goes_on_from_its_previous_partition_and_begins_with_none(fs: FlowStone) -> None:
    @fs.asset(partitions=DAY, mappings={"balance": Previous()})
    def balance(ctx: Context, balance: int | None) -> int:
        if ctx.partition == date(2026, 1, 5):
            assert balance is None
        return (balance or 0) + 1

    run = fs.run(balance, partition=date(2026, 1, 9))
    assert run.get() == 5
    assert [step["partition"] for step in run.steps()] == [f"d:2026-01-{day:02}" for day in range(5, 10)]
    assert lineage(fs, "test.balance", "d:2026-01-05") == set()
    assert lineage(fs, "test.balance", "d:2026-01-09") == {("test.balance", "d:2026-01-08")}
    # Only the days that are missing are made; what was there before is taken as it is.
    assert len(fs.run(balance, partition="2026-01-11").steps()) == 2


def test_a_window_of_days_is_taken_from_this_run_and_from_what_stands(fs: FlowStone) -> None:
    @fs.asset(partitions=DAY)
    def orders(ctx: Context) -> int:
        return ctx.partition.day  # type: ignore[union-attr]

    @fs.asset(partitions=orders, mappings={"orders": Window(before=2)})
    def average(orders: Mapping[date, int]) -> list[int]:
        return list(orders.values())

    fs.run(orders, partition="2026-01-06")
    with pytest.raises(DependencyNotReady, match=r"'d:2026-01-07', 'd:2026-01-08'"):
        fs.materialize(average, partition="2026-01-08")
    run = fs.run(average, partition="2026-01-08")
    assert (run.get(), len(run.steps())) == ([6, 7, 8], 3)
    assert fs.run(average, partition="2026-01-05").get() == [5]


def test_the_parts_of_a_key_have_their_names(fs: FlowStone) -> None:
    region = Static(["eu", "us"])

    @fs.asset(partitions=region)
    def rates(ctx: Context) -> float:
        return 1.0 if ctx.partition == "eu" else 1.5

    @fs.asset(partitions=Multi(day=DAY, region=region))
    def sales(ctx: Context, rates: float) -> list[Any]:
        assert ctx.window
        assert ctx.window.start.date() == ctx.partitions["day"]
        return [str(ctx.partitions["day"]), ctx.partitions["region"], rates]

    @fs.asset(partitions=DAY)
    def totals(sales: Mapping[tuple[date, str], list[Any]]) -> list[Any]:
        return [found[1] for found in sales.values()]

    assert fs.run(sales, partition="2026-01-07|us").get() == ["2026-01-07", "us", 1.5]
    assert fs.run(totals, partition="2026-01-07").get() == ["eu", "us"]
    assert fs.get(sales, partition=(date(2026, 1, 7), "eu"))[1] == "eu"


def test_an_optional_partition_that_is_skipped_is_left_out_of_the_mapping(fs: FlowStone) -> None:
    @fs.asset(partitions=DAY)
    def orders(ctx: Context) -> Any:
        return Skip("closed") if ctx.partition.day % 2 else ctx.partition.day  # type: ignore[union-attr]

    @fs.asset(partitions=orders, mappings={"orders": Window(before=3)}, optional_deps=["orders"])
    def window(orders: Mapping[date, int]) -> list[int]:
        return list(orders.values())

    @fs.asset(partitions=orders, optional_deps=["orders"])
    def single(orders: int | None) -> bool:
        return orders is None

    assert fs.run(window, partition="2026-01-09").get() == [6, 8]
    assert fs.run(single, partition="2026-01-11").get() is True


def test_keys_come_and_go_while_the_system_runs_and_values_stay(fs: FlowStone) -> None:
    @fs.asset(partitions=Dynamic("customers"))
    def profile(ctx: Context) -> str:
        return f"<{ctx.partition}>"

    @fs.asset
    def book(profile: Mapping[str, str]) -> dict[str, str]:
        return dict(profile)

    odd = "a:b|c 🎈\n"
    assert fs.partitions.add("customers", "acme", odd, actor="ann") == sorted(["acme", odd])
    assert fs.partitions.add("customers", "acme") == []
    assert list(fs.partitions.keys(profile)) == sorted(["acme", odd])
    assert fs.run(profile, partition=odd).get() == f"<{odd}>"
    assert fs.run(book).get() == {key: f"<{key}>" for key in sorted(["acme", odd])}
    with pytest.raises(InvalidPartition, match=r"has not been added\. Did you mean 'acme'"):
        fs.run(profile, partition="acmee")
    assert fs.partitions.remove("customers", odd, "nobody", actor="bob") == [odd]
    assert fs.get(profile, partition=odd) == f"<{odd}>"
    assert fs.run(book, force=True).get() == {"acme": "<acme>"}
    acts = audit.of_resource(fs.database, "partitions", "customers")
    assert [(act["action"], act["actor"], act["details"]["count"]) for act in acts] == [
        ("partition.add", "ann", 2),
        ("partition.remove", "bob", 1),
    ]
    with pytest.raises(InvalidPartition, match=r"'custmers'.*Did you mean 'customers'"):
        fs.partitions.add("custmers", "x")
    with pytest.raises(InvalidPartition, match="NUL"):
        fs.partitions.add("customers", "a\0b")


def test_a_key_that_is_added_after_the_plan_changes_nothing_of_the_run(fs: FlowStone) -> None:
    @fs.asset(partitions=Dynamic("customers"))
    def profile(ctx: Context) -> str:
        if ctx.partition == "acme":
            fs.partitions.add("customers", "late")
        return str(ctx.partition)

    @fs.asset
    def book(profile: Mapping[str, str]) -> list[str]:
        return list(profile)

    fs.partitions.add("customers", "acme", "zoo")
    assert fs.run(book).get() == ["acme", "zoo"]


def test_what_is_no_partition_is_refused_before_anything_begins(fs: FlowStone) -> None:
    @fs.asset(partitions=DAY)
    def orders() -> int:
        return 1

    @fs.asset(partitions=Hourly("2026-01-01"))
    def hours(orders: int) -> int:
        return orders

    for wrong in (
        "2026-01-04",
        "2026-01-19",
        "2026-13-01",
        "soon",
        None,
        7,
        datetime(2026, 1, 6, tzinfo=UTC),
    ):
        with pytest.raises(InvalidPartition):
            fs.run(orders, partition=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidMapping, match="to be made from"):
        fs.run(hours, partition="2026-01-01T05:00Z")
    with pytest.raises(InvalidPartition, match="none was named"):
        fs.get(orders)
    assert sql(fs.database, "SELECT id FROM flowstone.runs") == []


def test_a_day_that_has_not_ended_can_be_made_where_the_current_one_counts(fs: FlowStone) -> None:
    @fs.asset(partitions=Daily("2026-01-01"))
    def ended() -> int:
        return 1

    @fs.asset(partitions=Daily("2026-01-01", current=True))
    def begun() -> int:
        return 1

    today = fs.partitions.now().now.date()
    with pytest.raises(InvalidPartition, match="its window ends at"):
        fs.run(ended, partition=today)
    assert fs.run(begun, partition=today).get() == 1


def test_a_run_for_several_slices_names_them_all(fs: FlowStone) -> None:
    @fs.asset(partitions=DAY)
    def orders(ctx: Context) -> int:
        return ctx.partition.day  # type: ignore[union-attr]

    targets = [Slice("test.orders", f"d:2026-01-{day:02}") for day in (5, 6, 7)]
    run = fs.begin(targets, only=None)
    assert run.state == "succeeded"
    assert (run.row["name"], run.row["partition"], len(run.steps())) == ("test.orders", "", 3)
    assert list(fs.partitions.range(orders, "2026-01-17")) == [date(2026, 1, 17), date(2026, 1, 18)]


def test_a_failed_partition_names_itself(fs: FlowStone) -> None:
    @fs.asset(partitions=DAY)
    def orders(ctx: Context) -> int:
        raise ValueError("closed")

    with pytest.raises(RunFailed, match=r"d:2026-01-06"):
        fs.run(orders, partition="2026-01-06").get()
