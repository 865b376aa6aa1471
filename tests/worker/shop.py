"""The app that the workers under test run: `celery -A tests.worker.shop worker`."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from celery import Celery

from flowstone_celery import All, Context, FlowStone, Static
from worker.handshop import declare_chores
from worker.scattershop import declare_scatters

app = Celery("shop", broker=os.environ.get("FLOWSTONE_REDIS_URL"), set_as_current=False)
if options := os.environ.get("SHOP_VISIBILITY"):
    app.conf.broker_transport_options = {"visibility_timeout": float(options)}
if queue := os.environ.get("SHOP_ITEM_QUEUE"):
    app.conf.task_routes = {"shop.parsed[item]": {"queue": queue}}
fs = FlowStone(app)
SCRATCH = Path(os.environ.get("SHOP_SCRATCH", "."))


def note(name: str, text: object) -> None:
    """Append a line to a file that the test reads."""
    with (SCRATCH / name).open("a") as page:
        page.write(f"{text}\n")


def notes(name: str, scratch: Path = SCRATCH) -> list[str]:
    """The lines of such a file."""
    page = scratch / name
    return page.read_text().split() if page.exists() else []


@app.task
def plain() -> int:
    """A task of the user's own."""
    return os.getpid()


@fs.asset
def quick(ctx: Context) -> str:
    note(f"quick-{ctx.partition}", os.getpid())
    return str(ctx.partition)


@fs.asset
def first() -> int:
    return 1


@fs.asset
def second(first: int) -> int:
    return first + 1


@fs.asset
def third(second: int) -> int:
    return second + 1


@fs.asset
def broken() -> None:
    raise ValueError("boom")


@fs.asset(retries=2, retry_delay=30)
def fickle() -> None:
    raise ValueError("not yet")


@fs.asset
def slow(ctx: Context) -> str:
    """Runs until the test lets it go."""
    note(f"slow-{ctx.partition}", os.getpid())
    while not (SCRATCH / f"go-{ctx.partition}").exists():
        time.sleep(0.02)
    return str(ctx.partition)


@fs.asset
def deadly(ctx: Context) -> str:
    """Kills its process the first time."""
    note(f"deadly-{ctx.partition}", os.getpid())
    if len(notes(f"deadly-{ctx.partition}")) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@fs.asset(timeout=1)
def soft(ctx: Context) -> None:
    """Sleeps in Python: a timeout can interrupt it."""
    note("soft", os.getpid())
    while True:
        time.sleep(0.05)


@fs.asset(timeout=1)
def hard(ctx: Context) -> None:
    """Swallows whatever interrupts it: only a kill ends it."""
    note("hard", os.getpid())
    while True:
        try:
            time.sleep(0.05)
        except BaseException:  # noqa: BLE001 - that is the point
            note("swallowed", os.getpid())


@fs.asset(queue="late")
def late() -> str:
    return "late"


if "SHOP_BROKEN" in os.environ:

    @fs.asset
    def dangling(nowhere: int) -> int:
        return nowhere


@fs.resource(name="warehouse", retry_after=0)
def _warehouse() -> Iterator[int]:
    """Notes which process sets it up and tears it down; hangs or fails while the test says so."""
    note("warehouse", f"+{os.getpid()}")
    while (SCRATCH / "warehouse-hangs").exists():
        time.sleep(0.02)
    if (SCRATCH / "warehouse-away").exists():
        raise ConnectionError("no route to host")
    yield os.getpid()
    note("warehouse", f"-{os.getpid()}")


@fs.asset(requires=["warehouse"])
def stocked(warehouse: int, ctx: Context) -> list[int]:
    return [warehouse, os.getpid()]


@fs.asset(requires=["warehouse"], timeout=1)
def patient(warehouse: int) -> int:
    return warehouse


PAGES = [f"p{number}" for number in range(200)]


@fs.asset(partitions=Static(PAGES))
async def fetched(ctx: Context) -> str:
    """Awaits until the test lets all of them go."""
    note("fetched", os.getpid())
    while not (SCRATCH / "go-fetched").exists():  # noqa: ASYNC110 - the test's word comes from another process
        await asyncio.sleep(0.02)
    return str(ctx.partition)


@fs.asset(mappings={"fetched": All()})
def folded(fetched: dict[str, str]) -> int:
    return len(set(fetched.values()))


@fs.asset
async def poison(ctx: Context) -> None:
    """Kills its process whenever it runs."""
    note("poison", os.getpid())
    await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGKILL)


@fs.asset(timeout=1)
async def sleepy(ctx: Context) -> None:
    """Awaits for longer than it may."""
    note("sleepy", os.getpid())
    await asyncio.sleep(60)


@fs.asset(timeout=1)
async def stubborn(ctx: Context) -> None:
    """Holds the loop and swallows whatever interrupts it: only a kill ends it."""
    note("stubborn", os.getpid())
    while True:
        try:
            time.sleep(0.05)  # noqa: ASYNC251 - that is the point
        except BaseException:  # noqa: BLE001 - and so is this
            note("swallowed", os.getpid())


declare_scatters(fs, note, SCRATCH)
declare_chores(fs, note, SCRATCH)
