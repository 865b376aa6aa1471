"""Durable, asset-first orchestration for anyone who runs Celery. Postgres decides, Redis paces, Celery carries.

This is the public door; everything else is imported from its room. Names load on first use, so that the import stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowstone_celery.app import FlowStone
    from flowstone_celery.assets.backfill import Backfill
    from flowstone_celery.assets.batch import Batch
    from flowstone_celery.assets.context import Context
    from flowstone_celery.assets.cron import Cron
    from flowstone_celery.assets.declared import Asset, Pipeline
    from flowstone_celery.assets.gathered import Gathered
    from flowstone_celery.assets.handle import Run
    from flowstone_celery.assets.lists import Dynamic, Static
    from flowstone_celery.assets.mappings import All, Dimension, Dimensions, Explicit, Previous, Same, Window
    from flowstone_celery.assets.moments import Hourly
    from flowstone_celery.assets.multi import Multi
    from flowstone_celery.assets.readers import FileReader, Reader, SqlReader
    from flowstone_celery.assets.scatter import Scatter
    from flowstone_celery.assets.windows import Daily, Monthly, Weekly
    from flowstone_celery.config import Settings
    from flowstone_celery.errors import FlowStoneError
    from flowstone_celery.outcomes import Cancel, Fail, Retry, Skip, Value
    from flowstone_celery.telemetry import signals

__version__ = "0.1.0"

_DOORS = {
    # the house
    "FlowStone": "app",
    "Settings": "config",
    # assets
    "Asset": "assets.declared",
    "Backfill": "assets.backfill",
    "Context": "assets.context",
    "Pipeline": "assets.declared",
    "Run": "assets.handle",
    # which partitions there are, and which belong together
    "All": "assets.mappings",
    "Cron": "assets.cron",
    "Daily": "assets.windows",
    "Dimension": "assets.mappings",
    "Dimensions": "assets.mappings",
    "Dynamic": "assets.lists",
    "Explicit": "assets.mappings",
    "Hourly": "assets.moments",
    "Monthly": "assets.windows",
    "Multi": "assets.multi",
    "Previous": "assets.mappings",
    "Same": "assets.mappings",
    "Static": "assets.lists",
    "Weekly": "assets.windows",
    "Window": "assets.mappings",
    # scatter and gather
    "Batch": "assets.batch",
    "FileReader": "assets.readers",
    "Gathered": "assets.gathered",
    "Reader": "assets.readers",
    "Scatter": "assets.scatter",
    "SqlReader": "assets.readers",
    # what user code answers
    "Cancel": "outcomes",
    "Fail": "outcomes",
    "Retry": "outcomes",
    "Skip": "outcomes",
    "Value": "outcomes",
    # what goes wrong, and what happens
    "FlowStoneError": "errors",
    "signals": "telemetry",
}

__all__ = [  # noqa: RUF022 - grouped as above
    "FlowStone",
    "Settings",
    "Asset",
    "Backfill",
    "Context",
    "Pipeline",
    "Run",
    "All",
    "Cron",
    "Daily",
    "Dimension",
    "Dimensions",
    "Dynamic",
    "Explicit",
    "Hourly",
    "Monthly",
    "Multi",
    "Previous",
    "Same",
    "Static",
    "Weekly",
    "Window",
    "Batch",
    "FileReader",
    "Gathered",
    "Reader",
    "Scatter",
    "SqlReader",
    "Cancel",
    "Fail",
    "Retry",
    "Skip",
    "Value",
    "FlowStoneError",
    "signals",
]


def __getattr__(name: str) -> object:
    if name not in _DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_DOORS[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *_DOORS])
