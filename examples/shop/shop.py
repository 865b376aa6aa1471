"""A shop, day by day: what was ordered, what it came to, and a line for people.

    cd examples/shop
    flowstone up
    celery -A shop worker
    flowstone -A shop asset run digest --partition 2026-11-20

`docker-compose.yml` at the top of the repository deploys this very file.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from celery import Celery

from flowstone_celery import Context, FlowStone, Skip

app = Celery("shop")
fs = FlowStone(app)

_PRICES = {"tea": 4, "cake": 7, "mug": 12}


@fs.asset(retries=3, timeout=60, tags=["raw"])
def orders(ctx: Context) -> list[dict[str, Any]] | Skip:
    """The orders of one day. Each day has its own and always the same; replace this by reading your source."""
    day = ctx.partition
    if day is None:
        return Skip("orders come by day: name one with --partition 2026-11-20")
    chance = random.Random(str(day))
    return [
        {"id": f"{day}-{number}", "item": item, "amount": chance.randint(1, 5), "price": _PRICES[item]}
        for number, item in enumerate(chance.choices(list(_PRICES), k=chance.randint(5, 15)))
    ]


@fs.asset
def revenue(orders: list[dict[str, Any]]) -> dict[str, int]:
    """What the day's orders came to, by item. A parameter's name is the dependency."""
    sums: Counter[str] = Counter()
    for order in orders:
        sums[order["item"]] += order["amount"] * order["price"]
    return dict(sorted(sums.items()))


@fs.asset
def digest(orders: list[dict[str, Any]], revenue: dict[str, int]) -> str:
    """The day in one line."""
    best = max(revenue, key=lambda item: revenue[item])
    return f"{len(orders)} orders, {sum(revenue.values())} in all, most of it from {best}"
