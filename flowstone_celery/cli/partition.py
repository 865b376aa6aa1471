"""`flowstone partition`: which partitions assets have and how they stand, and the keys of dynamic definitions."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import click

from flowstone_celery.cli.desk import desk
from flowstone_celery.cli.show import console, mark, put_json, put_rows, put_table, when
from flowstone_celery.cli.verbs import Verbs, careful_options, json_option, sure

if TYPE_CHECKING:
    from flowstone_celery.app import FlowStone
    from flowstone_celery.assets.asset import AssetSpec
    from flowstone_celery.assets.definitions import Definition
    from flowstone_celery.assets.partition import PartitionKey
    from flowstone_celery.cli.grid import Block, Line

F = TypeVar("F", bound=Callable[..., Any])

_ROWS_OF_OTHERS = 12
_PIPE_WIDTH = 100


@click.group(cls=Verbs)
def partition() -> None:
    """Partitions: list, draw, add and remove keys."""


def _range_options(verb: F) -> F:
    verb = click.option("--to", "last", metavar="KEY", help="Up to this partition.")(verb)
    return click.option("--from", "first", metavar="KEY", help="From this partition on.")(verb)


# --- lists ----------------------------------------------------------------------------------------------------------------------------


@partition.command()
@click.argument("name", required=False)
@click.option("--missing", is_flag=True, help="Only those without a value.")
@click.option("--failed", is_flag=True, help="Only those whose newest attempt failed.")
@click.option("--stale", is_flag=True, help="Only those whose value is stale.")
@_range_options
@click.option("--limit", type=click.IntRange(1), help="Only so many, the newest of them.")
@json_option
def ls(
    *,
    name: str | None,
    missing: bool,
    failed: bool,
    stale: bool,
    first: str | None,
    last: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """List the partitions of the asset NAME; without it, the assets that have some, and how many."""
    fs = desk().house
    if name is None:
        _list_assets(fs, as_json=as_json)
        return
    rows = [
        row
        for row in _judged(fs, list(_rows(fs, fs.catalog.fetch(name), first, last)))
        if (row["freshness"] == "stale" or not stale)
        and (row["version"] is None or not missing)
        and (row["state"] == "failed" or not failed)
    ]
    rows = rows[-limit:] if limit else rows
    if as_json:
        put_rows(rows)
        return
    cells = [
        (
            mark(row["state"]),
            mark(row["freshness"]),
            row["key"],
            row["version"],
            when(row["materialized_at"]),
            row["run_id"],
        )
        for row in rows
    ]
    heads = ("state", "freshness", "partition", "version", "made", "run")
    put_table(heads, cells, empty="No partition fits.")


def _judged(fs: FlowStone, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows, each with whether its value is fresh."""
    from flowstone_celery.assets.slices import Slice

    found = fs.freshness_of([Slice(row["asset"], row["partition"]) for row in rows])
    for row, standing in zip(rows, found.values(), strict=True):
        yield {**row, "freshness": standing.state.value}


def _list_assets(fs: FlowStone, *, as_json: bool) -> None:
    rows = [_counted(fs, spec) for spec in fs.catalog.list() if spec.partitions is not None]
    if as_json:
        put_rows(rows)
        return
    names = ("asset", "partitions", "keys", "made", "failed", "missing")
    cells = [[row[name] if row[name] != 0 else "" for name in names] for row in rows]
    put_table(names, cells, empty="No asset declares partitions.")


def _counted(fs: FlowStone, spec: AssetSpec) -> dict[str, Any]:
    rows = list(_rows(fs, spec, None, None))
    return {
        "asset": spec.qualified,
        "partitions": str(spec.partitions),
        "keys": len(rows),
        "made": sum(row["version"] is not None for row in rows),
        "failed": sum(row["state"] == "failed" for row in rows),
        "missing": sum(row["version"] is None for row in rows),
    }


def _rows(fs: FlowStone, spec: AssetSpec, first: str | None, last: str | None) -> Iterator[dict[str, Any]]:
    """How each partition stands: those of the definition, or, where there is none, those that were ever made or tried."""
    from flowstone_celery.assets import partition as partitions
    from flowstone_celery.record import partitions as ledger

    standing = ledger.standing(fs.database, spec.qualified)
    if spec.partitions is None and (first or last):
        raise click.UsageError(f"{spec.qualified} declares no partitions, so its keys have no order.")
    if spec.partitions is None:
        keyed = ((text, text) for text in sorted(standing))
    else:
        found = fs.partitions.range(spec.qualified, first, last)
        keyed = ((partitions.encode(key), spec.partitions.show(key)) for key in found)
    for text, shown in keyed:
        yield _row(spec, text, shown, standing.get(text) or {})


def _row(spec: AssetSpec, text: str, shown: str, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "asset": spec.qualified,
        "key": shown,
        "partition": text,
        "state": _state(row),
        "version": row.get("value_id"),
        "materialized_at": row.get("made_at"),
        "run_id": row.get("run_id"),
        "error": row.get("error"),
    }


def _state(row: Mapping[str, Any]) -> str:
    from flowstone_celery.states import materialization

    if row.get("status"):
        return materialization(row["status"], row["phase"]).value
    return "missing" if row.get("value_id") is None else "success"


# --- the grid -------------------------------------------------------------------------------------------------------------------------


@partition.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@_range_options
@click.option(
    "--width", type=click.IntRange(20), help="Characters in a line; by default those of the terminal."
)
@json_option
def grid(
    *, names: tuple[str, ...], first: str | None, last: str | None, width: int | None, as_json: bool
) -> None:
    """Draw assets against their partitions; where there are more than fit, a column stands for several."""
    from flowstone_celery.cli.grid import drawn, facts, legend

    fs = desk().house
    specs = [fs.catalog.fetch(name) for name in names] or [
        spec for spec in fs.catalog.list() if spec.partitions is not None
    ]
    blocks = list(_blocks(fs, specs, first, last))
    wide = width or (shutil.get_terminal_size().columns if sys.stdout.isatty() else _PIPE_WIDTH)
    if as_json:
        put_rows(line for block in blocks for line in facts(block, wide))
        return
    if not blocks:
        click.echo("No asset declares partitions.")
        return
    output = console()
    for block in blocks:
        for line in drawn(block, wide):
            output.print(line, no_wrap=True, overflow="ignore", crop=False)
        output.print()
    output.print(legend(blocks, wide))


def _blocks(
    fs: FlowStone, specs: Iterable[AssetSpec], first: str | None, last: str | None
) -> Iterator[Block]:
    """One block for each definition, in the order in which the assets name them."""
    from flowstone_celery.cli.grid import Block

    groups: dict[Definition, list[AssetSpec]] = {}
    for spec in specs:
        groups.setdefault(fs.partitions.of(spec.qualified), []).append(spec)
    now = fs.partitions.now()
    for definition, group in groups.items():
        keys = list(definition.range(first, last, now=now))
        columns = list(dict.fromkeys(_column(definition, key) for key in keys))
        lines = [line for spec in group for line in _lines(fs, spec, definition, keys, columns)]
        yield Block(str(definition), columns, lines)


def _lines(
    fs: FlowStone, spec: AssetSpec, definition: Definition, keys: list[PartitionKey], columns: list[str]
) -> Iterator[Line]:
    """One line for the asset, or, with several dimensions, one for each of the others' keys, if these are few."""
    from flowstone_celery.assets import partition as partitions
    from flowstone_celery.cli.grid import Line, merged
    from flowstone_celery.record import partitions as ledger

    standing = ledger.standing(fs.database, spec.qualified)
    found: dict[str, dict[str, list[str]]] = {}
    few = len({_other(definition, key) for key in keys}) <= _ROWS_OF_OTHERS
    for key in keys:
        name = " ".join(filter(None, (spec.qualified, _other(definition, key) if few else "")))
        state = _state(standing.get(partitions.encode(key)) or {})
        found.setdefault(name, {}).setdefault(_column(definition, key), []).append(state)
    for name, states in (found or {spec.qualified: {}}).items():
        yield Line(name, [merged(states.get(column, ["missing"])) for column in columns])


def _axis(definition: Definition) -> str | None:
    """The dimension that runs along the columns."""
    from flowstone_celery.assets.multi import Multi

    return (definition.time or next(iter(definition.dimensions))) if isinstance(definition, Multi) else None


def _column(definition: Definition, key: PartitionKey) -> str:
    from flowstone_celery.assets.multi import Multi

    axis = _axis(definition)
    if axis is None or not isinstance(definition, Multi):
        return definition.show(key)
    return definition.dimensions[axis].show(definition.named(key)[axis])


def _other(definition: Definition, key: PartitionKey) -> str:
    from flowstone_celery.assets.multi import Multi

    if not isinstance(definition, Multi):
        return ""
    axis, parts = _axis(definition), definition.named(key)
    return "|".join(definition.dimensions[name].show(part) for name, part in parts.items() if name != axis)


# --- keys that come and go ------------------------------------------------------------------------------------------------------------


@partition.command()
@click.argument("definition")
@click.argument("keys", nargs=-1, metavar="KEY...")
@click.option("--stdin", "piped", is_flag=True, help="Read further keys from standard input, one a line.")
@json_option
def add(*, definition: str, keys: tuple[str, ...], piped: bool, as_json: bool) -> None:
    """Add keys to the dynamic definition of this name; those that are there already change nothing."""
    given = _given(keys, piped=piped)
    added = desk().house.partitions.add(definition, *given, actor=desk().actor)
    _tell(definition, "added", added, len(set(given)), as_json=as_json)


@partition.command()
@click.argument("definition")
@click.argument("keys", nargs=-1, metavar="KEY...")
@click.option("--stdin", "piped", is_flag=True, help="Read further keys from standard input, one a line.")
@careful_options
@json_option
def rm(
    *, definition: str, keys: tuple[str, ...], piped: bool, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Remove keys from the dynamic definition of this name. Their values stay, and are back with the key."""
    found = desk().house.partitions
    given = _given(keys, piped=piped)
    known = set(found.now().dynamic(found.dynamic(definition).name))
    there = sorted(known.intersection(given))
    if dry_run:
        _tell(definition, "would be removed", there, len(set(given)), as_json=as_json)
        return
    if there:
        sure(f"Remove {_many(there)} from {definition}?", yes=yes)
    removed = found.remove(definition, *there, actor=desk().actor)
    _tell(definition, "removed", removed, len(set(given)), as_json=as_json)


def _given(keys: tuple[str, ...], *, piped: bool) -> list[str]:
    read = [line for line in sys.stdin.read().splitlines() if line] if piped else []
    if not (keys or read):
        raise click.UsageError("Name at least one key.")
    return [*keys, *read]


def _tell(definition: str, act: str, changed: list[str], asked: int, *, as_json: bool) -> None:
    if as_json:
        put_json(
            {"definition": definition, act.replace(" ", "_"): changed, "unchanged": asked - len(changed)}
        )
        return
    same = asked - len(changed)
    rest = f"; {same} as before" if same else ""
    click.echo(f"{definition}: {_many(changed)} {act}{rest}")


def _many(keys: list[str]) -> str:
    shown = ", ".join(map(repr, islice(keys, 5)))
    return f"{len(keys)} key{'s' if len(keys) != 1 else ''}" + (
        f" ({shown}{', …' if len(keys) > 5 else ''})" if keys else ""
    )
