"""`flowstone doctor`: everything that an installation needs, looked at once, one line each."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from flowstone_celery.cli.desk import desk
from flowstone_celery.cli.show import console, mark, put_rows
from flowstone_celery.cli.verbs import DONE, RUN_FAILED, UNAVAILABLE, Verb, json_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowstone_celery.cli.checks import Finding


@click.command(cls=Verb)
@json_option
@click.pass_context
def doctor(ctx: click.Context, /, *, as_json: bool) -> None:
    """Look at app, settings, database, rows, workers, broker and disk; each line that is not well says how to mend it."""
    from flowstone_celery.cli import checks

    found: list[Finding] = []
    for finding in checks.examine(desk()):
        found.append(finding)
        if as_json:
            put_rows([asdict(finding)])
        else:
            _put(finding)
    ctx.exit(verdict(found))


def _put(finding: Finding) -> None:
    line = mark(finding.level, finding.check.ljust(10))
    line.append(f"  {finding.says}", style="default")
    if finding.fix:
        line.append(f"\n{' ' * 14}{finding.fix}", style="bold")
    console().print(line, soft_wrap=True)


def verdict(found: Sequence[Finding]) -> int:
    """69 if a service is away, 1 if something is broken, else 0; warnings alone are no illness."""
    levels = {finding.level for finding in found}
    return UNAVAILABLE if "away" in levels else RUN_FAILED if "broken" in levels else DONE
