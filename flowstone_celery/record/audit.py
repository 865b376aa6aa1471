"""The audit log: who did what to which resource; an act and its row commit together (FS-48)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from flowstone_celery.db.statements import load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flowstone_celery.db.database import Database, Row, Tx

SQL = load("flowstone_celery.record", "audit.sql")


def add(
    tx: Tx,
    *,
    actor: str,
    action: str,
    resource_type: str,
    resource_id: str,
    actor_type: str = "user",
    tenant: str = "",
    correlation_id: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """The act is recorded in the transaction that does it."""
    tx.row(
        SQL["add"],
        actor=actor,
        actor_type=actor_type,
        action=action,
        resource_type=resource_type,
        resource_id=resource_id,
        tenant=tenant,
        correlation_id=correlation_id,
        details=None if details is None else orjson.dumps(details).decode(),
    )


def of_resource(database: Database, resource_type: str, resource_id: str) -> list[Row]:
    """The acts on one resource, oldest first."""
    return database.once(SQL["of_resource"], resource_type=resource_type, resource_id=resource_id)
