"""A partition key becomes one text and comes back as the same key with the same type.

| key | text |
|---|---|
| None | the empty text |
| date | `d:2026-11-20` |
| aware datetime | `dt:2026-11-20T09:00:00Z`, always in UTC |
| naive datetime | `ndt:2026-11-20T10:00:00` |
| int, bool | `i:42`, `b:1` |
| str | itself; `s:` and base64url where it is empty, holds `:` or a bar, or looks like a date |
| tuple | `t:` and the base64url of a JSON array: texts as they are, null, every other member as `{"tag": "body"}` |

Texts of older versions and texts from people carry no tags: dates and datetimes in ISO form, and members joined by bars, are read
as what they are.
"""

from __future__ import annotations

import base64
import json
import re
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from flowstone_celery.errors import InvalidPartition

if TYPE_CHECKING:
    from collections.abc import Callable

PartitionKey: TypeAlias = "date | datetime | str | int | bool | tuple[PartitionKey, ...] | None"

MAX_BYTES = 1024
"""How long the text of a key may be, in bytes of UTF-8."""

MAX_DEPTH = 16
"""How deep tuples may be nested."""

_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_DATETIME = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?(?P<zone>Z|[+-]\d\d:\d\d(:\d\d)?)?", re.ASCII
)
_INT = re.compile(r"0|-?[1-9]\d*", re.ASCII)
_KINDS = "date, datetime, str, int, bool, None, or a tuple of these"


def encode(key: PartitionKey) -> str:
    """The one text of the key; two keys share a text only when they are equal and of one type (aware datetimes: one instant).

    Raises:
        InvalidPartition: another type, text with NUL or half of a surrogate pair, or more than `MAX_BYTES`.
    """
    key = parse(key) if isinstance(key, Written) else key
    text = "" if key is None else _encode(key)
    _check_text(text)
    return text


def decode(text: str) -> PartitionKey:
    """The key whose text this is; a tag that no version has written is refused.

    Raises:
        InvalidPartition: the text is not one of a key.
    """
    return _read(text, lenient=False)


def parse(text: str) -> PartitionKey:
    """The key that a person means: `2026-11-20` is a date, `2026-11-20|eu` a tuple, `i:7` a number, `customer:7` just text.

    Every text that `encode` writes is read as `decode` reads it. Digits alone are text; write `i:7` for the number.

    Raises:
        InvalidPartition: a tag is followed by what it cannot tag, or a date does not exist.
    """
    return _read(text, lenient=True)


class Written(str):
    """A text as a person wrote it: which key it means is told by the asset's partitions, else by `parse`."""

    __slots__ = ()


# --- writing --------------------------------------------------------------------------------------------------------------------


def _encode(key: object) -> str:
    if isinstance(key, str):
        return _encode_text(str.__str__(key))
    if isinstance(key, tuple):
        members = [_member(member, 1) for member in key]
        return f"t:{_base64(json.dumps(members, separators=(',', ':'), ensure_ascii=False))}"
    return "{}:{}".format(*_tagged(key))


def _encode_text(text: str) -> str:
    _check_characters(text)
    plain = text and ":" not in text and "|" not in text and not _DATE.fullmatch(text)
    return text if plain else f"s:{_base64(text)}"


def _member(key: object, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise InvalidPartition(
            f"partition key is nested deeper than {MAX_DEPTH} tuples", hint="Use one tuple of plain members."
        )
    if key is None:
        return None
    if isinstance(key, str):
        _check_characters(key)
        return str.__str__(key)
    if isinstance(key, tuple):
        return {"t": [_member(member, depth + 1) for member in key]}
    tag, body = _tagged(key)
    return {tag: body}


def _tagged(key: object) -> tuple[str, str]:
    if isinstance(key, bool):
        return "b", str(int(key))
    if isinstance(key, int):
        return "i", _digits(key)
    if isinstance(key, datetime):
        return _tagged_datetime(key)
    if isinstance(key, date):
        return "d", _checked(_DATE, key.isoformat(), key)
    return _refuse_type(key)


def _tagged_datetime(key: datetime) -> tuple[str, str]:
    if key.utcoffset() is None:
        return "ndt", _checked(_DATETIME, key.replace(tzinfo=None).isoformat(), key)
    try:
        return "dt", _checked(_DATETIME, key.astimezone(UTC).isoformat().replace("+00:00", "Z"), key)
    except OverflowError:
        _refuse(key, "falls outside the years 1 to 9999 in UTC", "Use a moment inside them.")


def _checked(form: re.Pattern[str], text: str, key: object) -> str:
    """The text, unless a library's own kind of date (nanoseconds, not-a-time) says what ours cannot keep."""
    if not form.fullmatch(text):
        _refuse(
            key,
            f"says {text!r}, which no date or datetime in microseconds can keep",
            "Round it, or use plain text.",
        )
    return text


def _digits(key: int) -> str:
    if key.bit_length() > 8 * MAX_BYTES:
        _refuse_length(key.bit_length() // 4)
    return str(int(key))


# --- reading --------------------------------------------------------------------------------------------------------------------


def _read(text: str, *, lenient: bool) -> PartitionKey:
    if not isinstance(text, str):
        raise InvalidPartition(
            f"partition text is {type(text).__name__}, not text", hint="Encode the key first."
        )
    _check_text(text)
    if "|" in text:
        return tuple(_read_one(part, lenient=lenient) for part in text.split("|"))
    return _read_one(text, lenient=lenient) if text else None


def _read_one(text: str, *, lenient: bool) -> PartitionKey:
    tag, colon, body = text.partition(":")
    if colon and tag in _READERS:
        return _READERS[tag](body)
    if zoned := _DATETIME.fullmatch(text):
        return _read_datetime(text, aware=bool(zoned["zone"]))
    if _DATE.fullmatch(text):
        return _read_date(text)
    if not text:
        _refuse(text, "has an empty member", "Write a text on both sides of every bar.")
    if colon and not lenient:
        _refuse(
            text,
            f"begins with {tag + ':'!r}, which tags no kind of key",
            f"Known tags: {', '.join(_READERS)}.",
        )
    return text


def _read_date(body: str) -> date:
    if not _DATE.fullmatch(body):
        _refuse(body, "is not a date", "Write it as 2026-11-20.")
    try:
        return date.fromisoformat(body)
    except ValueError:
        _refuse(body, "is a date that does not exist", "Look at its month and day.")


def _read_datetime(body: str, *, aware: bool) -> datetime:
    found = _DATETIME.fullmatch(body)
    if not found or bool(found["zone"]) is not aware:
        example = "2026-11-20T09:00:00Z" if aware else "2026-11-20T09:00:00"
        kind = "a datetime with its offset" if aware else "a datetime without an offset"
        _refuse(body, f"is not {kind}", f"Write it as {example}.")
    try:
        moment = datetime.fromisoformat(body)
        return moment.astimezone(UTC) if aware else moment
    except (ValueError, OverflowError):
        _refuse(body, "is a moment that does not exist", "Look at its month, day, hour and offset.")


def _read_int(body: str) -> int:
    if not _INT.fullmatch(body):
        _refuse(body, "is not a whole number", "Write it as i:42.")
    return int(body)


def _read_bool(body: str) -> bool:
    if body not in {"0", "1"}:
        _refuse(body, "is neither true nor false", "Write b:1 or b:0.")
    return body == "1"


def _read_text(body: str) -> str:
    text = _unbase64(body)
    _check_characters(text)
    return text


def _read_tuple(body: str) -> tuple[PartitionKey, ...]:
    try:
        members = json.loads(_unbase64(body))
    except (ValueError, RecursionError):
        members = None
    return _members(members, body, 1)


def _members(members: object, body: str, depth: int) -> tuple[PartitionKey, ...]:
    if not isinstance(members, list) or depth > MAX_DEPTH:
        _refuse(body, "is not a tuple of keys", "Let encode() write it.")
    return tuple(_read_member(member, body, depth) for member in members)


def _read_member(member: object, body: str, depth: int) -> PartitionKey:
    if member is None:
        return None
    if isinstance(member, str):
        _check_characters(member)
        return member
    [(tag, value)] = member.items() if isinstance(member, dict) and len(member) == 1 else [("", None)]
    if tag == "t":
        return _members(value, body, depth + 1)
    if tag not in _MEMBER_TAGS or not isinstance(value, str):
        _refuse(body, "is not a tuple of keys", "Let encode() write it.")
    return _READERS[tag](value)


_READERS: dict[str, Callable[[str], PartitionKey]] = {
    "d": _read_date,
    "dt": lambda body: _read_datetime(body, aware=True),
    "ndt": lambda body: _read_datetime(body, aware=False),
    "i": _read_int,
    "b": _read_bool,
    "s": _read_text,
    "t": _read_tuple,
}
_MEMBER_TAGS = frozenset({"d", "dt", "ndt", "i", "b"})


# --- base64url without padding, and refusals ------------------------------------------------------------------------------------


def _base64(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode("utf-8")).decode("ascii").rstrip("=")


def _unbase64(body: str) -> str:
    try:
        text = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True).decode("utf-8")
    except ValueError:
        _refuse(body, "is not base64url of text", "Let encode() write it.")
    if _base64(text) != body:
        _refuse(body, "is not the one base64url form of its text", "Let encode() write it.")
    return text


def _check_text(text: str) -> None:
    _check_characters(text)
    size = len(text.encode("utf-8"))
    if size > MAX_BYTES:
        _refuse_length(size)


def _check_characters(text: str) -> None:
    if "\x00" in text:
        _refuse(text, "holds a NUL character, which Postgres cannot store", "Remove it.")
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        _refuse(text, "holds half of a surrogate pair, which UTF-8 cannot store", "Clean the text first.")


def _refuse(key: object, why: str, hint: str) -> NoReturn:
    raise InvalidPartition(f"partition {_short(key)} {why}", hint=hint, key=_short(key)) from None


def _refuse_type(key: object) -> NoReturn:
    kind = type(key).__name__
    hint = (
        "Use tuple(key)."
        if isinstance(key, list)
        else "Turn it into one of these; str(key) is always possible."
    )
    raise InvalidPartition(f"a partition key is {_KINDS}; this one is {kind}", hint=hint, type=kind)


def _refuse_length(size: int) -> NoReturn:
    raise InvalidPartition(
        f"partition key takes {size} bytes as text, more than {MAX_BYTES}",
        hint="Use a short id or a digest as the key, and keep the rest in the value.",
        size=size,
    )


def _short(key: object) -> str:
    text = repr(key)
    return text if len(text) <= 80 else f"{text[:77]}..."
