"""Scatters: barriers, their pages of keys, claims of ranges, items that there is news of; steps that do items."""

from __future__ import annotations

from pathlib import Path

from alembic import context, op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go from schema version 3 to 4 by the page beside this file."""
    schema = context.config.attributes.get("schema", "flowstone")
    page = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    for statement in page.split(";\n\n"):
        op.execute(statement.strip().rstrip(";").replace("flowstone.", f'"{schema}".'))


def downgrade() -> None:
    """Refuse: the older code knows no step that does items."""
    raise RuntimeError("schema version 4 has no way back: restore a backup of version 3 instead")
