"""Which code may use which schema."""

from __future__ import annotations

from flowstone_celery.db import schema as schema_page
from flowstone_celery.errors import SchemaMismatch


def refuse_mismatch(found: tuple[int, int] | None, *, schema: str) -> None:
    """Raise SchemaMismatch unless (version, oldest_code) fits this code.

    Code N runs on schema N and on any newer one that still allows it.
    """
    if found is None:
        raise SchemaMismatch(f"schema {schema!r} names no version", hint="run `flowstone db migrate`")
    version, oldest = found
    if version < schema_page.VERSION:
        raise SchemaMismatch(
            f"schema {schema!r} has version {version}, this code needs {schema_page.VERSION}: the schema is older",
            hint="run `flowstone db migrate`",
        )
    if oldest > schema_page.VERSION:
        raise SchemaMismatch(
            f"schema {schema!r} has version {version} and asks for code of schema {oldest} or newer; "
            f"this code knows {schema_page.VERSION}: the schema is newer",
            hint="upgrade flowstone-celery on this machine",
            oldest_code=oldest,
        )
