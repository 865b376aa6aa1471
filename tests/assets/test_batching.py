"""Batches: every element in exactly one of them, in order, within the limits."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone_celery import Batch
from flowstone_celery.assets.batching import Batched, batches
from flowstone_celery.errors import InvalidOption, InvalidValue, UnknownOption

TEXTS = st.lists(st.text(max_size=30), max_size=60)
ROWS = st.lists(st.fixed_dictionaries({"host": st.sampled_from("abc"), "n": st.integers(0, 9)}), max_size=60)


def made(options: Batch, elements: Iterable[Any], first: int = 0) -> list[Batched]:
    return list(batches(options, elements, asset="shop.pages", first=first))


def flat(found: list[Batched]) -> list[Any]:
    return [element for each in found for element in each.items]


@given(TEXTS, st.integers(1, 20))
def test_a_size_fills_each_batch_but_the_last(elements: list[str], size: int) -> None:
    found = made(Batch(size=size), elements)
    assert flat(found) == elements
    assert all(len(each.items) == size for each in found[:-1])
    assert all(0 < len(each.items) <= size for each in found)
    assert [each.index for each in found] == list(range(len(found)))


@given(TEXTS, st.integers(1, 40), st.integers(1, 8))
def test_bytes_and_size_hold_together_and_what_is_too_large_travels_alone(
    elements: list[str], max_bytes: int, size: int
) -> None:
    found = made(Batch(size=size, max_bytes=max_bytes, size_fn=len), elements)
    assert flat(found) == elements
    for each in found:
        assert 0 < len(each.items) <= size
        assert sum(map(len, each.items)) <= max_bytes or len(each.items) == 1
    for each, following in itertools.pairwise(found):
        full = len(each.items) == size or sum(map(len, each.items)) + len(following.items[0]) > max_bytes
        assert full


def test_bytes_are_those_of_the_json_where_nothing_else_counts_them() -> None:
    assert [each.items for each in made(Batch(max_bytes=8), ["ab", "cd", "efghijklmn", "o"])] == [
        ["ab", "cd"],
        ["efghijklmn"],
        ["o"],
    ]


@given(ROWS, st.integers(1, 5))
def test_groups_keep_their_order_and_their_limit(rows: list[dict[str, Any]], most: int) -> None:
    found = made(Batch(group_by="host", max_items_per_group=most), rows)
    assert sorted(map(repr, flat(found))) == sorted(map(repr, rows))
    for host in {row["host"] for row in rows}:
        of_host = [each for each in found if each.group == host]
        assert flat(of_host) == [row for row in rows if row["host"] == host]
        assert all(0 < len(each.items) <= most for each in of_host)
    first_seen = list(dict.fromkeys(row["host"] for row in rows))
    assert list(dict.fromkeys(each.group for each in found)) == first_seen


@given(TEXTS, st.integers(1, 7))
def test_a_function_of_ones_own_decides_and_empty_batches_are_dropped(elements: list[str], size: int) -> None:
    def split(found: list[str]) -> list[list[str]]:
        return [[], *(found[first : first + size] for first in range(0, len(found), size)), []]

    found = made(Batch(batch_fn=split), elements)
    assert flat(found) == elements
    assert [each.index for each in found] == list(range(len(found)))


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ([["a"]], 'left out the element "b"'),
        ([["a", "b"], ["a"]], 'doubled or made up the element "a"'),
        ([["a", "b", "c"]], 'doubled or made up the element "c"'),
        (7, "answered 7, which is no list of lists"),
        (["ab"], "which is no list of lists"),
        (None, "answered None"),
    ],
)
def test_a_function_that_loses_or_doubles_an_element_is_found_out(answer: Any, sentence: str) -> None:
    with pytest.raises(InvalidValue, match=r"batch_fn of asset 'shop\.pages'") as caught:
        made(Batch(batch_fn=lambda _: answer), ["a", "b"])
    assert sentence in str(caught.value)


def test_a_group_that_an_element_does_not_have_is_told_with_the_element() -> None:
    with pytest.raises(InvalidValue, match=r"group_by .* KeyError: 'host' for the element \{'n': 1\}"):
        made(Batch(group_by="host"), [{"n": 1}])


def test_a_size_that_is_none_is_told() -> None:
    with pytest.raises(InvalidValue, match=r"size_fn .* answered 'two'"):
        made(Batch(max_bytes=5, size_fn=lambda _: "two"), ["a"])  # type: ignore[arg-type,return-value]


def test_numbers_go_on_where_the_page_before_ended() -> None:
    assert [each.index for each in made(Batch(size=1), "ab", first=7)] == [7, 8]


def test_a_batch_comes_back_from_its_key() -> None:
    for found in (Batched(3, ["a"]), Batched(4, [1, 2], "host")):
        assert Batched.of(found.element()) == found
    assert Batched.of(Batched(3, ["a"]).element(), {"model": "x"}).input == {"model": "x"}


# --- options ----------------------------------------------------------------------------------------------------------------------


def test_ten_is_the_size_where_nothing_says_otherwise() -> None:
    assert Batch().size == 10
    assert Batch(max_bytes=100).size is None
    assert Batch(group_by="host").size is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"size": 0}, "size is a whole number from 1 up, not 0"),
        ({"size": True}, "size is a whole number"),
        ({"max_bytes": "1 MB"}, "max_bytes is a whole number"),
        ({"size_fn": len}, "size_fn says nothing without max_bytes"),
        ({"max_items_per_group": 3}, "max_items_per_group says nothing without group_by"),
        ({"group_by": "host", "size": 3}, "Use max_items_per_group"),
        ({"group_by": "host", "max_bytes": 3}, "group_by decides by itself"),
        ({"batch_fn": list, "size": 3}, "batch_fn is a function"),
        ({"batch_fn": lambda found: [found], "group_by": "host"}, "batch_fn decides by itself"),
        ({"batch_input": 7}, "batch_input is a dict of JSON values"),
        ({"batch_input": {"at": object()}}, "batch_input cannot be stored"),
        ({"on_item_error": "colect_errors"}, "Did you mean 'collect_errors'"),
    ],
)
def test_options_that_cannot_be_are_refused_where_they_stand(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        Batch(**options)
    assert sentence in str(caught.value)


def test_an_unknown_option_is_told_with_the_nearest() -> None:
    with pytest.raises(UnknownOption, match="Did you mean 'group_by'"):
        Batch(groupby="host")  # a typing slip, on purpose


def test_the_options_are_shown_as_json() -> None:
    assert Batch(group_by="host", max_items_per_group=3).plain() == {
        "group_by": "host",
        "max_items_per_group": 3,
        "on_item_error": "fail_batch",
    }
