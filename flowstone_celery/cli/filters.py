"""What verbs on runs share: ids in short, filters, moments."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from flowstone_celery.cli.desk import desk
from flowstone_celery.cli.verbs import Duration, ParamType, Partition
from flowstone_celery.states import RunStatus

if TYPE_CHECKING:
    from flowstone_celery.assets.partition import PartitionKey


class RunId(ParamType):
    """The id of a run, or as much of its beginning as tells it from others."""

    name = "run"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text; which run it is, is looked up later."""
        from flowstone_celery.core.ids import FORM

        if not FORM.fullmatch(str(value)):
            self.fail(
                f"{value!r} is not the id of a run, nor the beginning of one (at least 4 of its digits).",
                param,
                ctx,
            )
        return str(value)


class Moment(ParamType):
    """A moment: a date or date and time (UTC unless it has an offset), or how long ago."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """The aware moment."""
        if isinstance(value, datetime):
            return value
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            return datetime.now(UTC) - timedelta(seconds=Duration().convert(value, param, ctx))
        return found if found.tzinfo else found.replace(tzinfo=UTC)


def filters(verb: Callable[..., Any]) -> Callable[..., Any]:
    """The verb takes the filters of runs."""
    verb = click.option(
        "-p", "--partition", type=Partition(), metavar="KEY", help="Only runs for this partition."
    )(verb)
    verb = click.option("--name", help="Only runs for this asset.")(verb)
    return click.option(
        "--status", type=click.Choice([each.value for each in RunStatus]), help="Only runs in this status."
    )(verb)


def meant(*, status: str | None, name: str | None, partition: PartitionKey) -> dict[str, Any]:
    """The filters as the rows have them: a short name is looked up among the assets, if an app was named."""
    from flowstone_celery.assets import partition as partitions

    if name and "." not in name and desk().has_app:
        name = desk().house.catalog.fetch(name).qualified
    return {
        "status": status,
        "name": name,
        "partition": None if partition is None else partitions.encode(partition),
    }
