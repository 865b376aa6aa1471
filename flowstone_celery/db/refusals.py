"""What errors of the server mean: try again, somebody was faster, nobody is there, or this statement is refused."""

from __future__ import annotations

import psycopg

TRY_AGAIN = (
    psycopg.errors.SerializationFailure,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.LockNotAvailable,
)
MAYBE_AGAIN = (psycopg.errors.UniqueViolation, psycopg.errors.FeatureNotSupported)
"""Worth another try if `is_passing` says so."""
GONE = (psycopg.OperationalError, psycopg.InterfaceError)
"""Nobody is there, unless it `is_refusal`."""
NO_SCHEMA = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.UndefinedFunction,
)

_RIVALS = frozenset({"steps_makers"})
"""Unique indexes that refuse the slower of two who reach for the same at once: a second look shows who has it."""


def is_passing(error: psycopg.Error) -> bool:
    """Whether the same work may well succeed a moment later."""
    return not isinstance(error, psycopg.errors.UniqueViolation) or error.diag.constraint_name in _RIVALS


def is_refusal(error: psycopg.Error) -> bool:
    """Whether the server is there and refuses this very statement: too large or too deep for it, or cancelled. It would again."""
    state = error.sqlstate or ""
    return state.startswith("54") or state == "57014"
