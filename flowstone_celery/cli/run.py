"""`flowstone run`: the runs, their steps and events; waiting for them; acts on them are in `acts`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import click

from flowstone_celery.cli import acts
from flowstone_celery.cli.desk import desk
from flowstone_celery.cli.filters import RunId, filters, meant
from flowstone_celery.cli.show import (
    between,
    console,
    lasted,
    mark,
    put_facts,
    put_json,
    put_rows,
    put_table,
    run_facts,
    slice_of,
    step_facts,
    when,
)
from flowstone_celery.cli.verbs import (
    Duration,
    Verbs,
    json_option,
    tell_error,
)
from flowstone_celery.errors import FlowStoneError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowstone_celery.assets.handle import Run

_LOOK_EVERY: Final = 0.25


@click.group(cls=Verbs)
def run() -> None:
    """Runs: list, look, wait, and act on them."""


@run.command()
@filters
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many.")
@click.option(
    "--before", type=RunId(), metavar="RUN", help="Only runs that are older than this one: the next page."
)
@json_option
def ls(*, limit: int, before: str | None, as_json: bool, **given: Any) -> None:
    """List runs, newest first."""
    from flowstone_celery.core import ids, runs

    database = desk().database
    row = desk().run(before).row if before else None
    end = (row["created_at"], row["id"]) if row else None
    rows = runs.page(database, before=end, limit=limit, **meant(**given))
    if as_json:
        put_rows([run_facts(row) for row in rows])
        return
    short = ids.short(database, [row["id"] for row in rows])
    put_table(
        ("run", "status", "asset", "steps", "took", "begun"),
        [_as_cells(row, short[row["id"]]) for row in rows],
        empty="No runs.",
    )


def _as_cells(row: Mapping[str, Any], short: str) -> Sequence[object]:
    done = row["total_steps"] - row["remaining_steps"]
    took = lasted(between(row["started_at"], row["finished_at"]))
    return (
        short,
        mark(row["status"], f"{row['status']}, paused" if row["paused"] else row["status"]),
        slice_of(row["name"], row["partition"]),
        f"{done}/{row['total_steps']}",
        took,
        when(row["created_at"]),
    )


@run.command()
@click.argument("run_id", type=RunId(), metavar="RUN")
@json_option
def show(*, run_id: str, as_json: bool) -> None:
    """Show a run: its steps as a tree, what failed, and why what is left does not run."""
    from flowstone_celery.cli.live import tree_of

    found = desk().run(run_id)
    row = found.row
    if as_json:
        steps = [step_facts(step) for step in found.steps()]
        put_json({**run_facts(row), "steps": steps, "unfinished": found.why()})
        return
    put_facts(
        {
            "run": row["id"],
            "status": mark(row["status"]),
            "begun": when(row["created_at"]),
            "ended": when(row["finished_at"]),
            "by": row["requested_by"],
            "key": row["idempotency_key"],
        }
    )
    click.echo()
    console().print(tree_of(found))
    _tell_reasons(found)
    if row["error"]:
        click.echo()
        tell_error(FlowStoneError.from_dict(row["error"]), verbose=desk().verbose)


def _tell_reasons(found: Run) -> None:
    from flowstone_celery.assets.handle import stall_sentence

    for reason in found.why():
        click.echo(f"  {stall_sentence(reason)}")


@run.command()
@click.argument("run_id", type=RunId(), metavar="RUN")
@click.option("--after", type=int, default=0, metavar="EVENT", help="Only events after this one.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the run has ended.")
@json_option
def events(*, run_id: str, after: int, follow: bool, as_json: bool) -> None:
    """Show a run's history, oldest first."""
    from flowstone_celery.cli.live import Story

    found = desk().run(run_id)
    story = Story(found, after=after)
    while True:
        ended = found.ready()
        _put_events(story.news(), as_json=as_json)
        if ended or not follow:
            return
        time.sleep(_LOOK_EVERY)


def _put_events(page: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    from flowstone_celery.cli.live import event_line

    if as_json:
        put_rows(page)
        return
    output = console()
    for event in page:
        output.print(event_line(event), soft_wrap=True)


@run.command()
@click.argument("run_id", type=RunId(), metavar="RUN")
@click.option("--timeout", type=Duration(), help="Wait no longer than this (exit 5).")
@json_option
def wait(*, run_id: str, timeout: float | None, as_json: bool) -> None:
    """Wait until a run has ended, showing its steps; exit 1 if it failed."""
    from flowstone_celery.cli import waiting

    waiting.wait_for(desk().run(run_id), timeout=timeout, as_json=as_json)


for verb in (acts.cancel, acts.retry, acts.rerun, acts.pause, acts.resume):
    run.add_command(verb)
