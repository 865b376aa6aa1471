"""The catalog: one name, one asset, found again by either of its names."""

from __future__ import annotations

from typing import Any

import pytest

from flowstone_celery.assets.asset import declare
from flowstone_celery.assets.catalog import Catalog
from flowstone_celery.errors import DependencyCycle, DuplicateAsset, UnknownAsset, UnknownDependency


def orders() -> int:
    return 1


def revenue(orders: int) -> int:
    return orders


def looping(revenue: int) -> int:
    return revenue


def catalog_of(*functions: Any, namespace: str = "shop") -> Catalog:
    catalog = Catalog()
    for function in functions:
        catalog.add(declare(function, namespace=namespace))
    return catalog


def test_an_asset_is_found_by_its_short_and_its_qualified_name() -> None:
    catalog = catalog_of(orders)
    spec = declare(revenue, namespace="shop")
    assert catalog.add(spec) is spec
    assert catalog.fetch("revenue") is catalog.fetch("shop.revenue") is spec
    assert catalog.resolve(spec, "orders") == "shop.orders"


def test_a_second_asset_of_one_name_is_refused_with_both_places() -> None:
    catalog = catalog_of(orders)
    with pytest.raises(DuplicateAsset) as caught:
        catalog.add(declare(looping, namespace="shop", name="orders"))
    first = f"assets/test_catalog.py:{orders.__code__.co_firstlineno}"
    second = f"assets/test_catalog.py:{looping.__code__.co_firstlineno}"
    assert caught.value.facts["places"] == [first, second]
    assert f"first at {first}" in str(caught.value)
    assert str(caught.value).endswith(f"({second})")
    assert catalog.fetch("orders").fn is orders


def test_a_short_name_of_several_assets_asks_for_the_qualified_one() -> None:
    catalog = catalog_of(orders)
    theirs = catalog.add(declare(orders, namespace="sales"))
    with pytest.raises(
        UnknownAsset, match=r"stands for several assets\. .*'sales\.orders' or 'shop\.orders'"
    ) as caught:
        catalog.fetch("orders")
    assert caught.value.facts["candidates"] == ["sales.orders", "shop.orders"]
    assert catalog.fetch("sales.orders") is theirs


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("order", "Did you mean 'orders'?"),
        ("shop.order", "Did you mean 'shop.orders'?"),
        ("zzz", "Is the module that declares it imported?"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UnknownAsset) as caught:
        catalog_of(orders, revenue).fetch(name)
    assert str(caught.value) == f"FS-1001 no asset {name!r} is declared. {hint}"


def test_the_list_is_ordered_by_qualified_name() -> None:
    catalog = catalog_of(revenue, orders)
    catalog.add(declare(orders, namespace="sales"))
    assert [spec.qualified for spec in catalog.list()] == ["sales.orders", "shop.orders", "shop.revenue"]


def test_the_graph_is_built_once_until_the_next_asset_is_declared() -> None:
    catalog = catalog_of(revenue)
    before = catalog.graph()
    assert catalog.graph() is before
    with pytest.raises(UnknownDependency, match="asset 'revenue' needs 'orders'"):
        catalog.check()
    catalog.add(declare(orders, namespace="shop"))
    catalog.check()
    assert catalog.graph().order == ("shop.orders", "shop.revenue")


def test_assets_may_be_declared_before_what_they_need_and_a_circle_is_found_by_the_check() -> None:
    catalog = catalog_of(revenue)
    catalog.add(declare(looping, namespace="shop", name="orders"))
    with pytest.raises(DependencyCycle, match=r"shop\.orders -> shop\.revenue -> shop\.orders"):
        catalog.check()
