"""Values become strict JSON and come back as they were, or are refused with the place inside them that cannot be stored.

Plain values (dict with text keys, list, tuple as list, str, int, float, bool, None) are written as JSON writes them. Six kinds that
JSON lacks travel as an object with one key that begins with a dollar sign:

    {"$date": "2026-11-20"}   {"$datetime": "2026-11-20T10:00:00+01:00"}   {"$decimal": "1.50"}
    {"$uuid": "…"}            {"$bytes": "base64"}                         {"$int": "0x…"} beyond 64 bits

A user's own dict whose only key begins with a dollar sign gains a second one, so nothing can be mistaken for a tag. Instances of
subclasses of the plain types (StrEnum, OrderedDict, a named tuple) come back as the plain type.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import zlib
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, NoReturn
from uuid import UUID

from flowstone_celery.errors import CorruptRow, InvalidValue

MAX_DEPTH = 200
"""How deep a value may be nested; a value that contains itself ends here as well."""

_SMALLEST, _LARGEST = -(2**63), 2**64 - 1
_WORTH_COMPRESSING = 512
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
_STORED, _DEFLATED = b"\x00", b"\x01"


def encode(value: object, *, where: str = "the value") -> bytes:
    """The value as JSON in UTF-8, which `decode` reads back.

    Args:
        value: what is to be stored.
        where: whose value it is, for the error: "the value of asset 'shop.orders', partition '2026-11-20'".

    Raises:
        InvalidValue: a part of it cannot be stored; names its type and its path.
    """
    import orjson

    packed = _packed(value, where)
    try:
        return orjson.dumps(packed)
    except TypeError:
        return _refuse_text(value, where)


def decode(data: bytes) -> Any:
    """The value that `encode` wrote.

    Raises:
        CorruptRow: the bytes are not what `encode` writes.
    """
    import orjson

    try:
        plain = orjson.loads(data)
        return _unpack(plain) if b'"$' in data else plain
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise CorruptRow(
            f"stored bytes are not a value that this version can read: {error}",
            hint="Was it written by a newer version, or by hand? Materialize it again.",
        ) from error


def canonical(value: object, *, where: str = "the value") -> bytes:
    """The one JSON text of the value: keys sorted at every level, no spaces, UTF-8.

    Raises:
        InvalidValue: as for `encode`.
    """
    try:
        return _CANONICAL.encode(_packed(value, where)).encode("utf-8")
    except UnicodeEncodeError:
        return _refuse_text(value, where)


def digest(value: object, *, where: str = "the value") -> str:
    """The SHA-256 of the canonical text, as 64 hexadecimal digits.

    Raises:
        InvalidValue: as for `encode`.
    """
    return hashlib.sha256(canonical(value, where=where)).hexdigest()


def compress(data: bytes) -> bytes:
    """The bytes behind one byte that names how they are kept; deflated only where that makes them smaller."""
    if len(data) >= _WORTH_COMPRESSING:
        deflated = zlib.compress(data, level=3)
        if len(deflated) < len(data):
            return _DEFLATED + deflated
    return _STORED + data


def decompress(data: bytes) -> bytes:
    """The bytes that `compress` was given.

    Raises:
        CorruptRow: the first byte names no way of keeping, or the rest is damaged.
    """
    how, body = data[:1], data[1:]
    if how == _STORED:
        return body
    if how != _DEFLATED:
        raise CorruptRow(f"stored bytes begin with {how!r}, which names no compression", first_byte=how.hex())
    try:
        return zlib.decompress(body)
    except zlib.error as error:
        raise CorruptRow(f"stored bytes cannot be decompressed: {error}") from error


# --- packing: plain values out of richer ones -----------------------------------------------------------------------------------


class _Refused(Exception):  # noqa: N818 - never leaves this module; carries the path, innermost part first
    def __init__(self, what: str, hint: str, kind: str) -> None:
        super().__init__(what)
        self.what, self.hint, self.kind = what, hint, kind
        self.path: list[str | int] = []


def _packed(value: object, where: str) -> Any:
    try:
        return _pack(value, 0)
    except _Refused as refused:
        path = _path(refused.path[::-1])
        raise InvalidValue(
            f"{where} cannot be stored: {path} is {refused.what}",
            hint=refused.hint,
            path=path,
            type=refused.kind,
            where=where,
        ) from None


def _pack(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value
    if isinstance(value, str | int | float):
        return _pack_scalar(value)
    if isinstance(value, dict):
        return _pack_dict(value, _deeper(value, depth))
    if isinstance(value, list | tuple):
        return _pack_list(value, _deeper(value, depth))
    tag, pack = _PACKERS.get(kind, ("", _refuse))
    return {tag: pack(value)}


def _pack_scalar(value: str | int | float) -> Any:
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        number = int.__index__(value)
        return number if _SMALLEST <= number <= _LARGEST else {"$int": hex(number)}
    if not math.isfinite(value):
        raise _Refused(f"the float {value}", "JSON has no such number: return None in its place.", "float")
    return float.__float__(value)


def _pack_list(values: list[Any] | tuple[Any, ...], depth: int) -> list[Any]:
    packed: list[Any] = []
    try:
        for value in values:
            packed.append(_pack(value, depth))  # noqa: PERF401 - the length tells the index of the refused member
    except _Refused as refused:
        refused.path.append(len(packed))
        raise
    return packed


def _pack_dict(values: dict[Any, Any], depth: int) -> dict[str, Any]:
    packed: dict[str, Any] = {}
    key: Any = None
    try:
        for key, value in values.items():
            packed[_pack_key(key)] = _pack(value, depth)
    except _Refused as refused:
        refused.path.append(key if isinstance(key, str) else repr(key))
        raise
    return _escaped(packed)


def _pack_key(key: object) -> str:
    if isinstance(key, str):
        return str.__str__(key)
    kind = _name(type(key))
    raise _Refused(
        f"under a key of type {kind}", "Keys are text in JSON: use str(key), or a list of pairs.", kind
    )


def _escaped(packed: dict[str, Any]) -> dict[str, Any]:
    if len(packed) != 1:
        return packed
    [(key, value)] = packed.items()
    return {f"${key}": value} if key.startswith("$") else packed


def _deeper(value: object, depth: int) -> int:
    if depth >= MAX_DEPTH:
        hint = "Flatten it; if it contains itself, store the parts and their keys instead."
        raise _Refused(f"nested deeper than {MAX_DEPTH} levels", hint, _name(type(value)))
    return depth + 1


def _pack_decimal(value: Decimal) -> str:
    if not value.is_finite():
        raise _Refused(f"the Decimal {value}", "Return None in its place.", "decimal.Decimal")
    return str(value)


_PACKERS: dict[type, tuple[str, Callable[[Any], str]]] = {
    date: ("$date", date.isoformat),
    datetime: ("$datetime", datetime.isoformat),
    Decimal: ("$decimal", _pack_decimal),
    UUID: ("$uuid", str),
    bytes: ("$bytes", lambda value: base64.b64encode(value).decode("ascii")),
}

_UNPACKERS: dict[str, Callable[[str], object]] = {
    "$date": date.fromisoformat,
    "$datetime": datetime.fromisoformat,
    "$decimal": Decimal,
    "$uuid": UUID,
    "$bytes": lambda text: base64.b64decode(text, validate=True),
    "$int": lambda text: int(text, 16),
}


def _unpack(plain: Any) -> Any:
    if isinstance(plain, list):
        return [_unpack(member) for member in plain]
    if not isinstance(plain, dict):
        return plain
    if len(plain) == 1:
        [(key, value)] = plain.items()
        if key.startswith("$"):
            return _unpack_tagged(key, value)
    return {key: _unpack(value) for key, value in plain.items()}


def _unpack_tagged(key: str, value: Any) -> Any:
    if key.startswith("$$"):
        return {key[1:]: _unpack(value)}
    if key not in _UNPACKERS or not isinstance(value, str):
        raise ValueError(f"unknown tag {key!r}")
    return _UNPACKERS[key](value)


# --- refusals: where, what, and what to return instead --------------------------------------------------------------------------


def _refuse(value: object) -> NoReturn:
    kind = _name(type(value))
    raise _Refused(f"of type {kind}", _advice(value), kind)


def _advice(value: object) -> str:
    for applies, advice in _ADVICE:
        if applies(value):
            return advice
    return "Return plain JSON types, or name an IO manager that stores this type: io=…"


_ADVICE: tuple[tuple[Callable[[object], bool], str], ...] = (
    (lambda value: isinstance(value, type), "This is a class: return an instance's plain form."),
    (dataclasses.is_dataclass, "Return dataclasses.asdict(value)."),
    (lambda value: hasattr(value, "model_dump"), "Return value.model_dump()."),
    (lambda value: isinstance(value, Enum), "Return its .value."),
    (lambda value: isinstance(value, set | frozenset), "Return sorted(value), a list."),
    (lambda value: isinstance(value, timedelta), "Return value.total_seconds()."),
    (lambda value: isinstance(value, bytearray | memoryview), "Return bytes(value)."),
    (lambda value: isinstance(value, Mapping), "Return dict(value)."),
    (
        lambda value: hasattr(value, "__await__"),
        "It was never awaited: declare the function with async def and await it.",
    ),
    (lambda value: hasattr(value, "__next__"), "Return list(value)."),
    (
        lambda value: isinstance(value, datetime),
        "Return value.to_pydatetime() or a datetime of the standard library.",
    ),
    (
        lambda value: hasattr(value, "to_dict"),
        "Return its to_dict(), or name an IO manager that stores this type: io=…",
    ),
    (
        lambda value: hasattr(value, "tolist"),
        "Return value.tolist(), or name an IO manager that stores this type: io=…",
    ),
    (
        lambda value: hasattr(value, "__iter__") and hasattr(value, "__len__"),
        "Return list(value), or name an IO manager that stores this type: io=…",
    ),
)


def _refuse_text(value: object, where: str) -> NoReturn:
    """Raise with the path of the text that UTF-8 cannot hold, which the quick way did not keep."""
    path = _path(_half_pair(value) or [])
    raise InvalidValue(
        f"{where} cannot be stored: {path} is text with half of a surrogate pair, which UTF-8 cannot hold",
        hint="Clean it first: text.encode('utf-8', 'replace').decode().",
        path=path,
        type="str",
        where=where,
    ) from None


def _half_pair(value: object) -> list[str | int] | None:
    if isinstance(value, str):
        return [] if any("\ud800" <= char <= "\udfff" for char in value) else None
    members: Any = ()
    if isinstance(value, dict):
        members = value.items()
    elif isinstance(value, list | tuple):
        members = enumerate(value)
    for key, member in members:
        rest = [] if _half_pair(key) is not None else _half_pair(member)
        if rest is not None:
            return [key, *rest]
    return None


def _path(parts: list[str | int]) -> str:
    return "$" + "".join(_part(part) for part in parts)


def _part(part: str | int) -> str:
    if isinstance(part, str) and part.isidentifier():
        return f".{part}"
    return f"[{json.dumps(part)}]"


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
