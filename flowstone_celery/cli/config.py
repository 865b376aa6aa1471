"""`flowstone config`: the settings, and where each comes from."""

from __future__ import annotations

import click

from flowstone_celery.cli.desk import desk
from flowstone_celery.cli.show import put_rows, put_table
from flowstone_celery.cli.verbs import Verbs, json_option


@click.group(cls=Verbs)
def config() -> None:
    """Settings of this installation."""


@config.command()
@click.option("--source", is_flag=True, help="Say where each value comes from.")
@click.option("--changed", is_flag=True, help="Only what is not the default.")
@json_option
def show(*, source: bool, changed: bool, as_json: bool) -> None:
    """Show every setting with its value; secrets and passwords are masked."""
    from flowstone_celery.config import DEFAULT_SOURCE, unknown_variables, variable_of

    rows = [
        {"name": name, "variable": variable_of(name), "value": value, "source": where}
        for name, value, where in desk().settings.sources()
        if not changed or where != DEFAULT_SOURCE
    ]
    if as_json:
        put_rows(rows)
    else:
        columns = ("variable", "value", "source") if source else ("variable", "value")
        put_table(
            columns,
            [[row[name] for name in columns] for row in rows],
            empty="All settings have their defaults.",
        )
    for unknown in unknown_variables():
        click.echo(f"! {unknown.sentence}", err=True)
