"""How a scatter is told on the command line: its facts, its items, what holds for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click
import orjson

from flowstone_celery.cli.bars import bar, ended
from flowstone_celery.cli.desk import desk
from flowstone_celery.cli.show import between, lasted, mark, put_facts, put_table, slice_of, when
from flowstone_celery.cli.verbs import ParamType
from flowstone_celery.states import ItemStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowstone_celery.assets.asset import AssetSpec
    from flowstone_celery.assets.gathered import Gathered
    from flowstone_celery.assets.scatter_handle import ScatterHandle
    from flowstone_celery.config import Settings
    from flowstone_celery.core.barrier_model import Barrier, Item, Policy, Progress

_LARGEST: Final = 2**63 - 1
_KEY_LENGTH: Final = 60


class ScatterId(ParamType):
    """The id of a scatter, a number."""

    name = "scatter"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        text = str(value)
        if not (text.isascii() and text.isdigit() and 0 < int(text) <= _LARGEST):
            self.fail(
                f"{value!r} is not the id of a scatter, a number as `flowstone scatter ls` lists them.",
                param,
                ctx,
            )
        return int(text)


def found_by(scatter_id: int) -> ScatterHandle:
    """The scatter with this id.

    Raises:
        ScatterNotFound: none has it.
    """
    found = desk().acting_house.scatter(scatter_id)
    _ = found.row
    return found


# --- facts ------------------------------------------------------------------------------------------------------------------------


def facts_of(row: Barrier, now: Progress) -> dict[str, Any]:
    """A scatter as JSON users see it."""
    counts = ("total", "succeeded", "failed", "retrying", "running", "collapsed")
    return {
        "id": row.id,
        "asset": row.name,
        "partition": row.partition,
        "run": row.run_id,
        "round": row.round,
        "status": now.status,
        "sealed": now.sealed,
        **{name: getattr(now, name) for name in counts},
        "pending": now.pending,
        "percent": round(now.percent, 1),
        "failure_rate": failure_rate(now),
        "failure_threshold": row.policy.failure_threshold,
        "created_at": row.created_at,
        "closed_at": row.closed_at,
        "seconds": between(row.created_at, row.closed_at),
    }


def failure_rate(now: Progress) -> float:
    """The part of its items, from 0 to 1, that has failed."""
    return now.failed / now.total if now.total else 0.0


def policy_facts(policy: Policy) -> dict[str, Any]:
    """What holds for its items, as JSON users see it."""
    names = (
        "max_concurrent", "failure_threshold", "failure_mode", "retry_strategy", "max_attempts", "timeout", "dispatch",
        "rate_limit", "width",
    )  # fmt: skip
    return {**{name: getattr(policy, name) for name in names}, "batch": policy.batch}


def item_facts(item: Item) -> dict[str, Any]:
    """An item as JSON users see it."""
    names = ("index", "key", "status", "attempt", "error", "seconds", "ended_at", "due_at")
    return {name: getattr(item, name) for name in names}


# --- for people -------------------------------------------------------------------------------------------------------------------


def put_scatter(row: Barrier, now: Progress) -> None:
    """What it is, how far it is, and what holds for it."""
    put_facts(
        {
            "scatter": row.id,
            "asset": slice_of(row.name, row.partition),
            "status": mark(now.status),
            "run": f"{row.run_id}, round {row.round}" if row.round > 1 else row.run_id,
            "items": bar(now),
            "failed": _told_failures(row.policy, now),
            "collapsed": f"{now.collapsed:,} equal keys" if now.collapsed else "",
            "begun": when(row.created_at),
            "ended": when(row.closed_at),
            "took" if row.closed_at else "since": lasted(between(row.created_at, row.closed_at)),
            "error": (row.error or {}).get("message"),
            "policy": told_policy(row.policy),
        }
    )


def _told_failures(policy: Policy, now: Progress) -> str:
    """`3 of 2,000 (0.15%), 2% may fail`."""
    allowed = policy.failure_threshold if policy.failure_mode != "all_or_nothing" else 0.0
    bound = f"{_percent(allowed)} may fail" if allowed else "none may fail"
    if not now.failed:
        return f"none, {bound}" if ended(now) else ""
    return f"{now.failed:,} of {now.total:,} ({_percent(failure_rate(now))}), {bound}"


def _percent(part: float) -> str:
    return f"{100 * part:.3g}%"


def told_policy(policy: Policy) -> str:
    """What holds for its items, in one line."""
    told = (
        policy.failure_mode,
        f"{policy.max_attempts} attempts" if policy.max_attempts > 1 else "1 attempt",
        f"retries {policy.retry_strategy}" if policy.max_attempts > 1 else "",
        f"at most {policy.max_concurrent:,} at once" if policy.max_concurrent else "",
        f"{policy.width:,} side by side" if policy.width > 1 else "",
        f"{policy.timeout:g} s each" if policy.timeout else "",
        f"rate {policy.rate_limit}" if policy.rate_limit else "",
        "a task for each" if policy.dispatch == "item" else "",
        "in batches" if policy.batch else "",
    )
    return ", ".join(filter(None, told))


def told_scatter(spec: AssetSpec, settings: Settings) -> str:
    """Where an asset's items come from, and what holds for them, in one line."""
    from flowstone_celery.assets.scattering import policy_of

    assert spec.scatter is not None
    where = f"over {spec.scatter.over}" if spec.scatter.over else "keys from code"
    return f"{where}, {told_policy(policy_of(spec, settings))}"


def put_gathered(value: Gathered[Any]) -> None:
    """The results as a JSON list, one a line, read page by page; what is not among them is told beside it."""
    from flowstone_celery import codec

    comma = "["
    for each in value:
        click.echo(comma + codec.canonical(each).decode(), nl=False)
        comma = ",\n"
    click.echo("]" if comma != "[" else "[]")
    failed = value.counts.failed
    if failed and value.pointer:
        scatter = value.pointer["barrier"]
        click.echo(
            f"  without {many(failed)} that failed: flowstone scatter items {scatter} --status failed",
            err=True,
        )


def put_items(items: Sequence[Item], *, empty: str) -> None:
    """One line for each."""
    put_table(
        ("index", "key", "status", "attempts", "took", "error"),
        [
            (
                each.index,
                key_text(each.key),
                mark(each.status),
                each.attempt or "",
                lasted(each.seconds),
                message_of(each),
            )
            for each in items
        ],
        empty=empty,
    )


def key_text(key: Any) -> str:
    """A key on one line, cut where it is long: text as it is, all else as JSON."""
    text = key if isinstance(key, str) else orjson.dumps(key).decode()
    text = " ".join(text.split())
    return text if len(text) <= _KEY_LENGTH else f"{text[: _KEY_LENGTH - 1]}…"


def message_of(item: Item) -> str:
    """The first line of what went wrong with it last."""
    if not item.error or item.status == ItemStatus.SUCCEEDED:
        return ""
    return str(item.error.get("message", "")).partition("\n")[0]


def many(number: int) -> str:
    """So many items."""
    return f"{number:,} item{'' if number == 1 else 's'}"
