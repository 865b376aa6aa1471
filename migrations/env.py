"""Alembic's environment: our own connection, our own schema, one transaction for an upgrade."""

from __future__ import annotations

from alembic import context

config = context.config
schema: str = config.attributes.get("schema", "flowstone")


def run() -> None:
    """Run the revisions on the connection that `flowstone db migrate` hands in, or print them."""
    options = {
        "version_table": "alembic_version",
        "version_table_schema": schema,
        "transaction_per_migration": False,
    }
    if context.is_offline_mode():
        context.configure(dialect_name="postgresql", literal_binds=True, **options)
    else:
        context.configure(connection=config.attributes["connection"], **options)
    with context.begin_transaction():
        context.run_migrations()


run()
