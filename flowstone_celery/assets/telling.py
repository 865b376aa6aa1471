"""From what tells the items of a scatter (a dependency's value, or what `keys` answered) to elements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from flowstone_celery import codec
from flowstone_celery.assets.gathered import Gathered
from flowstone_celery.assets.inputs import Values
from flowstone_celery.assets.readers import is_reader
from flowstone_celery.errors import InvalidValue

_ITEMS_HINT = "Answer a list of the items' keys, an iterable of them, or a reader."


@runtime_checkable
class Reads(Protocol):
    """The least that a reader has."""

    def read(self, limit: int) -> Sequence[Any] | None:
        """The next elements; none: that was the end."""


def elements_of(told: object, *, asset: str, who: str) -> Sequence[Any] | Iterable[Any] | Reads:
    """The elements: a sequence where all are there already, an iterable or a reader where they are read as they come.

    Args:
        told: what tells them.
        asset: that scatters.
        who: what told them, for the error: "its keys".

    Raises:
        InvalidValue: it tells no items; says what it is and what to answer in its place.
    """
    if isinstance(told, list | tuple):
        return told
    if isinstance(told, set | frozenset):
        return sorted(told, key=lambda each: codec.canonical(each, where=f"an item of asset {asset!r}"))
    if isinstance(told, Gathered):
        return told.values()
    if isinstance(told, Reads) and is_reader(told):
        return told
    refused = (str, bytes, bytearray, memoryview, Mapping)
    if not isinstance(told, refused) and isinstance(told, Iterable):
        return told
    raise InvalidValue(
        f"asset {asset!r} cannot scatter over {_what(told)}, which {who} answered",
        hint=_hint(told),
        asset=asset,
        type=type(told).__name__,
    )


def _what(told: object) -> str:
    if told is None:
        return "None"
    text = repr(told)
    return f"the {type(told).__name__} {text if len(text) <= 60 else f'{text[:57]}...'}"


def _hint(told: object) -> str:
    if isinstance(told, Values):
        return "Those are the values of several partitions: name the items in code, with @….keys."
    if isinstance(told, Mapping):
        return "Is an item a key, a value, or a pair? Name them in code: @….keys, with list(d), list(d.values()) or list(d.items())."
    if isinstance(told, str | bytes | bytearray | memoryview):
        return "A text has no items of its own; a list with it has one."
    if callable(getattr(told, "to_dict", None)) or callable(getattr(told, "tolist", None)):
        return "Answer it as a list of plain values."
    if hasattr(told, "__await__"):
        return "It was never awaited: asyncio.run(…) inside `keys` awaits it."
    if callable(told):
        return f"It was never called: {getattr(told, '__name__', 'it')}(…) is meant?"
    return _ITEMS_HINT
