"""Barriers: the typed functions over `barriers.sql`. Each takes a transaction; None or False means that it did not happen.

A barrier is what a scattering step waits for: its items, the pages of their keys, and the hands that do them (decision 0013). Lock
order: claim → page → barrier → step → run. A part is settled under the lock of its claim's row, which a release takes, too: so a
release either comes before it (then the part is stale) or waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from flowstone_celery.core.barrier_model import (
        Barrier,
        Ended,
        Item,
        Key,
        NewBarrier,
        Part,
        Progress,
        Range,
        Scattered,
    )
    from flowstone_celery.core.model import Claim
    from flowstone_celery.core.steps import Moved
    from flowstone_celery.db.database import Database, Row, Tx


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
    raise NotImplementedError


def open_barrier(tx: Tx, claim: Claim, new: NewBarrier) -> int | None:
    """The step has an open barrier that a reader fills page by page; answers its id, None: another claim holds the step now.

    The one there is is answered to a later attempt of the same round. One of an earlier round that was never sealed is opened again:
    what succeeded is kept, and its reader goes on from the checkpoint.
    """
    raise NotImplementedError


def add_page(
    tx: Tx,
    claim: Claim,
    barrier: int,
    keys: Sequence[Key],
    checkpoint: Mapping[str, Any] | None,
    *,
    unique: bool = True,
) -> Added | None:
    """The keys are items, with the reader's checkpoint, in a transaction of its own; hands are born as items come.

    Args:
        tx: the page's own transaction.
        claim: of the scattering step, which runs.
        barrier: that `open_barrier` answered.
        keys: of this page, in order.
        checkpoint: where the reader goes on if it is killed now.
        unique: equal keys collapse, over all pages; False: the reader vouches that there are none.

    Returns:
        None if the barrier is no longer open, or another claim holds the step: the reader stops.
    """
    raise NotImplementedError


# --- hands ----------------------------------------------------------------------------------------------------------------------


def claim_range(tx: Tx, hand: Claim, *, wanted: int, width: int) -> Range | None:
    """The hand holds items: what its predecessor lost, else retries that are due, else the next range of a page that nobody has locked.

    None: there is nothing to claim now; then `stand_aside`. What the hand held before must be settled or given back; what is not
    (the answer to its commit was lost, say) is answered again.
    """
    raise NotImplementedError


def settle_part(
    tx: Tx, hand: Claim, held: Range, ended: Sequence[Ended], *, rest_open: Sequence[int] | None = None
) -> Part | None:
    """What has ended of the range is written, counted, and may close the barrier; None: stale, another claim holds the hand now.

    Settling the same again writes nothing and answers the barrier's status. `rest_open`: items that were not begun, for other hands.
    """
    raise NotImplementedError


def stand_aside(tx: Tx, hand: Claim) -> Moved | None:
    """The hand waits for items: running → ready, parked as idle until the next retry is due, or until it is called.

    If the barrier has closed it ends instead, as by `finish_hand`. None: there is something to claim now, so try again; or another
    claim holds the hand by now, which `holds` tells.
    """
    raise NotImplementedError


def go_back(tx: Tx, hand: Claim) -> Moved | None:
    """The hand goes back to the line at the present turn, so that others take theirs; items that it still holds are given back."""
    raise NotImplementedError


def finish_hand(tx: Tx, hand: Claim) -> Moved | None:
    """The hand has succeeded if its barrier has closed: running → succeeded. None: it is open, or another claim holds the hand."""
    raise NotImplementedError


def holds(tx: Tx, hand: Claim) -> bool:
    """Whether this claim still holds its step."""
    raise NotImplementedError


# --- acts -----------------------------------------------------------------------------------------------------------------------


def cancel(tx: Tx, barrier: int, actor: str, reason: str, *, actor_type: str = "user") -> Part | None:
    """An open barrier is cancelled, and its step with all that stands on it; None: it is not open.

    Hands that run end with their slice's next look at it; pending items are cancelled, which nobody writes down.
    """
    raise NotImplementedError


def accept(tx: Tx, barrier: int, actor: str, reason: str, *, actor_type: str = "user") -> Part | None:
    """What succeeded of a failed or cancelled barrier is taken as it is: its run's next round begins, its step is ready to gather.

    None: the barrier has not failed, or its run has not ended.
    """
    raise NotImplementedError


def retry(database: Database, barrier: int, actor: str, *, actor_type: str = "user") -> Row | None:
    """The run's next round begins at the barrier's step; the row is that of `reopen` (id, round, tenant, lane, opened queues).

    None: the run has not ended. The step's handler answers `Scattered(again=…)`.
    """
    raise NotImplementedError


# --- reads ----------------------------------------------------------------------------------------------------------------------


def barrier(database: Database, barrier_id: int) -> Barrier | None:
    """The barrier's row."""
    raise NotImplementedError


def of_step(database: Database, step: int, step_round: int | None = None) -> Barrier | None:
    """The step's barrier of this round, or its newest."""
    raise NotImplementedError


def of_run(database: Database, run: UUID) -> list[Barrier]:
    """The run's barriers, newest first."""
    raise NotImplementedError


def page_of(
    database: Database,
    *,
    name: str | None = None,
    status: str | None = None,
    before: int | None = None,
    limit: int = 50,
) -> list[Barrier]:
    """One page of barriers, newest first; `before` is the id of the last page's last."""
    raise NotImplementedError


def progress(database: Database, barrier_id: int) -> Progress | None:
    """How far the barrier is."""
    raise NotImplementedError


def items(
    database: Database, barrier: int, *, status: str | None = None, after: int = -1, limit: int = 100
) -> list[Item]:
    """Items in index order after this index, pending ones too; those that nobody did of a barrier that has closed are cancelled."""
    raise NotImplementedError


def results(database: Database, barrier: int, *, after: int = -1, limit: int = 1_000) -> list[Row]:
    """Ended items in index order after this index: `index`, `key` and `result` as JSON bytes, `status`."""
    raise NotImplementedError
