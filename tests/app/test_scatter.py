"""Assets that scatter: their items are told, each is made, and what they came to is gathered."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from flowstone_celery import All, Context, FlowStone, Gathered, Scatter, Skip, Static, Value
from flowstone_celery.errors import RunFailed, ValueNotFound

if TYPE_CHECKING:
    from flowstone_celery.testing.kit import TestKit

URLS = [f"/{number}" for number in range(40)]


def urls(fs: FlowStone, found: Any = URLS) -> None:
    fs.asset(name="urls")(lambda: found)


# --- over a dependency --------------------------------------------------------------------------------------------------------------


def test_each_element_of_a_dependency_is_an_item_and_the_fold_makes_the_value(fs: FlowStone) -> None:
    urls(fs)
    fs.asset(name="prefix")(lambda: "page ")

    @fs.asset(scatter=Scatter(over="urls"))
    def pages(item: str, prefix: str, ctx: Context) -> str:
        assert ctx.key == item
        assert ctx.index == URLS.index(item)
        return prefix + item

    @pages.gather
    def joined(gathered: Gathered[str], prefix: str) -> list[str]:
        assert prefix == "page "
        return list(gathered)

    run = fs.run(pages)
    assert run.get() == [f"page {url}" for url in URLS]
    assert run.state == "succeeded"
    assert fs.get(pages) == run.get()


def test_without_a_fold_downstream_takes_what_was_gathered(fs: FlowStone) -> None:
    urls(fs)
    fs.asset(name="pages", scatter=Scatter(over="urls"))(lambda item: len(item))  # noqa: PLW0108 - a parameter is called item

    @fs.asset
    def total(pages: Gathered[int]) -> dict[str, Any]:
        return {"sum": sum(pages), "count": len(pages), "keys": list(pages.keys())}

    found = fs.run(total).get()
    assert found == {"sum": sum(map(len, URLS)), "count": len(URLS), "keys": URLS}
    value = fs.get("pages")
    assert isinstance(value, Gathered)
    assert list(value.items()) == [(url, len(url)) for url in URLS]
    assert (value.counts.total, value.counts.succeeded, value.counts.failed) == (40, 40, 0)
    assert not value.failed


def test_what_was_gathered_is_no_value_of_another_asset_and_the_way_out_is_told(fs: FlowStone) -> None:
    urls(fs)
    fs.asset(name="pages", scatter=Scatter(over="urls"))(lambda item: item)
    fs.asset(name="passed")(lambda pages: pages)
    run = fs.run("passed")
    assert run.state == "failed"
    assert "Gathered" in run.row["error"]["message"]
    assert run.row["error"]["hint"].startswith("Return list(value)")


def test_what_was_gathered_is_scattered_over_again(fs: FlowStone) -> None:
    urls(fs, ["a", "bb"])
    fs.asset(name="pages", scatter=Scatter(over="urls"))(lambda item: {"links": [item * 2, item * 3]})
    links = fs.asset(name="links", scatter=Scatter())(lambda item: item.upper())

    @links.keys
    def of_pages(pages: Gathered[dict[str, list[str]]]) -> Iterator[str]:
        for page in pages:
            yield from page["links"]

    shouted = fs.asset(name="shouted", scatter=Scatter(over="links"))(lambda item: f"{item}!")
    shouted.gather(lambda gathered: " ".join(gathered))  # noqa: PLW0108 - a builtin takes nothing by name
    assert fs.run(shouted).get() == "AA! AAA! BBBB! BBBBBB!"


def test_several_assets_scatter_in_one_run(fs: FlowStone) -> None:
    urls(fs)
    for name in ("pages", "sizes", "hosts"):
        fs.asset(name=name, scatter=Scatter(over="urls"))(lambda item, ctx: f"{ctx.asset}{item}")

    @fs.asset
    def book(pages: Gathered[str], sizes: Gathered[str], hosts: Gathered[str]) -> list[list[str]]:
        return [list(each) for each in (pages, sizes, hosts)]

    run = fs.run(book)
    assert run.get() == [[f"test.{name}{url}" for url in URLS] for name in ("pages", "sizes", "hosts")]
    assert {each.asset for each in run.scatters()} == {"test.pages", "test.sizes", "test.hosts"}
    assert len(run.steps()) == 5


# --- keys ---------------------------------------------------------------------------------------------------------------------------


def test_keys_come_from_code(fs: FlowStone) -> None:
    urls(fs)
    pages = fs.asset(name="pages", scatter=Scatter())(lambda item: item["url"] * item["times"])
    pages.keys(lambda urls: [{"url": url, "times": 2} for url in urls[:2]])
    pages.gather(lambda gathered: {key["url"]: value for key, value in gathered.items()})
    assert fs.run(pages).get() == {"/0": "/0/0", "/1": "/1/1"}


def test_no_keys_at_all_are_an_empty_gathering(fs: FlowStone) -> None:
    urls(fs, [])
    pages = fs.asset(name="pages", scatter=Scatter(over="urls"))(lambda item: item)
    assert list(fs.run(pages).get()) == []
    later = fs.asset(name="later", scatter=Scatter())(lambda item: item)
    later.keys(lambda: iter(()))
    later.gather(lambda gathered: f"{len(gathered)} pages")
    assert fs.run(later).get() == "0 pages"


def test_equal_keys_collapse_and_are_counted(fs: FlowStone) -> None:
    called: list[Any] = []
    pages = fs.asset(name="pages", scatter=Scatter())(lambda item: called.append(item))  # noqa: PLW0108 - as above
    pages.keys(lambda: [{"a": 1, "b": 2}, "x", {"b": 2, "a": 1}, "x", 1, 1.0, True])
    value = fs.run(pages).get()
    assert called == [{"a": 1, "b": 2}, "x", 1, 1.0, True]
    assert (value.counts.total, value.counts.collapsed) == (5, 2)


def test_an_iterable_of_many_keys_is_written_while_it_is_read(fs: FlowStone) -> None:
    pages = fs.asset(name="pages", scatter=Scatter())(lambda item: item)

    @pages.keys
    def many() -> Iterator[int]:
        for number in range(12_000):
            yield number
            yield number // 2  # an equal key, mostly of an earlier page

    value = fs.run(pages).get()
    assert sorted(value) == list(range(12_000))
    assert (value.counts.total, value.counts.collapsed) == (12_000, 12_000)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ({"a": 1}, "cannot scatter over the dict {'a': 1}, which its keys answered"),
        ("https://…", "cannot scatter over the str"),
        (None, "cannot scatter over None"),
        ([1, {2}], "the key of item 1 of asset 'test.pages' cannot be stored: $ is of type set"),
        ([object()], "the key of item 0 of asset 'test.pages'"),
    ],
)
def test_keys_that_are_none_fail_the_attempt_with_their_place(
    fs: FlowStone, answer: Any, sentence: str
) -> None:
    pages = fs.asset(name="pages", scatter=Scatter(), retries=2)(lambda item: item)
    pages.keys(lambda: answer)
    run = fs.run(pages)
    with pytest.raises(RunFailed) as caught:
        run.get()
    assert sentence in str(caught.value)
    assert run.steps()[0]["attempt"] == 1  # the same answer would come again


def test_keys_that_raise_fail_an_attempt_and_are_tried_again(fs: FlowStone) -> None:
    pages = fs.asset(name="pages", scatter=Scatter(), retries=1, retry_delay=0)(lambda item: item)

    @pages.keys
    def flaky(ctx: Context) -> Iterator[str]:
        yield "a"
        if ctx.attempt == 1:
            raise ConnectionError("away")
        yield "b"

    assert list(fs.run(pages).get()) == ["a", "b"]


def test_keys_may_answer_an_outcome(fs: FlowStone) -> None:
    pages = fs.asset(name="pages", scatter=Scatter())(lambda item: item)
    pages.keys(lambda: Skip("nothing new"))
    with pytest.raises(ValueNotFound, match="which was skipped: nothing new"):
        fs.run(pages).get()


# --- what items answer --------------------------------------------------------------------------------------------------------------


def test_items_are_awaited_side_by_side(fs: FlowStone) -> None:
    urls(fs)
    together: list[int] = []
    at_work = 0

    @fs.asset(scatter=Scatter(over="urls", width=10))
    async def pages(item: str, ctx: Context) -> str:
        nonlocal at_work
        at_work += 1
        together.append(at_work)
        await asyncio.sleep(0.001)
        at_work -= 1
        return f"{ctx.key}"

    assert list(fs.run(pages).get()) == URLS
    assert 1 < max(together) <= 10


def test_an_item_that_is_skipped_is_none_and_a_value_is_what_it_holds(fs: FlowStone) -> None:
    urls(fs, ["a", "b"])
    pages = fs.asset(name="pages", scatter=Scatter(over="urls"))(
        lambda item: Skip("old") if item == "a" else Value(1)
    )
    assert list(fs.run(pages).get().items()) == [("a", None), ("b", 1)]


def test_a_result_over_the_limit_fails_its_item_without_another_attempt(fs: FlowStone) -> None:
    urls(fs, [10, 1000])
    attempts: list[int] = []

    @fs.asset(scatter=Scatter(over="urls", max_result_bytes=500, failure_threshold=0.5))
    def pages(item: int) -> str:
        attempts.append(item)
        return "x" * item

    value = fs.run(pages).get()
    [failed] = value.failed
    assert (
        "the result of item 1 (1000) of asset 'test.pages' takes 1,002 bytes, the limit is 500"
        in failed.message
    )
    assert sorted(attempts) == [10, 1000]


def test_a_result_that_json_cannot_hold_is_told_with_its_path(fs: FlowStone) -> None:
    urls(fs, ["a"])
    pages = fs.asset(name="pages", scatter=Scatter(over="urls"))(lambda item: {"found": {1, 2}})
    with pytest.raises(RunFailed) as caught:
        fs.run(pages).get()
    assert (
        "the result of item 0 (\"a\") of asset 'test.pages' cannot be stored: $.found is of type set"
        in str(caught.value)
    )


def test_what_may_be_missing_and_is_tells_no_items(fs: FlowStone) -> None:
    fs.asset(name="urls")(lambda: Skip("none today"))
    pages = fs.asset(name="pages", scatter=Scatter(over="urls"), optional_deps=["urls"])(lambda item: item)
    assert list(fs.run(pages).get()) == []


def test_what_is_there_and_is_none_tells_no_items_but_an_error(fs: FlowStone) -> None:
    fs.asset(name="urls")(lambda: None)
    pages = fs.asset(name="pages", scatter=Scatter(over="urls"), optional_deps=["urls"])(lambda item: item)
    with pytest.raises(RunFailed, match="cannot scatter over None, which 'urls' answered"):
        fs.run(pages).get()


def test_what_is_iterated_is_no_reader_though_it_can_be_read_as_open_files_can(fs: FlowStone) -> None:
    pages = fs.asset(name="pages", scatter=Scatter())(lambda item: item.strip())
    pages.keys(lambda: io.StringIO("a\nb\n"))
    assert list(fs.run(pages).get()) == ["a", "b"]


def test_keys_that_wait_for_what_they_tell_are_told_so(fs: FlowStone) -> None:
    pages = fs.asset(name="pages", scatter=Scatter())(lambda item: item)
    pages.keys(lambda: list(fs.run(pages, force=True).get()))
    with pytest.raises(RunFailed, match=r"test\.pages -> test\.pages"):
        fs.run(pages).get()


# --- partitions ---------------------------------------------------------------------------------------------------------------------


def test_items_belong_to_the_partition_of_their_asset(fs: FlowStone) -> None:
    days = Static(["mon", "tue"])
    fs.asset(name="urls", partitions=days)(lambda ctx: [f"{ctx.partition}/{n}" for n in range(3)])
    fs.asset(name="prefix", partitions=days)(lambda ctx: f"[{ctx.partition}]")

    @fs.asset(scatter=Scatter(over="urls"), partitions=days)
    def pages(item: str, prefix: str, ctx: Context) -> str:
        return f"{prefix}{ctx.partition}:{item}"

    for day in ("mon", "tue"):
        assert list(fs.run(pages, partition=day).get()) == [f"[{day}]{day}:{day}/{n}" for n in range(3)]
    assert [each.row.partition for each in fs.scatters(pages)] == ["tue", "mon"]


def test_items_take_several_partitions_of_what_they_need(fs: FlowStone) -> None:
    days = Static(["mon", "tue"])
    fs.asset(name="rates", partitions=days)(lambda ctx: len(str(ctx.partition)))
    urls(fs, ["a", "b"])

    @fs.asset(scatter=Scatter(over="urls"), mappings={"rates": All()})
    def pages(item: str, rates: dict[str, int]) -> list[Any]:
        return [item, dict(rates)]

    assert list(fs.run(pages).get()) == [[url, {"mon": 3, "tue": 3}] for url in ("a", "b")]


def test_a_value_is_fresh_until_what_was_gathered_changes(fs: FlowStone) -> None:
    words = ["a"]
    fs.asset(name="urls")(lambda: list(words))
    made: list[int] = []
    fs.asset(name="pages", scatter=Scatter(over="urls"))(lambda item: item)
    fs.asset(name="book")(lambda pages: made.append(len(pages)))
    fs.run("book")
    fs.run("urls", force=True)
    fs.run("book")
    assert made == [1]
    words.append("b")
    fs.run("urls", force=True)
    fs.run("book")
    assert made == [1, 2]


def test_items_take_the_versions_that_were_there_when_they_were_told(fs_test: TestKit) -> None:
    fs = fs_test.fs
    urls(fs, ["a", "b"])
    rate = [1]
    fs.asset(name="rate")(lambda: rate[0])
    fs.run("rate")
    fs.run("urls")
    pages = fs.asset(name="pages", scatter=Scatter(over="urls"))(lambda item, rate: (item, rate))
    run = fs_test.start(pages, all_deps=False)
    assert fs_test.step()  # its items are told
    rate[0] = 2
    fs.run("rate", force=True)
    fs_test.drain(run)
    assert list(run.get()) == [["a", 1], ["b", 1]]
