"""A resource's declaration: what it keeps, and what it refuses where it stands."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone_celery.assets.asset import Dependency, declare
from flowstone_celery.assets.catalog import Catalog
from flowstone_celery.assets.fingerprint import code_digest
from flowstone_celery.assets.resource import ResourceSpec, declare_resource
from flowstone_celery.assets.resource_book import ResourceBook
from flowstone_celery.errors import (
    DeclarationError,
    DependencyCycle,
    DuplicateResource,
    InvalidOption,
    UnknownOption,
    UnknownResource,
)


def warehouse(secrets: str, region: str = "eu") -> Iterator[str]:
    """Where the orders are.

    More about it.
    """
    yield f"{secrets} {region}"


def named(name: str, *requires: str) -> ResourceSpec:
    return declare_resource(lambda: name, name=name, requires=requires)


def test_a_bare_function_says_all_that_is_needed() -> None:
    spec = declare_resource(warehouse)
    assert (spec.name, spec.requires, spec.description) == (
        "warehouse",
        ("secrets",),
        "Where the orders are.",
    )
    assert (spec.timeout, spec.health_every, spec.retry_after) == (30, 30, 0.5)
    assert spec.place == f"assets/test_resource_declared.py:{warehouse.__code__.co_firstlineno}"


def test_a_parameter_with_a_default_takes_a_resource_that_is_listed() -> None:
    assert declare_resource(warehouse, requires=["region", "vpn"]).requires == ("secrets", "region", "vpn")


@pytest.mark.parametrize(
    ("written", "name"),
    [("Warehouse", "warehouse"), ("HTTPClient", "http_client"), ("S3Bucket", "s3_bucket")],
)
def test_a_class_gives_its_name_in_small_letters(written: str, name: str) -> None:
    kind = type(written, (), {"setup": lambda self: None})
    assert declare_resource(kind).name == name


class Looked:
    def set_up(self) -> None: ...


class Asynchronous:
    async def __aenter__(self) -> None: ...
    async def __aexit__(self, *error: object) -> None: ...


class AsyncSetup:
    async def setup(self) -> None: ...


class AsyncTeardown:
    def setup(self) -> None: ...
    async def teardown(self) -> None: ...


class Demanding:
    def setup(self, config: dict[str, str]) -> None: ...


class Checked:
    def setup(self) -> None: ...
    def health_check(self) -> bool:
        return True


async def coroutine() -> None: ...


async def stream() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (coroutine, "set-up is async"),
        (stream, "set-up is async"),
        (Asynchronous, "async context manager"),
        (Asynchronous(), "async context manager"),
        (AsyncSetup, "setup is async"),
        (AsyncTeardown, "teardown is async"),
        (Demanding, "setup must take nothing"),
        (Looked, "Is 'set_up' meant to be its 'setup'?"),
        (object(), "cannot be set up"),
        (3, "cannot be set up"),
        ("postgresql://", "cannot be set up"),
        (lambda *all_of_them: 1, "cannot take a resource by its name"),
        (lambda **more: 1, "cannot take a resource by its name"),
        (lambda one, /: 1, "cannot take a resource by its name"),
        (lambda: 1, "no name that a resource can have"),
        (Checked(), "no name that a resource can have"),
    ],
)
def test_what_cannot_be_a_resource_is_told_where_it_stands(made: Any, says: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        declare_resource(made)
    assert says in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"timeout": -1}, "timeout is a number of seconds"),
        ({"timeout": "30s"}, "timeout is a number of seconds"),
        ({"timeout": float("nan")}, "timeout is a number of seconds"),
        ({"health": 3}, "health is a plain function of the value"),
        ({"health": lambda: True}, "health is a plain function of the value"),
        ({"health": coroutine}, "health is a plain function of the value"),
        ({"retry_after": True}, "retry_after is a number of seconds"),
        ({"requires": "secrets"}, "requires is a list of names"),
        ({"requires": [warehouse]}, "requires is a list of names"),
        ({"name": "ware house"}, "name is a name of letters"),
        ({"health_every": 5}, "there is nothing to check"),
    ],
)
def test_an_option_that_cannot_be_is_told_where_it_stands(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        declare_resource(lambda: 1, **{"name": "x", **options})
    assert says in str(caught.value)


def test_one_way_to_check_is_enough() -> None:
    with pytest.raises(InvalidOption, match="Keep one of them"):
        declare_resource(Checked, health=lambda value: True)


def test_an_unknown_option_suggests_the_nearest() -> None:
    with pytest.raises(UnknownOption, match="Did you mean 'retry_after'"):
        declare_resource(warehouse, retryafter=3)


# --- the book -------------------------------------------------------------------------------------------------------------------


def test_a_name_that_is_taken_names_both_places() -> None:
    book = ResourceBook()
    first = book.add(declare_resource(warehouse))
    with pytest.raises(DuplicateResource) as caught:
        book.add(declare_resource(lambda: 1, name="warehouse"))
    assert first.place in str(caught.value)
    assert book.fetch("warehouse") is first


def test_a_circle_is_told_with_its_path_by_the_declaration_that_closes_it() -> None:
    book = ResourceBook()
    book.add(named("a", "b"))
    book.add(named("b", "c"))
    with pytest.raises(DependencyCycle) as caught:
        book.add(named("c", "a"))
    assert caught.value.facts["path"] == ["c", "a", "b", "c"]
    book.add(named("c"))
    book.check()


def test_what_requires_itself_is_told() -> None:
    with pytest.raises(DependencyCycle, match="requires itself"):
        named("a", "a")


@given(st.data())
def test_a_circle_is_found_wherever_it_is_and_its_path_is_one(data: st.DataObject) -> None:
    names = [f"r{n}" for n in range(data.draw(st.integers(2, 8)))]
    needs = {name: data.draw(st.lists(st.sampled_from(names), unique=True, max_size=3)) for name in names}
    needs = {name: [each for each in some if each != name] for name, some in needs.items()}
    book, added = ResourceBook(), []
    for name in names:
        try:
            book.add(named(name, *needs[name]))
            added.append(name)
        except DependencyCycle as error:
            path = error.facts["path"]
            assert path[0] == path[-1] == name
            assert all(need in needs[by] for by, need in pairwise(path))
            assert set(path) <= {*added, name}
    for name in added:
        known = [each for each in added if set(needs[each]) <= set(added)]
        if name in known and all(set(needs[each]) <= set(added) for each in added):
            order = [spec.name for spec in book.order([name])]
            assert all(order.index(need) < order.index(by) for by in order for need in needs[by])


def test_an_unknown_requirement_names_who_requires_it_and_the_nearest() -> None:
    book = ResourceBook()
    book.add(named("warehouse", "secret"))
    book.add(named("secrets"))
    with pytest.raises(UnknownResource) as caught:
        book.check()
    assert "resource 'warehouse' requires the resource 'secret', which is not declared" in str(caught.value)
    assert "Did you mean 'secrets'?" in str(caught.value)


# --- assets ---------------------------------------------------------------------------------------------------------------------


def revenue(orders: list[int], warehouse: str, scale: float = 1.0) -> float:
    return sum(orders) * scale


def test_a_parameter_that_is_listed_in_requires_takes_the_resource() -> None:
    spec = declare(revenue, namespace="shop", requires=["warehouse", "scale", "mail"])
    assert spec.requires == ("warehouse", "scale", "mail")
    assert spec.resource_parameters == ("warehouse", "scale")
    assert spec.dependencies == (Dependency("orders", "orders"),)


def test_what_an_asset_requires_is_not_in_the_digest_of_its_code() -> None:
    specs = [declare(revenue, namespace="shop", requires=some) for some in ((), ["warehouse"])]
    assert {spec.code_digest for spec in specs} == {code_digest(revenue)}


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (revenue, {"requires": ["orders"], "deps": ["orders"]}),
        (lambda ctx: 1, {"requires": ["ctx"], "name": "x"}),
    ],
)
def test_a_parameter_that_could_take_two_things_is_refused(function: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match="Keep one of them"):
        declare(function, namespace="shop", **options)


def test_an_asset_that_requires_what_is_not_declared_is_told_by_check() -> None:
    catalog = Catalog()
    catalog.add(declare(lambda: 1, name="orders", namespace="shop", requires=["warehous"]))
    catalog.resources.add(named("warehouse"))
    with pytest.raises(UnknownResource) as caught:
        catalog.check()
    assert "asset 'shop.orders' requires the resource 'warehous'" in str(caught.value)
    assert "Did you mean 'warehouse'?" in str(caught.value)
