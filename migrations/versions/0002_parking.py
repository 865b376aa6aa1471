"""Parking, turns, rounds, lanes, deadlines, requests, recipes of values, keys of dynamic partitions."""

from __future__ import annotations

from pathlib import Path

from alembic import context, op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go from schema version 1 to 2 by the page beside this file."""
    schema = context.config.attributes.get("schema", "flowstone")
    page = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    for statement in page.split(";\n\n"):
        op.execute(statement.strip().rstrip(";").replace("flowstone.", f'"{schema}".'))


def downgrade() -> None:
    """Refuse: what is parked or reopened cannot be told to the older code."""
    raise RuntimeError("schema version 2 has no way back: restore a backup of version 1 instead")
