"""Four assets in one process: declare, look, make, read, fail, mend.

Run it: python examples/hello_assets.py

It brings its own PostgreSQL in a temporary folder. In a project of yours that is `flowstone up`, once, and `FlowStone(app)` on
your Celery app: the assets stay as they are, and ordinary workers make them.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from flowstone_celery import Context, FlowStone
from flowstone_celery.db.migrate import migrate
from flowstone_celery.embedded import servers
from flowstone_celery.errors import RunFailed

fs = FlowStone(namespace="hello", mode="inline")
supply = {"flour": 2.0, "butter": None, "sugar": 1.5}


@fs.asset
def recipe() -> dict[str, float]:
    """Ingredients of one cake, in kilograms."""
    return {"flour": 0.5, "butter": 0.25, "sugar": 0.2}


@fs.asset
def prices(ctx: Context) -> dict[str, float]:
    """What a kilogram costs. It fails while a price is not known."""
    missing = [name for name, price in supply.items() if price is None]
    if missing:
        raise LookupError(f"no price for {', '.join(missing)} (attempt {ctx.attempt})")
    return {name: price for name, price in supply.items() if price is not None}


@fs.asset
def cost(recipe: dict[str, float], prices: dict[str, float]) -> float:
    """The sum over all ingredients; both parameters name what it needs."""
    return round(sum(amount * prices[name] for name, amount in recipe.items()), 2)


@fs.asset
def label(cost: float) -> str:
    """What stands on the shelf."""
    return f"Cake, {2 * cost:.2f}"


def main() -> None:
    """Tell the story."""
    print(fs.graph(label))

    print("\n-- a run: prices fails, so what needs it fails too")
    run = fs.run(label)
    for step in run.steps():
        print(f"{step['name']:14} {step['status']}")
    try:
        run.get()
    except RunFailed as error:
        print(error.__cause__)

    print("\n-- mended: the next run makes what is missing, and only that")
    supply["butter"] = 9.0
    run = fs.run(label)
    print(run.state, [step["name"] for step in run.steps()])
    print(run.get())

    print("\n-- values and their state stay")
    print(fs.get(cost), fs.status(cost).state, fs.exists("hello.label"))
    print(fs.run(label) == run, "(nothing to do: the handle is that of the run that made it)")

    print("\n-- a plain call is a plain call: no service, no record")
    print(cost({"flour": 1.0}, {"flour": 3.0}))


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
