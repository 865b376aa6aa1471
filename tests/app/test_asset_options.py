"""What an asset says of itself is heard: its IO manager, tags, metadata, optional dependencies, and what must be there first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from flowstone_celery import FlowStone
from flowstone_celery.errors import DependencyNotReady, RunFailed
from flowstone_celery.outcomes import Skip
from flowstone_celery.record import lineage, values

if TYPE_CHECKING:
    from flowstone_celery.testing.kit import TestKit


def test_each_asset_is_kept_by_its_own_io_manager(fs: FlowStone) -> None:
    fs.asset(name="orders", io="memory")(lambda: [1])
    fs.asset(name="revenue")(lambda orders: sum(orders))  # noqa: PLW0108 - the parameter is the dependency
    fs.run("revenue")
    rows = {name: values.current(fs.database, f"test.{name}", "") for name in ("orders", "revenue")}
    assert {name: row.io for name, row in rows.items() if row} == {"orders": "memory", "revenue": "database"}
    assert rows["orders"] is not None
    assert (rows["orders"].content, rows["orders"].pointer is None) == (None, False)
    assert fs.get("orders") == [1]


def test_tags_metadata_and_owner_are_told_as_they_were_declared(fs: FlowStone) -> None:
    fs.asset(name="orders", tags=["raw", "eu"], metadata={"grain": "day"}, owner="ann")(lambda: 1)
    spec = fs.catalog.fetch("orders")
    assert (spec.tags, spec.metadata, spec.owner) == (("raw", "eu"), {"grain": "day"}, "ann")


def test_an_optional_dependency_that_was_skipped_arrives_as_none_and_leaves_no_lineage(fs: FlowStone) -> None:
    @fs.asset
    def forecast() -> object:
        return Skip("no data yet")

    fs.asset(name="orders")(lambda: 5)

    @fs.asset(optional_deps=["forecast"])
    def report(orders: int, forecast: int | None) -> list[int | None]:
        return [orders, forecast]

    run = fs.run(report)
    assert run.get() == [5, None]
    assert {step["name"]: step["status"] for step in run.steps()}["test.forecast"] == "skipped"
    value = values.current(fs.database, "test.report", "")
    assert value is not None
    assert [link.asset for link in lineage.upstream(fs.database, value)] == ["test.orders"]


def test_a_required_dependency_that_was_skipped_takes_what_needs_it_along(fs: FlowStone) -> None:
    fs.asset(name="forecast")(lambda: Skip("no data yet"))
    fs.asset(name="report")(lambda forecast: forecast)
    run = fs.run("report")
    assert {step["status"] for step in run.steps()} == {"skipped"}
    assert (fs.status("report").state, fs.freshness("report").state) == ("skipped", "missing")


def test_everything_that_is_not_optional_must_be_there(fs: FlowStone, fs_test: TestKit) -> None:
    fs.asset(name="orders")(lambda: 1)
    fs.asset(name="hint")(lambda: 2)
    fs.asset(name="report", optional_deps=["hint"])(lambda orders, hint: [orders, hint])
    with pytest.raises(DependencyNotReady, match=r"'test\.orders'"):
        fs.materialize("report")
    fs.materialize("orders")
    assert fs.materialize("report").get() == [1, None]
    fs_test.assert_materialized("report")


def test_the_words_for_how_a_slice_stands_are_kept_apart_from_whether_it_is_fresh(fs: FlowStone) -> None:
    broken: list[bool] = []

    @fs.asset
    def orders() -> int:
        if broken:
            raise ValueError("the source is away")
        return 1

    fs.run(orders)
    broken.append(True)
    with pytest.raises(RunFailed):
        fs.run(orders, force=True).get()
    assert (fs.status(orders).state, fs.freshness(orders).state) == ("failed", "fresh")
