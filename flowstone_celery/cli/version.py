"""`flowstone version`: what is installed here."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

import click

import flowstone_celery
from flowstone_celery.cli.show import put_facts, put_json
from flowstone_celery.cli.verbs import Verb, json_option

_BESIDE = ("celery", "kombu", "redis", "sqlalchemy", "psycopg", "flower")


@click.command(cls=Verb)
@json_option
def version(*, as_json: bool) -> None:
    """Show the versions of FlowStone, its schema, Python and what it stands on."""
    from flowstone_celery.db import schema

    facts: dict[str, object] = {
        "flowstone-celery": flowstone_celery.__version__,
        "schema": schema.VERSION,
        "python": platform.python_version(),
        **{name: _version(name) for name in _BESIDE},
    }
    if as_json:
        put_json(facts)
    else:
        put_facts(facts)


def _version(name: str) -> str | None:
    try:
        return installed(name)
    except PackageNotFoundError:
        return None
