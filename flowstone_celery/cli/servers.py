"""`flowstone up` and `down`: the embedded PostgreSQL and Redis of this folder."""

from __future__ import annotations

import time

import click

from flowstone_celery.cli.desk import desk
from flowstone_celery.cli.show import lasted, put_facts, put_json
from flowstone_celery.cli.verbs import Verb, json_option


@click.command(cls=Verb)
@json_option
@click.option(
    "--migrate/--no-migrate",
    default=True,
    help="Bring the database to this code's schema.",
    show_default=True,
)
def up(*, as_json: bool, migrate: bool) -> None:
    """Start the embedded PostgreSQL and Redis of this folder; those already up stay as they are."""
    from flowstone_celery.embedded import servers

    begun, home = time.monotonic(), desk().settings.home
    refuse_in_production()
    found = servers.up(home, on_progress=lambda text: click.echo(f"  {text}", err=True))
    if migrate:
        migrate_database(found.database_url)
    urls = {
        "home": str(found.home),
        "database": found.database_url,
        "broker": found.broker_url,
        "redis": found.redis_url,
    }
    if as_json:
        put_json(urls)
        return
    click.echo(
        f"Up after {lasted(time.monotonic() - begun)}. Not for production. `flowstone down` stops them; the data stay."
    )
    put_facts(urls)


def refuse_in_production() -> None:
    """Return if this installation may use embedded servers. Raises ConfigError."""
    from flowstone_celery.errors import ConfigError

    if desk().settings.env == "production":
        raise ConfigError(
            "embedded servers are not for production, and FLOWSTONE_ENV says production",
            hint="Set FLOWSTONE_DATABASE_URL and FLOWSTONE_REDIS_URL, or FLOWSTONE_ENV=dev.",
        )


def migrate_database(url: str) -> None:
    """The database at this URL has this code's schema."""
    from flowstone_celery.db.database import Database
    from flowstone_celery.db.migrate import migrate

    database = Database(url, schema=desk().settings.db_schema)
    try:
        migrate(database)
    finally:
        database.dispose()


@click.command(cls=Verb)
@click.option("--dry-run", is_flag=True, help="Say what runs, and stop nothing.")
def down(*, dry_run: bool) -> None:
    """Stop the embedded servers of this folder; the data stay."""
    from flowstone_celery.embedded import servers

    home = desk().settings.home
    if dry_run:
        found = servers.find(home)
        click.echo(f"Would stop the servers of {found.home}." if found else "Nothing is up here.")
        return
    click.echo("Stopped. The data stay." if servers.down(home) else "Nothing was up here.")
