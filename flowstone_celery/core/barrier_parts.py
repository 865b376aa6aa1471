"""What a hand claims of its barrier, and the parts that it settles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flowstone_celery.core.barrier_close import (
    BATCH,
    Counts,
    call_hands,
    close,
    close_if_due,
    policy_of,
)
from flowstone_celery.core.barrier_model import PAGE, ItemClaim, Part, Policy, Range
from flowstone_celery.core.barrier_pages import PAGES, bytes_array, packed_result
from flowstone_celery.core.model import json_text
from flowstone_celery.core.statements import SQL
from flowstone_celery.errors import Cancelled, TooManyCrashes
from flowstone_celery.states import BarrierStatus, ItemClaimStatus, ItemStatus

if TYPE_CHECKING:
    from flowstone_celery.core.barrier_model import Ended
    from flowstone_celery.core.model import Claim
    from flowstone_celery.db.database import Row, Tx

_POLICY = -1
"""Under which number, beside those of pages, a barrier's policy is remembered: it never changes either."""
_LOSS_LIMIT = 20
"""An item that is alone whenever its worker node falls has failed after so many."""
_HELD_BACK = -1.0
"""The delay of a failed item that waits for all others: `batch`."""
_ALL = 1_000_000
_CRASH, _STOP = "crash", "stop"


# --- claims ---------------------------------------------------------------------------------------------------------------------


def claim_range(tx: Tx, hand: Claim, *, wanted: int, width: int) -> Range | None:
    """The hand holds items: what its predecessor lost, else retries that are due, else the next range of a page that nobody has locked.

    None: there is nothing to claim now; then `stand_aside`. What the hand held before must be settled or given back; what is not
    (the answer to its commit was lost, say) is answered again. In a transaction of its own, whose commit nobody waits for: what a crash
    of Postgres takes back is open again.
    """
    policy = _policy(tx, hand)
    if policy is None:
        return None
    if policy.max_concurrent is not None:
        unfinished = _unfinished(tx, hand)
        if unfinished is not None:
            return unfinished
        tx.row(SQL["lock_barrier"], barrier=hand.barrier_id)
        beside = tx.row(SQL["widths_beside"], step=hand.id, barrier=hand.barrier_id)
        if beside is None:
            return None
        wanted = max(1, wanted * min(width, beside["share"]) // width)
        width = min(width, beside["share"], policy.max_concurrent - beside["width"])
        if width < 1:
            return None
    found = _claim(tx, hand, wanted=max(1, min(wanted, PAGE)), width=width)
    if found is None and policy.retry_strategy == BATCH:
        tx.row(SQL["lock_barrier"], barrier=hand.barrier_id)
        if tx.run(SQL["free_held"], barrier=hand.barrier_id):
            return _claim(tx, hand, wanted=max(1, min(wanted, PAGE)), width=width)
    return found


def claim_at_once(tx: Tx, hand: Claim, *, wanted: int, width: int) -> Range | None:
    """As `claim_range`, by one statement that commits by itself; None: that is not enough, or there is nothing, so `claim_range`."""
    known = PAGES.known(hand.run_id, hand.barrier_id or 0, _POLICY)
    if known is None or known.max_concurrent is not None:
        return None
    row = tx.row(SQL["claim_page"], **hand.held, wanted=max(1, min(wanted, PAGE)), width=width, whole=True)
    if row is None or row["size"] is None:
        return None
    return Range(hand.barrier_id or 0, row["round"], _items_of_page(tx, hand, row), width=width)


def _policy(tx: Tx, hand: Claim) -> Policy | None:
    assert hand.barrier_id is not None, "a hand has a barrier"
    known: Policy | None = PAGES.known(hand.run_id, hand.barrier_id, _POLICY)
    if known is None:
        row = tx.row(SQL["barrier"], barrier=hand.barrier_id)
        if row is None:
            return None
        known = policy_of(row["policy"])
        PAGES.remember(hand.run_id, hand.barrier_id, _POLICY, known)
    return known


def _claim(tx: Tx, hand: Claim, *, wanted: int, width: int) -> Range | None:
    """The next of what there is, in its order; a page that held nothing of use is passed over."""
    while True:
        row = tx.row(SQL["claim_page"], **hand.held, wanted=wanted, width=width, whole=False)
        if row is None:
            return None
        if row["unfinished"]:
            unfinished = _unfinished(tx, hand)
            if unfinished is not None:
                return unfinished
        elif row["due"]:
            found = _claim_retries(tx, hand, wanted=wanted, width=width)
            if found is not None:
                return found
            # Others have locked all that is due: a page may have something still, but is not looked at while they are about it.
            return None
        elif row["size"] is None:
            return None
        else:
            items = _items_of_page(tx, hand, row)
            if items:
                return Range(hand.barrier_id or 0, row["round"], items, width=width)


def _items_of_page(tx: Tx, hand: Claim, row: Row) -> list[ItemClaim]:
    keys = PAGES.keys(tx, hand.run_id, hand.barrier_id or 0, row["number"])
    first, last, begin = row["first"], row["first"] + row["size"], row["page_first"]
    if not row["patchy"]:
        return [
            ItemClaim(index, key, 1)
            for index, key in zip(range(first, last), keys[first - begin : last - begin], strict=True)
        ]
    found = tx.rows(SQL["taken_of_page"], barrier=hand.barrier_id, first=first, size=row["size"])
    open_ones = sorted({*range(first, last)} - {each["index"] for each in found})
    tx.run(SQL["keep_of_claim"], step=hand.id, fence=hand.fence, items=open_ones)
    return [ItemClaim(index, keys[index - begin], 1) for index in open_ones]


def _claim_retries(tx: Tx, hand: Claim, *, wanted: int, width: int) -> Range | None:
    rows = tx.rows(SQL["claim_retries"], **hand.held, wanted=wanted, width=width)
    if not rows:
        return None
    if rows[0]["more"]:
        call_hands(tx, hand.barrier_id or 0, most=_ALL)
    about = {"alone": rows[0]["alone"], "width": width}
    return _range_of(tx, hand, rows, rows[0]["round"], **about)


def _range_of(
    tx: Tx, hand: Claim, rows: Sequence[Row], barrier_round: int, *, alone: bool, width: int
) -> Range:
    items = [
        ItemClaim(
            row["index"],
            PAGES.keys(tx, hand.run_id, hand.barrier_id or 0, row["number"])[row["index"] - row["first"]],
            (row["attempt"] or 0) + 1,
            row["failures"] or 0,
            row["crashes"] or 0,
        )
        for row in sorted(rows, key=lambda row: int(row["index"]))
    ]
    return Range(hand.barrier_id or 0, barrier_round, items, alone=alone, width=width)


# --- what was claimed before ----------------------------------------------------------------------------------------------------


def _unfinished(tx: Tx, hand: Claim) -> Range | None:
    """What this claim holds already; what a predecessor held is given to whoever comes next, None then."""
    own = tx.row(SQL["unfinished"], **hand.held)
    if own is None or own["status"] is None:
        return None
    if own["status"] == ItemClaimStatus.HELD and own["fence"] == hand.fence:
        rows = tx.rows(SQL["open_of_claim"], step=hand.id)
        about = {"alone": own["alone"], "width": own["width"]}
        return _range_of(tx, hand, rows, own["round"], **about) if rows else None
    _reissue(tx, hand, own)
    return None


def _reissue(tx: Tx, hand: Claim, own: Row) -> None:
    """The lost items are due again: after a crash each goes alone, and one that was alone counts it."""
    tx.row(SQL["take_over"], **hand.held)
    rows = tx.rows(SQL["open_of_claim"], step=hand.id)
    lost_by = own["lost_by"] or "loss"
    about = _Settling(hand, hand.barrier_id or 0, own["round"])
    lines = [_reissued(tx, hand, row, lost_by, was_alone=own["alone"]) for row in rows]
    written = _write(tx, about, lines)
    if written is None:
        return
    _after(tx, about, written)
    if len(lines) > 1:
        call_hands(tx, about.barrier, most=len(lines) - 1)


def _reissued(tx: Tx, hand: Claim, row: Row, lost_by: str, *, was_alone: bool) -> _Line:
    policy = _policy(tx, hand)
    limit = policy.crash_limit if policy else 1
    guilty = was_alone and lost_by != _STOP
    crashes = (row["crashes"] or 0) + (guilty and lost_by == _CRASH)
    losses = (row["losses"] or 0) + (guilty and lost_by != _CRASH)
    line = _Line(
        row["index"],
        ItemStatus.RETRY,
        attempt=(row["attempt"] or 0) + guilty,
        failures=row["failures"] or 0,
        crashes=crashes,
        losses=losses,
        alone=bool(row["alone"]) or lost_by != _STOP,
    )
    if not guilty or (crashes < limit and losses < _LOSS_LIMIT):
        return line
    error = TooManyCrashes(
        f"item {row['index']} of {hand.name!r} took its worker process down {crashes} times"
        if crashes >= limit
        else f"item {row['index']} of {hand.name!r} lost its worker {losses} times",
        hint="look for memory or native crashes in it",
        asset=hand.name,
        partition=hand.partition,
        index=row["index"],
    )
    return _Line(
        row["index"], ItemStatus.FAILED, line.attempt, line.failures, crashes, losses, error=error.to_dict()
    )


# --- parts ----------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Settling:
    """For whom, and of what."""

    hand: Claim
    barrier: int
    round: int


@dataclass(slots=True)
class _Line:
    """One item's row, as a part writes it."""

    index: int
    status: str = ItemStatus.SUCCEEDED
    attempt: int = 1
    failures: int = 0
    crashes: int = 0
    losses: int = 0
    alone: bool = False
    seconds: float = 0.0
    result: bytes | None = None
    error: Any = None
    delay: float = 0.0


class Counted(Exception):  # noqa: N818 - an event, not an error: rolls back what was asked for with the part
    """The part completes a page, or closes the barrier: what else is to happen comes behind that."""


def settle_part(
    tx: Tx, hand: Claim, held: Range, ended: Sequence[Ended], *, rest_open: Sequence[int] | None = None
) -> Part | None:
    """What has ended of the range is written, counted, and may close the barrier; None: stale, another claim holds the hand now.

    Settling the same again writes nothing and answers the barrier's status. `rest_open`: items that were not begun, for other hands.
    """
    about = _Settling(hand, held.barrier, held.round)
    written = tx.row(SQL["settle_part"], **_values(tx, about, held, ended, rest_open or ()))
    if written is None:
        return None
    part = _after(tx, about, written)
    if not rest_open or part.status != BarrierStatus.OPEN:
        return part
    # Nobody stands aside unseen while items are given back: both hold the barrier's row.
    tx.row(SQL["lock_barrier"], barrier=held.barrier)
    return Part(
        part.status, closed=False, opened=(*part.opened, *call_hands(tx, held.barrier, most=len(rest_open)))
    )


def settle_part_later(tx: Tx, hand: Claim, held: Range, ended: Sequence[Ended]) -> Callable[[], Part | None]:
    """As `settle_part`, asked for with what else is on its way; call the answer for the part.

    Raises:
        Counted: by the answer, where the barrier is to be looked at, before any step moves; settle it by itself.
    """
    about = _Settling(hand, held.barrier, held.round)
    asked = tx.later(SQL["settle_part"], **_values(tx, about, held, ended, ()))

    def answer() -> Part | None:
        written = next(iter(asked()), None)
        if written is None:
            return None
        if written["cancelled"] or written["total"] is not None or written["status"] != BarrierStatus.OPEN:
            raise Counted
        return Part(written["status"], closed=False)

    return answer


def _values(
    tx: Tx, about: _Settling, held: Range, ended: Sequence[Ended], rest_open: Sequence[int]
) -> dict[str, Any]:
    if not rest_open and all(each.status == ItemStatus.SUCCEEDED and each.attempt == 1 for each in ended):
        return _first_successes(about, ended)
    return _written(about, _lines(tx, about.hand, held, ended, rest_open))


def _lines(tx: Tx, hand: Claim, held: Range, ended: Sequence[Ended], rest_open: Sequence[int]) -> list[_Line]:
    policy = _policy(tx, hand)
    held_back = policy is not None and policy.retry_strategy == BATCH
    known = {each.index: each for each in held.items}
    lines = [_line(each, known[each.index], held_back=held_back) for each in ended]
    given = [known[index] for index in rest_open]
    return [
        *lines,
        *(
            _Line(
                each.index,
                ItemStatus.RETRY,
                each.attempt - 1,
                each.failures,
                each.crashes,
                alone=held.alone,
            )
            for each in given
        ),
    ]


def _line(ended: Ended, item: ItemClaim, *, held_back: bool) -> _Line:
    failed = ended.status in (ItemStatus.RETRY, ItemStatus.FAILED) and not ended.crashed
    return _Line(
        ended.index,
        ended.status,
        ended.attempt,
        item.failures + failed,
        item.crashes + ended.crashed,
        seconds=ended.seconds,
        result=packed_result(ended.result),
        error=ended.error,
        delay=_HELD_BACK if held_back and ended.status == ItemStatus.RETRY else ended.delay,
    )


def _first_successes(about: _Settling, ended: Sequence[Ended]) -> dict[str, Any]:
    """The common part: nothing but first attempts that succeeded, so only indexes, seconds and results travel."""
    return dict(
        **about.hand.held,
        barrier=about.barrier,
        round=about.round,
        indexes="{" + ",".join([str(each.index) for each in ended]) + "}",
        seconds="{" + ",".join([f"{each.seconds:.6f}" for each in ended]) + "}",
        results=bytes_array([packed_result(each.result) for each in ended]),
        **dict.fromkeys(
            ("statuses", "attempts", "failures", "crashes", "losses", "alone", "errors", "delays")
        ),
    )


def _write(tx: Tx, about: _Settling, lines: Sequence[_Line]) -> Row | None:
    return tx.row(SQL["settle_part"], **_written(about, lines))


def _written(about: _Settling, lines: Sequence[_Line]) -> dict[str, Any]:
    return dict(
        **about.hand.held,
        barrier=about.barrier,
        round=about.round,
        indexes=[each.index for each in lines],
        statuses=[str(each.status) for each in lines],
        attempts=[each.attempt for each in lines],
        failures=[each.failures for each in lines],
        crashes=[each.crashes for each in lines],
        losses=[each.losses for each in lines],
        alone=[each.alone for each in lines],
        seconds=[float(each.seconds) for each in lines],
        results=bytes_array([each.result for each in lines]),
        errors=[json_text(each.error) for each in lines],
        delays=[float(each.delay) for each in lines],
    )


def _after(tx: Tx, about: _Settling, written: Row) -> Part:
    """The barrier closes if this part was the last, or one too many has failed."""
    closed: Part | None = None
    if written["cancelled"]:
        error = Cancelled("an item asked for it").to_dict()
        closed = close(tx, about.barrier, BarrierStatus.CANCELLED, error)
    elif written["total"] is not None:
        policy = _policy(tx, about.hand)
        assert policy is not None, "the barrier is there"
        closed = close_if_due(tx, about.barrier, policy, Counts.of(written), name=about.hand.name)
    return closed or Part(written["status"], closed=False)
