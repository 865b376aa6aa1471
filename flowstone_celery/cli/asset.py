"""`flowstone asset`: what is declared, how it stands, and making it."""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import click

from flowstone_celery.assets.slices import Slice
from flowstone_celery.cli import freshness as fresh_verbs
from flowstone_celery.cli.desk import desk
from flowstone_celery.cli.scattering import put_gathered, told_scatter
from flowstone_celery.cli.show import mark, put_facts, put_json, put_rows, put_table, sized, slice_of, when
from flowstone_celery.cli.verbs import Duration, Verbs, json_option, partition_option

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowstone_celery.app import FlowStone
    from flowstone_celery.assets.asset import AssetSpec
    from flowstone_celery.assets.handle import Run
    from flowstone_celery.assets.judging import Asked
    from flowstone_celery.assets.partition import PartitionKey
    from flowstone_celery.assets.reader import AssetStatus


@click.group(cls=Verbs)
def asset() -> None:
    """Assets: list, look, draw, make, read."""


asset.add_command(fresh_verbs.why)
asset.add_command(fresh_verbs.invalidate)


# --- what is declared -------------------------------------------------------------------------------------------------------------


@asset.command()
@click.argument("pattern", required=False)
@click.option("--tag", multiple=True, help="Only assets with this tag; may be repeated.")
@click.option("--owner", help="Only assets of this owner.")
@json_option
def ls(*, pattern: str | None, tag: tuple[str, ...], owner: str | None, as_json: bool) -> None:
    """List the declared assets. PATTERN is a name, or one with * and ?."""
    fs = desk().house
    made, stale = _made(fs)
    specs = [
        spec
        for spec in fs.catalog.list()
        if (pattern is None or fnmatchcase(spec.qualified, pattern) or fnmatchcase(spec.name, pattern))
        and set(tag) <= set(spec.tags)
        and owner in (None, spec.owner)
    ]
    rows = [_listed(fs, spec, made.get(spec.qualified), stale[spec.qualified]) for spec in specs]
    if as_json:
        put_rows(rows)
        return
    heads = ("asset", "needs", "partitions", "stale", "newest", "description")
    put_table(heads, [_as_cells(row) for row in rows], empty="No asset is declared, or none fits.")


def _made(fs: FlowStone) -> tuple[Mapping[str, Mapping[str, Any]], Counter[str]]:
    """For each asset how many partitions have a value, and a stale one; nothing where no database is there to tell."""
    from flowstone_celery.errors import SchemaMismatch, ServiceUnavailable
    from flowstone_celery.record import values

    try:
        return values.summary(fs.database), Counter(each.asset for each in fs.stale())
    except (ServiceUnavailable, SchemaMismatch) as error:
        click.echo(f"! what is made is not known: {error.message}", err=True)
        return {}, Counter()


def _listed(fs: FlowStone, spec: AssetSpec, made: Mapping[str, Any] | None, stale: int) -> dict[str, Any]:
    return {
        "asset": spec.qualified,
        "needs": list(fs.catalog.graph().needs(spec.qualified)),
        "partitions": made["partitions"] if made else 0,
        "stale": stale,
        "newest": made["newest"] if made else None,
        "description": spec.description,
        "tags": list(spec.tags),
        "owner": spec.owner,
        "queue": spec.queue,
        "place": spec.place,
    }


def _as_cells(row: Mapping[str, Any]) -> Sequence[object]:
    needs = ", ".join(row["needs"])
    counts = (row["partitions"] or "", row["stale"] or "")
    return (row["asset"], needs, *counts, when(row["newest"]), row["description"])


@asset.command()
@click.argument("name")
@partition_option
@json_option
def show(*, name: str, partition: PartitionKey, as_json: bool) -> None:
    """Show an asset: its declaration, who needs it, and its newest versions."""
    from flowstone_celery.record import values

    fs = desk().house
    spec = fs.catalog.fetch(name)
    facts = _declared(fs, spec)
    all_of_them = spec.partitions is not None and partition is None
    versions = [] if all_of_them else values.versions(fs.database, *fs.slice(spec.qualified, partition))
    if as_json:
        put_json({**facts, "versions": versions})
        return
    put_facts(facts)
    click.echo()
    cells = [
        (
            each["id"],
            when(each["settled_at"]),
            sized(each["size"]),
            each["io"],
            each["code_version"],
            each["run_id"],
        )
        for each in versions
    ]
    put_table(
        ("version", "made", "size", "io", "code", "run"),
        cells,
        empty=f"Its partitions: flowstone partition ls {name}"
        if all_of_them
        else f"No value yet: flowstone asset run {name}",
    )


def _declared(fs: FlowStone, spec: AssetSpec) -> dict[str, Any]:
    from flowstone_celery.assets.gathered import IO

    graph = fs.catalog.graph()
    return {
        "asset": spec.qualified,
        "description": spec.description,
        "place": spec.place,
        "needs": graph.needs(spec.qualified),
        "needed by": graph.needed_by(spec.qualified),
        "owner": spec.owner,
        "tags": spec.tags,
        "queue": spec.queue,
        "priority": spec.priority or None,
        "retries": spec.retries or None,
        "timeout": spec.timeout,
        "partitions": None if spec.partitions is None else str(spec.partitions),
        "scatter": None if spec.scatter is None else told_scatter(spec, fs.settings),
        "io": IO if spec.scatter is not None and spec.scatter.gather is None else spec.io,
        "code version": spec.code_version,
        "metadata": spec.metadata or None,
    }


@asset.command()
@click.argument("name", required=False)
@click.option(
    "--format", "form", type=click.Choice(["ascii", "mermaid", "dot"]), default="ascii", show_default=True
)
def graph(*, name: str | None, form: Any) -> None:
    """Draw who needs whom; with NAME only what it stands on."""
    click.echo(desk().house.graph(name, format=form))


# --- how it stands ----------------------------------------------------------------------------------------------------------------


@asset.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@partition_option
@json_option
def status(*, names: tuple[str, ...], partition: PartitionKey, as_json: bool) -> None:
    """Show how assets stand for a partition: their newest attempt, the value they have, and whether it is fresh."""
    fs = desk().house
    wanted = names or [spec.qualified for spec in fs.catalog.list() if _can_be(fs, spec, partition)]
    found = [fs.status(name, partition=partition) for name in wanted]
    fresh = fs.freshness_of(Slice(each.asset, each.partition) for each in found)
    freshness = [each.state.value for each in fresh.values()]
    if as_json:
        put_rows(
            [{**_standing(each), "freshness": word} for each, word in zip(found, freshness, strict=True)]
        )
        return
    cells = [
        (
            mark(each.state),
            mark(word),
            slice_of(each.asset, each.partition),
            each.version,
            when(each.materialized_at),
            _error_line(each),
        )
        for each, word in zip(found, freshness, strict=True)
    ]
    heads = ("state", "freshness", "asset", "version", "made", "error")
    put_table(heads, cells, empty="No asset is declared.")


def _can_be(fs: FlowStone, spec: AssetSpec, partition: PartitionKey) -> bool:
    """Whether the asset has such a partition at all: of those that nobody named, others are left out."""
    from flowstone_celery.errors import InvalidPartition

    try:
        fs.slice(spec.qualified, partition)
    except InvalidPartition:
        return False
    return True


def _standing(found: AssetStatus) -> dict[str, Any]:
    names = ("asset", "partition", "state", "version", "materialized_at", "run_id", "error")
    return {name: getattr(found, name) for name in names}


def _error_line(found: AssetStatus) -> str:
    return str((found.error or {}).get("message", "")).partition("\n")[0]


@asset.command()
@click.argument("name")
@partition_option
@json_option
def get(*, name: str, partition: PartitionKey, as_json: bool) -> None:
    """Print an asset's current value: text as it is, anything else as JSON. Of what a scatter gathered, a list of the results."""
    from flowstone_celery import codec
    from flowstone_celery.assets.gathered import Gathered

    fs = desk().house
    value = fs.get(name, partition=partition)
    if isinstance(value, Gathered):
        put_gathered(value)
        return
    if isinstance(value, str) and not as_json:
        click.echo(value)
        return
    click.echo(codec.canonical(value, where=f"the value of {name!r}") if as_json else _pretty(value))


def _pretty(value: Any) -> str:
    import orjson

    from flowstone_celery import codec

    return orjson.dumps(orjson.loads(codec.encode(value)), option=orjson.OPT_INDENT_2).decode()


# --- making it --------------------------------------------------------------------------------------------------------------------


@asset.command("run")
@click.argument("name")
@partition_option
@click.option("--all", "everything", is_flag=True, help="Make it and everything it stands on anew.")
@click.option("--only", is_flag=True, help="Make it alone; what it needs must be there.")
@click.option("--force", is_flag=True, help="Make it anew though its value is fresh.")
@click.option("--queue", help="Send all steps to this queue.")
@click.option("--priority", type=int, help="Larger runs sooner.")
@click.option("--key", help="Idempotency key: the same key starts one run only.")
@click.option(
    "--wait/--no-wait", default=True, show_default=True, help="Show the steps until the run has ended."
)
@click.option("--timeout", type=Duration(), help="Wait no longer than this; the run goes on (exit 5).")
@click.option("--inline", is_flag=True, help="Do the work in this process, without Celery.")
@click.option("--json", "as_json", is_flag=True, help="Write the run as JSON on stdout, the rest on stderr.")
def make(
    *,
    name: str,
    partition: PartitionKey,
    everything: bool,
    only: bool,
    force: bool,
    wait: bool,
    timeout: float | None,
    inline: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make an asset, and first whatever it needs and is missing or stale; nothing is made that is fresh."""
    from flowstone_celery.cli import waiting

    fs = desk().house
    here = inline or fs.mode == "inline"
    _check_options(
        everything=everything, only=only, here=here, wait=wait, timeout=timeout, queue=options["queue"]
    )
    asked = None if everything or only else fs.ask(fs.slice(name, partition), force=force)
    if asked is not None and not asked.to_make:
        _tell_present(fs, name, partition, as_json=as_json)
        return
    run = _begin(fs, name, partition, asked, everything=everything, inline=here, **options)
    if not wait:
        waiting.tell_begun(run, as_json=as_json)
    elif here:
        waiting.do_here(run, lambda: fs.resume(run.id), as_json=as_json)
    else:
        waiting.wait_for(run, timeout=timeout, as_json=as_json)


def _check_options(
    *, everything: bool, only: bool, here: bool, wait: bool, timeout: float | None, queue: str | None
) -> None:
    if everything and only:
        raise click.UsageError("--all and --only contradict each other.")
    if here and (not wait or timeout is not None or queue is not None):
        raise click.UsageError(
            "Inline, this process does the work: --no-wait, --timeout and --queue have no meaning then."
        )


def _tell_present(fs: FlowStone, name: str, partition: PartitionKey, *, as_json: bool) -> None:
    found = fs.status(name, partition=partition)
    if as_json:
        put_json(_standing(found))
        return
    subject = slice_of(found.asset, found.partition)
    click.echo(
        f"{subject} has a fresh value already (version {found.version}, {when(found.materialized_at)}). --force makes it anew."
    )


def _begin(
    fs: FlowStone,
    name: str,
    partition: PartitionKey,
    asked: Asked | None,
    *,
    everything: bool,
    **options: Any,
) -> Run:
    """The run is begun and, if it is to be done in this process, not worked yet."""
    given = {**options, "drain": False, "requested_by": desk().actor}
    if everything:
        return fs.materialize_all(name, partition=partition, **given)
    if asked is None:
        return fs.materialize(name, partition=partition, **given)
    return fs.begin([asked.slice], only=asked.to_make, unless_fresh=asked.unless_fresh, **given)
