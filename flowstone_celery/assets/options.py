"""Every option of an asset: what it may be, an example, and the function that reads it into its one form."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

from flowstone_celery.assets.definitions import Definition
from flowstone_celery.assets.mappings import PartitionMapping
from flowstone_celery.codec import decode, encode
from flowstone_celery.errors import InvalidOption, InvalidValue, UnknownOption, did_you_mean

SLUG = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
"""A short name."""

DOTTED = re.compile(rf"{SLUG.pattern}(\.{SLUG.pattern})*", re.ASCII)
"""A namespace, or a short or qualified name."""

_LONGEST = 10 * 366 * 86_400.0
_NAME_BYTES = 255
_INT4 = 2**31 - 1


class ScatterOptions:
    """What an asset is told of its scatter, as one value: `Scatter` is its form."""

    __slots__ = ()


class Maker(StrEnum):
    """What happens when several runs are to make one slice at the same time."""

    SHARE = "share"
    QUEUE = "queue"
    ALLOW = "allow"


class Backoff(StrEnum):
    """How the pause grows from one failed attempt to the next."""

    FIXED = "fixed"
    LINEAR = "linear"
    EXPONENTIAL = "exponential"


@dataclass(frozen=True, slots=True)
class Option:
    """One option: what it is in words, how it is written, and its reader, which raises ValueError for what is wrong."""

    is_: str
    example: str
    read: Callable[[Any], Any]
    words: tuple[str, ...] = ()
    """All that it may be, where that is a closed set: the nearest is suggested."""


def read_options(
    subject: str, place: str, given: Mapping[str, Any], known: Mapping[str, Option] | None = None
) -> dict[str, Any]:
    """All options in their one form; an option that is None counts as not given. `known` are those of an asset by default.

    Raises:
        UnknownOption: a name that is no option, with the nearest one.
        InvalidOption: a value that an option cannot have.
    """
    options = OPTIONS if known is None else known
    for name in given:
        if name not in options:
            near = did_you_mean(name, options) or f"Options: {', '.join(options)}."
            raise UnknownOption(f"{subject} has no option {name!r}", hint=at(near, place), option=name)
    read = {name: (options[name], value) for name, value in given.items() if value is not None}
    return {name: _read(subject, place, name, option, value) for name, (option, value) in read.items()}


def _read(subject: str, place: str, name: str, option: Option, value: Any) -> Any:
    try:
        return option.read(value)
    except (ValueError, InvalidValue) as error:
        why = (
            error.message
            if isinstance(error, InvalidValue)
            else f"{name} is {option.is_}, not {_short(value)}"
        )
        near = did_you_mean(value, option.words) if option.words and isinstance(value, str) else ""
        hint = near or f"Write for example {option.example}."
        raise InvalidOption(f"{subject}: {why}", hint=at(hint, place), option=name) from None


def at(hint: str, place: str) -> str:
    """The hint, with the place of the declaration behind it."""
    return f"{hint} ({place})" if place else hint


def name_of(value: Any) -> str:
    """The name that a dependency is written with: its text, or an asset's qualified name."""
    name = (
        value if isinstance(value, str) else getattr(value, "qualified", None) or getattr(value, "name", None)
    )
    return slug_of(DOTTED, name)


def seconds_of(value: Any) -> float:
    """A number of seconds or a timedelta as seconds, from none to ten years."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= _LONGEST:
        raise ValueError
    return float(seconds)


def slug_of(form: re.Pattern[str], value: Any) -> str:
    """The text, which has this form."""
    if not isinstance(value, str) or not form.fullmatch(value):
        raise ValueError
    return str.__str__(value)


def _label(value: Any) -> str:
    text = _text(value)
    if not text.strip() or text != text.strip() or len(text.encode("utf-8")) > _NAME_BYTES:
        raise ValueError
    return text


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\x00" in value:
        raise ValueError
    value.encode("utf-8")  # half of a surrogate pair is a ValueError too
    return str.__str__(value)


def _listed(read: Callable[[Any], str]) -> Callable[[Any], tuple[str, ...]]:
    def read_all(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list | tuple | set | frozenset):
            raise ValueError  # noqa: TRY004 - readers speak through one error
        members = [read(member) for member in value]
        return tuple(dict.fromkeys(sorted(members) if isinstance(value, set | frozenset) else members))

    return read_all


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return int(value)

    return read


def count_of(value: Any) -> int:
    """A whole number from 1 up."""
    return _whole(1, _INT4)(value)


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError
    return float(value)


def _timeout(value: Any) -> float:
    seconds = seconds_of(value)
    if seconds == 0:
        raise ValueError
    return seconds


def _metadata(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError  # noqa: TRY004 - readers speak through one error
    plain: dict[str, Any] = decode(encode(dict(value), where="metadata"))
    return plain


def name_list(value: Any) -> tuple[str, ...]:
    """A list of short names, each once."""
    return _listed(lambda member: slug_of(SLUG, member))(value)


def _definition(value: Any) -> Definition:
    found = value if isinstance(value, Definition) else getattr(value, "partitions", None)
    if not isinstance(found, Definition):
        raise ValueError  # noqa: TRY004 - readers speak through one error
    return found


def _scatter(value: Any) -> ScatterOptions:
    if not isinstance(value, ScatterOptions):
        raise ValueError  # noqa: TRY004 - readers speak through one error
    return value


def _mappings(value: Any) -> dict[str, PartitionMapping]:
    if not isinstance(value, Mapping) or not all(
        isinstance(each, PartitionMapping) for each in value.values()
    ):
        raise ValueError
    return {name_of(name): each for name, each in value.items()}


_SECONDS = "a number of seconds from 0 up, or a timedelta"

OPTIONS: dict[str, Option] = {
    "name": Option(
        "a name of letters, digits and _, not beginning with a digit, at most 128 long",
        'name="daily_revenue"',
        lambda value: slug_of(SLUG, value),
    ),
    "deps": Option("a list of asset names or assets", 'deps=["orders"]', _listed(name_of)),
    "optional_deps": Option("a list of names out of deps", 'optional_deps=["orders"]', _listed(name_of)),
    "description": Option("text", 'description="What it holds"', _text),
    "tags": Option("a list of texts", 'tags=["finance"]', _listed(_label)),
    "metadata": Option("a dict of JSON values", 'metadata={"grain": "day"}', _metadata),
    "owner": Option("text of at most 255 bytes without spaces around it", 'owner="data-team"', _label),
    "queue": Option("text of at most 255 bytes without spaces around it", 'queue="etl"', _label),
    "priority": Option("a whole number, larger meaning sooner", "priority=5", _whole(-_INT4, _INT4)),
    "retries": Option(
        "a whole number of attempts after the first, from 0 up", "retries=3", _whole(0, 1_000_000)
    ),
    "backoff": Option(f"one of {', '.join(Backoff)}", 'backoff="linear"', Backoff, tuple(Backoff)),
    "retry_delay": Option(_SECONDS, "retry_delay=1.5", seconds_of),
    "retry_cap": Option(_SECONDS, "retry_cap=600", seconds_of),
    "jitter": Option("a number from 0 to 1", "jitter=0.1", _share),
    "timeout": Option("a number of seconds above 0, or a timedelta", "timeout=60", _timeout),
    "maker": Option(f"one of {', '.join(Maker)}", 'maker="queue"', Maker, tuple(Maker)),
    "code_version": Option("text of at most 255 bytes without spaces around it", 'code_version="2"', _label),
    "partitions": Option(
        "a definition of partitions, or an asset that has one", 'partitions=Daily("2026-01-01")', _definition
    ),
    "mappings": Option(
        "a dict of mappings by names out of deps", 'mappings={"orders": Previous()}', _mappings
    ),
    "io": Option("the name of an IO manager", 'io="database"', _label),
    "requires": Option("a list of names of resources", 'requires=["warehouse"]', name_list),
    "scatter": Option("a Scatter(…)", 'scatter=Scatter(over="urls")', _scatter),
}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
