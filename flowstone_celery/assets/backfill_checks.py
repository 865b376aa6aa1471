"""What is checked of a backfill before anything of it stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from flowstone_celery.assets.partition_runs import is_serial
from flowstone_celery.assets.slices import Slice, not_ready
from flowstone_celery.errors import IdempotencyConflict, InvalidOption, UnknownOption, did_you_mean

if TYPE_CHECKING:
    from uuid import UUID

    from flowstone_celery.assets.asset import AssetSpec
    from flowstone_celery.assets.backfill import House
    from flowstone_celery.assets.catalog import Catalog
    from flowstone_celery.core.backfills import NewBackfill
    from flowstone_celery.db.database import Row


def is_chained(catalog: Catalog, spec: AssetSpec, *, reverse: bool) -> bool:
    """Whether its partitions are made one at a time and in order, because each needs those before it.

    Raises:
        InvalidOption: they are, and the last is to come first.
    """
    chained = is_serial(catalog, spec.qualified)
    if chained and reverse:
        raise InvalidOption(
            f"partitions of {spec.qualified!r} need the ones before them, so the last cannot come first",
            hint="Leave out reverse=True.",
            option="reverse",
        )
    return chained


def width_of(given: Any) -> int:
    """How many partitions are made at a time.

    Raises:
        InvalidOption: it is no whole number from 1 up.
    """
    if isinstance(given, bool) or not isinstance(given, int) or not 0 < given < 2**31:
        raise InvalidOption(
            f"max_concurrent is a whole number from 1 up, not {given!r:.80}",
            hint="Write for example max_concurrent=4.",
            option="max_concurrent",
        )
    return given


def put_options(settled: Mapping[str, Any], given: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """What each run is started with, as plain JSON; the deadline as a moment.

    Raises:
        UnknownOption: an option that a run has and a backfill has not.
    """
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known) or f"Options: {', '.join(known)}."
            raise UnknownOption(f"a backfill has no option {name!r}", hint=hint, option=name)
    put = dict(settled)
    if "deadline_in" in put:
        put["deadline"] = (datetime.now(UTC) + timedelta(seconds=put.pop("deadline_in"))).isoformat()
    return put


def check_needs(house: House, spec: AssetSpec, texts: Iterable[str], *, must_be_there: bool) -> None:
    """Return if what these partitions need can be told and, where it must, has values.

    Raises:
        InvalidMapping: one of them needs what is no partition of a dependency.
        DependencyNotReady: something has no value.
    """
    slices, targets = house.slices(), [Slice(spec.qualified, text) for text in texts]
    mine = set(targets)
    needs = {
        each: target
        for target in targets
        for need in slices.detailed(target)
        if must_be_there and not need.dependency.optional
        for each in need.slices
        if each not in mine
    }
    there = house.parts.reader.standing(needs) if needs else ()
    absent = sorted(each for each in needs if each not in there)
    if absent:
        raise not_ready(needs[absent[0]], absent)


def started_before(new: NewBackfill, row: Row) -> UUID:
    """The id of the backfill that has this key.

    Raises:
        IdempotencyConflict: it is another one.
    """
    if row["request_digest"] == new.digest:
        found: UUID = row["id"]
        return found
    raise IdempotencyConflict(
        f"key {new.key!r} stands for backfill {row['id']} of {row['asset']!r} ({row['mode']}), but now something else is asked for "
        f"under it: it was {row['request_digest']}, now it is {new.digest}",
        hint="use another key, or ask for the same thing",
        backfill_id=str(row["id"]),
    )
