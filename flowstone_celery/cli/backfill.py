"""`flowstone backfill`: many partitions of an asset at once: begin, look, wait, and acts on all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from flowstone_celery.cli.backfilling import (
    BackfillId,
    end,
    facts,
    facts_of,
    failure_facts,
    found_by,
    many,
    put_failures,
    wait_for,
)
from flowstone_celery.cli.desk import desk
from flowstone_celery.cli.progress import counted
from flowstone_celery.cli.show import (
    mark,
    put_facts,
    put_json,
    put_rows,
    put_table,
    when,
)
from flowstone_celery.cli.verbs import (
    Duration,
    Partition,
    Verbs,
    careful_options,
    json_option,
    sure,
)
from flowstone_celery.errors import WrongState
from flowstone_celery.states import BackfillMode, BackfillStatus

if TYPE_CHECKING:
    from flowstone_celery.assets.backfill import Backfill
    from flowstone_celery.assets.backfilling import BackfillPlan
    from flowstone_celery.assets.definitions import Definition
    from flowstone_celery.assets.partition import PartitionKey

_SHOWN: Final = 10


@click.group(cls=Verbs)
def backfill() -> None:
    """Backfills: make many partitions of an asset, so many at a time."""


# --- begin ------------------------------------------------------------------------------------------------------------------------


@backfill.command()
@click.argument("name")
@click.option("--from", "first", type=Partition(), metavar="KEY", help="From this partition on.")
@click.option(
    "--to", "last", type=Partition(), metavar="KEY", help="Up to this partition, which is included."
)
@click.option(
    "-p",
    "--partition",
    "keys",
    type=Partition(),
    multiple=True,
    metavar="KEY",
    help="This one; may be repeated.",
)
@click.option(
    "--mode",
    type=click.Choice([each.value for each in BackfillMode]),
    default=BackfillMode.MISSING.value,
    show_default=True,
    help="Which of them are made.",
)
@click.option("--reverse", is_flag=True, help="The last partition first.")
@click.option(
    "--max-concurrent",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="How many are made at a time.",
)
@click.option("--only", is_flag=True, help="Make the asset alone; what it needs must be there.")
@click.option("--queue", help="Send all steps to this queue.")
@click.option("--priority", type=int, help="Larger runs sooner.")
@click.option("--key", help="The same key goes on with the same backfill.")
@click.option("--deadline", type=Duration(), help="How long all of it may take, as 15m, 2h or 3d.")
@click.option(
    "--wait/--no-wait", default=True, show_default=True, help="Show how far it is until all has ended."
)
@click.option("--timeout", type=Duration(), help="Wait no longer than this; it goes on (exit 5).")
@click.option("--inline", is_flag=True, help="Do the work in this process, without Celery.")
@careful_options
@json_option
def start(
    *,
    name: str,
    first: PartitionKey,
    last: PartitionKey,
    keys: tuple[PartitionKey, ...],
    only: bool,
    wait: bool,
    timeout: float | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **words: Any,
) -> None:
    """Make the partitions of the asset NAME: all that there are until now, a range of them, or those that are named."""
    fs = desk().house
    here = words["inline"] or fs.mode == "inline"
    _check_options(
        named=bool(keys), ranged=bool(first or last), here=here, wait=wait, timeout=timeout, **words
    )
    plan = fs.backfill.plan(
        name,
        list(keys) if keys else None,
        start=first,
        end=last,
        with_deps=not only,
        requested_by=desk().actor,
        **words,
    )
    if dry_run:
        _tell_plan(plan, as_json=as_json)
        return
    click.echo(_counts(plan), err=True)
    if not plan.to_make and words["key"] is None:
        if as_json:
            put_json(_plan_facts(plan))
        return
    sure(f"Make {many(len(plan.to_make))} of {plan.spec.qualified}?", yes=yes)
    with counted("begin", len(plan.to_make)) as advance:
        found = fs.backfill.start(plan, drain=False, on_begun=lambda begun, _: advance(begun))
    if not wait:
        _tell_begun(found, as_json=as_json)
    elif here:
        with counted("make", len(plan.to_make)) as advance:
            found.go_on(on_ended=advance)
        end(found, found.progress(), as_json=as_json)
    else:
        wait_for(found, timeout=timeout, as_json=as_json)


def _check_options(
    *, named: bool, ranged: bool, here: bool, wait: bool, timeout: float | None, queue: str | None, **_: Any
) -> None:
    if named and ranged:
        raise click.UsageError("--partition names each, --from and --to a range: give one of them.")
    if here and (not wait or timeout is not None or queue is not None):
        raise click.UsageError(
            "Inline, this process does the work: --no-wait, --timeout and --queue have no meaning then."
        )


def _counts(plan: BackfillPlan) -> str:
    left = (
        f"{len(plan.skipped):,} {'present' if plan.new.mode == BackfillMode.MISSING else 'left as they are'}"
    )
    return f"{many(plan.total)}: {len(plan.to_make):,} to make, {left}"


def _tell_plan(plan: BackfillPlan, *, as_json: bool) -> None:
    if as_json:
        put_json(_plan_facts(plan))
        return
    click.echo(_counts(plan))
    for text in plan.to_make[:_SHOWN]:
        click.echo(f"  {_shown(plan.spec.partitions, text)}")
    if len(plan.to_make) > _SHOWN:
        click.echo(f"  … and {len(plan.to_make) - _SHOWN:,} more")


def _plan_facts(plan: BackfillPlan) -> dict[str, Any]:
    return {
        "asset": plan.spec.qualified,
        "mode": plan.new.mode,
        "total": plan.total,
        "to_make": [_shown(plan.spec.partitions, text) for text in plan.to_make],
        "skipped": len(plan.skipped),
        "max_concurrent": plan.new.max_concurrent,
    }


def _shown(definition: Definition | None, text: str) -> str:
    """The partition as a person writes it."""
    from flowstone_celery.assets import partition as partitions

    return text if definition is None else definition.show(partitions.decode(text))


def _tell_begun(found: Backfill, *, as_json: bool) -> None:
    if as_json:
        put_json(facts(found))
        return
    click.echo(found.id)
    click.echo(f"  flowstone backfill wait {found.id}", err=True)


# --- look -------------------------------------------------------------------------------------------------------------------------


@backfill.command()
@click.argument("name", required=False)
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many.")
@json_option
def ls(*, name: str | None, limit: int, as_json: bool) -> None:
    """List backfills, newest first; with NAME those of one asset."""
    from flowstone_celery.assets.backfill import BackfillProgress
    from flowstone_celery.core import backfills

    if name and "." not in name and desk().has_app:
        name = desk().house.catalog.fetch(name).qualified
    rows = backfills.page(desk().database, name=name, limit=limit)
    shown = [facts_of(row, BackfillProgress.of(row)) for row in rows]
    if as_json:
        put_rows(shown)
        return
    cells = [
        (
            each["id"],
            mark(each["status"]),
            each["asset"],
            each["mode"],
            f"{each['succeeded']}/{each['total']}",
            each["failed"] or "",
            when(each["created_at"]),
        )
        for each in shown
    ]
    put_table(
        ("backfill", "status", "asset", "mode", "made", "failed", "begun"), cells, empty="No backfills."
    )


@backfill.command()
@click.argument("backfill_id", type=BackfillId(), metavar="BACKFILL")
@json_option
def show(*, backfill_id: str, as_json: bool) -> None:
    """Show a backfill: how far it is, and what failed."""
    found = found_by(backfill_id)
    shown, failures = facts(found), found.failures()
    if as_json:
        put_json({**shown, "failures": [failure_facts(each) for each in failures]})
        return
    put_facts({**shown, "status": mark(shown["status"]), "created_at": when(shown["created_at"])})
    put_failures(failures)


@backfill.command()
@click.argument("backfill_id", type=BackfillId(), metavar="BACKFILL")
@click.option("--timeout", type=Duration(), help="Wait no longer than this (exit 5).")
@json_option
def wait(*, backfill_id: str, timeout: float | None, as_json: bool) -> None:
    """Wait until all of a backfill has ended, showing how far it is; exit 1 if something failed."""
    wait_for(found_by(backfill_id), timeout=timeout, as_json=as_json)


# --- act --------------------------------------------------------------------------------------------------------------------------


@backfill.command()
@click.argument("backfill_id", type=BackfillId(), metavar="BACKFILL")
def pause(*, backfill_id: str) -> None:
    """Pause a backfill: it begins nothing more, and what runs goes on to its end."""
    found = found_by(backfill_id)
    if not found.pause(actor=desk().actor):
        raise _refused(found, "only one that is active is paused", "resume lets a paused one go on")
    click.echo(f"Paused backfill {found.id}.")


@backfill.command()
@click.argument("backfill_id", type=BackfillId(), metavar="BACKFILL")
def resume(*, backfill_id: str) -> None:
    """Let a backfill go on: after a pause, or where a client that began it has died."""
    found = found_by(backfill_id)
    now = found.progress()
    if now.status != BackfillStatus.PAUSED and not now.unbegun:
        raise _refused(found, "it is not paused, and all of it has begun", "retry does again what failed")
    with counted("begin", now.total) as advance:
        found.resume(actor=desk().actor, on_begun=lambda begun, _: advance(begun))
    click.echo(f"Resumed backfill {found.id}.")


@backfill.command()
@click.argument("backfill_id", type=BackfillId(), metavar="BACKFILL")
@click.option("--reason", default="", help="Why, for the audit log.")
@careful_options
def cancel(*, backfill_id: str, reason: str, dry_run: bool, yes: bool) -> None:
    """Cancel a backfill: what has not begun never does, running code is interrupted."""
    found = found_by(backfill_id)
    now = found.progress()
    left = now.running + now.waiting
    if not left:
        raise _refused(found, "nothing of it is left to cancel", "")
    what = f"{many(left)} of backfill {found.id}"
    if dry_run:
        click.echo(f"Would cancel {what}.")
        return
    sure(f"Cancel {what}?", yes=yes)
    with counted("cancel", left) as advance:
        found.cancel(actor=desk().actor, reason=reason, on_run=advance)
    click.echo(f"Cancelled {what}.")


@backfill.command()
@click.argument("backfill_id", type=BackfillId(), metavar="BACKFILL")
def retry(*, backfill_id: str) -> None:
    """Do again what failed or was cancelled of a backfill."""
    found = found_by(backfill_id)
    now = found.progress()
    if not now.failed and not now.cancelled:
        raise _refused(found, "nothing of it failed or was cancelled", "resume lets a paused one go on")
    done = found.retry(actor=desk().actor)
    click.echo(f"Retried {many(done)} of backfill {found.id}.")


def _refused(found: Backfill, why: str, hint: str) -> WrongState:
    return WrongState(f"backfill {found.id} is {found.status}: {why}", hint=hint, backfill_id=found.id)
