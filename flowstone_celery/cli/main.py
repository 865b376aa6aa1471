"""The door of the command line: `flowstone …` and, through Celery's plug-in point, `celery -A shop flowstone …`."""

from __future__ import annotations

from typing import Final

import click

import flowstone_celery
from flowstone_celery.cli.desk import Desk
from flowstone_celery.cli.verbs import Door

_ROOM: Final = "flowstone_celery.cli"

_VERBS: Final[dict[str, str]] = {
    "init": f"{_ROOM}.init:init",
    "demo": f"{_ROOM}.demo:demo",
    "dev": f"{_ROOM}.dev:dev",
    "up": f"{_ROOM}.servers:up",
    "down": f"{_ROOM}.servers:down",
    "doctor": f"{_ROOM}.doctor:doctor",
    "asset": f"{_ROOM}.asset:asset",
    "partition": f"{_ROOM}.partition:partition",
    "run": f"{_ROOM}.run:run",
    "scatter": f"{_ROOM}.scatter:scatter",
    "backfill": f"{_ROOM}.backfill:backfill",
    "db": f"{_ROOM}.db:db",
    "config": f"{_ROOM}.config:config",
    "worker": f"{_ROOM}.celery:worker",
    "beat": f"{_ROOM}.celery:beat",
    "flower": f"{_ROOM}.celery:flower",
    "version": f"{_ROOM}.version:version",
}
"""By verb where it lies; in the order of the help."""


@click.group(
    "flowstone",
    cls=Door,
    lazy=_VERBS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option("-A", "--app", metavar="APP", help="The Celery app, as for celery -A; else FLOWSTONE_APP.")
@click.option("-v", "--verbose", is_flag=True, help="Show tracebacks.")
@click.version_option(flowstone_celery.__version__, message="flowstone-celery %(version)s")
@click.pass_context
def group(ctx: click.Context, app: str | None, verbose: bool) -> None:
    """Durable assets on Celery: declare, run, look, mend."""
    Desk.of(ctx, app, verbose=verbose)


def main() -> None:
    """Run the command line and leave with its exit code."""
    group(prog_name="flowstone")


if __name__ == "__main__":
    main()
