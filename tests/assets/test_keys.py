"""Keys of items: one text for each element, whatever order its dicts were written in."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone_celery import codec
from flowstone_celery.assets.keys import (
    MOST_BYTES,
    digest_of,
    distinct,
    element_of,
    key_of,
    keys_of,
    shown,
)
from flowstone_celery.errors import InvalidValue

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",)))
)
ELEMENTS = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), inner, max_size=5)
    ),
)


def key(element: object) -> bytes:
    return key_of(element, asset="shop.pages")


@given(ELEMENTS)
def test_an_element_comes_back_from_its_key(element: Any) -> None:
    assert element_of(key(element)) == element


@given(ELEMENTS, ELEMENTS)
def test_two_keys_are_equal_where_their_serialisations_are(one: Any, other: Any) -> None:
    assert (key(one) == key(other)) == (codec.canonical(one) == codec.canonical(other))
    assert (digest_of(key(one)) == digest_of(key(other))) == (key(one) == key(other))


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=("Cs",))), st.integers(), min_size=33, max_size=80
    ),
    st.randoms(),
)
def test_a_large_dict_has_one_key_whatever_the_order_it_was_written_in(
    found: dict[str, int], chance: random.Random
) -> None:
    shuffled = list(found.items())
    chance.shuffle(shuffled)
    assert key({"deep": [dict(shuffled)]}) == key({"deep": [found]})


@pytest.mark.parametrize(
    ("element", "text"),
    [
        ({"b": 1, "a": [1, 2.5, None, True]}, b'{"a":[1,2.5,null,true],"b":1}'),
        ("Übung", '"Übung"'.encode()),
        ((1, 2), b"[1,2]"),
        (date(2026, 11, 20), b'{"$date":"2026-11-20"}'),
        (1, b"1"),
        (1.0, b"1.0"),
        (True, b"true"),
    ],
)
def test_a_key_is_canonical_json(element: object, text: bytes) -> None:
    assert key(element) == text


@pytest.mark.parametrize(
    "element",
    [datetime(2026, 11, 20, tzinfo=UTC), Decimal("1.50"), UUID(int=7), b"raw", 2**70, {"$date": "no"}],
)
def test_what_json_lacks_comes_back_as_it_was(element: object) -> None:
    assert element_of(key(element)) == element


def test_a_key_that_is_no_json_is_refused_with_its_place_and_its_way_out() -> None:
    with pytest.raises(InvalidValue) as caught:
        list(keys_of(["fine", {"when": {1, 2}}], asset="shop.pages"))
    text = str(caught.value)
    assert "the key of item 1 of asset 'shop.pages'" in text
    assert "$.when is of type set" in text
    assert "A key is JSON" in text


@pytest.mark.parametrize("element", [float("nan"), "half \ud800", object(), {1: 2}])
def test_no_other_nonsense_is_a_key(element: object) -> None:
    with pytest.raises(InvalidValue, match=r"the key of an item of asset 'shop\.pages'"):
        key(element)


def test_a_key_over_the_limit_is_refused() -> None:
    assert len(key("x" * (MOST_BYTES - 2))) == MOST_BYTES
    with pytest.raises(InvalidValue, match="the limit is 1,048,576"):
        key("x" * (MOST_BYTES - 1))


@given(st.lists(st.sampled_from([b"1", b"2", b"3", b"[]"])))
def test_equal_keys_collapse_at_the_place_of_the_first_and_are_counted(keys: list[bytes]) -> None:
    found, collapsed = distinct(keys)
    assert len(found) == len(set(keys))
    assert set(found) == set(keys)
    assert found == sorted(set(keys), key=keys.index)
    assert collapsed == len(keys) - len(found)


def test_a_long_key_is_shown_in_short_and_told_apart_by_its_whole_digest() -> None:
    assert len(digest_of(b"1")) == 32
    assert shown(b'"' + b"x" * 500 + b'"').endswith("...")
