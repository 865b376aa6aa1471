"""The app of the workers under test: `celery -A brokers.rabbitshop worker`, on any broker, with queues of its own."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery
from kombu import Queue

from flowstone_celery import Context, FlowStone

SCRATCH = Path(os.environ.get("SHOP_SCRATCH", "."))


def note(name: str, text: object) -> None:
    """Append a line to a file that the test reads."""
    with (SCRATCH / name).open("a") as page:
        page.write(f"{text}\n")


def queue(name: str, kind: str, **arguments: Any) -> Queue:
    """A queue of this kind: "classic" or "quorum"."""
    return Queue(
        name,
        routing_key=name,
        queue_arguments={"x-queue-type": kind, **arguments} if kind != "none" else arguments or None,
    )


def shop(broker: str, prefix: str, kind: str) -> FlowStone:
    """An app whose queues `<prefix>`, `<prefix>-other` and `<prefix>-short` are of this kind, and its assets."""
    app = Celery("rabbitshop", broker=broker, set_as_current=False)
    app.conf.update(
        task_default_queue=prefix,
        task_default_exchange=prefix,
        task_default_routing_key=prefix,
        task_default_queue_type="quorum" if kind == "quorum" else "classic",
        worker_prefetch_multiplier=1,
        worker_detect_quorum_queues=True,
        broker_connection_retry_on_startup=True,
        broker_transport_options={},
        worker_cancel_long_running_tasks_on_connection_loss=False,
        task_queues=[
            queue(prefix, kind),
            queue(f"{prefix}-other", kind),
            queue(f"{prefix}-short", kind, **({} if kind == "none" else {"x-consumer-timeout": 4_000})),
        ],
    )
    fs = FlowStone(app, namespace="shop")

    @app.task(name="shop.plain", queue=prefix, shared=False)
    def plain() -> int:
        """A task of the user's own."""
        note("plain", os.getpid())
        return os.getpid()

    @fs.asset
    def first() -> int:
        return 1

    @fs.asset
    def second(first: int) -> int:
        return first + 1

    @fs.asset(queue=f"{prefix}-other")
    def third(second: int) -> int:
        return second + 1

    @fs.asset
    def quick(ctx: Context) -> str:
        note("quick", ctx.partition)
        return str(ctx.partition)

    def wait_for_test(ctx: Context) -> str:
        note(f"slow-{ctx.partition}", os.getpid())
        while not (SCRATCH / f"go-{ctx.partition}").exists():
            time.sleep(0.02)
        return str(ctx.partition)

    @fs.asset
    def slow(ctx: Context) -> str:
        """Runs until the test lets it go."""
        return wait_for_test(ctx)

    @fs.asset(queue=f"{prefix}-short")
    def short(ctx: Context) -> str:
        """The same, on a queue whose broker has little patience."""
        return wait_for_test(ctx)

    if os.environ.get("SHOP_KNOWS", "all") == "all":

        @fs.asset
        def newest() -> str:
            return "newest"

    return fs


if "SHOP_PREFIX" in os.environ:
    fs = shop(os.environ["SHOP_BROKER"], os.environ["SHOP_PREFIX"], os.environ["SHOP_KIND"])
    app = fs.app
