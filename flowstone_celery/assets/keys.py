"""Keys of items: the canonical JSON of an element. Two keys are equal where their texts are, whatever order a dict was written in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from flowstone_celery import codec
from flowstone_celery.errors import InvalidValue

MOST_BYTES = 1_048_576
"""A key may be this large. It is written once, in its page, and read by whoever does the item."""

_SHOWN = 120


def key_of(element: object, *, asset: str, index: int | None = None) -> bytes:
    """The key of this element.

    Raises:
        InvalidValue: it is not JSON-like, or too large; names the asset, the place of the element, and the part that is wrong.
    """
    which = f"item {index} of asset {asset!r}" if index is not None else f"an item of asset {asset!r}"
    try:
        key = codec.canonical(element, where=f"the key of {which}")
    except InvalidValue as error:
        hint = "A key is JSON: texts, numbers, lists, dicts with text keys, dates. Give the items' names, and load the rest in the item."
        raise InvalidValue(error.message, hint=hint, **error.facts) from None
    if len(key) > MOST_BYTES:
        raise InvalidValue(
            f"the key of {which} takes {len(key):,} bytes, the limit is {MOST_BYTES:,}",
            hint="Make the key what names the item, and load its content in the item.",
            asset=asset,
            size=len(key),
        )
    return key


def element_of(key: bytes) -> Any:
    """The element again, as plain values: tuples come as lists."""
    return codec.decode(key)


def digest_of(key: bytes) -> bytes:
    """The SHA-256 of a key, 32 bytes."""
    return hashlib.sha256(key).digest()


def shown(key: bytes) -> str:
    """The key for a line of text."""
    text = key.decode("utf-8", "replace")
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def keys_of(elements: Iterable[object], *, asset: str, first: int = 0) -> Iterator[bytes]:
    """The key of each element, in order; `first` is the place of the first, for the error.

    Raises:
        InvalidValue: as for `key_of`.
    """
    for index, element in enumerate(elements, first):
        yield key_of(element, asset=asset, index=index)


def distinct(keys: Sequence[bytes]) -> tuple[list[bytes], int]:
    """Each key once, at the place where it came first, and how many were dropped."""
    found = list(dict.fromkeys(keys))
    return found, len(keys) - len(found)
