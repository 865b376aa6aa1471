"""A warehouse, as it has been running for years: tasks, results, a chord, a schedule."""

from __future__ import annotations

import os

from celery import Celery, Task, chord
from celery.result import AsyncResult

from flowstone_celery import Context, FlowStone

app = Celery(
    "warehouse",
    broker=os.environ.get("WAREHOUSE_BROKER", "redis://localhost/0"),
    backend=os.environ.get("WAREHOUSE_RESULTS", "redis://localhost/1"),
)
app.conf.update(
    timezone="Europe/Prague",
    task_serializer="json",
    task_routes={"warehouse.weigh": {"queue": "scales"}},
    task_time_limit=60,
    worker_prefetch_multiplier=4,
    result_expires=3600,
    beat_schedule={"count-stock": {"task": "warehouse.count_stock", "schedule": 0.5}},
)


@app.task
def weigh(parcel: dict[str, float]) -> float:
    """The weight of one parcel."""
    return parcel["kilograms"]


@app.task
def total(weights: list[float]) -> float:
    """The weight of a truck."""
    return sum(weights)


@app.task(bind=True, max_retries=3, default_retry_delay=0)
def book(self: Task, truck: str) -> str:
    """A truck is booked at the second try."""
    if self.request.retries == 0:
        raise self.retry(exc=ConnectionError("the line is busy"))
    return f"{truck} booked"


@app.task
def count_stock() -> int:
    """How often stock was counted; the schedule calls it."""
    return int(app.backend.client.incr("warehouse:counted"))


def load(parcels: list[dict[str, float]]) -> AsyncResult:
    """Weigh all parcels, then sum: a chord."""
    return chord(weigh.s(parcel) for parcel in parcels)(total.s())


fs = FlowStone(app)


@fs.asset(retries=3)
def manifest(ctx: Context) -> dict[str, object]:
    return {"day": str(ctx.partition), "truck": "MAN-7", "kilograms": 12.5}
