"""Barriers and items for whoever looks, and the results for the gathering: by keyset, without a cursor that stays open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from flowstone_celery.core.barrier_close import policy_of
from flowstone_celery.core.barrier_model import PAGE, Barrier, Item, Progress
from flowstone_celery.core.barrier_pages import PAGES, result_of, unpack
from flowstone_celery.core.statements import SQL
from flowstone_celery.states import BarrierStatus, ItemStatus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from flowstone_celery.core.barrier_model import Key
    from flowstone_celery.core.model import Claim
    from flowstone_celery.db.database import Database, Row

PENDING = "pending"


def _barrier_of(row: Row) -> Barrier:
    values = {name: row[name] for name in Barrier.__dataclass_fields__ if name != "policy"}
    return Barrier(**values, policy=policy_of(row["policy"]))


def barrier(database: Database, barrier_id: int) -> Barrier | None:
    """The barrier's row."""
    row = database.first(SQL["barrier"], barrier=barrier_id)
    return None if row is None else _barrier_of(row)


def of_hand(database: Database, hand: Claim) -> Barrier | None:
    """The open barrier whose items this hand does; None: it has closed.

    Read once by each process for each round; whether it is open still is found out by who claims.
    """
    assert hand.barrier_id is not None, "a hand has a barrier"
    known: Barrier | None = PAGES.known(hand.run_id, hand.barrier_id, -1 - hand.round)
    if known is None:
        known = barrier(database, hand.barrier_id)
        if known is None or known.status != BarrierStatus.OPEN or known.round != hand.round:
            return known if known and known.status == BarrierStatus.OPEN else None
        PAGES.remember(hand.run_id, hand.barrier_id, -1 - hand.round, known)
    return known


def of_step(database: Database, step: int, step_round: int | None = None) -> Barrier | None:
    """The step's barrier of this round, or its newest."""
    row = database.first(SQL["barrier_of_step"], step=step, round=step_round)
    return None if row is None else _barrier_of(row)


def of_run(database: Database, run: UUID) -> list[Barrier]:
    """The run's barriers, newest first."""
    return [_barrier_of(row) for row in database.once(SQL["barriers_of_run"], run=run)]


def page_of(
    database: Database,
    *,
    name: str | None = None,
    status: str | None = None,
    before: int | None = None,
    limit: int = 50,
) -> list[Barrier]:
    """One page of barriers, newest first; `before` is the id of the last page's last."""
    rows = database.once(SQL["barriers_page"], name=name, status=status, before=before, limit=limit)
    return [_barrier_of(row) for row in rows]


def progress(database: Database, barrier_id: int) -> Progress | None:
    """How far the barrier is."""
    row = database.first(SQL["barrier_progress"], barrier=barrier_id)
    return None if row is None else Progress(**row)


def items(
    database: Database, barrier_id: int, *, status: str | None = None, after: int = -1, limit: int = 100
) -> list[Item]:
    """Items in index order after this index, pending ones too; those that nobody did of a barrier that has closed are cancelled."""
    found = database.first(SQL["barrier"], barrier=barrier_id)
    if found is None:
        return []
    if status == ItemStatus.FAILED:
        rows = database.once(SQL["items_failed"], barrier=barrier_id, after=after, limit=limit)
        keys = _keys(database, barrier_id, [row["index"] for row in rows])
        return [_item(row["index"], keys[row["index"]], row) for row in rows]
    untouched = PENDING if found["status"] == BarrierStatus.OPEN else ItemStatus.CANCELLED.value
    listed: list[Item] = []
    for each in _all_items(database, barrier_id, after + 1, untouched):
        if status is None or each.status == status:
            listed.append(each)
        if len(listed) == limit:
            break
    return listed


def _all_items(database: Database, barrier_id: int, first: int, untouched: str) -> Iterator[Item]:
    for begin, keys in pages_from(database, barrier_id, first):
        end = begin + len(keys)
        rows = {
            row["index"]: row
            for row in database.once(
                SQL["items_between"], barrier=barrier_id, first=max(first, begin), end=end
            )
        }
        for index in range(max(first, begin), end):
            yield _item(index, keys[index - begin], rows.get(index), untouched)


def _item(index: int, key: Key, row: Row | None, untouched: str = PENDING) -> Item:
    shown: Any = orjson.loads(key)
    if row is None:
        return Item(index, shown, untouched, 0, None, None, None, None)
    status = untouched if row["status"] == ItemStatus.RETRY and untouched != PENDING else row["status"]
    return Item(
        index,
        shown,
        status,
        row["attempt"],
        row["error"],
        row["seconds"],
        row["ended_at"],
        row["due_at"],
    )


def results(database: Database, barrier_id: int, *, after: int = -1, limit: int = 1_000) -> list[Row]:
    """Ended items in index order after this index: `index`, `key` and `result` as JSON bytes, `status`, `round`."""
    rows = database.once(SQL["results"], barrier=barrier_id, after=after, limit=limit)
    keys = _keys(database, barrier_id, [row["index"] for row in rows])
    return [{**row, "key": keys[row["index"]], "result": result_of(row["result"])} for row in rows]


def _keys(database: Database, barrier_id: int, indexes: list[int]) -> dict[int, Key]:
    """The keys of these indexes, which are in order."""
    wanted, found = iter(indexes), dict[int, bytes]()
    index = next(wanted, None)
    while index is not None:
        for begin, keys in pages_from(database, barrier_id, index):
            while index is not None and index < begin + len(keys):
                found[index] = keys[index - begin]
                index = next(wanted, None)
            if index is None or index >= begin + len(keys) + PAGE:
                break
    return found


def pages_from(database: Database, barrier_id: int, first: int) -> Iterator[tuple[int, list[Key]]]:
    """From the page that holds this index on: its first index and its keys, read a few at a time."""
    while rows := database.once(SQL["pages_from"], barrier=barrier_id, index=first, limit=_AT_ONCE):
        for row in rows:
            yield row["first"], unpack(row["keys"])
        first = rows[-1]["first"] + rows[-1]["size"]
        if len(rows) < _AT_ONCE:
            return


_AT_ONCE = 4
