"""Partition keys as text: total, typed, one text for one key."""

from __future__ import annotations

import base64
import json
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flowstone_celery.assets.partition import MAX_BYTES, MAX_DEPTH, PartitionKey, decode, encode, parse
from flowstone_celery.errors import InvalidPartition

offsets = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=st.just(UTC) | offsets)  # noqa: DTZ001 - bounds are naive by contract
tricky = st.sampled_from(
    [
        "",
        "d:2026-11-20",
        "s:",
        "t:W10",
        "i:1",
        "b:0",
        "x:y",
        "a|b",
        "2026-11-20",
        "2026-13-45",
        "2026-11-20T10:00:00Z",
        "1",
    ]
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.dates()
    | st.datetimes()
    | moments
    | tricky
    | st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
    | st.from_regex(r"[0-9:|a-zTZ-]{1,12}", fullmatch=True)
)
keys = st.recursive(leaves, lambda members: st.lists(members, max_size=3).map(tuple), max_leaves=6)


def typed(key: Any) -> Any:
    """The key with the type of every part beside it; an aware datetime counts as its instant."""
    if isinstance(key, tuple):
        return tuple, [typed(member) for member in key]
    if isinstance(key, datetime) and key.tzinfo:
        return datetime, "aware", key.astimezone(UTC)
    return type(key), key


def fitting(key: PartitionKey) -> str:
    try:
        return encode(key)
    except InvalidPartition as error:
        assume("size" not in error.facts)
        raise


@given(keys)
def test_every_key_comes_back_with_its_type(key: PartitionKey) -> None:
    assert typed(decode(fitting(key))) == typed(key)


@given(keys)
def test_a_person_may_paste_the_text_of_any_key(key: PartitionKey) -> None:
    assert typed(parse(fitting(key))) == typed(key)


@given(keys, keys)
def test_two_keys_share_a_text_only_when_they_are_one(left: PartitionKey, right: PartitionKey) -> None:
    assert (fitting(left) == fitting(right)) == (typed(left) == typed(right))


@given(st.text(max_size=40) | st.from_regex(r"(d|dt|ndt|i|b|s|t):[0-9A-Za-z:_|-]{0,12}", fullmatch=True))
def test_any_text_is_a_key_or_refused_with_the_one_error(text: str) -> None:
    for read in (decode, parse):
        try:
            key = read(text)
        except InvalidPartition:
            continue
        assert typed(decode(fitting(key))) == typed(key)


def b64(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (None, ""),
        ("", "s:"),
        ("eu", "eu"),
        ("a:b", f"s:{b64('a:b')}"),
        ("a|b", f"s:{b64('a|b')}"),
        ("2026-11-20", f"s:{b64('2026-11-20')}"),
        ("20261120", "20261120"),
        (date(2026, 11, 20), "d:2026-11-20"),
        (datetime(2026, 11, 20, 10, tzinfo=timezone(timedelta(hours=1))), "dt:2026-11-20T09:00:00Z"),
        (datetime(2026, 11, 20, 10, 0, 0, 5), "ndt:2026-11-20T10:00:00.000005"),  # noqa: DTZ001 - naive on purpose
        (0, "i:0"),
        (-7, "i:-7"),
        (True, "b:1"),
        (False, "b:0"),
        ((), "t:" + b64("[]")),
        (
            (date(2026, 11, 20), "eu", 1, True, None, ("x",)),
            "t:" + b64('[{"d":"2026-11-20"},"eu",{"i":"1"},{"b":"1"},null,{"t":["x"]}]'),
        ),
    ],
)
def test_the_text_of_a_key_is_fixed_for_ever(key: PartitionKey, text: str) -> None:
    assert encode(key) == text


def test_one_instant_has_one_text() -> None:
    moment = datetime(2026, 11, 20, 10, tzinfo=UTC)
    assert encode(moment) == encode(moment.astimezone(timezone(timedelta(hours=-5))))


class Region(StrEnum):
    EU = "eu"


class Shard(IntEnum):
    TWO = 2


def test_an_enum_of_text_or_numbers_is_its_value() -> None:
    assert encode(Region.EU) == "eu"
    assert encode(Shard.TWO) == "i:2"
    assert encode((Region.EU, Shard.TWO)) == encode(("eu", 2))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("2026-11-20", date(2026, 11, 20)),
        ("2026-11-20T10:00:00Z", datetime(2026, 11, 20, 10, tzinfo=UTC)),
        ("2026-11-20T10:00:00+01:00", datetime(2026, 11, 20, 9, tzinfo=UTC)),
        ("2026-11-20 10:00", datetime(2026, 11, 20, 10)),  # noqa: DTZ001 - naive on purpose
        ("2026-11-20|eu", (date(2026, 11, 20), "eu")),
        ("a|i:3|b", ("a", 3, "b")),
        ("plain text", "plain text"),
        ("42", "42"),
    ],
)
def test_texts_without_tags_are_read_as_what_they_are(text: str, key: PartitionKey) -> None:
    assert typed(decode(text)) == typed(key)
    assert typed(parse(text)) == typed(key)


def test_an_unknown_tag_is_text_to_a_person_and_refused_in_a_row() -> None:
    assert parse("customer:42") == "customer:42"
    assert parse("customer:42|2026-11-20") == ("customer:42", date(2026, 11, 20))
    with pytest.raises(InvalidPartition, match="'customer:'"):
        decode("customer:42")


@pytest.mark.parametrize(
    "text",
    [
        "2026-02-30",
        "d:2026-02-30",
        "d:20261120",
        "d:2026-11-20|",
        "|",
        "dt:2026-11-20T10:00:00",
        "ndt:2026-11-20T10:00:00Z",
        "dt:0001-01-01T00:00:00+10:00",
        "2026-11-20T25:00:00Z",
        "i:",
        "i:1_000",
        "i: 1",
        "i:-0",
        "i:٣",
        "b:true",
        "s:***",
        "s:YR",
        f"s:{b64('a' + chr(0))}",
        "t:",
        "t:" + b64("{}"),
        "t:" + b64("[1]"),
        "t:" + b64('[{"i":1}]'),
        "t:" + b64('[{"s":"YQ"}]'),
        "t:" + b64('[{"i":"1","d":"2026-11-20"}]'),
        "t:" + b64("[" * 300),
        "a\x00b",
        "\ud800",
        "x" * (MAX_BYTES + 1),
    ],
)
def test_a_damaged_text_is_refused(text: str) -> None:
    for read in (decode, parse):
        with pytest.raises(InvalidPartition):
            read(text)


class NotATime(datetime):
    def isoformat(self, sep: str = "T", timespec: str = "auto") -> str:
        return "NaT"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (1.5, "this one is float"),
        (Decimal(1), "this one is Decimal"),
        (["a"], r"this one is list\. Use tuple\(key\)"),
        (("a", {"b": 1}), "this one is dict"),
        (b"x", "this one is bytes"),
        ("a\x00", "NUL"),
        (("a", "\x00"), "NUL"),
        ("\ud800", "surrogate"),
        (("\udfff",), "surrogate"),
        pytest.param(10**5000, "more than 1024", id="more digits than Python prints"),
        (10**1030, "more than 1024"),
        ("x" * (MAX_BYTES + 1), "takes 1025 bytes"),
        ("é" * (MAX_BYTES // 2 + 1), "takes 1026 bytes"),
        (tuple("x" * 300), "more than 1024"),
        (datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))), "outside the years"),
        (NotATime(2026, 11, 20), "NaT"),
    ],
)
def test_what_cannot_be_a_key_is_refused_with_the_reason(key: Any, words: str) -> None:
    with pytest.raises(InvalidPartition, match=words):
        encode(key)


def test_a_key_may_be_as_long_as_the_limit() -> None:
    assert decode(encode("x" * MAX_BYTES)) == "x" * MAX_BYTES


def test_tuples_nest_to_the_limit_and_no_deeper() -> None:
    key: PartitionKey = ()
    for _ in range(MAX_DEPTH - 1):
        key = (key,)
    assert decode(encode(key)) == key
    with pytest.raises(InvalidPartition, match="nested deeper"):
        encode(((key,),))
    deep: Any = []
    for _ in range(MAX_DEPTH):
        deep = [{"t": deep}]
    with pytest.raises(InvalidPartition):
        decode(f"t:{b64(json.dumps(deep))}")
