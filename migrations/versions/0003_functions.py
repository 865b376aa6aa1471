"""What a step pays each time is a function in the database: claim, succeed, settle_value."""

from __future__ import annotations

from pathlib import Path

from alembic import context, op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go from schema version 2 to 3 by the page beside this file."""
    schema = context.config.attributes.get("schema", "flowstone")
    page = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    for statement in page.split(";\n\n"):
        op.execute(statement.strip().rstrip(";").replace("flowstone.", f'"{schema}".'))


def downgrade() -> None:
    """Refuse: code of version 2 and of version 3 share all rows, so there is nothing to go back to."""
    raise RuntimeError("schema version 3 has no way back: restore a backup of version 2 instead")
