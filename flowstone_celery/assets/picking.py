"""Which partitions a backfill is for: those that were asked for, and which of them have to be made."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from flowstone_celery import codec
from flowstone_celery.assets import partition as partitions
from flowstone_celery.assets.reasons import Freshness
from flowstone_celery.core.model import json_text
from flowstone_celery.errors import InvalidOption, InvalidPartition, did_you_mean
from flowstone_celery.record import partitions as ledger
from flowstone_celery.states import BackfillMode, StepStatus

if TYPE_CHECKING:
    from flowstone_celery.assets.asset import AssetSpec
    from flowstone_celery.assets.definitions import AsOf, Definition
    from flowstone_celery.assets.freshness import Assessor
    from flowstone_celery.assets.partition import PartitionKey
    from flowstone_celery.db.database import Database

PartitionsAsked: TypeAlias = "Iterable[PartitionKey] | tuple[PartitionKey, PartitionKey] | Callable[..., Iterable[PartitionKey]] | None"
"""A list (or anything that answers keys), a pair of the first and the last, a function that answers keys, or None for all."""

_SHOWN = 5
_ASSESSED_AT_ONCE = 2_000


@dataclass(frozen=True, slots=True)
class Asked:
    """The partitions that were asked for, each once, in the order of the definition or of the list."""

    texts: tuple[str, ...]
    written: str
    """What was asked for in so many words: the same words later may mean other partitions."""


def mode_of(given: Any) -> BackfillMode:
    """The mode of this name.

    Raises:
        InvalidOption: there is none.
    """
    try:
        return BackfillMode(given)
    except ValueError:
        near = did_you_mean(str(given), tuple(BackfillMode))
        raise InvalidOption(
            f"a backfill has no mode {given!r:.80}",
            hint=near or f"Modes: {', '.join(BackfillMode)}.",
            option="mode",
        ) from None


# --- what was asked for -----------------------------------------------------------------------------------------------------------


def asked(
    spec: AssetSpec,
    as_of: AsOf,
    given: PartitionsAsked = None,
    *,
    start: PartitionKey = None,
    end: PartitionKey = None,
) -> Asked:
    """The partitions of an asset that these words name at a moment.

    Raises:
        InvalidPartition: keys that are none of the asset, all of them told; or it has no definition, and what is asked for needs one.
        InvalidOption: both a list and a range, text in place of a list, or a function that takes or answers something else.
    """
    ranged = start is not None or end is not None
    if given is not None and ranged:
        raise InvalidOption(
            "partitions= and start= or end= contradict each other",
            hint="Give one of them.",
            option="partitions",
        )
    if isinstance(given, tuple):
        if len(given) != 2:
            raise InvalidOption(
                f"a tuple of partitions is the first and the last, and this one has {len(given)} members",
                hint="Give a list to name each of them.",
                option="partitions",
            )
        start, end = given
        ranged = True
    if given is None or ranged:
        texts = _once(partitions.encode(key) for key in _between(spec, start, end, as_of))
        return Asked(texts, f"from {start} to {end}" if ranged else "all")
    texts = _right(spec, as_of, _keys(spec.partitions, given))
    return Asked(texts, codec.digest(json_text(texts) or ""))


def _once(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def _between(spec: AssetSpec, start: PartitionKey, end: PartitionKey, as_of: AsOf) -> Iterator[PartitionKey]:
    if spec.partitions is not None:
        return spec.partitions.range(start, end, now=as_of)
    start, end = (
        partitions.parse(each) if isinstance(each, partitions.Written) else each for each in (start, end)
    )
    if type(start) is date and type(end) is date:
        return _counting(start, end, timedelta(days=1))
    if type(start) is int and type(end) is int:
        return _counting(start, end, 1)
    raise InvalidPartition(
        f"{spec.qualified!r} declares no partitions, so nothing tells which there are"
        + ("" if start is None and end is None else f" from {start!r:.80} to {end!r:.80}"),
        hint="Name each: partitions=[…]; a range needs two dates or two whole numbers here.",
        asset=spec.qualified,
    )


def _counting(first: Any, last: Any, step: Any) -> Iterator[Any]:
    if last < first:
        raise InvalidPartition(f"the range from {first} to {last} runs backwards", hint="Swap the two.")
    while first <= last:
        yield first
        first += step


def _keys(definition: Definition | None, given: Any) -> Iterable[Any]:
    found = _called(given, definition) if callable(given) else given
    if isinstance(found, str | bytes | Mapping | date) or not isinstance(found, Iterable):
        what = "the function answered" if callable(given) else "partitions= is"
        raise InvalidOption(
            f"{what} {found!r:.80}, and not a list of keys",
            hint=f"Write partitions=[{found!r:.40}]."
            if isinstance(found, str | int | date)
            else "Give a list.",
            option="partitions",
        )
    return found


def _called(function: Callable[..., Any], definition: Definition | None) -> Any:
    arguments = (definition,) if _takes_one(function) else ()
    try:
        return function(*arguments)
    except Exception as error:
        raise InvalidOption(
            f"the function of partitions= raised {type(error).__name__}: {error}",
            hint="It answers the keys; it may take the definition.",
            option="partitions",
        ) from error


def _takes_one(function: Callable[..., Any]) -> bool:
    """Whether it wants the definition.

    Raises:
        InvalidOption: it wants more than that.
    """
    needed = [
        each
        for each in inspect.signature(function).parameters.values()
        if each.default is each.empty and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    if len(needed) > 1:
        raise InvalidOption(
            f"the function of partitions= takes {len(needed)} arguments",
            hint="It takes none, or one: the definition of the asset's partitions.",
            option="partitions",
        )
    return bool(needed)


def _right(spec: AssetSpec, as_of: AsOf, keys: Iterable[Any]) -> tuple[str, ...]:
    texts: dict[str, None] = {}
    wrong: list[tuple[str, InvalidPartition]] = []
    count = 0
    for count, key in enumerate(keys, 1):  # noqa: B007 - told below
        try:
            texts[partitions.encode(key if spec.partitions is None else spec.partitions.read(key, as_of))] = (
                None
            )
        except InvalidPartition as error:
            wrong.append((str(key), error))
    if wrong:
        _refuse(spec, wrong, count)
    return tuple(texts)


def _refuse(spec: AssetSpec, wrong: list[tuple[str, InvalidPartition]], count: int) -> NoReturn:
    """All that are wrong are told in the facts, some in the sentence, and why of the first."""
    keys = list(dict.fromkeys(key for key, _ in wrong))
    shown = ", ".join(f"{key!r:.80}" for key in keys[:_SHOWN])
    rest = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    first = wrong[0][1]
    raise InvalidPartition(
        f"{len(wrong)} of the {count} keys are no partitions of {spec.qualified!r}: {shown}{rest}; the first: {first.message}",
        hint=f"Nothing was begun. {first.hint or ''}".strip(),
        asset=spec.qualified,
        keys=keys,
    )


# --- which of them have to be made ------------------------------------------------------------------------------------------------


def needed(
    mode: BackfillMode, database: Database, assessor: Callable[[], Assessor], asset: str, texts: Iterable[str]
) -> set[str]:
    """Which of these partitions the mode makes: a handful of statements, however many they are."""
    from flowstone_celery.assets.slices import Slice

    wanted = list(texts)
    match mode:
        case BackfillMode.ALL:
            return set(wanted)
        case BackfillMode.MISSING:
            there = ledger.present(database, [(asset, text) for text in wanted])
            return {text for text in wanted if (asset, text) not in there}
        case BackfillMode.FAILED:
            tried = ledger.standing(database, asset)
            return {text for text in wanted if tried.get(text, {}).get("status") == StepStatus.FAILED}
        case BackfillMode.STALE:
            return {
                each.partition
                for at in range(0, len(wanted), _ASSESSED_AT_ONCE)
                for each, found in assessor()
                .of(Slice(asset, text) for text in wanted[at : at + _ASSESSED_AT_ONCE])
                .items()
                if found.state is not Freshness.FRESH
            }
