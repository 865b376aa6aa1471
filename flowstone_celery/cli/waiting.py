"""Waiting for a run from the command line, and how it is told that it has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flowstone_celery.cli import live
from flowstone_celery.cli.desk import desk
from flowstone_celery.cli.show import between, console, lasted, mark, put_json, run_facts, slice_of
from flowstone_celery.cli.verbs import DONE, INTERRUPTED, RUN_FAILED, tell_error
from flowstone_celery.errors import FlowStoneError
from flowstone_celery.states import RunStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowstone_celery.assets.handle import Run


def tell_begun(run: Run, *, as_json: bool) -> None:
    """The run's id stands on stdout, for scripts."""
    if as_json:
        put_json(run_facts(run.row))
        return
    click.echo(run.id)
    click.echo(f"  flowstone run wait {run.id}", err=True)


def wait_for(run: Run, *, timeout: float | None, as_json: bool) -> None:
    """The run has ended, and the command ends with its exit code; meanwhile its steps are shown, and why nothing moves.

    Raises:
        WaitTimeout: the time was over first.
    """
    output = console(err=as_json)
    try:
        _announce(run, as_json=as_json)
        with live.followed(run, output) as say:
            run.wait(timeout, on_stall=say)
    except KeyboardInterrupt:
        click.echo(
            f"\nThe run goes on. flowstone run wait {run.id} · flowstone run cancel {run.id}", err=True
        )
        click.get_current_context().exit(INTERRUPTED)
    _end(run, as_json=as_json)


def do_here(run: Run, work: Callable[[], object], *, as_json: bool) -> None:
    """The work was done in this process, its steps shown meanwhile, and the command ends with the run's exit code."""
    output = console(err=as_json)
    _announce(run, as_json=as_json)
    with live.followed(run, output):
        work()
    _end(run, as_json=as_json)


def _announce(run: Run, *, as_json: bool) -> None:
    row = run.row
    click.echo(
        f"run {run.id} · {slice_of(row['name'], row['partition'])} · {row['total_steps']} steps", err=as_json
    )


def _end(run: Run, *, as_json: bool) -> None:
    row = run.row
    succeeded = row["status"] == RunStatus.SUCCEEDED
    if as_json:
        put_json(run_facts(row))
    else:
        took = lasted(between(row["started_at"], row["finished_at"]))
        console().print(mark(row["status"], f"{row['status']} after {took}" if took else row["status"]))
    if not succeeded and row["error"]:
        error = FlowStoneError.from_dict(row["error"])
        error.hint = error.hint or f"`flowstone run show {run.id}` tells the whole story."
        tell_error(error, verbose=desk().verbose)
    click.get_current_context().exit(DONE if succeeded else RUN_FAILED)
