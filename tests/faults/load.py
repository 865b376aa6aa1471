"""Runs of many like steps, as the planner would make them of as many partitions."""

from __future__ import annotations

from typing import Any

from faults.cluster import Cluster

from flowstone_celery import Run
from flowstone_celery.assets.partition import encode
from flowstone_celery.core import runs
from flowstone_celery.core.model import NewRun, NewStep


def backlog(
    steps: int,
    *,
    asset: str = "tick",
    priority: int = 0,
    queue: str = "celery",
    metadata: dict[str, Any] | None = None,
) -> NewRun:
    """A run of so many steps of this asset that need nothing."""
    name = f"faultshop.{asset}"
    plan = [NewStep("asset", name, name, queue, encode(n), priority=priority) for n in range(steps)]
    return NewRun("asset", name, plan, input={"metadata": metadata} if metadata else None)


def begin(fleet: Cluster, steps: int, **options: Any) -> Run:
    """That run, started."""
    new = backlog(steps, **options)
    return fleet.fs.handle(runs.begin(fleet.fs.database, fleet.fs.carrier, new, settings=fleet.settings))
