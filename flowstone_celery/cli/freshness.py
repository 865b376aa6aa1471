"""`flowstone asset why` and `flowstone asset invalidate`: why a value is not fresh, and calling one wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from flowstone_celery.cli.desk import desk
from flowstone_celery.cli.show import console, mark, put_json, put_table, slice_of
from flowstone_celery.cli.verbs import careful_options, json_option, partition_option, sure

if TYPE_CHECKING:
    from rich.tree import Tree

    from flowstone_celery.assets.partition import PartitionKey
    from flowstone_celery.assets.reasons import Standing
    from flowstone_celery.assets.why import Told


@click.command()
@click.argument("name")
@partition_option
@json_option
def why(*, name: str, partition: PartitionKey, as_json: bool) -> None:
    """Tell why an asset's value is fresh, stale or missing: its reasons, and below them those of its stale inputs."""
    from flowstone_celery.assets.why import as_facts

    standing = desk().house.freshness(name, partition=partition)
    if as_json:
        put_json(as_facts(standing))
        return
    console().print(_drawn(standing))


def _drawn(standing: Standing) -> Tree:
    """The story as a tree."""
    from rich.tree import Tree

    from flowstone_celery.assets.why import story

    lines = iter(story(standing))
    root = Tree(_line(next(lines)))
    branches = [root]
    for told in lines:
        del branches[told.depth :]
        branches.append(branches[-1].add(_line(told)))
    return root


def _line(told: Told) -> Any:
    from rich.text import Text

    if told.standing is None:
        return Text(told.text)
    return mark(told.standing.state, told.text)


@click.command()
@click.argument("name")
@partition_option
@click.option("--cascade", is_flag=True, help="Mark everything too that was made from it.")
@click.option("--reason", default="", help="Why, for the audit log and for `asset why`.")
@careful_options
@json_option
def invalidate(
    *,
    name: str,
    partition: PartitionKey,
    cascade: bool,
    reason: str,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Call an asset's value wrong: it is kept and readable, and stale until it is made anew."""
    from flowstone_celery.record import standing

    fs = desk().house
    slice_ = fs.slice(name, partition)
    reached = standing.reach(fs.database, *slice_, cascade=cascade)
    if dry_run or not reached:
        _tell(reached, dry_run=dry_run, as_json=as_json)
        return
    sure(
        f"Invalidate {_counted(len(reached))} ({slice_of(*reached[0])}{', …' * (len(reached) > 1)})?", yes=yes
    )
    marked = standing.invalidate(fs.database, *slice_, cascade=cascade, reason=reason, actor=desk().actor)
    _tell(marked, dry_run=False, as_json=as_json)


def _tell(slices: list[tuple[str, str]], *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        rows = [{"asset": asset, "partition": partition} for asset, partition in slices]
        put_json({"invalidated": 0 if dry_run else len(rows), "dry_run": dry_run, "slices": rows})
        return
    if not slices:
        click.echo("Nothing to invalidate: there is no value, or it is marked already.")
        return
    put_table(
        ("would be invalidated" if dry_run else "invalidated",),
        [(slice_of(*each),) for each in slices],
        empty="",
    )


def _counted(count: int) -> str:
    return "1 value" if count == 1 else f"{count} values"
