"""The JSON boundary: what goes in comes back with its type, and what cannot is refused with its place."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import OrderedDict, namedtuple
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone_celery.codec import MAX_DEPTH, canonical, compress, decode, decompress, digest, encode
from flowstone_celery.errors import CorruptRow, InvalidValue

offsets = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
texts = st.text(st.characters(codec="utf-8")) | st.sampled_from(["$", "$$", "$date", "$$date", "$int", "$x"])
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | st.dates()
    | st.datetimes(timezones=st.none() | st.just(UTC) | offsets)
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.uuids()
    | st.binary()
)
values = st.recursive(
    scalars,
    lambda members: st.lists(members, max_size=4) | st.dictionaries(texts, members, max_size=4),
    max_leaves=12,
)


def same(left: Any, right: Any) -> bool:
    """Equal, with equal types at every level (1, True and 1.0 are three things; so are 0.0 and -0.0)."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    exact = {float: float.hex, datetime: datetime.isoformat, Decimal: Decimal.as_tuple}.get(type(left), repr)
    return bool(left == right and exact(left) == exact(right))


@given(values)
def test_what_is_encoded_comes_back_with_its_type(value: Any) -> None:
    assert same(decode(encode(value)), value)


@given(values)
def test_the_encoded_form_is_strict_json(value: Any) -> None:
    json.loads(encode(value), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@given(values)
def test_the_canonical_form_is_json_of_the_same_value(value: Any) -> None:
    text = canonical(value)
    assert canonical(decode(text)) == text
    assert json.loads(text) == json.loads(encode(value))


@given(values, values)
def test_two_values_share_a_digest_only_when_they_are_one(left: Any, right: Any) -> None:
    assert (digest(left) == digest(right)) == (canonical(left) == canonical(right))


@given(st.dictionaries(texts, values))
def test_the_canonical_form_does_not_know_the_order_of_keys(value: dict[str, Any]) -> None:
    backwards = dict(reversed(value.items()))
    assert canonical(backwards) == canonical(value)
    assert digest(backwards) == digest(value)


def test_the_canonical_form_is_fixed_for_ever() -> None:
    value = {"b": [1, 1.0, 1e16, True, None, "é"], "a": {"d": date(2026, 11, 20), "c": 2**64}}
    assert canonical(value).decode() == (
        '{"a":{"c":{"$int":"0x10000000000000000"},"d":{"$date":"2026-11-20"}},"b":[1,1.0,1e+16,true,null,"é"]}'
    )
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


@pytest.mark.parametrize("key", ["$", "$date", "$$date", "$int", "$$$"])
def test_a_users_own_dollar_key_is_never_taken_for_a_tag(key: str) -> None:
    for value in ({key: "2026-11-20"}, {key: {key: 1}}, [{key: None}], {key: 1, "b": {key: []}}):
        assert decode(encode(value)) == value


class Color(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ((1, (2,)), [1, [2]]),
        (Point(1, 2), [1, 2]),
        (OrderedDict(a=1), {"a": 1}),
        (Color.RED, "red"),
        (Level.HIGH, 3),
        ({Color.RED: 1}, {"red": 1}),
    ],
)
def test_kin_of_plain_types_come_back_plain(value: object, plain: object) -> None:
    assert same(decode(encode(value)), plain)


@dataclasses.dataclass
class Order:
    total: int


class Model:
    def model_dump(self) -> dict[str, int]:
        return {}


class Plain(Enum):
    A = 1


class Later(datetime):
    pass


@pytest.mark.parametrize(
    ("value", "kind", "advice"),
    [
        (Order(1), "Order", "dataclasses.asdict(value)"),
        (Model(), "Model", "value.model_dump()"),
        (Model, "type", "instance"),
        (Plain.A, "Plain", ".value"),
        ({1}, "set", "sorted(value)"),
        (timedelta(1), "datetime.timedelta", "total_seconds()"),
        (bytearray(b"x"), "bytearray", "bytes(value)"),
        (iter([1]), "list_iterator", "list(value)"),
        (Later(2026, 1, 1), "Later", "standard library"),
        (object(), "object", "IO manager"),
        (math.nan, "float", "None"),
        (-math.inf, "float", "None"),
        (Decimal("NaN"), "decimal.Decimal", "None"),
        ({1: "x"}, "int", "str(key)"),
        ({None: "x"}, "NoneType", "str(key)"),
        ("\ud800", "str", "Clean"),
        ({"\udfff": 1}, "str", "Clean"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_its_type_and_a_way_out(
    value: object, kind: str, advice: str
) -> None:
    for act in (encode, canonical, digest):
        with pytest.raises(InvalidValue) as caught:
            act({"rows": [1, value]})
        assert caught.value.facts["type"].endswith(kind)
        assert advice in str(caught.value.hint)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({1, 2}, "$"),
        ({"rows": [{"when": 1}, {"when": timedelta(1)}]}, "$.rows[1].when"),
        ([[0, [math.nan]]], "$[0][1][0]"),
        ({"a b": {"$x": (1, object())}}, '$["a b"]["$x"][1]'),
        ({"rows": {7: 1}}, '$.rows["7"]'),
        ({"rows": [{"name": "\ud800"}]}, "$.rows[0].name"),
        ({"rows": [{"\ud800": 1}]}, '$.rows[0]["\\ud800"]'),
    ],
)
def test_the_path_leads_to_the_part_that_is_refused(value: object, path: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        encode(value, where="the value of asset 'shop.orders', partition '2026-11-20'")
    assert caught.value.facts["path"] == path
    assert f"the value of asset 'shop.orders', partition '2026-11-20' cannot be stored: {path} is" in str(
        caught.value
    )


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_a_value_may_be_nested_to_the_limit_and_no_deeper() -> None:
    assert decode(encode(_nested(MAX_DEPTH))) == _nested(MAX_DEPTH)
    assert decode(encode({"$x": _nested(MAX_DEPTH - 1)})) == {"$x": _nested(MAX_DEPTH - 1)}
    with pytest.raises(InvalidValue, match="nested deeper"):
        encode(_nested(MAX_DEPTH + 1))


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append({"again": loop})
    with pytest.raises(InvalidValue, match="nested deeper"):
        encode(loop)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"NaN",
        b'{"$date": 5}',
        b'{"$newer": "x"}',
        b'{"$date": "x"}',
        b'{"$decimal": "x"}',
        b"\xff",
    ],
)
def test_bytes_that_encode_never_writes_are_a_corrupt_row(data: bytes) -> None:
    with pytest.raises(CorruptRow):
        decode(data)


def test_uuid_and_bytes_keep_their_documented_form() -> None:
    value = [UUID(int=1), b"\x00", 2**64]
    assert encode(value) == (
        b'[{"$uuid":"00000000-0000-0000-0000-000000000001"},{"$bytes":"AA=="},{"$int":"0x10000000000000000"}]'
    )


@given(st.binary(max_size=2000) | st.integers(0, 5000).map(lambda size: b"ab" * size))
def test_compression_gives_back_the_same_bytes_and_never_costs_more_than_one(data: bytes) -> None:
    kept = compress(data)
    assert decompress(kept) == data
    assert len(kept) <= len(data) + 1


def test_long_repetitive_bytes_become_smaller() -> None:
    assert len(compress(b"ab" * 5000)) < 500


@pytest.mark.parametrize("data", [b"", b"\x07abc", b"\x01abc", compress(b"ab" * 5000)[:-4]])
def test_damaged_bytes_are_a_corrupt_row(data: bytes) -> None:
    with pytest.raises(CorruptRow):
        decompress(data)
