"""Elements that are put together into batches, each of which is an item."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from flowstone_celery import Batch, Context, FlowStone, Scatter
from flowstone_celery.errors import RunFailed

if TYPE_CHECKING:
    pass

URLS = [f"/{number}" for number in range(40)]


def urls(fs: FlowStone, found: Any = URLS) -> None:
    fs.asset(name="urls")(lambda: found)


def test_a_function_of_items_is_called_once_for_each_batch(fs: FlowStone) -> None:
    urls(fs, ["a", "b", "c", "d", "e"])

    @fs.asset(scatter=Scatter(over="urls", batch=Batch(size=2, batch_input={"model": "small"})))
    def pages(items: list[str], ctx: Context) -> str:
        assert ctx.batch is not None
        assert ctx.batch.items == ctx.key == items
        return f"{ctx.batch.index}:{''.join(items)}:{ctx.batch.input['model']}"

    value = fs.run(pages).get()
    assert list(value) == ["0:ab:small", "1:cd:small", "2:e:small"]
    assert list(value.keys()) == [["a", "b"], ["c", "d"], ["e"]]
    assert (len(value), value.counts.total) == (3, 3)


def test_a_function_of_item_is_called_for_each_element_of_a_batch(fs: FlowStone) -> None:
    urls(fs)
    pages = fs.asset(name="pages", scatter=Scatter(over="urls", batch=7))(lambda item: item * 2)
    value = fs.run(pages).get()
    assert list(value.items()) == [(url, url * 2) for url in URLS]
    assert (len(value), value.counts.total) == (40, 6)


def test_each_element_of_a_batch_has_an_idempotency_key_of_its_own(fs: FlowStone) -> None:
    urls(fs)

    @fs.asset(scatter=Scatter(over="urls", batch=7))
    def pages(item: str, ctx: Context) -> str:
        del item
        return ctx.idempotency_key

    assert len(set(fs.run(pages).get())) == len(URLS)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"max_bytes": 2, "size_fn": len}, [["a"], ["bb"], ["ccc"], ["d", "e"]]),
        ({"group_by": len}, [["a", "d", "e"], ["bb"], ["ccc"]]),
        ({"group_by": len, "max_items_per_group": 2}, [["a", "d"], ["e"], ["bb"], ["ccc"]]),
        ({"batch_fn": lambda found: [found[3:], [], found[:3]]}, [["d", "e"], ["a", "bb", "ccc"]]),
    ],
)
def test_elements_are_put_together_as_the_options_say(
    fs: FlowStone, options: Any, shape: list[list[str]]
) -> None:
    urls(fs, ["a", "bb", "ccc", "d", "e", "a"])
    pages = fs.asset(name="pages", scatter=Scatter(over="urls", batch=Batch(**options)))(lambda items: items)
    value = fs.run(pages).get()
    assert list(value) == shape
    assert value.counts.collapsed == 1


def test_batch_input_is_asked_for_once_and_may_take_dependencies(fs: FlowStone) -> None:
    urls(fs)
    fs.asset(name="model")(lambda: "large")
    asked: list[str] = []

    def given(model: str) -> dict[str, str]:
        asked.append(model)
        return {"model": model}

    @fs.asset(scatter=Scatter(over="urls", batch=Batch(size=5, batch_input=given)))
    def pages(items: list[str], ctx: Context) -> str:
        return ctx.batch.input["model"] if ctx.batch else ""

    assert set(fs.run(pages).get()) == {"large"}
    assert asked == ["large"]


@pytest.mark.parametrize("awaited", [False, True])
def test_errors_of_elements_are_collected(fs: FlowStone, awaited: bool) -> None:
    urls(fs, ["a", "b", "c"])

    def page(item: str) -> str:
        if item == "b":
            raise ConnectionError("b is away")
        return item.upper()

    async def later(item: str) -> str:
        return page(item)

    batch = Batch(size=3, on_item_error="collect_errors")
    pages = fs.asset(name="pages", scatter=Scatter(over="urls", batch=batch))(later if awaited else page)
    value = fs.run(pages).get()
    assert list(value.items()) == [("a", "A"), ("c", "C")]
    [failed] = value.failed
    assert failed.key == "b"
    assert "b is away" in failed.message


def test_a_batch_none_of_whose_elements_succeeded_has_failed(fs: FlowStone) -> None:
    urls(fs, ["a", "b"])

    @fs.asset(scatter=Scatter(over="urls", max_attempts=1, batch=Batch(on_item_error="collect_errors")))
    def pages(item: str) -> str:
        raise ConnectionError(f"{item} is away")

    with pytest.raises(RunFailed, match=r"all 2 elements of the batch failed, the first with: .*a is away"):
        fs.run(pages).get()


def test_an_element_that_raises_fails_its_batch_where_nothing_is_collected(fs: FlowStone) -> None:
    urls(fs, ["a", "b", "c"])

    @fs.asset(scatter=Scatter(over="urls", max_attempts=1, batch=2, failure_threshold=0.5))
    def pages(item: str) -> str:
        if item == "b":
            raise ConnectionError("b is away")
        return item

    value = fs.run(pages).get()
    assert list(value) == ["c"]
    [failed] = value.failed
    assert failed.key == ["a", "b"]
