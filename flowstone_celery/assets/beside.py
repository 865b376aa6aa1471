"""Two definitions side by side: what they share, and where a key of the one stands in the order of the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowstone_celery.assets.lists import Static
from flowstone_celery.assets.multi import Multi
from flowstone_celery.assets.windows import TimeWindows

if TYPE_CHECKING:
    from flowstone_celery.assets.definitions import Definition
    from flowstone_celery.assets.partition import PartitionKey

_NESTED = {(1, 2), (1, 3), (1, 4), (2, 3), (2, 4)}
"""Hours lie within days, weeks and months, days within weeks and months; weeks may lie in two months."""


def share_keys(down: Definition, up: Definition) -> bool:
    """Whether each key of the one can be a key of the other."""
    if down == up or (isinstance(down, TimeWindows) and down.same_grid(up)):
        return True
    return isinstance(down, Static) and isinstance(up, Static) and all(map(up.contains, down.members))


def order_doubt(down: Definition | None, up: Definition | None) -> str:
    """Why there is no previous and no next key for a key of the other; the empty text if there is."""
    if down is None or up is None:
        return "both need partitions"
    if isinstance(up, Multi) and up.time is None:
        return "several dimensions have no order without a single one of time: name it by Dimensions(…)"
    if not up.ordered:
        return f"the keys of {up} have no order"
    both_time = isinstance(down, TimeWindows) and isinstance(up, TimeWindows)
    return "" if both_time or share_keys(down, up) else "they share neither time nor keys"


def beside(key: PartitionKey, down: Definition | None, up: Definition) -> list[PartitionKey]:
    """The upstream keys at the same place: the same one, or those that share time with it."""
    if isinstance(down, TimeWindows) and isinstance(up, TimeWindows) and not down.same_grid(up):
        return list(up.overlapping(down.window(key)))
    return [key] if up.contains(key) else []


def neighbors(up: Definition, key: PartitionKey, count: int, direction: int) -> list[PartitionKey]:
    """So many keys before (1) or behind (-1), nearest first, as far as there are any."""
    found: list[PartitionKey] = []
    while len(found) < count and (near := up.previous(key, direction)) is not None:
        found.append(near)
        key = near
    return found


def lies_within(down: Definition | None, up: Definition | None) -> bool:
    """Whether each window of the one lies within a single window of the other."""
    if not isinstance(down, TimeWindows) or not isinstance(up, TimeWindows):
        return True
    if down.same_grid(up):
        return True
    if down.tz != up.tz or down.rank is None or up.rank is None:
        return False
    return (down.rank, up.rank) in _NESTED
