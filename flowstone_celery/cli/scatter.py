"""`flowstone scatter`: the scatters of runs, their items, and acts on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from flowstone_celery.cli.desk import desk
from flowstone_celery.cli.filters import RunId
from flowstone_celery.cli.scattering import (
    ScatterId,
    facts_of,
    found_by,
    item_facts,
    many,
    policy_facts,
    put_items,
    put_scatter,
)
from flowstone_celery.cli.show import mark, put_json, put_rows, put_table, slice_of, when
from flowstone_celery.cli.verbs import Verbs, careful_options, json_option, sure
from flowstone_celery.errors import WrongState
from flowstone_celery.states import BarrierStatus, ItemStatus

if TYPE_CHECKING:
    from flowstone_celery.assets.scatter_handle import ScatterHandle
    from flowstone_celery.core.barrier_model import Barrier, Progress

_SHOWN: Final = 10
_LIMIT: Final = click.IntRange(1, 10_000)


@click.group(cls=Verbs)
def scatter() -> None:
    """Scatters: how far their items are, which failed, and what is done about it."""


# --- look -------------------------------------------------------------------------------------------------------------------------


@scatter.command()
@click.argument("name", required=False)
@click.option("--run", "run_id", type=RunId(), metavar="RUN", help="Only those of this run.")
@click.option(
    "--status", type=click.Choice([each.value for each in BarrierStatus]), help="Only those in this status."
)
@click.option("--limit", type=_LIMIT, default=20, show_default=True, help="How many.")
@click.option(
    "--before",
    type=ScatterId(),
    metavar="SCATTER",
    help="Only those that are older than this one: the next page.",
)
@json_option
def ls(
    *, name: str | None, run_id: str | None, status: str | None, limit: int, before: int | None, as_json: bool
) -> None:
    """List scatters, newest first; with NAME those of one asset."""
    rows = _page(_asset(name), run_id, status, before, limit)
    found = [(row, found_by(row.id).progress()) for row in rows]
    if as_json:
        put_rows([facts_of(row, now) for row, now in found])
        return
    put_table(
        ("scatter", "status", "asset", "items", "failed", "retrying", "begun"),
        [
            (
                row.id,
                mark(now.status),
                slice_of(row.name, row.partition),
                f"{now.succeeded:,}/{now.total:,}",
                now.failed or "",
                now.retrying or "",
                when(row.created_at),
            )
            for row, now in found
        ],
        empty="No scatters.",
    )


def _asset(name: str | None) -> str | None:
    """The qualified name: a short one is looked up among the assets, if an app was named."""
    if name and "." not in name and desk().has_app:
        return desk().house.catalog.fetch(name).qualified
    return name


def _page(
    name: str | None, run_id: str | None, status: str | None, before: int | None, limit: int
) -> list[Barrier]:
    from flowstone_celery.core import barriers

    database = desk().database
    if run_id is None:
        return barriers.page_of(database, name=name, status=status, before=before, limit=limit)
    rows = barriers.of_run(database, desk().run(run_id).uuid)
    fits = (
        row
        for row in rows
        if name in (None, row.name) and status in (None, row.status) and (before is None or row.id < before)
    )
    return [row for row, _ in zip(fits, range(limit), strict=False)]


@scatter.command()
@click.argument("scatter_id", type=ScatterId(), metavar="SCATTER")
@json_option
def show(*, scatter_id: int, as_json: bool) -> None:
    """Show a scatter: how far it is, what holds for it, and what failed."""
    from flowstone_celery.core import barriers

    found = found_by(scatter_id)
    row, now = found.row, found.progress()
    failures = barriers.items(desk().database, row.id, status=ItemStatus.FAILED, limit=_SHOWN)
    if as_json:
        put_json(
            {
                **facts_of(row, now),
                "error": row.error,
                "policy": policy_facts(row.policy),
                "failures": [item_facts(each) for each in failures],
            }
        )
        return
    put_scatter(row, now)
    if failures:
        click.echo()
        put_items(failures, empty="")
    if now.failed > len(failures):
        click.echo(f"… and {now.failed - len(failures):,} more")
        click.echo(
            f"  flowstone scatter items {row.id} --status failed --after {failures[-1].index}", err=True
        )


@scatter.command()
@click.argument("scatter_id", type=ScatterId(), metavar="SCATTER")
@click.option(
    "--status",
    type=click.Choice(["pending", *(each.value for each in ItemStatus)]),
    help="Only items in this status.",
)
@click.option(
    "--after", type=click.IntRange(-1), default=-1, metavar="INDEX", help="Only items behind this one."
)
@click.option("--limit", type=_LIMIT, default=100, show_default=True, help="How many.")
@json_option
def items(*, scatter_id: int, status: str | None, after: int, limit: int, as_json: bool) -> None:
    """List the items of a scatter in their order, with attempts, times and errors."""
    from flowstone_celery.core import barriers

    found = found_by(scatter_id)
    page = barriers.items(desk().database, found.id, status=status, after=after, limit=limit)
    if as_json:
        put_rows([item_facts(each) for each in page])
    else:
        put_items(page, empty="No items.")
    if len(page) == limit:
        chosen = f" --status {status}" if status else ""
        click.echo(f"  flowstone scatter items {found.id}{chosen} --after {page[-1].index}", err=True)


# --- act --------------------------------------------------------------------------------------------------------------------------


@scatter.command()
@click.argument("scatter_id", type=ScatterId(), metavar="SCATTER")
def retry(*, scatter_id: int) -> None:
    """Do what failed, or was never done, of a scatter again, in the run's next round; what succeeded is kept."""
    found = found_by(scatter_id)
    now = found.progress()
    found.retry(actor=desk().actor)
    left = now.total - now.succeeded
    click.echo(f"Retried {many(left)} of scatter {found.id}: {_round(found)} has begun.")
    click.echo(f"  flowstone run wait {found.row.run_id}", err=True)


@scatter.command()
@click.argument("scatter_id", type=ScatterId(), metavar="SCATTER")
@click.option("--reason", default="", help="Why, for the audit log.")
@careful_options
def accept(*, scatter_id: int, reason: str, dry_run: bool, yes: bool) -> None:
    """Take what succeeded of a scatter that failed as it is: it is gathered in the run's next round."""
    found = found_by(scatter_id)
    now = found.progress()
    if now.status not in (BarrierStatus.FAILED, BarrierStatus.CANCELLED):
        raise _refused(found.row, now, "only one that failed or was cancelled is accepted")
    what = f"{now.succeeded:,} of {many(now.total)} of scatter {found.id}"
    if dry_run:
        click.echo(f"Would accept {what}.")
        return
    sure(f"Accept {what}?", yes=yes)
    found.accept(actor=desk().actor, reason=reason)
    click.echo(f"Accepted {what}: {_round(found)} has begun.")
    click.echo(f"  flowstone run wait {found.row.run_id}", err=True)


@scatter.command()
@click.argument("scatter_id", type=ScatterId(), metavar="SCATTER")
@click.option("--reason", default="", help="Why, for the audit log.")
@careful_options
def cancel(*, scatter_id: int, reason: str, dry_run: bool, yes: bool) -> None:
    """Cancel a scatter: items that have not begun never do, those at work are interrupted; its step is cancelled."""
    found = found_by(scatter_id)
    now = found.progress()
    what = f"{many(now.pending)} of scatter {found.id}"
    if now.status != BarrierStatus.OPEN:
        raise _refused(found.row, now, "it has ended already")
    if dry_run:
        click.echo(f"Would cancel {what}.")
        return
    sure(f"Cancel {what}?", yes=yes)
    if not found.cancel(actor=desk().actor, reason=reason):
        raise _refused(found.row, found.progress(), "it has ended meanwhile")
    click.echo(f"Cancelled {what}.")


def _round(found: ScatterHandle) -> str:
    run = desk().run(found.row.run_id)
    return f"round {run.round} of run {run.id}"


def _refused(row: Barrier, now: Progress, why: str) -> WrongState:
    hint = {
        BarrierStatus.OPEN: "wait for its end, or cancel it first",
        BarrierStatus.PARTIAL_FAILURE: f"flowstone scatter retry {row.id} does its failed items again",
        BarrierStatus.COMPLETED: "all its items have succeeded: nothing is left to do",
    }.get(
        BarrierStatus(now.status),
        f"flowstone scatter retry {row.id} does again what failed; accept takes what succeeded",
    )
    return WrongState(
        f"scatter {row.id} of {row.name!r} is {now.status}: {why}", hint=hint, status=now.status
    )
