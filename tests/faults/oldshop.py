"""The app of `faultshop` as it was before most of its assets were written."""

from __future__ import annotations

from celery import Celery

from flowstone_celery import FlowStone

app = Celery("faultshop")
app.conf.worker_prefetch_multiplier = 1
fs = FlowStone(app)


@fs.asset
def tick() -> int:
    """The one asset of old."""
    return 1
