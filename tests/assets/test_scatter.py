"""What a scatter may be told, and what is refused where it stands."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from flowstone_celery import Batch, Context, FlowStone, Gathered, Pipeline, Scatter
from flowstone_celery.assets import declared
from flowstone_celery.assets.asset import AssetSpec, declare
from flowstone_celery.errors import (
    DeclarationError,
    DependencyCycle,
    FlowStoneError,
    InvalidOption,
    UnknownDependency,
    UnknownOption,
)


def of(function: Any, *, scatter: Any = None, **options: Any) -> AssetSpec:
    return declare(function, namespace="shop", name="pages", scatter=scatter or Scatter("urls"), **options)


@pytest.fixture
def fs(monkeypatch: pytest.MonkeyPatch) -> FlowStone:
    """A house that opens no service."""
    monkeypatch.setattr(declared, "_pipelines", [])
    monkeypatch.setattr(declared, "_houses", type(declared._houses)())
    return FlowStone(namespace="shop", mode="inline")


# --- options ----------------------------------------------------------------------------------------------------------------------


def test_a_bare_scatter_lets_nothing_fail_and_tries_three_times() -> None:
    found = Scatter("urls")
    assert (found.over, found.failure_mode, found.failure_threshold) == ("urls", "all_or_nothing", 0.0)
    assert (found.max_attempts, found.retry_strategy, found.dispatch, found.unique) == (
        3,
        "individual",
        "auto",
        True,
    )
    assert (found.max_concurrent, found.timeout, found.queue, found.priority, found.rate_limit) == (None,) * 5


@pytest.mark.parametrize(
    ("given", "part"), [(0.02, 0.02), ("2%", 0.02), ("2.5 %", 0.025), (1, 1.0), ("100%", 1.0)]
)
def test_a_threshold_is_a_part_or_a_percentage_and_means_partial(given: Any, part: float) -> None:
    found = Scatter("urls", failure_threshold=given)
    assert found.failure_threshold == pytest.approx(part)
    assert found.failure_mode == "partial"


def test_a_threshold_of_nothing_leaves_the_mode_alone() -> None:
    assert Scatter("urls", failure_threshold=0).failure_mode == "all_or_nothing"
    assert Scatter("urls", failure_threshold=0, failure_mode="partial").failure_mode == "partial"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"failure_threshold": 0.1, "failure_mode": "all_or_nothing"},
            "no item may fail, but failure_threshold is 0.1",
        ),
        ({"failure_threshold": "two"}, 'a number from 0 to 1, or a text such as "2%"'),
        ({"failure_threshold": "120%"}, "failure_threshold is a number from 0 to 1"),
        ({"failure_threshold": 2}, "failure_threshold is a number from 0 to 1"),
        ({"failure_threshold": -0.1}, "failure_threshold is a number from 0 to 1"),
        ({"failure_mode": "partail"}, "Did you mean 'partial'?"),
        ({"retry_strategy": "indivdual"}, "Did you mean 'individual'?"),
        ({"dispatch": "items"}, "Did you mean 'item'?"),
        ({"backoff": "exponentail"}, "Did you mean 'exponential'?"),
        ({"max_concurrent": 0}, "max_concurrent is a whole number from 1 up, not 0"),
        ({"max_attempts": 2.5}, "max_attempts is a whole number"),
        ({"timeout": 0}, "timeout is a number of seconds above 0"),
        ({"retry_delay": 10, "retry_cap": 5}, "retry_cap (5 s) is shorter than retry_delay (10 s)"),
        ({"rate_limit": "10/s"}, 'Write for example rate_limit="10/second".'),
        ({"rate_limit": "0/second"}, "rate_limit is a number for each second"),
        ({"batch": 0}, "size is a whole number from 1 up"),
        ({"batch": "50"}, "batch is a Batch(…), or the number of elements in one"),
        ({"unique": 1}, "unique is True or False"),
        ({"over": 7}, "over is the name of a dependency, or an asset"),
        ({"queue": " etl"}, "queue is text"),
    ],
)
def test_a_value_that_an_option_cannot_have_is_told_with_what_it_may_be(
    options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidOption) as caught:
        Scatter(**{"over": "urls", **options})
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("slip", "meant"),
    [("max_concurent", "max_concurrent"), ("treshold", "failure_threshold"), ("retries", "retry_delay")],
)
def test_an_unknown_option_is_told(slip: str, meant: str) -> None:
    with pytest.raises(UnknownOption, match=f"Scatter has no option '{slip}'") as caught:
        Scatter("urls", **{slip: 1})
    assert meant in str(caught.value)


def test_options_are_kept_in_one_form() -> None:
    found = Scatter(
        "urls",
        timeout=timedelta(minutes=1),
        batch=50,
        rate_limit="10/second",
        retry_delay=timedelta(seconds=2),
    )
    assert (found.timeout, found.retry_delay, found.rate_limit) == (60.0, 2.0, "10/second")
    assert found.batch is not None
    assert found.batch.size == 50


def test_only_a_scatter_is_a_scatter() -> None:
    for wrong in (True, "urls", Scatter):
        with pytest.raises(InvalidOption, match=r"scatter is a Scatter\(…\)"):
            of(lambda item: item, scatter=wrong)


# --- the function of the items ------------------------------------------------------------------------------------------------------


def test_the_item_is_a_parameter_and_everything_else_a_dependency() -> None:
    def pages(item: str, ctx: Context, rates: dict[str, int]) -> None: ...

    spec = of(pages)
    assert spec.deps == ("rates", "urls")
    assert spec.scatter is not None
    assert (spec.scatter.item.subject, spec.scatter.item.takes) == ("item", {"rates"})
    assert (spec.scatter.over, spec.context_parameter) == ("urls", "ctx")


def test_what_is_scattered_over_may_be_taken_as_a_whole_too() -> None:
    spec = of(lambda item, urls: (item, urls))
    assert spec.deps == ("urls",)
    assert spec.passed == {"urls": "urls"}


def test_over_takes_an_asset_and_a_dotted_name() -> None:
    class Named:
        name = qualified = "shop.urls"

    assert of(lambda item: item, scatter=Scatter(Named())).deps == ("urls",)
    assert of(lambda item: item, scatter=Scatter("sales.urls")).deps == ("sales.urls",)


def test_an_asset_without_scatter_takes_a_dependency_of_that_name() -> None:
    assert declare(lambda item: item, namespace="shop", name="pages").deps == ("item",)


@pytest.mark.parametrize(
    ("function", "scatter", "sentence"),
    [
        (lambda: 1, Scatter("urls"), "takes neither `item` nor the context"),
        (lambda rates: 1, Scatter("urls"), "takes neither `item` nor the context"),
        (lambda items: 1, Scatter("urls"), "takes 'items', but its scatter has no batches"),
        (lambda item, items: 1, Scatter("urls", batch=2), "takes both 'item' and 'items'"),
        (
            lambda items: 1,
            Scatter("urls", batch=Batch(on_item_error="collect_errors")),
            "not called once for each",
        ),
        (lambda item: 1, Scatter("urls", width=4), "width is for"),
    ],
)
def test_a_function_that_cannot_make_items_is_refused(function: Any, scatter: Scatter, sentence: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        of(function, scatter=scatter)
    assert sentence in str(caught.value)
    assert "asset 'pages'" in str(caught.value)
    assert "test_scatter.py" in str(caught.value)


# --- keys and gather ----------------------------------------------------------------------------------------------------------------


def test_keys_and_gather_bring_dependencies_of_their_own(fs: FlowStone) -> None:
    for name in ("links", "rates", "titles"):
        fs.asset(name=name)(lambda: 1)

    @fs.asset(scatter=Scatter())
    def pages(item: str, rates: int) -> str:
        return item * rates

    @pages.keys
    def of_links(links: list[str], limit: int = 10) -> list[str]:
        return links[:limit]

    @pages.gather
    def joined(gathered: Gathered[str], titles: int) -> list[str]:
        return [*gathered, str(titles)]

    assert fs.catalog.fetch("pages").deps == ("rates", "links", "titles")
    assert pages.spec is fs.catalog.fetch("pages")
    assert fs.catalog.graph().needs("shop.pages") == ("shop.rates", "shop.links", "shop.titles")
    scatter = pages.spec.scatter
    assert scatter is not None
    assert scatter.keys is not None
    assert scatter.gather is not None
    assert (scatter.item.takes, scatter.keys.takes, scatter.gather.takes) == (
        {"rates"},
        {"links"},
        {"titles"},
    )


def test_each_of_the_functions_is_called_directly_in_a_unit_test(fs: FlowStone) -> None:
    @fs.asset(scatter=Scatter())
    def pages(item: str, ctx: Context) -> str:
        return f"{item}:{ctx.key}"

    @pages.keys
    def names(links: list[str]) -> Iterator[str]:
        yield from links

    @pages.gather
    def joined(gathered: Gathered[str]) -> dict[str, Any]:
        return {"pages": list(gathered), "failed": [each.key for each in gathered.failed]}

    assert pages("a", ctx=Context.for_test(key="a")) == "a:a"
    assert list(names(["a", "b"])) == ["a", "b"]
    found = joined(Gathered.for_test({"a": "A", "b": "B"}, failed={"c": "away"}))
    assert found == {"pages": ["A", "B"], "failed": ["c"]}


@pytest.mark.parametrize(
    ("fold", "taken"),
    [
        (lambda gathered, rates: 1, "gathered"),
        (lambda results: 1, "results"),
        (lambda ctx, results: 1, "results"),
        (lambda rates, gathered: 1, "gathered"),
        (lambda warehouse, results: 1, "results"),
    ],
)
def test_a_fold_takes_what_was_gathered_by_name_or_else_first(fs: FlowStone, fold: Any, taken: str) -> None:
    pages = fs.asset(name="pages", scatter=Scatter("urls"), requires=["warehouse"])(lambda item: item)
    pages.gather(fold)
    scatter = pages.spec.scatter
    assert scatter is not None
    assert scatter.gather is not None
    assert scatter.gather.subject == taken


def test_a_fold_takes_what_was_gathered_by_its_type(fs: FlowStone) -> None:
    pages = fs.asset(name="pages", scatter=Scatter("urls"))(lambda item: item)

    @pages.gather
    def fold(rates: int, results: Gathered[int]) -> int:
        return rates

    scatter = pages.spec.scatter
    assert scatter is not None
    assert scatter.gather is not None
    assert (scatter.gather.subject, scatter.gather.takes) == ("results", {"rates"})


async def _later(urls: Any) -> list[str]:
    return []


def _yielding(gathered: Any) -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("scatter", "what", "function", "sentence"),
    [
        (None, "keys", lambda urls: urls, "it has no scatter, so there is nothing to name"),
        (None, "gather", lambda found: 1, "it has no scatter, so there is nothing to gather"),
        (Scatter("urls"), "keys", lambda urls: urls, "its items are the elements of 'urls' (over=)"),
        (Scatter(), "keys", _later, "its `keys` is async"),
        (Scatter(), "keys", 7, "its `keys` is 7, not a function"),
        (Scatter(), "keys", lambda *urls: urls, "*urls names no dependency"),
        (Scatter("urls"), "gather", _later, "its `gather` is async"),
        (Scatter("urls"), "gather", _yielding, "its `gather` is a generator function"),
        (Scatter("urls"), "gather", lambda: 1, "its `gather` takes nothing"),
        (Scatter("urls"), "gather", lambda ctx: 1, "its `gather` takes nothing"),
        (Scatter("urls"), "gather", lambda found, pages: 1, "it needs itself"),
    ],
)
def test_what_cannot_name_or_fold_items_is_refused(
    fs: FlowStone, scatter: Scatter | None, what: str, function: Any, sentence: str
) -> None:
    pages = fs.asset(name="pages", scatter=scatter)(lambda item: item)
    with pytest.raises(FlowStoneError) as caught:
        getattr(pages, what)(function)
    assert isinstance(caught.value, DeclarationError)
    assert sentence in str(caught.value)


def test_a_second_one_is_refused_with_the_place_of_the_first(fs: FlowStone) -> None:
    pages = fs.asset(name="pages", scatter=Scatter())(lambda item: item)
    for what in ("keys", "gather"):
        getattr(pages, what)(lambda found: found)
        with pytest.raises(
            DeclarationError, match=rf"`{what}` is declared twice, first at assets/test_scatter\.py"
        ):
            getattr(pages, what)(lambda found: found)


def test_a_scatter_that_nothing_tells_its_items_is_told_before_it_runs(fs: FlowStone) -> None:
    fs.asset(name="pages", scatter=Scatter())(lambda item: item)
    with pytest.raises(DeclarationError, match="nothing tells which items it scatters into"):
        fs.check()


def test_a_manager_for_a_fold_that_is_not_there_is_told_before_it_runs(fs: FlowStone) -> None:
    pages = fs.asset(name="pages", scatter=Scatter(), io="memory")(lambda item: item)
    pages.keys(lambda: ["a"])
    with pytest.raises(
        InvalidOption, match="io='memory' would keep what a fold makes, and its scatter has none"
    ):
        fs.check()
    pages.gather(lambda gathered: 1)
    fs.check()


def test_a_misspelt_dependency_is_told_with_the_nearest(fs: FlowStone) -> None:
    fs.asset(name="urls")(lambda: ["a"])
    fs.asset(name="pages", scatter=Scatter("ulrs"))(lambda item: item)
    with pytest.raises(UnknownDependency, match=r"needs 'ulrs', which is not defined\. Did you mean 'urls'"):
        fs.check()


def test_a_circle_through_keys_is_told(fs: FlowStone) -> None:
    pages = fs.asset(name="pages", scatter=Scatter())(lambda item: item)
    fs.asset(name="links")(lambda pages: pages)
    pages.keys(lambda links: links)
    with pytest.raises(DependencyCycle):
        fs.check()


def test_a_pipelines_scatter_is_complete_in_every_house(fs: FlowStone) -> None:
    shared = Pipeline("crawl")
    pages = shared.asset(name="pages", scatter=Scatter())(lambda item: item)
    pages.keys(lambda: ["a"])
    later = FlowStone(namespace="later", mode="inline")
    for house in (fs, later):
        assert house.catalog.fetch("crawl.pages") is pages.spec
        house.check()


# --- code -------------------------------------------------------------------------------------------------------------------------


def test_a_change_of_any_of_its_functions_is_a_change_of_its_code(fs: FlowStone) -> None:
    def item(item: str) -> str:
        return item

    def digest(keys: Any = lambda: ["a"], gather: Any = None, batch: Batch | None = None) -> str:
        pages = declared.Asset(
            item, declare(item, namespace="shop", scatter=Scatter(batch=batch)), lambda: fs
        )
        pages.keys(keys)
        if gather:
            pages.gather(gather)
        return pages.spec.code_digest

    found = [
        digest(),
        digest(keys=lambda: ["b"]),
        digest(gather=lambda gathered: 1),
        digest(gather=lambda gathered: 2),
        digest(batch=Batch(group_by="host")),
        digest(batch=Batch(group_by="day")),
        digest(batch=Batch(group_by="day", max_items_per_group=5)),
        digest(batch=Batch(size=5)),
        digest(batch=Batch(size=5, batch_input={"model": "small"})),
        digest(batch=Batch(size=5, batch_input={"model": "large"})),
    ]
    assert len(set(found)) == len(found)
    assert digest() == found[0]


def test_an_async_item_is_awaited_by_hands_and_not_by_its_step(fs: FlowStone) -> None:
    async def page(item: str) -> str:
        return item

    fs.asset(name="pages", scatter=Scatter("urls", width=5))(page)
    assert fs.catalog.fetch("pages").is_async
    assert fs.catalog.awaiting == ()
