"""How a backfill is told on the command line: its facts, how far it is while it is waited for, and how the command ends."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from flowstone_celery.cli.desk import desk
from flowstone_celery.cli.progress import counted
from flowstone_celery.cli.show import console, mark, put_json
from flowstone_celery.cli.verbs import DONE, INTERRUPTED, RUN_FAILED, ParamType
from flowstone_celery.states import BackfillStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from flowstone_celery.assets.backfill import Backfill, BackfillProgress, PartitionResult

_SHOWN: Final = 10
_TENTHS: Final = 10.0


class BackfillId(ParamType):
    """The id of a backfill, or as much of its beginning as tells it from others."""

    name = "backfill"


def found_by(beginning: str) -> Backfill:
    """The backfill whose id begins so."""
    from flowstone_celery.core import backfills

    house = desk().acting_house
    return house.backfill.handle(backfills.find(house.database, beginning))


def facts(found: Backfill) -> dict[str, Any]:
    """A backfill as JSON users see it."""
    return facts_of(found.row, found.progress())


def facts_of(row: Mapping[str, Any], now: BackfillProgress) -> dict[str, Any]:
    """The same from its row and its progress."""
    counts = (
        "total",
        "succeeded",
        "failed",
        "cancelled",
        "running",
        "waiting",
        "skipped",
        "unbegun",
        "pruned",
    )
    return {
        "id": str(row["id"]),
        "asset": row["asset"],
        "mode": row["mode"],
        "status": now.status,
        **{name: getattr(now, name) for name in counts},
        "percent": round(now.percent, 1),
        "max_concurrent": row["max_concurrent"],
        "key": row["idempotency_key"],
        "requested_by": row["requested_by"],
        "created_at": row["created_at"],
    }


def failure_facts(each: PartitionResult) -> dict[str, Any]:
    """A partition that failed, as JSON users see it."""
    return {"partition": each.text, "run_id": each.run_id, "error": each.error}


def put_failures(failures: Sequence[PartitionResult], *, err: bool = False) -> None:
    """The partitions that failed, the first of them by name."""
    for each in failures[:_SHOWN]:
        message = str((each.error or {}).get("message", "")).partition("\n")[0]
        click.echo(f"  {each.text}: {message}  (run {each.run_id})", err=err)
    if len(failures) > _SHOWN:
        click.echo(f"  … and {len(failures) - _SHOWN:,} more", err=err)


def wait_for(found: Backfill, *, timeout: float | None, as_json: bool) -> None:
    """All has ended, and the command ends with its exit code; meanwhile it is shown how far it is."""
    try:
        with _watched(found) as tell:
            ended = found.wait(timeout, on_progress=tell)
    except KeyboardInterrupt:
        hint = f"flowstone backfill wait {found.id} · flowstone backfill cancel {found.id}"
        click.echo(f"\nThe backfill goes on. {hint}", err=True)
        click.get_current_context().exit(INTERRUPTED)
    end(found, ended, as_json=as_json)


@contextmanager
def _watched(found: Backfill) -> Iterator[Callable[[BackfillProgress], None]]:
    """On a terminal a bar that lives; on a pipe a line whenever another tenth has ended, or the status is another."""
    total = found.progress().total
    if console(err=True).is_terminal:
        with counted("make", total) as advance:
            yield lambda now: advance(now.finished)
        return
    told: set[tuple[str, int]] = set()

    def tell(now: BackfillProgress) -> None:
        step = (now.status, int(now.percent // _TENTHS))
        if step not in told:
            told.add(step)
            click.echo(f"{_line(now)}", err=True)

    yield tell


def _line(now: BackfillProgress) -> str:
    counts = {name: getattr(now, name) for name in ("failed", "cancelled", "running", "waiting")}
    rest = "".join(f", {number:,} {name}" for name, number in counts.items() if number)
    return f"{now.status} · {now.succeeded:,} of {many(now.total)} made{rest}"


def end(found: Backfill, ended: BackfillProgress, *, as_json: bool) -> None:
    """It is told how the backfill has ended, and the command ends with its exit code."""
    failures = found.failures() if ended.failed else []
    if as_json:
        put_json({**facts(found), "failures": [failure_facts(each) for each in failures]})
    else:
        console().print(mark(ended.status, _line(ended)))
        put_failures(failures, err=True)
    if failures:
        click.echo(f"  flowstone backfill retry {found.id}", err=True)
    click.get_current_context().exit(DONE if ended.status == BackfillStatus.COMPLETED else RUN_FAILED)


def many(number: int) -> str:
    """So many partitions."""
    return f"{number:,} partition{'' if number == 1 else 's'}"
