"""One declaration: what it keeps, and what it refuses where it stands."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest

from flowstone_celery.assets.asset import AssetSpec, Dependency, declare
from flowstone_celery.assets.fingerprint import code_digest
from flowstone_celery.core.retry_policy import RetryPolicy
from flowstone_celery.errors import DeclarationError, DependencyCycle, InvalidOption, UnknownOption


class Context:
    """Stands for the context's type, which is known by its name."""


class Named:
    """Stands for an asset object, which carries its names."""

    name = "prices"
    qualified = "sales.prices"


def revenue(orders: list[dict[str, int]], prices: dict[str, int], rate: float = 1.0) -> float:
    """What the day brought in.

    More about it.
    """
    return sum(order["amount"] * prices["x"] for order in orders) * rate


def plain() -> int:
    return 1


def of(function: Any = plain, **options: Any) -> AssetSpec:
    return declare(function, namespace="shop", **options)


def test_a_bare_function_says_all_that_is_needed() -> None:
    spec = of(revenue)
    assert (spec.name, spec.namespace, spec.qualified) == ("revenue", "shop", "shop.revenue")
    assert spec.dependencies == (Dependency("orders", "orders"), Dependency("prices", "prices"))
    assert spec.deps == ("orders", "prices")
    assert spec.description == "What the day brought in."
    assert (spec.priority, spec.retries, spec.timeout, spec.queue, spec.io) == (0, 0, None, None, "database")
    assert spec.retry == RetryPolicy("exponential", 1.0, 300.0, 0.1)
    assert (spec.context_parameter, spec.is_async, spec.optional_deps, spec.tags) == (None, False, (), ())
    assert spec.place == f"assets/test_asset.py:{revenue.__code__.co_firstlineno}"
    assert spec.fn is revenue


def test_options_are_kept_in_one_form() -> None:
    spec = of(
        revenue,
        name="income",
        optional_deps=["prices"],
        description="Income",
        tags=["b", "a", "b"],
        metadata={"grain": ("day", 1)},
        owner="data",
        queue="etl",
        priority=-3,
        retries=2,
        backoff="linear",
        retry_delay=timedelta(minutes=1),
        retry_cap=90,
        jitter=0,
        timeout=timedelta(seconds=1.5),
        code_version="7",
        io="files",
    )
    assert (spec.qualified, spec.description, spec.tags) == ("shop.income", "Income", ("b", "a"))
    assert spec.metadata == {"grain": ["day", 1]}
    assert (spec.owner, spec.queue, spec.priority, spec.retries) == ("data", "etl", -3, 2)
    assert spec.retry == RetryPolicy("linear", 60.0, 90.0, 0.0)
    assert type(spec.retry.backoff) is str
    assert (spec.timeout, spec.code_version, spec.io) == (1.5, "7", "files")
    assert spec.optional_deps == ("prices",)


def test_an_option_that_is_none_counts_as_not_given() -> None:
    spec = of(revenue, name=None, retries=None, queue=None, deps=None, backoff=None, timeout=None)
    assert dataclasses.asdict(spec) == dataclasses.asdict(of(revenue))


def test_the_usual_cap_gives_way_to_a_longer_delay_and_the_usual_delay_to_a_shorter_cap() -> None:
    assert of(retry_delay=600).retry == RetryPolicy("exponential", 600.0, 600.0, 0.1)
    assert of(retry_cap=0.5).retry == RetryPolicy("exponential", 0.5, 0.5, 0.1)
    with pytest.raises(InvalidOption, match=r"retry_cap \(2 s\) is shorter than retry_delay \(5 s\)"):
        of(retry_delay=5, retry_cap=2)


def by_name(ctx: object, orders: int) -> int:
    return orders


def by_annotation(orders: int, where: Context) -> int:
    return orders


def by_dotted_annotation(orders: int, *, where: flowstone.Context) -> int:  # type: ignore[name-defined]  # noqa: F821 - never evaluated
    return orders


def by_quoted_annotation(orders: int, where: "Context") -> int:  # noqa: UP037 - users write it so
    return orders


@pytest.mark.parametrize(
    ("function", "parameter"),
    [
        (by_name, "ctx"),
        (by_annotation, "where"),
        (by_dotted_annotation, "where"),
        (by_quoted_annotation, "where"),
    ],
)
def test_the_context_is_no_dependency(function: Any, parameter: str) -> None:
    assert of(function).context_parameter == parameter
    assert of(function).deps == ("orders",)


def test_a_listed_dependency_is_passed_only_where_a_parameter_takes_it() -> None:
    def report(orders: int, stock: int = 0, rate: int = 1) -> int:
        return orders + stock + rate

    spec = of(
        report, deps=["cleaned", "stock", "sales.orders", Named()], optional_deps=["orders", "sales.prices"]
    )
    assert spec.dependencies == (
        Dependency("sales.orders", "orders", optional=True),
        Dependency("stock", "stock"),
        Dependency("cleaned"),
        Dependency("sales.prices", optional=True),
    )
    assert spec.passed == {"orders": "sales.orders", "stock": "stock"}


def test_an_asset_of_the_same_namespace_has_one_name_however_it_is_listed() -> None:
    def report(orders: int) -> int:
        return orders

    spec = of(report, deps=["shop.orders", "stock", "shop.stock"], optional_deps=["shop.stock"])
    assert spec.dependencies == (Dependency("orders", "orders"), Dependency("stock", optional=True))
    assert of(report, deps=["shop.eu.orders"]).deps == ("shop.eu.orders",)


def test_an_optional_dependency_may_be_given_as_the_asset_itself() -> None:
    def report(prices: int) -> int:
        return prices

    assert of(report, optional_deps=[Named()]).dependencies == (
        Dependency("prices", "prices", optional=True),
    )


def test_async_functions_and_other_callables_are_told_apart() -> None:
    async def fetch(url: str) -> str:
        return url

    class Caller:
        def __call__(self, orders: int) -> int:
            return orders

    class AsyncCaller:
        async def __call__(self, orders: int) -> int:
            return orders

    assert of(fetch).is_async
    assert of(functools.partial(fetch), name="fetched").is_async
    assert of(AsyncCaller(), name="called").is_async
    spec = of(Caller(), name="called")
    assert (spec.deps, spec.is_async, spec.description) == (("orders",), False, "")
    assert of(functools.partial(revenue, rate=2), name="partly").description == "What the day brought in."
    assert of(lambda orders: orders, name="short").deps == ("orders",)


def positional_only(orders: int, /) -> int:
    return orders


def star(*orders: int) -> int:
    return len(orders)


def stars(**orders: int) -> int:
    return len(orders)


def method(self: object, orders: int) -> int:
    return orders


def generator() -> Any:
    yield 1


async def async_generator() -> Any:
    yield 1


def two_contexts(ctx: object, where: Context) -> None: ...


def größe() -> int:  # noqa: PLC2401 - the name under test
    return 1


def accented(größe: int) -> int:  # noqa: PLC2401 - the name under test
    return größe


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (Context, "the class 'Context' cannot be an asset"),
        ("orders", "str 'orders' cannot be an asset"),
        (generator, r"generator function 'generator'.*Return a list"),
        (async_generator, r"generator function 'async_generator'.*Return a list"),
        (functools.partial(generator), "Return a list"),
        (lambda: 1, r"name from '<lambda>'.*name="),
        (functools.partial(plain), r"name from 'partial'.*name="),
        (größe, "name from 'größe'"),
        (accented, "parameter 'größe' cannot be the name of an asset"),
        (positional_only, r"'positional_only': parameter 'orders' is positional-only.*Remove the /"),
        (star, r"'star': \*orders names no dependency"),
        (stars, r"'stars': \*\*orders names no dependency"),
        (method, r"'method': parameter 'self' says that this is a method"),
        (two_contexts, "'ctx' and 'where' both take the context"),
        (iter, "does not tell its parameters"),
    ],
)
def test_a_function_that_cannot_make_an_asset_is_refused(function: Any, words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        of(function)


def test_an_asset_that_needs_itself_is_refused_with_the_path() -> None:
    def orders(orders: int) -> int:
        return orders

    with pytest.raises(DependencyCycle) as caught:
        of(orders)
    assert caught.value.facts["path"] == ["orders", "orders"]
    with pytest.raises(DependencyCycle):
        of(deps=["shop.plain"])
    assert of(deps=["sales.plain"]).deps == ("sales.plain",)


@pytest.mark.parametrize(
    ("option", "hint"),
    [("retrys", "Did you mean 'retries'"), ("Queue", "Did you mean 'queue'"), ("zzz", "Options: name, deps")],
)
def test_an_unknown_option_is_told_with_the_nearest(option: str, hint: str) -> None:
    with pytest.raises(UnknownOption) as caught:
        of(**{option: 1})
    assert str(caught.value).startswith(f"FS-1005 asset 'plain' has no option {option!r}. {hint}")
    assert str(caught.value).endswith(f"(assets/test_asset.py:{plain.__code__.co_firstlineno})")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "two words"}, "name is a name of letters"),
        ({"name": "x" * 129}, "name is a name of letters"),
        ({"name": "x\n"}, "name is a name of letters"),
        (
            {"deps": "orders"},
            r"deps is a list of asset names or assets, not 'orders'. Write for example deps=\[\"orders\"\]",
        ),
        ({"deps": ["a b"]}, "deps is a list"),
        ({"deps": [plain]}, "deps is a list"),
        ({"deps": ["a..b"]}, "deps is a list"),
        (
            {"optional_deps": ["order"], "deps": ["orders"]},
            "names 'order', which is not one .* Did you mean 'orders'",
        ),
        ({"optional_deps": ["a.orders"], "deps": ["b.orders"]}, "names 'a.orders', which is not one"),
        ({"optional_deps": ["x"]}, "It needs nothing"),
        ({"tags": "etl"}, r"tags is a list of texts, not 'etl'"),
        ({"tags": [""]}, "tags is a list"),
        ({"metadata": [1]}, "metadata is a dict"),
        (
            {"metadata": {"when": timedelta(1)}},
            r"metadata cannot be stored: \$\.when is of type datetime.timedelta",
        ),
        ({"owner": 7}, "owner is text"),
        ({"queue": ""}, "queue is text"),
        ({"queue": " etl"}, "queue is text"),
        ({"queue": "a\x00"}, "queue is text"),
        ({"queue": "\ud800"}, "queue is text"),
        ({"queue": "q" * 256}, "queue is text"),
        ({"priority": "high"}, "priority is a whole number"),
        ({"priority": 2**31}, "priority is a whole number"),
        ({"retries": -1}, "retries is a whole number of attempts after the first"),
        ({"retries": True}, "retries is a whole number"),
        ({"retries": 1.0}, "retries is a whole number"),
        (
            {"backoff": "exponental"},
            "backoff is one of fixed, linear, exponential, .*Did you mean 'exponential'",
        ),
        ({"backoff": 2}, "backoff is one of"),
        ({"retry_delay": -1}, "retry_delay is a number of seconds"),
        ({"retry_delay": float("nan")}, "retry_delay is a number of seconds"),
        ({"retry_cap": 1e300}, "retry_cap is a number of seconds"),
        ({"jitter": 1.1}, "jitter is a number from 0 to 1"),
        ({"jitter": True}, "jitter is a number from 0 to 1"),
        ({"timeout": 0}, "timeout is a number of seconds above 0"),
        ({"timeout": "60"}, "timeout is a number of seconds above 0"),
        ({"timeout": timedelta(seconds=-1)}, "timeout is a number of seconds above 0"),
        ({"code_version": 2}, "code_version is text"),
        ({"io": 3}, "io is the name of an IO manager"),
        ({"description": 3}, "description is text"),
    ],
)
def test_a_wrong_value_is_refused_with_what_it_may_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidOption, match=words) as caught:
        of(**options)
    assert "plain" in str(caught.value) or "name" in options
    assert str(caught.value).endswith(f"(assets/test_asset.py:{plain.__code__.co_firstlineno})")


def test_a_parameter_that_could_take_two_dependencies_is_refused() -> None:
    with pytest.raises(InvalidOption, match=r"'orders' could take 'a\.orders' or 'b\.orders'"):
        of(revenue, deps=["a.orders", "b.orders"])


@pytest.mark.parametrize("namespace", ["", "a b", "a-b", ".a", None])
def test_a_namespace_is_names_joined_by_dots(namespace: Any) -> None:
    with pytest.raises(InvalidOption, match="namespace"):
        declare(plain, namespace=namespace)
    assert declare(plain, namespace="shop.sales").qualified == "shop.sales.plain"


CODE = """
def f(a, rate={rate}):
    "Doc."
    {comment}
    return [x * rate for x in a if x in {{"red", "green", "blue", {member}}}]
"""


def loaded(rate: str = "1", comment: str = "", member: str = "'x'", before: str = "") -> Any:
    scope: dict[str, Any] = {}
    exec(before + CODE.format(rate=rate, comment=comment, member=member), scope)
    return scope["f"]


def test_the_digest_follows_what_the_code_does_and_not_how_it_is_laid_out() -> None:
    digest = code_digest(loaded())
    assert code_digest(loaded(comment="# why", before="\n\n\n")) == digest
    assert len({digest, code_digest(loaded(rate="2")), code_digest(loaded(member="'y'"))}) == 3


def test_the_digest_of_a_partial_knows_its_arguments() -> None:
    assert code_digest(functools.partial(plain, 1)) == code_digest(functools.partial(plain, 1))
    assert code_digest(functools.partial(plain, 1)) != code_digest(functools.partial(plain, 2))


def test_the_digest_is_the_same_in_every_process() -> None:
    program = f"""
from flowstone_celery.assets.fingerprint import code_digest
scope = {{}}
exec({CODE.format(rate="1", comment="", member="'x'")!r}, scope)
print(code_digest(scope["f"]))
"""
    answers = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert answers == {code_digest(loaded()) + "\n"}
