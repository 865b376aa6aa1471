"""`flowstone run`: the runs, their steps and events; waiting for them, and cancelling them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import click

from flowstone_celery.cli.desk import desk
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
    CONFLICT,
    Duration,
    Partition,
    Verbs,
    careful_options,
    json_option,
    sure,
    tell_error,
)
from flowstone_celery.errors import FlowStoneError, WrongState
from flowstone_celery.states import RUN_TERMINAL, RunStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flowstone_celery.assets.handle import Run
    from flowstone_celery.assets.partition import PartitionKey

_PAGE: Final = 200
_LOOK_EVERY: Final = 0.25
_OPEN: Final = (RunStatus.PENDING, RunStatus.RUNNING)


@click.group(cls=Verbs)
def run() -> None:
    """Runs: list, look, wait, cancel."""


def _filters(verb: Callable[..., Any]) -> Callable[..., Any]:
    """The verb takes the filters of runs."""
    verb = click.option(
        "-p", "--partition", type=Partition(), metavar="KEY", help="Only runs for this partition."
    )(verb)
    verb = click.option("--name", help="Only runs for this asset.")(verb)
    return click.option(
        "--status", type=click.Choice([each.value for each in RunStatus]), help="Only runs in this status."
    )(verb)


@run.command()
@_filters
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many.")
@click.option(
    "--before", type=click.UUID, metavar="RUN", help="Only runs that are older than this one: the next page."
)
@json_option
def ls(*, limit: int, before: UUID | None, as_json: bool, **filters: Any) -> None:
    """List runs, newest first."""
    from flowstone_celery.core import runs

    database = desk().database
    end = (runs.read(database, before)["created_at"], before) if before else None
    rows = runs.page(database, before=end, limit=limit, **_meant(**filters))
    if as_json:
        put_rows([run_facts(row) for row in rows])
        return
    put_table(
        ("run", "status", "asset", "steps", "took", "begun"),
        [_as_cells(row) for row in rows],
        empty="No runs.",
    )


def _meant(*, status: str | None, name: str | None, partition: PartitionKey) -> dict[str, Any]:
    """The filters as the rows have them: a short name is looked up among the assets, if an app was named."""
    from flowstone_celery.assets import partition as partitions

    if name and "." not in name and desk().has_app:
        name = desk().house.catalog.fetch(name).qualified
    return {
        "status": status,
        "name": name,
        "partition": None if partition is None else partitions.encode(partition),
    }


def _as_cells(row: Mapping[str, Any]) -> Sequence[object]:
    done = row["total_steps"] - row["remaining_steps"]
    took = lasted(between(row["started_at"], row["finished_at"]))
    return (
        row["id"],
        mark(row["status"]),
        slice_of(row["name"], row["partition"]),
        f"{done}/{row['total_steps']}",
        took,
        when(row["created_at"]),
    )


@run.command()
@click.argument("run_id", type=click.UUID, metavar="RUN")
@json_option
def show(*, run_id: UUID, as_json: bool) -> None:
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
@click.argument("run_id", type=click.UUID, metavar="RUN")
@click.option("--after", type=int, default=0, metavar="EVENT", help="Only events after this one.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the run has ended.")
@json_option
def events(*, run_id: UUID, after: int, follow: bool, as_json: bool) -> None:
    """Show a run's history, oldest first."""
    found = desk().run(run_id)
    while True:
        ended = found.ready()
        page = list(found.events(after))
        _put_events(page, as_json=as_json)
        after = page[-1]["id"] if page else after
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
@click.argument("run_id", type=click.UUID, metavar="RUN")
@click.option("--timeout", type=Duration(), help="Wait no longer than this (exit 5).")
@json_option
def wait(*, run_id: UUID, timeout: float | None, as_json: bool) -> None:
    """Wait until a run has ended, showing its steps; exit 1 if it failed."""
    from flowstone_celery.cli import waiting

    waiting.wait_for(desk().run(run_id), timeout=timeout, as_json=as_json)


@run.command()
@click.argument("run_ids", type=click.UUID, nargs=-1, metavar="[RUN]...")
@click.option("--all", "everything", is_flag=True, help="Every unfinished run that the filters let through.")
@_filters
@click.option("--reason", default="", help="Why, for the audit log.")
@careful_options
@click.pass_context
def cancel(
    ctx: click.Context,
    /,
    *,
    run_ids: tuple[UUID, ...],
    everything: bool,
    reason: str,
    dry_run: bool,
    yes: bool,
    **filters: Any,
) -> None:
    """Cancel runs: what has not begun never does, running code is interrupted."""
    if bool(run_ids) is everything:
        raise click.UsageError("Name the runs, or say --all with filters.")
    chosen = _matching(**_meant(**filters)) if everything else [desk().run(each).row for each in run_ids]
    open_ = [row for row in chosen if row["status"] not in RUN_TERMINAL]
    for row in (row for row in chosen if row not in open_):
        tell_error(
            WrongState(
                f"run {row['id']} has ended already: {row['status']}", hint="Nothing is left to cancel."
            )
        )
    if open_:
        _cancel(open_, reason=reason, dry_run=dry_run, yes=yes)
    elif everything:
        click.echo("No unfinished run fits.")
    ctx.exit(CONFLICT if len(open_) < len(chosen) else 0)


def _matching(*, status: str | None, **filters: Any) -> list[Mapping[str, Any]]:
    """All unfinished runs that the filters let through."""
    return [row for each in _OPEN if status in (None, each) for row in _all_pages(status=each, **filters)]


def _all_pages(**filters: Any) -> list[Mapping[str, Any]]:
    from flowstone_celery.core import runs

    found: list[Mapping[str, Any]] = []
    end = None
    while page := runs.page(desk().database, before=end, limit=_PAGE, **filters):
        found += page
        end = (page[-1]["created_at"], page[-1]["id"])
    return found


def _cancel(rows: Sequence[Mapping[str, Any]], *, reason: str, dry_run: bool, yes: bool) -> None:
    what = f"{len(rows):,} {'run' if len(rows) == 1 else 'runs'}"
    for row in rows:
        click.echo(f"  {row['id']} {row['status']} {slice_of(row['name'], row['partition'])}", err=True)
    if dry_run:
        click.echo(f"Would cancel {what}.")
        return
    sure(f"Cancel {what}?", yes=yes)
    done = [row for row in rows if desk().run(row["id"]).cancel(actor=desk().actor, reason=reason)]
    click.echo(f"Cancelled {len(done):,} of {what}.")
