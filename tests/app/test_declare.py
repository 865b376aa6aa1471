"""Declaring assets on a FlowStone, and what stays as it was."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from celery import Celery

from flowstone_celery import Asset, Context, FlowStone, Pipeline
from flowstone_celery.errors import (
    DeclarationError,
    DuplicateAsset,
    InvalidOption,
    UnknownDependency,
    UnknownOption,
)


def inline(**options: Any) -> FlowStone:
    return FlowStone(**{"namespace": "shop", "mode": "inline", **options})


def test_the_decorated_name_stays_callable_and_keeps_its_looks() -> None:
    fs = inline()

    @fs.asset(tags=["finance"])
    def revenue(orders: list[int]) -> int:
        """What came in."""
        return sum(orders)

    assert isinstance(revenue, Asset)
    assert revenue([1, 2]) == 3
    assert (revenue.__name__, revenue.__doc__) == ("revenue", "What came in.")
    assert revenue.name == "shop.revenue"
    assert repr(revenue) == "<Asset: shop.revenue>"
    assert revenue.spec.tags == ("finance",)


def test_the_bare_decorator_and_the_one_with_options_say_the_same() -> None:
    fs = inline()

    @fs.asset
    def bare() -> int:
        return 1

    @fs.asset()
    def called() -> int:
        return 1

    assert fs.catalog.names == ("shop.bare", "shop.called")


def test_a_coroutine_function_stays_one_to_its_caller() -> None:
    fs = inline()

    @fs.asset
    async def page(ctx: Context) -> str:
        return f"page of {ctx.partition}"

    assert page.spec.is_async
    assert asyncio.run(page(Context.for_test(partition="home"))) == "page of home"


def test_attributes_of_the_function_do_not_touch_those_of_the_asset() -> None:
    fs = inline()

    def orders() -> int:
        return 1

    orders.spec = orders._house = "the function's own"  # type: ignore[attr-defined] # functions take attributes
    assert fs.asset(orders).name == "shop.orders"


def test_two_flowstones_declare_the_same_function_each_for_itself() -> None:
    first, second = inline(namespace="first"), inline(namespace="second")

    @second.asset
    @first.asset
    async def orders() -> int:
        return 1

    assert orders.name == "second.orders"
    assert second.catalog.fetch("orders").is_async
    assert first.catalog.names == ("first.orders",)
    assert second.catalog.names == ("second.orders",)


def test_the_graph_is_drawn_whole_or_for_one_target() -> None:
    fs = inline()
    fs.asset(name="orders")(lambda: 1)
    fs.asset(name="prices")(lambda: 1)
    report = fs.asset(name="report")(lambda orders: orders)
    assert "prices" in fs.graph()
    assert "prices" not in fs.graph(report)
    assert fs.graph(format="mermaid").startswith(("graph", "flowchart"))
    with pytest.raises(InvalidOption, match="Did you mean 'mermaid'"):
        fs.graph(format="mermade")  # type: ignore[arg-type] # a slip of the pen


def test_check_tells_what_does_not_fit_together() -> None:
    fs = inline()
    fs.asset(name="report")(lambda order: order)
    fs.asset(name="orders")(lambda: 1)
    with pytest.raises(UnknownDependency, match="Did you mean 'orders'"):
        fs.check()


def test_an_io_manager_that_is_not_there_is_told_by_check() -> None:
    fs = inline()
    fs.asset(name="orders", io="databse")(lambda: 1)
    with pytest.raises(InvalidOption, match=r"'databse'.*Did you mean 'database'"):
        fs.check()


@pytest.mark.parametrize(
    ("main", "namespace"),
    [
        ("shop", "shop"),
        ("my-shop", "my_shop"),
        ("acme.shop", "acme.shop"),
        ("..acme..shop.", "acme.shop"),
        ("3rd.shop", "_3rd.shop"),
        ("größe", "gr__e"),
        ("!!!", "___"),
        (".", "flowstone"),
        ("", "flowstone"),
        (None, "flowstone"),
    ],
)
def test_a_namespace_is_made_of_whatever_the_app_is_called(main: str | None, namespace: str) -> None:
    fs = FlowStone(Celery(main), mode="inline")
    assert fs.namespace == namespace
    assert fs.asset(name="orders")(lambda: 1).name == f"{namespace}.orders"


@pytest.mark.parametrize("namespace", ["my shop", "a..b", "3d", 7])
def test_a_namespace_that_is_given_is_checked_at_once(namespace: Any) -> None:
    with pytest.raises(InvalidOption, match="names joined by dots"):
        inline(namespace=namespace)
    with pytest.raises(InvalidOption, match="names joined by dots"):
        Pipeline(namespace)


def test_a_mode_that_does_not_exist_is_told_at_once() -> None:
    with pytest.raises(InvalidOption, match="Did you mean 'inline'"):
        FlowStone(mode="in-line")  # type: ignore[arg-type] # a slip of the pen


def test_what_is_no_io_manager_is_told_at_once() -> None:
    class Files:
        name = "files"

    for wrong in (Files(), Files, "files"):
        with pytest.raises(InvalidOption, match="is no IO manager"):
            inline(io=[wrong])


def test_attaching_changes_no_setting_of_the_app() -> None:
    untouched, app = Celery("shop", broker="memory://"), Celery("shop", broker="memory://")
    fs = FlowStone(app)
    fs.asset(name="orders", queue="etl")(lambda: 1)
    keys = [key for key in untouched.conf if key != "tasks"]
    assert {key: app.conf[key] for key in keys} == {key: untouched.conf[key] for key in keys}
    assert "shop.orders" in app.tasks


# --- pipelines ------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("own_process")
def test_a_pipeline_belongs_to_every_flowstone_whichever_came_first() -> None:
    before = inline(namespace="before")
    sales = Pipeline("sales")

    @sales.asset
    def orders() -> int:
        return 1

    after = inline(namespace="after")

    @sales.asset
    def revenue(orders: int) -> int:
        return orders

    for fs in (before, after):
        assert fs.catalog.names == ("sales.orders", "sales.revenue")
        assert fs.catalog.graph().needs("sales.revenue") == ("sales.orders",)
    assert [each.name for each in sales.assets] == ["sales.orders", "sales.revenue"]
    assert revenue(3) == 3


@pytest.mark.usefixtures("own_process")
def test_pipelines_need_each_other_by_qualified_name() -> None:
    fs = inline()
    Pipeline("sales").asset(name="orders")(lambda: 1)
    stock = Pipeline("stock")

    @stock.asset(deps=["sales.orders"])
    def levels(orders: int) -> int:
        return orders

    assert fs.catalog.graph().needs("stock.levels") == ("sales.orders",)


@pytest.mark.usefixtures("own_process")
def test_an_asset_of_a_pipeline_starts_by_itself_only_where_one_flowstone_is() -> None:
    orders = Pipeline("sales").asset(name="orders")(lambda: 1)
    with pytest.raises(DeclarationError, match="there is none"):
        orders.delay()
    houses = inline(), inline()
    with pytest.raises(DeclarationError, match="there are 2"):
        orders.delay()
    assert len(houses) == 2


@pytest.mark.usefixtures("own_process")
def test_a_name_is_taken_once_in_all_pipelines_of_a_process() -> None:
    Pipeline("sales").asset(name="orders")(lambda: 1)
    again = Pipeline("sales")
    with pytest.raises(DuplicateAsset, match=r"'sales\.orders' is declared twice"):
        again.asset(name="orders")(lambda: 2)
    assert again.assets == []
    assert inline().catalog.names == ("sales.orders",)


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(UnknownOption, match="Did you mean 'retries'"):
        inline().asset(name="orders", retrys=3)(lambda: 1)
