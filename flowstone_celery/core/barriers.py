"""Barriers: the typed functions over `barriers.sql`. Each takes a transaction; None or False means that it did not happen.

A barrier is what a scattering step waits for: its items, the pages of their keys, and the hands that do them (decision 0013). Lock
order: claim → page → barrier → step → run. A part is settled under the lock of its claim's row, which a release takes, too: so a
release either comes before it (then the part is stale) or waits for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from flowstone_celery.core.barrier_acts import accept, cancel, retry
from flowstone_celery.core.barrier_close import (
    Counts,
    add_hands,
    call_hands,
    close_if_due,
    policy_of,
    step_goes_on,
)
from flowstone_celery.core.barrier_growth import grow_range
from flowstone_celery.core.barrier_pages import bytes_array, pack, size_for
from flowstone_celery.core.barrier_parts import (
    Counted,
    claim_at_once,
    claim_range,
    settle_part,
    settle_part_later,
)
from flowstone_celery.core.barrier_reads import (
    barrier,
    items,
    of_hand,
    of_run,
    of_step,
    page_of,
    progress,
    results,
)
from flowstone_celery.core.model import json_text
from flowstone_celery.core.statements import SQL
from flowstone_celery.core.steps import Moved
from flowstone_celery.states import BarrierStatus

if TYPE_CHECKING:
    from flowstone_celery.core.barrier_model import Key, NewBarrier, Scattered
    from flowstone_celery.core.model import Claim
    from flowstone_celery.db.database import Row, Tx

__all__ = [
    "Added",
    "Counted",
    "accept",
    "add_page",
    "barrier",
    "cancel",
    "claim_at_once",
    "claim_range",
    "finish_hand",
    "go_back",
    "go_back_later",
    "grow_range",
    "holds",
    "items",
    "of_hand",
    "of_run",
    "of_step",
    "open_barrier",
    "page_of",
    "progress",
    "results",
    "retry",
    "scatter_later",
    "settle_part",
    "settle_part_later",
    "stand_aside",
]


@dataclass(frozen=True, slots=True)
class Added:
    """What a page of a reader brought."""

    added: int
    collapsed: int
    """Keys that were there before, in this page or an earlier one."""
    opened: tuple[str, ...] = ()
    """Queues of hands that became ready."""


# --- the scattering step --------------------------------------------------------------------------------------------------------


def scatter_later(tx: Tx, claim: Claim, scattered: Scattered) -> Callable[[], Moved | None]:
    """The step waits for its items: running → waiting; call the answer for what moved, None: another claim holds the step now.

    Barrier, pages and hands are written in the same transaction, or sealed, or reopened. Without an open item it closes at once: the
    step is ready in its phase gather (`Moved.event` is "waiting" all the same), or failed.
    """
    if scattered.new is not None:
        return _scatter_new(tx, claim, scattered, scattered.new)
    if scattered.again is not None:
        moved = _again(tx, claim, scattered.again)
    else:
        assert scattered.barrier is not None, "keys come with what the barrier is to be"
        moved = _seal(tx, claim, scattered.barrier, scattered.collapsed)
    return lambda: moved


def _scatter_new(tx: Tx, claim: Claim, scattered: Scattered, new: NewBarrier) -> Callable[[], Moved | None]:
    pages = pack(scattered.keys, _page_size(tx, new, len(scattered.keys)))
    asked = tx.later(
        SQL["scatter"],
        **claim.held,
        **_about(new),
        total=len(scattered.keys),
        collapsed=scattered.collapsed,
        firsts=pages.firsts,
        sizes=pages.sizes,
        keys=pages.keys,
    )

    def answer() -> Moved | None:
        row = next(iter(asked()), None)
        if row is None:
            return None
        counts = Counts(len(scattered.keys), 0, 0, sealed=True)
        part = close_if_due(tx, row["barrier"], new.policy, counts, name=new.name)
        opened = part.opened if part else add_hands(tx, row["barrier"])
        return Moved("waiting", opened)

    return answer


def _page_size(tx: Tx, new: NewBarrier, keys: int) -> int:
    row = tx.row(SQL["most_hands"], queue=new.queue)
    assert row is not None, "a count"
    hands, width = int(row["hands"]), new.policy.width
    if new.policy.max_concurrent is not None:
        hands = max(1, min(hands, new.policy.max_concurrent // width))
    return size_for(keys, hands, width)


def _about(new: NewBarrier) -> dict[str, Any]:
    return {
        "name": new.name,
        "task": new.task,
        "queue": new.queue,
        "priority": new.priority,
        "policy": json_text(asdict(new.policy)),
        "metadata": json_text(new.metadata),
    }


def _seal(tx: Tx, claim: Claim, barrier_id: int, collapsed: int) -> Moved | None:
    """The reader has read all: the total is final. The barrier may have closed meanwhile; then the step goes on at once."""
    row = tx.row(SQL["lock_barrier"], barrier=barrier_id)
    if row is None or row["step_id"] != claim.id:
        return None
    return _wait_for(tx, claim, {**row, "sealed": True}, collapsed)


def _wait_for(tx: Tx, claim: Claim, row: Row, collapsed: int = 0) -> Moved | None:
    moved = tx.row(SQL["wait_for"], **claim.held, barrier=row["id"], collapsed=collapsed)
    if moved is None:
        return None
    return Moved("waiting", _go_on_or_open(tx, row))


def _go_on_or_open(tx: Tx, row: Row) -> tuple[str, ...]:
    if row["status"] != BarrierStatus.OPEN:
        return step_goes_on(tx, row)
    part = close_if_due(tx, row["id"], policy_of(row["policy"]), Counts.of(row), name=row["name"])
    if part is not None:
        return part.opened
    # One hand that stands aside looks again: failed items may have waited for the last page to be there.
    return (*call_hands(tx, row["id"], most=1), *add_hands(tx, row["id"]))


def _again(tx: Tx, claim: Claim, barrier_id: int) -> Moved | None:
    """The barrier's next round: what failed, or was never done, is done again."""
    row = _reopened(tx, claim, barrier_id)
    return None if row is None else _wait_for(tx, claim, row)


def _reopened(tx: Tx, claim: Claim, barrier_id: int) -> Row | None:
    if not holds(tx, claim):
        return None
    row = tx.row(SQL["lock_barrier"], barrier=barrier_id)
    if row is None or row["step_id"] != claim.id:
        return None
    if row["status"] == BarrierStatus.OPEN or row["round"] >= claim.round:
        return row if row["round"] == claim.round else None
    tx.run(SQL["reopen_items"], barrier=barrier_id, round=claim.round)
    pages = tx.row(SQL["reopen_pages"], barrier=barrier_id)
    uncounted = pages["uncounted"] if pages else 0
    return tx.row(
        SQL["reopen_barrier"], barrier=barrier_id, round=claim.round, uncounted=uncounted, keep=False
    )


def open_barrier(tx: Tx, claim: Claim, new: NewBarrier) -> int | None:
    """The step has an open barrier that a reader fills page by page; answers its id, None: another claim holds the step now.

    The one there is is answered to a later attempt of the same round. One of an earlier round that was never sealed is opened again:
    what succeeded is kept, and its reader goes on from the checkpoint.
    """
    if not holds(tx, claim):
        return None
    found = tx.row(SQL["barrier_of_step"], step=claim.id, round=None)
    if found is not None and found["round"] == claim.round:
        return int(found["id"])
    if found is not None and not found["sealed"]:
        reopened = _reopened(tx, claim, found["id"])
        return None if reopened is None else int(reopened["id"])
    made = tx.row(SQL["open_barrier"], step=claim.id, **_about(new))
    return None if made is None else int(made["id"])


def add_page(
    tx: Tx,
    claim: Claim,
    barrier_id: int,
    keys: Sequence[Key],
    checkpoint: Mapping[str, Any] | None,
    *,
    unique: bool = True,
) -> Added | None:
    """The keys are items, with the reader's checkpoint, in a transaction of its own; hands are born as items come.

    Args:
        tx: the page's own transaction.
        claim: of the scattering step, which runs.
        barrier_id: that `open_barrier` answered.
        keys: of this page, in order.
        checkpoint: where the reader goes on if it is killed now.
        unique: equal keys collapse, over all pages; False: the reader vouches that there are none.

    Returns:
        None if the barrier is no longer open, or another claim holds the step: the reader stops.
    """
    row = tx.row(SQL["lock_barrier"], barrier=barrier_id)
    if row is None or row["status"] != BarrierStatus.OPEN or row["sealed"] or not holds(tx, claim):
        return None
    fresh = _not_there(tx, barrier_id, keys) if unique else list(keys)
    pages = pack(fresh)
    collapsed = len(keys) - len(fresh)
    tx.row(
        SQL["add_pages"],
        barrier=barrier_id,
        total=len(fresh),
        collapsed=collapsed,
        checkpoint=json_text(checkpoint),
        keyed=unique and bool(keys),
        firsts=pages.firsts,
        sizes=pages.sizes,
        keys=pages.keys,
    )
    opened: tuple[str, ...] = ()
    if fresh:
        opened = (*call_hands(tx, barrier_id, most=len(fresh)), *add_hands(tx, barrier_id))
    return Added(len(fresh), collapsed, opened)


def _not_there(tx: Tx, barrier_id: int, keys: Sequence[Key]) -> list[Key]:
    """The keys that the barrier does not have, each once."""
    by_digest = {hashlib.sha256(key).digest(): key for key in reversed(keys)}
    if not by_digest:
        return []
    rows = tx.rows(SQL["add_keys"], barrier=barrier_id, digests=bytes_array(by_digest))
    new = {bytes(row["digest"]) for row in rows}
    # In the reader's order: the first of equal keys was kept above, and its place counts.
    order = {digest: place for place, digest in reversed([*enumerate(map(_digest, keys))])}
    return [by_digest[digest] for digest in sorted(new, key=order.__getitem__)]


def _digest(key: Key) -> bytes:
    return hashlib.sha256(key).digest()


# --- hands that find nothing, or must go ----------------------------------------------------------------------------------------


def stand_aside(tx: Tx, hand: Claim) -> Moved | None:
    """The hand waits for items: running → ready, parked as idle until the next retry is due, or until it is called.

    If the barrier has closed it ends instead, as by `finish_hand`. None: there is something to claim now, so try again; or another
    claim holds the hand by now, which `holds` tells.
    """
    row = tx.row(SQL["lock_barrier"], barrier=hand.barrier_id)
    if row is None or row["status"] != BarrierStatus.OPEN:
        return finish_hand(tx, hand)
    moved = tx.row(SQL["stand_aside"], **hand.held, barrier=hand.barrier_id)
    return None if moved is None else Moved("released", ())


def go_back(tx: Tx, hand: Claim) -> Moved | None:
    """The hand goes back to the line at the present turn, so that others take theirs; what it still holds is its own when it comes again.

    If the barrier has closed it ends instead, as by `finish_hand`. None: another claim holds the hand.
    """
    finished = finish_hand(tx, hand)
    if finished is not None:
        return finished
    return go_back_later(tx, hand)()


def go_back_later(tx: Tx, hand: Claim) -> Callable[[], Moved | None]:
    """As `go_back` of a barrier that is open, asked for with what else is on its way; call the answer for what moved."""
    asked = tx.later(SQL["go_back"], **hand.held)

    def answer() -> Moved | None:
        row = next(iter(asked()), None)
        if row is None:
            return None
        return Moved("released", (row["queue"],) if row["parked"] is None else ())

    return answer


def finish_hand(tx: Tx, hand: Claim) -> Moved | None:
    """The hand has succeeded if its barrier has closed: running → succeeded. None: it is open, or another claim holds the hand."""
    row = tx.row(SQL["finish_hand"], **hand.held, barrier=hand.barrier_id)
    if row is None:
        return None
    lane = (row["tenant"], row["lane"]) if row["lane"] is not None else None
    return Moved("succeeded", (), row["run_status"], left_lane=lane)


def holds(tx: Tx, claim: Claim) -> bool:
    """Whether this claim still holds its step, which stays so until the transaction ends."""
    return tx.row(SQL["hold_step"], **claim.held) is not None
