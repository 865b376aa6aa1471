"""Plain JSON objects for what is only shown: metadata of runs and of values, kept in a jsonb column as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

from flowstone_celery.errors import InvalidValue

_DEEPEST = 50
_INT8 = 2**63


def plain_object(value: object, where: str) -> dict[str, Any]:
    """A copy in plain dicts, lists, texts, numbers and None.

    Raises:
        InvalidValue: a part of it is none of these; names its type and its path.
    """
    if not isinstance(value, Mapping):
        _refuse(where, "$", f"is of type {type(value).__name__}, not a dict")
    plain: dict[str, Any] = _plain(value, where, "$", 0)
    return plain


def _plain(value: object, where: str, path: str, depth: int) -> Any:
    if depth > _DEEPEST:
        _refuse(where, path[:80], f"lies deeper than {_DEEPEST} levels")
    if isinstance(value, Mapping):
        return {
            _key(key, where, path): _plain(each, where, f"{path}.{key}", depth + 1)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(each, where, f"{path}[{index}]", depth + 1) for index, each in enumerate(value)]
    if isinstance(value, str):
        return _text(value, where, path)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and -_INT8 <= value < _INT8:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    return _refuse(where, path, f"is {value!r:.40} of type {type(value).__name__}")


def _key(key: object, where: str, path: str) -> str:
    if not isinstance(key, str):
        _refuse(where, path, f"has a key of type {type(key).__name__}")
    return _text(key, where, path)


def _text(text: str, where: str, path: str) -> str:
    if "\x00" in text or any("\ud800" <= char <= "\udfff" for char in text):
        _refuse(
            where, path, "holds text that Postgres cannot keep as JSON (NUL, or half of a surrogate pair)"
        )
    return str.__str__(text)


def _refuse(where: str, path: str, what: str) -> NoReturn:
    raise InvalidValue(
        f"{where} cannot be stored: {path} {what}",
        hint="Metadata is plain JSON: dicts with text keys, lists, texts, finite numbers, true, false, None. str(value) always fits.",
        path=path,
    )
