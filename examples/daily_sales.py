"""Sales by day and region: partitions, mappings, what is missing, and a late correction.

Run it: python examples/daily_sales.py

It brings its own PostgreSQL in a temporary folder, as hello_assets.py does.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from datetime import date
from pathlib import Path

from flowstone_celery import Context, Daily, FlowStone, Multi, Previous, Static, Weekly, Window
from flowstone_celery.db.migrate import migrate
from flowstone_celery.embedded import servers
from flowstone_celery.errors import InvalidPartition

fs = FlowStone(namespace="sales", mode="inline")

# Prague set its clocks back in the night of October 26, 2025: that day has 25 hours.
DAYS = Daily("2025-10-20", "2025-11-03", tz="Europe/Prague")
REGIONS = Static(["eu", "us"])
tills = {"eu": 4, "us": 2}


@fs.asset(partitions=Multi(day=DAYS, region=REGIONS))
def orders(ctx: Context) -> list[int]:
    """What one region sold on one day: an order for each hour of the day."""
    assert ctx.window
    hours = int(ctx.window.length.total_seconds() // 3600)
    return [tills[str(ctx.partitions["region"])]] * hours


@fs.asset(partitions=DAYS)
def revenue(orders: Mapping[tuple[date, str], list[int]]) -> int:
    """The day's sum over all regions: each is loaded when it is read."""
    return sum(sum(found) for found in orders.values())


@fs.asset(partitions=DAYS, mappings={"balance": Previous()})
def balance(balance: int | None, revenue: int) -> int:
    """What is in the bank: it goes on from the day before, and begins with nothing."""
    return (balance or 0) + revenue


@fs.asset(partitions=DAYS, mappings={"revenue": Window(before=2)})
def trend(revenue: Mapping[date, int]) -> float:
    """The mean of three days; at the beginning, of those that there are."""
    return sum(revenue.values()) / len(revenue)


@fs.asset(partitions=Weekly("2025-10-20", "2025-11-03", tz="Europe/Prague"))
def best_day(revenue: Mapping[date, int]) -> str:
    """The day of the week on which most was sold."""
    return f"{max(revenue, key=revenue.__getitem__):%A}"


def main() -> None:
    """Tell the story."""
    print("-- a week makes its days, and they their regions")
    run = fs.run(best_day, partition="2025-10-20")
    print(run.get(), len(run.steps()), "steps")

    print("\n-- what goes on from day to day makes the days before it; what is there stays")
    run = fs.run(balance, partition="2025-10-23")
    print(run.get(), sorted({step["name"] for step in run.steps()}))

    print("\n-- three days, of which two were made for the week")
    print(fs.run(trend, partition="2025-10-27").get())

    print("\n-- what cannot be is refused before anything begins")
    for wrong in ("2025-10-19", "2025-10-32", "yesterday"):
        try:
            fs.run(revenue, partition=wrong)
        except InvalidPartition as error:
            print(error)

    print("\n-- which there are, and which are missing")
    for day in fs.partitions.range(revenue, "2025-10-25", "2025-10-29"):
        print(day, "made" if fs.exists(revenue, partition=day) else "missing")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        home = Path(os.environ.setdefault("FLOWSTONE_HOME", folder))
        servers.up(home)
        try:
            migrate(fs.database)
            main()
        finally:
            fs.close()
            servers.down(home)
