"""The core: runs, steps, edges, history, nodes, workers, values, lineage, audit, and the only clock."""

from __future__ import annotations

from pathlib import Path

from alembic import context, op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Build all tables of schema version 1 from the page beside this file."""
    schema = context.config.attributes.get("schema", "flowstone")
    page = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    for statement in page.split(";\n\n"):
        op.execute(statement.strip().rstrip(";").replace("flowstone.", f'"{schema}".'))


def downgrade() -> None:
    """Refuse: the way back from the first revision is to drop the schema."""
    raise RuntimeError("the first revision has no way back: drop the schema instead")
