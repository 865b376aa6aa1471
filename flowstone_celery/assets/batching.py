"""Batches: elements put together into items. Every element is in exactly one batch, in the order in which it came."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flowstone_celery import codec
from flowstone_celery.errors import InvalidValue

if TYPE_CHECKING:
    from flowstone_celery.assets.batch import Batch

_ITEMS, _INDEX, _GROUP = "items", "batch", "group"


@dataclass(frozen=True, slots=True)
class Batched:
    """One batch, as its key tells it. Asked for by `ctx.batch`."""

    index: int
    """Its place among all batches, from 0."""
    items: list[Any]
    """Its elements."""
    group: Any = None
    """What `group_by` answered for all of them."""
    input: Any = None
    """`batch_input`, the same for all batches."""

    def element(self) -> dict[str, Any]:
        """What its key is made of."""
        found: dict[str, Any] = {_INDEX: self.index, _ITEMS: self.items}
        return {**found, _GROUP: self.group} if self.group is not None else found

    @staticmethod
    def of(element: dict[str, Any], given: Any = None) -> Batched:
        """The batch of a key's element."""
        return Batched(element[_INDEX], element[_ITEMS], element.get(_GROUP), given)


def batches(options: Batch, elements: Iterable[Any], *, asset: str, first: int = 0) -> Iterator[Batched]:
    """The batches of these elements, numbered from `first`.

    With `size` and `max_bytes` elements are taken as they come; `group_by` and `batch_fn` take them all first.

    Raises:
        InvalidValue: `batch_fn` lost, doubled or made up an element, or a function answered what it may not.
    """
    number = first
    for group, members in _grouped(options, elements, asset):
        if members:
            yield Batched(number, members, group)
            number += 1


def _grouped(options: Batch, elements: Iterable[Any], asset: str) -> Iterator[tuple[Any, list[Any]]]:
    if options.batch_fn is not None:
        found: Iterable[list[Any]] = _by_function(options.batch_fn, list(elements), asset)
    elif options.group_by is not None:
        yield from _by_group(options, elements, asset)
        return
    else:
        found = _limited(elements, options.size, options.max_bytes, _size_of(options, asset))
    yield from ((None, members) for members in found)


def _limited(
    elements: Iterable[Any], most: int | None, max_bytes: int | None, size_of: Callable[[Any], int]
) -> Iterator[list[Any]]:
    """Runs of elements within both limits; one that is larger than `max_bytes` by itself travels alone."""
    members: list[Any] = []
    filled = 0
    for element in elements:
        size = 0 if max_bytes is None else size_of(element)
        full = most is not None and len(members) >= most
        if members and (full or (max_bytes is not None and filled + size > max_bytes)):
            yield members
            members, filled = [], 0
        members.append(element)
        filled += size
    if members:
        yield members


def _size_of(options: Batch, asset: str) -> Callable[[Any], int]:
    measure = options.size_fn or (lambda element: len(codec.canonical(element, where="an element")))

    def size_of(element: Any) -> int:
        size = measure(element)
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise InvalidValue(
                f"size_fn of asset {asset!r} answered {size!r:.80} for an element, which is no number of bytes",
                hint="Answer a whole number from 0 up.",
                asset=asset,
            )
        return size

    return size_of


def _by_group(options: Batch, elements: Iterable[Any], asset: str) -> Iterator[tuple[Any, list[Any]]]:
    assert options.group_by is not None
    groups: dict[bytes, tuple[Any, list[Any]]] = {}
    for element in elements:
        try:
            group = options.group_by(element)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise InvalidValue(
                f"group_by of asset {asset!r} raised {type(error).__name__}: {error} for the element {element!r:.200}",
                hint="A name stands for a field that every element has; a function may answer None.",
                asset=asset,
            ) from error
        key = codec.canonical(group, where=f"what group_by of asset {asset!r} answered")
        groups.setdefault(key, (group, []))[1].append(element)
    for group, members in groups.values():
        for part in _limited(members, options.max_items_per_group, None, len):
            yield group, part


def _by_function(
    split: Callable[[list[Any]], Iterable[Iterable[Any]]], elements: list[Any], asset: str
) -> list[list[Any]]:
    """What the function answers, if every element is in exactly one of its batches."""
    answer = split(list(elements))
    try:
        found = [list(_members(each)) for each in answer]
    except TypeError:
        raise _wrong_batches(asset, f"answered {answer!r:.200}, which is no list of lists") from None
    given, got = _counted(elements), _counted([each for members in found for each in members])
    for key in given.keys() | got.keys():
        if given.get(key, 0) != got.get(key, 0):
            what = "left out" if got.get(key, 0) < given.get(key, 0) else "doubled or made up"
            raise _wrong_batches(asset, f"{what} the element {key.decode('utf-8', 'replace'):.200}")
    return found


def _members(batch: Any) -> Iterable[Any]:
    if isinstance(batch, str | bytes | dict):
        raise TypeError
    members: Iterable[Any] = iter(batch)
    return members


def _counted(elements: list[Any]) -> dict[bytes, int]:
    counts: dict[bytes, int] = {}
    for element in elements:
        key = codec.canonical(element, where="an element of a batch")
        counts[key] = counts.get(key, 0) + 1
    return counts


def _wrong_batches(asset: str, what: str) -> InvalidValue:
    return InvalidValue(
        f"batch_fn of asset {asset!r} {what}",
        hint="Answer lists of the elements that it was given, each element in one of them.",
        asset=asset,
    )
