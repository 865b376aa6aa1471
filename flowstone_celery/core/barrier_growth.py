"""How a hand's claim grows: further items while those that it holds still run, so that no place of a window stands empty meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowstone_celery.core.barrier_model import PAGE, ItemClaim
from flowstone_celery.core.barrier_pages import PAGES
from flowstone_celery.core.statements import SQL

if TYPE_CHECKING:
    from flowstone_celery.core.model import Claim
    from flowstone_celery.db.database import Tx


def grow_range(tx: Tx, hand: Claim, *, wanted: int, least: int, yields: bool) -> list[ItemClaim]:
    """The hand holds these items too; none where it holds nothing, or nothing can be had.

    In a transaction of its own, whose commit nobody waits for. If that is lost, what it took is open again; if only the answer is lost,
    `claim_range` answers it once all that is known is settled.

    Args:
        tx: of the growth alone. Nobody settles a part of this hand meanwhile.
        hand: whose claim of a range is held; one whose items go alone does not grow.
        wanted: items at most.
        least: items of the last page at least, which is shared by halves.
        yields: whether retries that are due come first; an ordinary claim finds them when the range is done.
    """
    row = tx.row(
        SQL["grow_claim"],
        **hand.held,
        wanted=max(1, min(wanted, PAGE)),
        least=max(1, least),
        yields=yields,
    )
    if row is None:
        return []
    keys = PAGES.keys(tx, hand.run_id, hand.barrier_id or 0, row["number"])
    first, begin = row["first"], row["page_first"]
    found = keys[first - begin : first - begin + row["size"]]
    return [ItemClaim(index, key, 1) for index, key in enumerate(found, first)]
