"""Where the database is: its URL and schema, checked, and as they may be shown."""

from __future__ import annotations

import re

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from flowstone_celery.errors import ConfigError


def checked_url(url: str) -> str:
    """The URL in the form that SQLAlchemy takes for psycopg.

    Raises:
        ConfigError: it cannot be read, or names another database product.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigError(
            f"the database URL {url!r} cannot be read",
            hint="it looks like postgresql+psycopg://user:password@host:5432/name",
        ) from error
    if parsed.get_backend_name() != "postgresql":
        raise ConfigError(
            f"the database URL names {parsed.get_backend_name()!r}, but FlowStone keeps its truth in PostgreSQL 15 or newer",
            hint="use postgresql+psycopg://user:password@host:5432/name",
        )
    return parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def checked_schema(name: str) -> str:
    """The name, which can be a schema's.

    Raises:
        ConfigError: it cannot.
    """
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", name):
        raise ConfigError(
            f"{name!r} cannot be the name of the schema",
            hint="use small letters, digits and _, as in FLOWSTONE_DB_SCHEMA=flowstone",
        )
    return name


def masked(url: str) -> str:
    """The URL without its password."""
    return make_url(url).render_as_string(hide_password=True)
