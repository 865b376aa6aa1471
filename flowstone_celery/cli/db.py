"""`flowstone db`: the schema, and what is old enough to go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from flowstone_celery.cli.desk import desk
from flowstone_celery.cli.show import lasted, put_json
from flowstone_celery.cli.verbs import Duration, Verbs, careful_options, json_option, sure

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowstone_celery.db.database import Tx
    from flowstone_celery.db.statements import Statement

_BATCH: Final = 500
_GRACE: Final = 86_400.0
"""Seconds after which a large value that no attempt settled is rubbish."""


@click.group(cls=Verbs)
def db() -> None:
    """The database: schema and retention."""


@db.command()
@click.option("--sql", is_flag=True, help="Print the statements, and touch no database.")
def migrate(*, sql: bool) -> None:
    """Bring the database to this code's schema. Several hosts may do it at once."""
    from flowstone_celery.db import migrate as room

    if sql:
        click.echo(room.as_sql(desk().settings.db_schema))
        return
    before = room.current(desk().database)
    after = room.migrate(desk().database)
    click.echo(
        f"Schema {after.revision} is up to date."
        if before.revision == after.revision
        else f"Migrated from {before.revision or 'nothing'} to {after.revision}."
    )


@db.command()
@json_option
@click.pass_context
def current(ctx: click.Context, *, as_json: bool) -> None:
    """Show which schema the database has, and which this code needs; exit 69 if they differ."""
    from flowstone_celery.cli.verbs import UNAVAILABLE
    from flowstone_celery.db import migrate as room

    found = room.current(desk().database)
    if as_json:
        put_json({"revision": found.revision, "head": found.head, "up_to_date": found.up_to_date})
    else:
        hint = (
            "up to date" if found.up_to_date else f"this code needs {found.head}: run `flowstone db migrate`"
        )
        click.echo(f"{found.revision or 'no schema'} ({hint})")
    if not found.up_to_date:
        ctx.exit(UNAVAILABLE)


@db.command()
@click.option(
    "--older-than",
    type=Duration(),
    help="Age of a finished run, as 30d or 12h; by default FLOWSTONE_RETENTION_DAYS.",
)
@careful_options
def prune(*, older_than: float | None, dry_run: bool, yes: bool) -> None:
    """Delete finished runs past an age, with steps, history and outdated values. Current values stay."""
    keep = _age(older_than)
    found = desk().database.first(_sql("prunable"), keep=keep, grace=_GRACE)
    assert found is not None, "a count answers one row"
    what = f"{found['runs']:,} runs that ended more than {lasted(keep)} ago, and {found['leftovers']:,} unsettled values"
    if dry_run or not (found["runs"] or found["leftovers"]):
        click.echo(f"Would delete {what}.")
        return
    sure(f"Delete {what}?", yes=yes)
    runs = _in_batches(_prune_runs(keep))
    values = _in_batches(_drop_leftovers)
    click.echo(f"Deleted {runs:,} runs and {values:,} unsettled values.")


def _age(older_than: float | None) -> float:
    days = desk().settings.retention_days
    if older_than is None and days is None:
        raise click.UsageError("Say how old: --older-than 30d, or set FLOWSTONE_RETENTION_DAYS.")
    return older_than if older_than is not None else float(days or 0) * 86_400


def _in_batches(batch: Callable[[Tx], int]) -> int:
    """Batch after batch, each in a transaction of its own, until none is left; answers how many rows went."""
    from flowstone_celery import faults

    total = 0
    while gone := desk().database.attempt(batch):
        total += gone
        faults.point("retention.between_batches")
    return total


def _prune_runs(keep: float) -> Callable[[Tx], int]:
    """One batch of old runs, with the audit row of the act in the same commit."""
    from flowstone_celery.core.statements import SQL
    from flowstone_celery.record import audit

    actor = desk().actor

    def batch(tx: Tx) -> int:
        gone = tx.rows(SQL["prune_runs"], keep=keep, limit=_BATCH)
        if gone:
            about = {"runs": len(gone), "older_than_seconds": keep}
            audit.add(
                tx,
                actor=actor,
                action="db.prune",
                resource_type="database",
                resource_id="runs",
                details=about,
            )
        return len(gone)

    return batch


def _drop_leftovers(tx: Tx) -> int:
    from flowstone_celery.core.statements import SQL

    return len(tx.rows(SQL["expired_values"], grace=_GRACE, limit=_BATCH))


def _sql(name: str) -> Statement:
    from flowstone_celery.db.statements import load

    return load("flowstone_celery.cli", "retention.sql")[name]
