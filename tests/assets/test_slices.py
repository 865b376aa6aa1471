"""Plans over slices: each once, behind what it needs, and quick at any size."""

from __future__ import annotations

import time
from collections.abc import Collection
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstone_celery import Daily, Explicit, Previous, Static, Weekly, Window
from flowstone_celery.assets.asset import declare
from flowstone_celery.assets.catalog import Catalog
from flowstone_celery.assets.definitions import AsOf, Definition
from flowstone_celery.assets.plan import Request, plan
from flowstone_celery.assets.slices import Slice, Slices
from flowstone_celery.errors import InvalidMapping, InvalidPartition

NOW = AsOf(datetime(2026, 11, 21, 12, tzinfo=UTC))
DAY = Daily("2026-11-01")


def add(catalog: Catalog, name: str, deps: Collection[str] = (), **options: Any) -> None:
    def make() -> None: ...

    catalog.add(declare(make, namespace="shop", name=name, deps=list(deps), **options))


def sales() -> Catalog:
    """Orders of days, a balance that goes on from day to day, weeks of it, and a report of all weeks."""
    catalog = Catalog()
    add(catalog, "orders", partitions=DAY)
    add(catalog, "balance", ["balance", "orders"], partitions=DAY, mappings={"balance": Previous()})
    add(catalog, "weeks", ["balance"], partitions=Weekly("2026-11-01"))
    add(catalog, "report", ["weeks"])
    return catalog


def slices_of(name: str, *numbers: int) -> set[Slice]:
    return {Slice(f"shop.{name}", f"d:2026-11-{number:02}") for number in numbers}


def check_order(found: dict[Slice, Any]) -> None:
    """Whatever is needed and in the plan stands before what needs it."""
    places = {each: place for place, each in enumerate(found)}
    for each, needs in found.items():
        for need in needs:
            assert all(places[one] < places[each] for one in need.slices if one in places)


# --- what is planned ------------------------------------------------------------------------------------------------------------------


def test_a_plan_reaches_back_to_the_beginning_of_what_goes_on_from_itself() -> None:
    found = Slices(sales(), NOW).plan([Slice("shop.report")])
    assert set(found) == (
        slices_of("orders", *range(1, 16))
        | slices_of("balance", *range(1, 16))
        | slices_of("weeks", 2, 9)
        | {Slice("shop.report")}
    )
    check_order(found)


def test_what_is_there_is_not_made_and_nobody_looks_behind_it() -> None:
    there = slices_of("balance", 3) | slices_of("weeks", 2)
    found = Slices(sales(), NOW).missing(
        [Slice("shop.balance", "d:2026-11-05")], lambda asked: there & set(asked)
    )
    assert found == slices_of("balance", 4, 5) | slices_of("orders", 4, 5)


def test_a_slice_whose_time_has_not_come_is_refused_where_it_would_be_made() -> None:
    catalog = Catalog()
    add(catalog, "weeks", partitions=Weekly("2026-11-01"))
    add(catalog, "days", ["weeks"], partitions=DAY)
    slices = Slices(catalog, NOW)
    target = Slice("shop.days", "d:2026-11-18")
    with pytest.raises(InvalidPartition, match=r"2026-11-16 is no partition of Weekly.*ends at 2026-11-23"):
        slices.plan([target])
    # With a value there it is not made, and its time does not matter.
    assert set(slices.plan([target], lambda each: each == target)) == {target}
    with pytest.raises(InvalidPartition, match=r"2026-11-21 is no partition of Daily"):
        slices.plan([Slice("shop.days", "d:2026-11-21")])


def test_a_mapping_to_nothing_far_up_matters_only_where_its_slice_is_made() -> None:
    catalog = Catalog()
    add(catalog, "lost", partitions=DAY)
    add(catalog, "middle", ["lost"], partitions=DAY, mappings={"lost": Explicit(lambda _: [])})
    add(catalog, "report", ["middle"], partitions=DAY)
    slices, target = Slices(catalog, NOW), Slice("shop.report", "d:2026-11-05")
    assert slices.missing([target], lambda asked: slices_of("middle", 5)) == {target}
    with pytest.raises(InvalidMapping, match=r"'shop\.middle' of partition"):
        slices.missing([target], lambda asked: set())


@st.composite
def graphs(draw: st.DrawFn) -> Catalog:
    """Assets over days, weeks, regions and nothing, each needing some of the earlier ones that it can be mapped to."""
    catalog, kinds = Catalog(), [None, DAY, Weekly("2026-11-01"), Static(["eu", "us"])]
    for number in range(draw(st.integers(1, 9))):
        kind: Definition | None = draw(st.sampled_from(kinds))
        fits = [
            spec.name
            for spec in catalog.list()
            if spec.partitions in (None, kind)
            or kind is None
            or not (isinstance(kind, Static) or isinstance(spec.partitions, Static))
        ]
        deps = draw(st.lists(st.sampled_from(fits), unique=True, max_size=3)) if fits else []
        mappings: dict[str, Any] = {}
        for name in deps:
            if kind is DAY and catalog.fetch(name).partitions is DAY and draw(st.booleans()):
                mappings[name] = draw(st.sampled_from([Window(before=2), Previous(2)]))
        optional = [name for name in deps if draw(st.booleans())]
        add(catalog, f"a{number}", deps, partitions=kind, mappings=mappings, optional_deps=optional)
    catalog.check()
    return catalog


@given(catalog=graphs(), data=st.data())
@settings(max_examples=120, deadline=None)
def test_a_plan_holds_each_slice_once_behind_what_it_needs(catalog: Catalog, data: st.DataObject) -> None:
    spec = data.draw(st.sampled_from(catalog.list()))
    texts = {None: ["", "d:2026-11-05"], DAY: ["d:2026-11-05", "d:2026-11-12"]}.get(
        spec.partitions, ["eu"] if isinstance(spec.partitions, Static) else ["d:2026-11-09"]
    )
    targets = {Slice(spec.qualified, text) for text in texts[:1]}
    slices = Slices(catalog, AsOf(datetime(2026, 11, 30, 12, tzinfo=UTC)))
    try:
        everything = slices.plan(targets)
    except InvalidMapping:
        return  # a week of the days before the first one
    check_order(everything)
    # Oracle: the closure, slice by slice.
    reached, ahead = set(targets), list(targets)
    while ahead:
        new = {one for _, needed in slices.needs(ahead.pop()) for one in needed} - reached
        reached |= new
        ahead.extend(new)
    assert set(everything) == reached
    there = data.draw(st.sets(st.sampled_from(sorted(reached))))
    wanted, ahead = set(targets), list(targets)
    while ahead:
        new = {one for _, needed in slices.needs(ahead.pop()) for one in needed} - there - wanted
        wanted |= new
        ahead.extend(new)
    assert slices.missing(targets, lambda asked: there & set(asked)) == wanted
    narrowed = slices.plan(targets, lambda each: each not in there)
    check_order(narrowed)
    assert set(narrowed) == wanted


# --- at size --------------------------------------------------------------------------------------------------------------------------


def test_presence_is_asked_in_few_questions() -> None:
    catalog, asked = Catalog(), []
    add(catalog, "hours", ["hours"], partitions=Daily("2000-01-01"), mappings={"hours": Previous()})

    def present(question: Collection[Slice]) -> set[Slice]:
        asked.append(len(question))
        return set()

    assert len(Slices(catalog, NOW).missing([Slice("shop.hours", "d:2026-11-20")], present)) == 9_821
    assert len(asked) <= 6


def test_an_asset_that_needs_a_thousand_partitions_is_planned_in_a_moment() -> None:
    catalog = Catalog()
    add(catalog, "days", partitions=Daily("2020-01-01"))
    add(catalog, "report", ["days"])
    begun = time.perf_counter()
    found = Slices(catalog, AsOf(datetime(2022, 9, 27, tzinfo=UTC))).plan([Slice("shop.report")])
    assert len(found) == 1_001
    assert time.perf_counter() - begun < 2


def test_a_run_of_a_hundred_thousand_steps_over_a_long_chain_is_planned_in_seconds() -> None:
    catalog = Catalog()
    for number in range(100):
        add(catalog, f"a{number:02}", [f"a{number - 1:02}"] if number else [], partitions=Daily("2020-01-01"))
    days = [date(2020, 1, 1) + timedelta(days=number) for number in range(1_000)]
    request = Request([Slice("shop.a99", f"d:{day}") for day in days])
    begun = time.perf_counter()
    run = plan(catalog, request, lambda _: "q", NOW)
    assert time.perf_counter() - begun < 20
    assert len(run.steps) == 100_000
    assert all(parent < place for place, step in enumerate(run.steps) for parent in step.needs)
    assert (run.name, run.partition) == ("shop.a99", "")


def test_five_thousand_assets_are_checked_and_planned_in_seconds() -> None:
    catalog = Catalog()
    for number in range(5_000):
        deps = {f"a{each}" for each in (number - 1, number // 2, number // 3) if 0 <= each < number}
        add(catalog, f"a{number}", sorted(deps))
    begun = time.perf_counter()
    catalog.check()
    found = Slices(catalog, NOW).plan([Slice("shop.a4999", "k")])
    assert time.perf_counter() - begun < 10
    assert len(found) == 5_000
    check_order(found)


def test_the_name_of_a_run_for_many_assets_stays_short_enough_to_be_looked_up_by() -> None:
    catalog = Catalog()
    for number in range(1_000):
        add(catalog, f"a{number:03}", [])
    every = [Slice(name, "") for name in catalog.names]
    assert plan(catalog, Request(every[:2]), lambda _: "q", NOW).name == "shop.a000,shop.a001"
    assert plan(catalog, Request(every), lambda _: "q", NOW).name == "shop.a000 and 999 others"


def test_the_moment_of_a_plan_is_kept_only_where_the_plan_depends_on_it() -> None:
    catalog = Catalog()
    add(catalog, "free")
    add(catalog, "regions", partitions=Static(["eu"]))
    add(catalog, "days", partitions=DAY)

    def planned(name: str, text: str) -> Any:
        moment = AsOf(lambda: datetime(2026, 11, 21, 12, tzinfo=UTC))
        return plan(catalog, Request([Slice(f"shop.{name}", text)]), lambda _: "q", moment).input

    assert planned("free", "x") is None
    assert planned("regions", "eu") is None
    assert planned("days", "d:2026-11-02") == {"planned_at": "2026-11-21T12:00:00+00:00"}
