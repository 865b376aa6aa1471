"""Freshness as users see it: what makes a value stale, what `run` makes then, `why`, `stale` and `invalidate`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import TYPE_CHECKING, Any

import pytest
from onedb import sql

from flowstone_celery import Context, Daily, Dynamic, FlowStone, Previous, Static
from flowstone_celery.assets.reasons import (
    CodeChanged,
    DependencyAdded,
    DependencyRemoved,
    InputChanged,
    InputMissing,
    InputStale,
    Invalidated,
    NeverMade,
)
from flowstone_celery.errors import InvalidMapping, InvalidOption, UnknownAsset
from flowstone_celery.outcomes import Skip
from flowstone_celery.record import audit, lineage, values

if TYPE_CHECKING:
    from flowstone_celery.testing.kit import TestKit

DAY = date(2026, 11, 20)


class Shop:
    """orders and prices -> revenue -> report; declared anew whenever the code is to change."""

    def __init__(self, fs: FlowStone) -> None:
        self.settings = fs.settings
        self.calls: list[str] = []
        self.source: Any = [1, 2, 3]
        self.opened: list[FlowStone] = []
        self.fs = self.deploy()

    def deploy(self, **changed: Callable[..., Any]) -> FlowStone:
        """The program as it is after a deployment, in which these functions are others."""
        fs = FlowStone(mode="inline", namespace="test", settings=self.settings)
        shop = self

        def orders() -> Any:
            shop.calls.append("orders")
            return shop.source

        def prices() -> int:
            shop.calls.append("prices")
            return 10

        def revenue(orders: list[int], prices: int) -> int:
            shop.calls.append("revenue")
            return sum(orders) * prices

        def report(revenue: int) -> str:
            shop.calls.append("report")
            return f"revenue: {revenue}"

        for fn in (orders, prices, revenue, report):
            fs.asset(name=fn.__name__)(changed.pop(fn.__name__, fn))
        for name, fn in changed.items():
            fs.asset(name=name)(fn)
        self.opened.append(fs)
        self.fs = fs
        return fs

    def take(self) -> list[str]:
        """What was called since the last look."""
        taken, self.calls[:] = list(self.calls), []
        return taken

    def kinds(self, asset: str, **options: Any) -> list[type]:
        return [type(reason) for reason in self.fs.freshness(asset, **options).reasons]


@pytest.fixture
def shop(fs: FlowStone) -> Any:
    found = Shop(fs)
    yield found
    for each in found.opened:
        each.close()


# --- what makes a value stale -----------------------------------------------------------------------------------------------------


def test_what_was_never_made_is_missing_and_what_was_made_is_fresh(shop: Shop) -> None:
    assert shop.fs.freshness("report").state == "missing"
    assert shop.kinds("report") == [NeverMade]
    run = shop.fs.run("report")
    found = shop.fs.freshness("report")
    assert (found.state, found.reasons, found.run_id) == ("fresh", (), run.uuid)
    assert found.sentence == "test.report is fresh"
    assert shop.fs.stale() == []


def test_other_code_makes_its_value_and_all_below_stale(shop: Shop) -> None:
    shop.fs.run("report")

    def revenue(orders: list[int], prices: int) -> int:
        return sum(orders) * prices + 1

    shop.deploy(revenue=revenue)
    assert shop.kinds("revenue") == [CodeChanged]
    assert shop.kinds("report") == [InputStale]
    assert [each.asset for each in shop.fs.stale()] == ["test.revenue", "test.report"]
    (reason,) = shop.fs.freshness("report").reasons
    assert isinstance(reason, InputStale)
    assert reason.path == (("test.revenue", ""),)
    assert "its code changed" in reason.sentence


def test_a_comment_or_another_place_makes_nothing_stale(shop: Shop) -> None:
    shop.fs.run("report")
    shop.deploy()
    assert shop.fs.freshness("report").is_fresh


def test_a_declared_version_stands_for_the_code(fs: FlowStone, shop: Shop) -> None:
    def declared(version: str, fn: Callable[[], int]) -> FlowStone:
        found = FlowStone(mode="inline", namespace="test", settings=fs.settings)
        found.asset(name="total", code_version=version)(fn)
        shop.opened.append(found)
        return found

    declared("1", lambda: 1).run("total")
    assert declared("1", lambda: 2).freshness("total").is_fresh
    (reason,) = declared("2", lambda: 1).freshness("total").reasons
    assert reason == CodeChanged("'1'", "'2'")
    assert reason.sentence == "its code changed from version '1' to '2'"


def test_another_content_of_an_input_makes_stale_and_the_same_content_made_anew_does_not(shop: Shop) -> None:
    shop.fs.run("report")
    shop.fs.materialize("orders")
    assert shop.fs.freshness("report").is_fresh
    shop.source = [4]
    used = shop.fs.freshness("orders").version
    shop.fs.materialize("orders")
    stands = shop.fs.freshness("orders").version
    (reason,) = shop.fs.freshness("revenue").reasons
    assert reason == InputChanged(("test.orders", ""), used, stands) or isinstance(reason, InputChanged)
    assert f"version {stands} stands now" in reason.sentence
    assert shop.kinds("report") == [InputStale]


def test_a_dependency_that_was_added_or_removed_makes_stale(shop: Shop) -> None:
    fs = shop.fs
    fs.run("report")

    def revenue(orders: list[int], weather: str) -> int:
        return sum(orders)

    shop.deploy(revenue=revenue, weather=lambda: "fine")
    assert shop.kinds("revenue") == [CodeChanged, DependencyAdded, DependencyRemoved, InputMissing]
    said = shop.fs.freshness("revenue").sentence
    assert "the dependency test.weather was added" in said
    assert "the dependency test.prices was removed" in said
    shop.fs.run("report")
    assert shop.fs.freshness("report").is_fresh


def test_a_forced_asset_leaves_what_stands_on_it_knowingly_stale(shop: Shop) -> None:
    shop.fs.run("report")
    shop.source = [5]
    shop.fs.run("orders", force=True)
    assert [each.asset for each in shop.fs.stale()] == ["test.revenue", "test.report"]


def test_an_optional_input_that_is_missing_or_was_skipped_makes_nothing_stale(fs: FlowStone) -> None:
    answer: list[Any] = [Skip("no data")]

    @fs.asset
    def forecast() -> object:
        return answer[0]

    @fs.asset(optional_deps=["forecast"])
    def report(forecast: int | None) -> str:
        return f"forecast: {forecast}"

    assert fs.run(report).get() == "forecast: None"
    assert fs.freshness(report).is_fresh
    answer[0] = 7
    fs.materialize(forecast)
    (reason,) = fs.freshness(report).reasons
    assert "is an input now" in reason.sentence
    assert fs.run(report).get() == "forecast: 7"
    answer[0] = Skip("none today")
    fs.materialize_all(report)  # skipped in this run, though a value is there: passed over
    assert fs.get(report) == "forecast: None"
    assert fs.freshness(report).is_fresh


def test_partitions_are_fresh_each_by_itself(fs: FlowStone) -> None:
    numbers = {"d:2026-11-20": 1, "d:2026-11-21": 1}
    fs.asset(name="orders")(lambda ctx: numbers[f"d:{ctx.partition}"])
    fs.asset(name="revenue")(lambda orders: orders * 2)
    days = [DAY, date(2026, 11, 21)]
    for day in days:
        fs.run("revenue", partition=day)
    numbers["d:2026-11-20"] = 5
    fs.materialize("orders", partition=DAY)
    assert [fs.freshness("revenue", partition=day).state for day in days] == ["stale", "fresh"]
    (stale,) = fs.stale("revenue")
    assert "test.orders [2026-11-20] changed" in stale.sentence


def test_a_value_without_a_recipe_is_compared_by_the_versions_that_it_was_made_from(shop: Shop) -> None:
    shop.fs.run("report")
    sql(shop.fs.database, "UPDATE flowstone.asset_values SET recipe = NULL")
    assert shop.fs.freshness("report").is_fresh
    shop.fs.materialize("orders")  # the same content: told by its digest
    assert shop.fs.freshness("report").is_fresh
    shop.source = []
    shop.fs.materialize("orders")
    assert shop.kinds("revenue") == [InputChanged]


def test_a_value_made_of_several_partitions_knows_each_of_them(fs: FlowStone) -> None:
    sold = {"ann": 1, "bob": 2}

    @fs.asset(partitions=Dynamic("customers"))
    def bill(ctx: Context) -> int:
        return sold[str(ctx.partition)]

    fs.asset(name="total")(lambda bill: sum(bill.values()))
    fs.partitions.add("customers", "ann", "bob")
    assert fs.run("total").get() == 3
    assert fs.freshness("total").is_fresh
    sold["bob"] = 5
    fs.materialize(bill, partition="bob")
    assert "test.bill [bob] changed" in fs.freshness("total").sentence
    assert fs.run("total").get() == 6
    sold["eve"] = 10
    fs.partitions.add("customers", "eve")
    assert [type(each) for each in fs.freshness("total").reasons] == [InputMissing]
    assert fs.run("total").get() == 16
    fs.partitions.remove("customers", "ann")
    assert "test.bill [ann], of which version" in fs.freshness("total").sentence
    assert fs.run("total").get() == 15
    assert fs.stale() == []


def test_a_value_whose_inputs_no_longer_can_be_told_is_judged_by_its_code_alone(
    fs: FlowStone, shop: Shop
) -> None:
    def declared(start: str) -> FlowStone:
        found = FlowStone(mode="inline", namespace="days", settings=fs.settings)
        found.asset(name="raw", partitions=Daily(start))(lambda: 1)
        found.asset(name="total", partitions=Daily("2026-01-01"))(lambda raw: raw)
        shop.opened.append(found)
        return found

    declared("2026-01-01").run("total", partition=date(2026, 1, 5))
    later = declared("2026-02-01")
    assert later.freshness("total", partition=date(2026, 1, 5)).is_fresh
    later.invalidate("total", partition=date(2026, 1, 5))
    with pytest.raises(InvalidMapping, match=r"has no partition of 'days\.raw'"):
        later.run("total", partition=date(2026, 1, 5))


def test_a_slice_made_of_the_one_before_it_is_stale_with_it(fs: FlowStone) -> None:
    added = {1: 1, 2: 2, 3: 3}

    @fs.asset(partitions=Static([1, 2, 3]), mappings={"balance": Previous()}, deps=["balance"])
    def balance(ctx: Context, balance: int | None) -> int:
        return (balance or 0) + added[int(str(ctx.partition))]

    assert fs.run(balance, partition=3).get() == 6
    fs.invalidate(balance, partition=1)
    (reason,) = fs.freshness(balance, partition=3).reasons
    assert isinstance(reason, InputStale)
    assert [each.partition for each in reason.path] == ["i:2", "i:1"]
    assert [each.partition for each in fs.stale(balance)] == ["i:1", "i:2", "i:3"]
    added[1] = 11
    assert fs.run(balance, partition=3).get() == 16
    assert fs.stale() == []


# --- run --------------------------------------------------------------------------------------------------------------------------


def test_run_makes_what_is_missing_or_stale_on_the_way_and_nothing_fresh(shop: Shop) -> None:
    shop.fs.run("report")
    shop.take()
    shop.source = [4]
    shop.fs.materialize("orders")
    assert shop.fs.run("report").get() == "revenue: 40"
    assert shop.take() == ["orders", "revenue", "report"]
    assert shop.fs.run("report").get() == "revenue: 40"
    assert shop.take() == []


def test_an_input_that_comes_out_as_it_was_spares_what_stands_on_it(fs_test: TestKit, shop: Shop) -> None:
    shop.fs.run("report")
    before = shop.fs.freshness("report").version
    shop.take()
    shop.fs.invalidate("orders")
    run = shop.fs.run("report")
    assert run.get() == "revenue: 60"
    assert shop.take() == ["orders"]
    assert [step["status"] for step in run.steps()] == ["succeeded"] * 3
    assert shop.fs.freshness("report").version == before
    assert shop.fs.stale() == []


def test_a_stale_value_will_do_where_it_is_accepted(shop: Shop) -> None:
    first = shop.fs.run("report")
    shop.source = [4]
    shop.fs.materialize("orders")
    shop.take()
    assert shop.fs.run("report", accept_stale=True) == first
    assert shop.fs.run("report", accept_stale=True, force=True).get() == "revenue: 60"
    assert shop.take() == ["report"]


def test_run_without_dependencies_makes_the_target_from_stale_ones(shop: Shop) -> None:
    shop.fs.run("report")
    shop.source = [4]
    shop.fs.materialize("orders")
    shop.take()
    shop.fs.run("report", with_deps=False)
    assert shop.take() == ["report"]
    assert shop.kinds("report") == [InputStale]


def test_force_makes_the_target_and_only_what_is_stale_above_it(shop: Shop) -> None:
    shop.fs.run("report")
    shop.take()
    shop.fs.run("report", force=True)
    assert shop.take() == ["report"]
    shop.fs.invalidate("prices")
    shop.fs.run("report", force=True)
    assert shop.take() == ["prices", "report"]  # prices came out as they were: revenue is spared


# --- invalidate -------------------------------------------------------------------------------------------------------------------


def test_an_invalidated_value_is_kept_and_stale_until_it_is_made_anew(shop: Shop) -> None:
    shop.fs.run("report")
    assert shop.fs.invalidate("orders", reason="the export was cut off", actor="ada") == 1
    assert shop.fs.invalidate("orders", reason="again", actor="bob") == 0
    assert shop.fs.get("orders") == [1, 2, 3]
    (reason,) = shop.fs.freshness("orders").reasons
    assert isinstance(reason, Invalidated)
    assert (reason.by, reason.reason) == ("ada", "the export was cut off")
    assert "ada invalidated it at" in reason.sentence
    assert shop.kinds("report") == [InputStale]
    (row,) = audit.of_resource(shop.fs.database, "asset", "test.orders")
    assert (row["action"], row["actor"], row["details"]["reason"]) == (
        "asset.invalidate",
        "ada",
        "the export was cut off",
    )
    shop.fs.materialize("orders")
    assert shop.fs.stale() == []


def test_a_cascade_marks_everything_that_was_made_from_it(shop: Shop) -> None:
    shop.fs.run("report")
    assert shop.fs.invalidate("orders", cascade=True) == 3
    assert shop.kinds("report") == [Invalidated, InputStale]
    assert "together with test.orders" in shop.fs.freshness("report").reasons[0].sentence
    assert shop.fs.freshness("prices").is_fresh
    shop.take()
    shop.fs.run("report")
    assert shop.take() == ["orders", "revenue", "report"]


def test_nothing_is_marked_where_nothing_was_made(shop: Shop) -> None:
    assert shop.fs.invalidate("orders", cascade=True) == 0
    with pytest.raises(UnknownAsset, match="Did you mean 'orders'"):
        shop.fs.invalidate("order")


def test_a_mark_that_came_while_the_value_was_being_made_stays(fs: FlowStone) -> None:
    rounds: list[int] = []

    @fs.asset
    def orders() -> int:
        rounds.append(1)
        if len(rounds) == 2:
            assert fs.invalidate("orders", reason="what it reads now is wrong") == 1
        return len(rounds)

    fs.run(orders)
    fs.run(orders, force=True)
    assert [type(each) for each in fs.freshness(orders).reasons] == [Invalidated]
    fs.run(orders)
    assert fs.freshness(orders).is_fresh


# --- why --------------------------------------------------------------------------------------------------------------------------


def test_why_leads_from_the_slice_to_where_it_began(shop: Shop) -> None:
    shop.fs.run("report")
    shop.fs.invalidate("orders", reason="cut off", actor="ada")
    lines = shop.fs.why("report").splitlines()
    assert lines[:3] == ["test.report is stale", "  test.revenue is stale", "    test.orders is stale"]
    assert lines[3].startswith("      ada invalidated it at ")
    (reason,) = shop.fs.freshness("report").reasons
    assert isinstance(reason, InputStale)
    assert [each.asset for each in reason.path] == ["test.revenue", "test.orders"]
    assert isinstance(reason.root, Invalidated)
    assert "because of test.orders" in reason.sentence


# --- what is recorded -------------------------------------------------------------------------------------------------------------


def test_a_value_records_what_it_was_made_of(shop: Shop) -> None:
    run = shop.fs.run("report")
    found = values.of_run(shop.fs.database, "test.revenue", "", run.uuid)
    assert found is not None
    assert found.recipe is not None
    assert found.recipe.startswith("python3.")
    assert [link.asset for link in lineage.upstream(shop.fs.database, found)] == [
        "test.orders",
        "test.prices",
    ]


def test_an_unknown_way_of_meeting_is_refused_where_it_is_declared(fs: FlowStone) -> None:
    with pytest.raises(InvalidOption, match="Did you mean 'share'"):
        fs.asset(name="orders", maker="shares")(lambda: 1)
