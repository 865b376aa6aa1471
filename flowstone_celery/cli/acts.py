"""Acts on runs, named or by filter: cancel, retry, rerun, pause, resume. How many they are for is told first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from flowstone_celery.cli.desk import desk
from flowstone_celery.cli.filters import Moment, RunId, filters, meant
from flowstone_celery.cli.progress import counted
from flowstone_celery.cli.show import slice_of
from flowstone_celery.cli.verbs import CONFLICT, Duration, Verb, careful_options, sure, tell_error
from flowstone_celery.errors import FlowStoneError, WrongState
from flowstone_celery.states import RunStatus

if TYPE_CHECKING:
    from flowstone_celery.assets.handle import Run
    from flowstone_celery.core.acts import RunFilter

_SHOWN: Final = 10
_OPEN: Final = (RunStatus.PENDING, RunStatus.RUNNING)


@dataclass(frozen=True, slots=True)
class _Act:
    """One act: its words, the runs that it can be done to, and how it is done; what it answers tells whether it was."""

    word: str
    done: str
    can: Sequence[RunStatus]
    do: Callable[[Run], object]
    refusal: str
    paused: bool | None = None

    def fits(self, row: Mapping[str, Any]) -> bool:
        return row["status"] in self.can and self.paused in (None, row["paused"])


def _bulk(verb: Callable[..., Any]) -> Callable[..., Any]:
    """The verb takes runs by id or by filter."""
    verb = careful_options(filters(verb))
    verb = click.option("--until", type=Moment(), metavar="WHEN", help="Only runs that were begun before.")(
        verb
    )
    verb = click.option(
        "--since",
        type=Moment(),
        metavar="WHEN",
        help="Only runs begun then or later: 2h (ago), 2026-11-20, 2026-11-20T08:00 (UTC).",
    )(verb)
    verb = click.option("--lane", help="Only runs of this lane.")(verb)
    text = "Every run that the filters let through and that it can be done to."
    verb = click.option("--all-matching", "--all", "everything", is_flag=True, help=text)(verb)
    return click.argument("run_ids", type=RunId(), nargs=-1, metavar="[RUN]...")(verb)


@click.command(cls=Verb)
@_bulk
@click.option("--reason", default="", help="Why, for the audit log.")
def cancel(*, reason: str, **chosen: Any) -> None:
    """Cancel runs: what has not begun never does, running code is interrupted."""
    _act_on(
        _Act(
            "cancel",
            "Cancelled",
            _OPEN,
            lambda run: run.cancel(actor=desk().actor, reason=reason),
            "it has ended already",
        ),
        **chosen,
    )


@click.command(cls=Verb)
@_bulk
@click.option("--deadline", type=Duration(), help="How long the next round may take, as 90s, 15m or 2h.")
def retry(*, deadline: float | None, **chosen: Any) -> None:
    """Retry runs that failed or were cancelled: what succeeded is kept."""
    ended = (RunStatus.FAILED, RunStatus.CANCELLED)
    _act_on(
        _Act(
            "retry",
            "Retried",
            ended,
            lambda run: run.retry(actor=desk().actor, deadline=deadline),
            "only a run that failed or was cancelled is retried",
        ),
        **chosen,
    )


@click.command(cls=Verb)
@_bulk
def pause(**chosen: Any) -> None:
    """Pause runs: they begin nothing more, and what runs goes on to its end."""
    _act_on(
        _Act(
            "pause",
            "Paused",
            _OPEN,
            lambda run: run.pause(actor=desk().actor),
            "it has ended, or is paused",
            paused=False,
        ),
        **chosen,
    )


@click.command(cls=Verb)
@_bulk
def resume(**chosen: Any) -> None:
    """Let paused runs go on."""
    _act_on(
        _Act(
            "resume",
            "Resumed",
            _OPEN,
            lambda run: run.resume(actor=desk().actor),
            "it is not paused",
            paused=True,
        ),
        **chosen,
    )


@click.command(cls=Verb)
@click.argument("run_id", type=RunId(), metavar="RUN")
@click.option(
    "--from",
    "begin_at",
    multiple=True,
    metavar="STEP",
    help="Do this step again, and what stands on it; without it, all.",
)
@click.option("--deadline", type=Duration(), help="How long the next round may take, as 90s, 15m or 2h.")
@careful_options
def rerun(
    *, run_id: str, begin_at: tuple[str, ...], deadline: float | None, dry_run: bool, yes: bool
) -> None:
    """Do a run that has ended again: from a step on, or all of it."""
    found = desk().run(run_id)
    what = f"run {found.id} of {slice_of(found.row['name'], found.row['partition'])}"
    part = f"from {', '.join(begin_at)} on" if begin_at else "from its beginning"
    if dry_run:
        click.echo(f"Would do {what} again {part}.")
        return
    sure(f"Do {what} again {part}?", yes=yes)
    run = (
        desk()
        .acting(found.uuid)
        .retry(begin_at=list(begin_at), force=not begin_at, deadline=deadline, actor=desk().actor)
    )
    click.echo(f"Round {run.round} of run {run.id} has begun.")


# --- choose, tell, ask, act -------------------------------------------------------------------------------------------------------


def _act_on(
    act: _Act,
    *,
    run_ids: tuple[str, ...],
    everything: bool,
    dry_run: bool,
    yes: bool,
    **given: Any,
) -> None:
    if bool(run_ids) is everything:
        raise click.UsageError("Name the runs, or say --all-matching with filters.")
    if everything:
        _on_matching(act, _filter(act, given), dry_run=dry_run, yes=yes)
        return
    rows = [desk().run(each).row for each in run_ids]
    can = [row for row in rows if act.fits(row)]
    for row in (row for row in rows if not act.fits(row)):
        tell_error(WrongState(f"run {row['id']} is {row['status']}: {act.refusal}", hint=_way_out(act, row)))
    if can:
        _show(can, len(can))
        _do(act, [row["id"] for row in can], len(can), dry_run=dry_run, yes=yes)
    if len(can) < len(rows):
        click.get_current_context().exit(CONFLICT)


def _way_out(act: _Act, row: Mapping[str, Any]) -> str:
    if act.word == "retry" and row["status"] == RunStatus.SUCCEEDED:
        return f"flowstone run rerun {row['id']} [--from STEP] does it again."
    if act.word == "retry":
        return "Wait for its end, or cancel it first."
    return f"Nothing is left to {act.word}."


def _filter(act: _Act, given: Mapping[str, Any]) -> RunFilter:
    from flowstone_celery.core.acts import RunFilter

    rest = {name: given[name] for name in ("lane", "since", "until")}
    found = meant(**{name: given[name] for name in ("status", "name", "partition")})
    status = found.pop("status")
    wanted = [each for each in act.can if status in (None, each)]
    return RunFilter(statuses=wanted, paused=act.paused, **found, **rest)


def _on_matching(act: _Act, which: RunFilter, *, dry_run: bool, yes: bool) -> None:
    from flowstone_celery.core import acts, runs

    database = desk().database
    number = acts.count(database, which)
    if not number:
        click.echo(f"No run fits that could be {act.done.lower()}.")
        return
    found = acts.matching(database, which)
    first = [run_id for _, run_id in zip(range(_SHOWN), found, strict=False)]
    _show([runs.read(database, each) for each in first], number)
    _do(act, acts.matching(database, which), number, dry_run=dry_run, yes=yes)


def _show(rows: Iterable[Mapping[str, Any]], number: int) -> None:
    shown = list(rows)[:_SHOWN]
    for row in shown:
        click.echo(f"  {row['id']} {row['status']} {slice_of(row['name'], row['partition'])}", err=True)
    if number > len(shown):
        click.echo(f"  … and {number - len(shown):,} more", err=True)


def _do(act: _Act, ids: Iterable[Any], number: int, *, dry_run: bool, yes: bool) -> None:
    what = f"{number:,} {'run' if number == 1 else 'runs'}"
    if dry_run:
        click.echo(f"Would {act.word} {what}.")
        return
    sure(f"{act.word.capitalize()} {what}?", yes=yes)
    done = 0
    with counted(act.word, number) as advance:
        for run_id in ids:
            done += _is_done(act, run_id)
            advance(done)
    click.echo(f"{act.done} {done:,} of {what}.")


def _is_done(act: _Act, run_id: Any) -> bool:
    """Whether it was done; what has moved on meanwhile is told, and the rest goes on."""
    try:
        return bool(act.do(desk().acting(run_id)))
    except FlowStoneError as error:
        tell_error(error, verbose=desk().verbose)
        return False
