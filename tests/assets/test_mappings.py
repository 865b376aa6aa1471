"""Which partitions upstream belong to one of an asset's own: by default, by a mapping, and where nothing tells."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstone_celery import (
    All,
    Cron,
    Daily,
    Dimension,
    Dimensions,
    Dynamic,
    Explicit,
    FlowStone,
    Hourly,
    Monthly,
    Multi,
    Previous,
    Same,
    Static,
    Weekly,
    Window,
)
from flowstone_celery.assets import partition as partitions
from flowstone_celery.assets.asset import declare
from flowstone_celery.assets.catalog import Catalog
from flowstone_celery.assets.definitions import AsOf, Definition
from flowstone_celery.assets.mappings import PartitionMapping
from flowstone_celery.assets.slices import Need, Slice, Slices
from flowstone_celery.errors import DependencyCycle, InvalidMapping, InvalidOption, InvalidPartition

NOW = AsOf(datetime(2026, 11, 21, 12, tzinfo=UTC), lambda name: {"customers": ["acme", "zoo"]}.get(name, []))
DAY = Daily("2026-11-01")
REGION = Static(["eu", "us"])
BOTH = Multi(day=DAY, region=REGION)


def catalog(
    down: Definition | None, up: Definition | None, mapping: PartitionMapping | None = None, **options: Any
) -> Catalog:
    """`orders`, and `report`, which takes them."""

    def orders() -> None: ...

    def report(orders: Any) -> None: ...

    found = Catalog()
    found.add(declare(orders, namespace="shop", partitions=up))
    mapped = {} if mapping is None else {"mappings": {"orders": mapping}}
    found.add(declare(report, namespace="shop", partitions=down, **mapped, **options))
    return found


def need(key: Any, *declared: Any, **options: Any) -> Need:
    """What the report of this partition needs of the orders."""
    slices = Slices(catalog(*declared, **options), NOW)
    (found,) = slices.detailed(Slice("shop.report", partitions.encode(key)))
    return found


def keys(*asked: Any, **options: Any) -> list[Any]:
    return [partitions.decode(each.partition) for each in need(*asked, **options).slices]


def day(number: int) -> date:
    return date(2026, 11, number)


def hours(*numbers: int) -> list[datetime]:
    return [datetime(2026, 11, 20, number, tzinfo=UTC) for number in numbers]


# --- what the definitions tell --------------------------------------------------------------------------------------------------------


def test_without_definitions_the_key_is_the_same() -> None:
    assert keys("x", None, None) == ["x"]
    assert keys(None, None, None) == [None]


def test_equal_definitions_share_their_keys() -> None:
    assert keys(day(7), DAY, DAY) == [day(7)]
    assert keys(day(7), DAY, Daily("2026-10-01")) == [day(7)]
    assert keys("eu", Static(["eu"]), REGION) == ["eu"]


def test_an_asset_without_partitions_gives_its_one_value_and_takes_all() -> None:
    assert keys(day(7), DAY, None) == [None]
    assert need(None, None, REGION).many
    assert keys(None, None, REGION) == ["eu", "us"]
    assert keys(None, None, Dynamic("customers")) == ["acme", "zoo"]
    assert keys(None, None, DAY) == [day(number) for number in range(1, 21)]


def test_an_asset_that_takes_all_partitions_has_none_itself() -> None:
    with pytest.raises(InvalidMapping, match="has none itself"):
        need("x", None, REGION)


def test_shorter_windows_upstream_are_all_that_share_time() -> None:
    found = need(day(20), DAY, Hourly("2026-11-01"))
    assert found.many
    assert [partitions.decode(each.partition) for each in found.slices] == hours(*range(24))
    # A week may lie in two months, so it always takes a mapping.
    assert keys(date(2026, 11, 30), Weekly("2026-11-01"), Monthly("2026-01-01")) == [
        day(1),
        date(2026, 12, 1),
    ]
    assert need(day(2), Weekly("2026-11-01"), Monthly("2026-01-01")).many


def test_a_longer_window_upstream_is_the_one_that_holds_the_own() -> None:
    found = need(hours(9)[0], Hourly("2026-11-01"), DAY)
    assert not found.many
    assert [partitions.decode(each.partition) for each in found.slices] == [day(20)]


def test_the_day_on_which_clocks_are_set_takes_its_25_hours() -> None:
    prague = {"tz": "Europe/Prague"}
    assert len(keys(date(2026, 10, 25), Daily("2026-10-01", **prague), Hourly("2026-10-01", **prague))) == 25
    assert len(keys(date(2026, 3, 29), Daily("2026-03-01", **prague), Hourly("2026-03-01", **prague))) == 23


def test_several_dimensions_meet_by_what_they_share() -> None:
    assert keys((day(7), "eu"), BOTH, DAY) == [day(7)]
    assert keys((day(7), "eu"), BOTH, REGION) == ["eu"]
    assert keys((day(7), "eu"), BOTH, Multi(region=REGION, day=DAY)) == [("eu", day(7))]
    assert keys(day(7), DAY, BOTH) == [(day(7), "eu"), (day(7), "us")]
    assert need(day(7), DAY, BOTH).many
    assert keys("us", REGION, BOTH) == [(day(number), "us") for number in range(1, 21)]


@pytest.mark.parametrize(
    ("down", "up"),
    [
        (DAY, REGION),
        (DAY, Daily("2026-11-01", tz="Europe/Prague")),
        (DAY, Cron("30 2 * * *", "2026-11-01")),
        (Weekly("2026-11-01"), Weekly("2026-11-01", weekday="friday")),
        (Static(["eu", "uk"]), REGION),
        (Dynamic("customers"), Dynamic("suppliers")),
        (Multi(a=DAY, b=DAY), DAY),
        (Multi(a=DAY, b=REGION), Multi(c=DAY, d=REGION)),
    ],
)
def test_where_two_definitions_do_not_tell_the_check_names_both(down: Definition, up: Definition) -> None:
    with pytest.raises(InvalidMapping) as refusal:
        catalog(down, up).check()
    assert str(down) in str(refusal.value)
    assert str(up) in str(refusal.value)


# --- what a mapping tells -------------------------------------------------------------------------------------------------------------


def test_previous_is_none_at_the_beginning() -> None:
    assert keys(day(7), DAY, DAY, Previous()) == [day(6)]
    assert keys(day(7), DAY, DAY, Previous(3)) == [day(4)]
    assert keys(day(1), DAY, DAY, Previous()) == []
    assert keys("us", REGION, REGION, Previous()) == ["eu"]
    assert keys((day(7), "eu"), BOTH, BOTH, Previous()) == [(day(6), "eu")]
    assert keys(day(18), DAY, Weekly("2026-11-01"), Previous()) == [day(9)]


def test_a_window_reaches_before_and_after_as_far_as_there_are_partitions() -> None:
    assert keys(day(7), DAY, DAY, Window(before=2)) == [day(5), day(6), day(7)]
    assert keys(day(2), DAY, DAY, Window(before=2, after=1)) == [day(1), day(2), day(3)]
    assert keys(day(7), DAY, Daily("2026-11-01", tz="Europe/Prague"), Window()) == [day(7), day(8)]
    assert keys("eu", REGION, REGION, Window(after=5)) == ["eu", "us"]


def test_a_function_answers_a_key_or_a_list_of_keys() -> None:
    first = need(day(7), DAY, DAY, Explicit(lambda key: key.replace(day=1)))
    assert (len(first.slices), first.many) == (1, False)
    assert keys(day(7), DAY, DAY, Explicit(lambda key: ["2026-11-02", day(3), "2026-11-02"])) == [
        day(2),
        day(3),
    ]
    assert need(day(7), DAY, REGION, Explicit(lambda key: ["eu"])).many
    assert keys(day(7), DAY, BOTH, Explicit(lambda key: (key, "eu"))) == [(day(7), "eu")]


def test_dimensions_are_mapped_one_by_one() -> None:
    assert keys((day(7), "eu"), BOTH, DAY, Dimension("day", Window(before=1))) == [day(6), day(7)]
    assert keys((day(7), "eu"), BOTH, BOTH, Dimensions(day=Previous())) == [(day(6), "eu")]
    assert keys((day(7), "eu"), BOTH, BOTH, Dimensions(region=All())) == [(day(7), "eu"), (day(7), "us")]
    assert keys((day(7), day(8)), Multi(a=DAY, b=DAY), DAY, Dimension("b")) == [day(8)]
    assert keys("k", Static(["k"]), None, Same()) == ["k"]


@pytest.mark.parametrize(
    ("key", "mapping", "up"),
    [
        (day(7), Explicit(lambda key: []), DAY),
        (day(7), Explicit(lambda key: date(2020, 1, 1)), DAY),
        (day(7), Explicit(lambda key: None), DAY),
        (day(7), Explicit(lambda key: "nowhere"), REGION),
        (day(7), Explicit(lambda key: 1.5), REGION),
        (day(7), None, Daily("2026-11-10")),
        (day(7), Window(), Weekly("2026-11-10")),
    ],
)
def test_a_mapping_to_nothing_is_an_error_unless_the_dependency_may_be_missing(
    key: Any, mapping: PartitionMapping | None, up: Definition
) -> None:
    with pytest.raises(
        InvalidMapping, match=r"'shop\.report' of partition 'd:2026-11-07' has no partition of 'shop\.orders'"
    ):
        need(key, DAY, up, mapping)
    assert keys(key, DAY, up, mapping, optional_deps=["orders"]) == []


def test_a_function_that_raises_is_named_with_what_it_raised() -> None:
    with pytest.raises(InvalidMapping, match=r"KeyError: 'x'"):
        need(day(7), DAY, DAY, Explicit(lambda key: {}["x"]))


@pytest.mark.parametrize(
    ("mapping", "down", "up", "said"),
    [
        (Same(), DAY, REGION, "do not share their keys"),
        (Previous(), DAY, None, "both need partitions"),
        (Previous(), Dynamic("a"), Dynamic("a"), "have no order"),
        (
            Previous(),
            Multi(a=REGION, b=REGION),
            Multi(a=REGION, b=REGION),
            "no order without a single one of time",
        ),
        (Window(), DAY, REGION, "share neither time nor keys"),
        (All(), DAY, None, "no partitions to take all of"),
        (Dimension("day"), DAY, DAY, "no dimension 'day'"),
        (Dimension("dy"), BOTH, DAY, "no dimension 'dy'"),
        (Dimensions(dy=All()), BOTH, BOTH, "no dimension 'dy'"),
    ],
)
def test_a_mapping_that_does_not_fit_is_told_by_the_check(
    mapping: PartitionMapping, down: Definition, up: Definition | None, said: str
) -> None:
    with pytest.raises(InvalidMapping) as refusal:
        catalog(down, up, mapping).check()
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Previous(0),
        lambda: Previous(True),
        lambda: Window(before=-1),
        lambda: Window(after="2"),  # type: ignore[arg-type]
        lambda: Explicit(7),  # type: ignore[arg-type]
        lambda: Dimensions(day="x"),  # type: ignore[arg-type]
    ],
)
def test_a_mapping_that_cannot_be_is_told_where_it_stands(wrong: Callable[[], Any]) -> None:
    with pytest.raises(InvalidOption):
        wrong()


@given(
    down=st.sampled_from([Hourly, Daily, Weekly, Monthly]),
    up=st.sampled_from([Hourly, Daily, Weekly, Monthly]),
    zone=st.sampled_from(["UTC", "Europe/Prague", "America/New_York", "Australia/Lord_Howe"]),
    ahead=st.integers(0, 40),
)
@settings(max_examples=80, deadline=None)
def test_windows_upstream_are_exactly_those_that_share_time(
    down: Any, up: Any, zone: str, ahead: int
) -> None:
    own, theirs = down("2026-02-01", tz=zone), up("2025-12-01", tz=zone)
    key = own.previous(own.first, -ahead)
    window = own.window(key)
    begin, end = (each.astimezone(UTC) for each in window)
    edge = timedelta(days=2 if up is Hourly else 70)
    near = theirs.range(begin - edge if up is Hourly else None, now=end + edge)
    sharing = [each for each in near if theirs.window(each).start < end and theirs.window(each).end > begin]
    assert keys(key, own, theirs) == sharing


# --- declarations ---------------------------------------------------------------------------------------------------------------------


def test_a_mapping_for_what_is_no_dependency_is_told_with_the_nearest() -> None:
    def report(orders: Any) -> None: ...

    with pytest.raises(InvalidOption, match=r"mappings names 'oders'.*'orders'"):
        declare(report, namespace="shop", partitions=DAY, mappings={"oders": Previous()})
    with pytest.raises(InvalidOption, match="mappings is a dict of mappings"):
        declare(report, namespace="shop", mappings={"orders": "all"})
    with pytest.raises(InvalidOption, match="partitions is a definition"):
        declare(report, namespace="shop", partitions=["2026-01-01"])


def test_an_asset_may_need_its_own_previous_partition_and_nothing_else_of_itself() -> None:
    def balance(balance: Any) -> None: ...

    found = Catalog()
    found.add(declare(balance, namespace="shop", partitions=DAY, mappings={"balance": Previous()}))
    found.check()
    assert Slices(found, NOW).needs(Slice("shop.balance", "d:2026-11-02"))[0][1] == (
        Slice("shop.balance", "d:2026-11-01"),
    )
    assert found.graph().needs("shop.balance") == ()
    for mapping in (None, Same(), Window(before=1), All()):
        with pytest.raises(DependencyCycle, match="needs itself"):
            declare(balance, namespace="shop", partitions=DAY, mappings=mapping and {"balance": mapping})
    free = Catalog()
    free.add(declare(balance, namespace="shop", mappings={"balance": Previous()}))
    with pytest.raises(InvalidMapping, match="both need partitions"):
        free.check()


def test_an_asset_takes_over_the_partitions_of_another() -> None:
    shop = FlowStone(mode="inline")

    @shop.asset(partitions=DAY)
    def orders() -> None: ...

    @shop.asset(partitions=orders)
    def revenue(orders: Any) -> None: ...

    assert revenue.partitions == orders.partitions == DAY


def test_a_text_is_read_by_the_definition_and_a_partition_must_be_named() -> None:
    from flowstone_celery.assets.slices import slice_of

    spec = catalog(DAY, DAY).fetch("report")
    assert slice_of(spec, "2026-11-20") == slice_of(spec, day(20)) == Slice("shop.report", "d:2026-11-20")
    with pytest.raises(InvalidPartition, match="none was named"):
        slice_of(spec, None)
    free = catalog(None, None).fetch("report")
    assert slice_of(free, "2026-11-20") != Slice("shop.report", "d:2026-11-20")
    assert slice_of(free, partitions.Written("2026-11-20")) == Slice("shop.report", "d:2026-11-20")
