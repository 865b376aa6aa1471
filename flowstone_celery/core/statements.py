"""The core's named statements, read once."""

from __future__ import annotations

from flowstone_celery.db.statements import load

SQL = load(
    "flowstone_celery.core",
    "fragments.sql",
    "runs.sql",
    "steps.sql",
    "workers.sql",
    "sweep.sql",
    "retention.sql",
    "joining.sql",
    "backfills.sql",
    "barriers.sql",
    "barrier_reads.sql",
)
"""Every transition and read of the core, by name."""

DOCTOR = load("flowstone_celery.core", "doctor.sql")
"""The invariants: each answers the rows that break it."""
