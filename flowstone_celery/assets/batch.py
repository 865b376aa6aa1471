"""How elements are put together into items: every option of `Batch`, read into its one form where it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from functools import partial
from typing import Any

from flowstone_celery.assets.options import Option, count_of, read_options
from flowstone_celery.assets.plain import plain_object
from flowstone_celery.errors import InvalidOption


class OnItemError(StrEnum):
    """What an element that raises means for its batch."""

    FAIL_BATCH = "fail_batch"
    COLLECT_ERRORS = "collect_errors"


class Batch:
    """How elements are put together into items, each of which is a batch of them.

    One way of these: `batch_fn`, `group_by`, or else `size` and `max_bytes`, which hold together. Empty batches are dropped; an element
    that is larger than `max_bytes` travels alone. The asset's function takes `items`, the list of elements, and is called once for each
    batch; or it takes `item`, and is called once for each element.
    """

    __slots__ = (
        "batch_fn",
        "batch_input",
        "group_by",
        "max_bytes",
        "max_items_per_group",
        "on_item_error",
        "size",
        "size_fn",
    )

    def __init__(
        self,
        size: int | None = None,
        *,
        max_bytes: int | None = None,
        size_fn: Callable[[Any], int] | None = None,
        group_by: Callable[[Any], Any] | str | None = None,
        max_items_per_group: int | None = None,
        batch_fn: Callable[[list[Any]], Iterable[Iterable[Any]]] | None = None,
        batch_input: Mapping[str, Any] | Callable[..., Any] | None = None,
        on_item_error: str = OnItemError.FAIL_BATCH,
        **unknown: Any,
    ) -> None:
        """Read the options.

        Args:
            size: elements in a batch at most; 10 if nothing else is given.
            max_bytes: bytes in a batch at most, as `size_fn` counts them.
            size_fn: an element's bytes; by default those of its canonical JSON.
            group_by: elements of equal answers go together; a text names a field of elements that are dicts.
            max_items_per_group: elements in a batch of one group at most.
            batch_fn: takes the list of all elements, answers the batches.
            batch_input: what every batch is given beside its elements (`ctx.batch.input`), JSON; a function of dependencies is called once.
            on_item_error: for a function of `item`: `fail_batch` (the first element that raises fails its batch), or `collect_errors` (the
                batch succeeds with those that did; if none did, it fails).
            **unknown: none.

        Raises:
            UnknownOption: an option does not exist.
            InvalidOption: an option has a value that it cannot have, or two do not go together.
        """
        given = {
            "size": size,
            "max_bytes": max_bytes,
            "size_fn": size_fn,
            "group_by": group_by,
            "max_items_per_group": max_items_per_group,
            "batch_fn": batch_fn,
            "batch_input": batch_input,
            "on_item_error": on_item_error,
        }
        read = read_options("Batch", "", {**given, **unknown}, BATCH_OPTIONS)
        _check_batch(read)
        self.size: int | None = read.get("size") or (None if _WAYS & read.keys() else 10)
        self.max_bytes: int | None = read.get("max_bytes")
        self.size_fn: Callable[[Any], int] | None = read.get("size_fn")
        self.group_by: Callable[[Any], Any] | None = read.get("group_by")
        self.max_items_per_group: int | None = read.get("max_items_per_group")
        self.batch_fn: Callable[[list[Any]], Iterable[Iterable[Any]]] | None = read.get("batch_fn")
        self.batch_input: Mapping[str, Any] | Callable[..., Any] | None = read.get("batch_input")
        self.on_item_error: str = str(read.get("on_item_error", OnItemError.FAIL_BATCH))

    def content(self) -> dict[str, Any]:
        """What decides what is in a batch, functions left out, as JSON: other content is another result."""
        names = ("size", "max_bytes", "max_items_per_group", "batch_input", "on_item_error")
        return {name: value for name in names if not callable(value := getattr(self, name))}

    def plain(self) -> dict[str, Any]:
        """The options as JSON, for whoever looks; functions by their names."""
        found = {name: getattr(self, name) for name in self.__slots__ if name != "batch_input"}
        return {name: _plain(value) for name, value in found.items() if value is not None}


# --- options that do not go together ----------------------------------------------------------------------------------------------

_WAYS = frozenset({"batch_fn", "group_by", "max_bytes"})


def _check_batch(read: Mapping[str, Any]) -> None:
    clashes = {
        "batch_fn": ("size", "max_bytes", "group_by", "max_items_per_group"),
        "group_by": ("size", "max_bytes"),
    }
    for way, others in clashes.items():
        for other in others:
            if way in read and other in read:
                more = " Use max_items_per_group." if (way, other) == ("group_by", "size") else ""
                raise InvalidOption(
                    f"Batch: {way} decides by itself which elements go together, so {other} would not be looked at",
                    hint=f"Keep one of the two.{more}",
                    option=other,
                )
    for option, needed in (("size_fn", "max_bytes"), ("max_items_per_group", "group_by")):
        if option in read and needed not in read:
            raise InvalidOption(
                f"Batch: {option} says nothing without {needed}",
                hint=f"Write for example {BATCH_OPTIONS[needed].example}.",
                option=option,
            )


# --- readers: ValueError for what is wrong ----------------------------------------------------------------------------------------


def _function(value: Any) -> Any:
    if not callable(value) or isinstance(value, type):
        raise ValueError  # noqa: TRY004 - readers speak through one error
    return value


def _field(name: str, element: Any) -> Any:
    return element[name]


def _grouping(value: Any) -> Any:
    if isinstance(value, str) and value:
        return partial(_field, value)
    return _function(value)


def _input(value: Any) -> Any:
    return plain_object(value, "batch_input") if isinstance(value, Mapping) else _function(value)


def _plain(value: Any) -> Any:
    if isinstance(value, partial):
        return value.args[0]
    return getattr(value, "__name__", None) or repr(value) if callable(value) else value


_WHOLE = "a whole number from 1 up"

BATCH_OPTIONS: dict[str, Option] = {
    "size": Option(_WHOLE, "size=50", count_of),
    "max_bytes": Option(_WHOLE, "max_bytes=1_000_000", count_of),
    "size_fn": Option("a function that answers an element's bytes", "size_fn=len", _function),
    "group_by": Option("a function of an element, or the name of a field", 'group_by="host"', _grouping),
    "max_items_per_group": Option(_WHOLE, "max_items_per_group=50", count_of),
    "batch_fn": Option(
        "a function of all elements that answers the batches", "batch_fn=by_weight", _function
    ),
    "batch_input": Option(
        "a dict of JSON values, or a function of dependencies", 'batch_input={"model": "small"}', _input
    ),
    "on_item_error": Option(
        f"one of {', '.join(OnItemError)}", 'on_item_error="collect_errors"', OnItemError, tuple(OnItemError)
    ),
}
