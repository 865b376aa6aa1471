"""`flowstone db`: the schema, and what is old enough to go."""

from __future__ import annotations

import click

from flowstone_celery.cli.desk import desk
from flowstone_celery.cli.progress import counted
from flowstone_celery.cli.show import lasted, put_json
from flowstone_celery.cli.verbs import Duration, Verbs, careful_options, json_option, sure


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
    from flowstone_celery.core import retention

    policy = retention.Policy.of(desk().settings, older_than)
    if policy is None:
        raise click.UsageError("Say how old: --older-than 30d, or set FLOWSTONE_RETENTION_DAYS.")
    found = retention.prunable(desk().database, policy)
    what = f"{found.runs:,} runs that ended more than {lasted(policy.keep)} ago, and {found.leftovers:,} unsettled values"
    if dry_run:
        click.echo(f"Would delete {what}.")
        return
    if found.any:
        sure(f"Delete {what}?", yes=yes)
    with counted("pruning", found.runs) as advance:
        gone = retention.prune(
            desk().database, policy, actor=desk().actor, on_batch=lambda all_: advance(all_.runs)
        )
    click.echo(
        f"Deleted {gone.runs:,} runs and {gone.leftovers:,} unsettled values, with {gone.steps:,} steps, "
        f"{gone.values:,} outdated values and {gone.dead:,} rows of the dead."
    )
