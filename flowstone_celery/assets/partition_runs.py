"""From the partitions of a backfill to their runs: each makes its partition, and first what that needs and is missing or stale.

Where a partition needs the one before it, the runs go one at a time and in order, and what an earlier run makes is no part of a later
one: otherwise each would carry all that came before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from flowstone_celery.assets.plan import Request, plan
from flowstone_celery.assets.reasons import Freshness
from flowstone_celery.assets.slices import Slice
from flowstone_celery.core.backfills import lane_of
from flowstone_celery.states import BackfillMode

if TYPE_CHECKING:
    from flowstone_celery.assets.backfill import House
    from flowstone_celery.assets.catalog import Catalog
    from flowstone_celery.assets.reasons import Standing
    from flowstone_celery.core.model import NewRun
    from flowstone_celery.db.database import Row

_PLAIN = ("queue", "priority", "metadata", "correlation_id")


def ancestry(catalog: Catalog, asset: str) -> Sequence[str]:
    """The asset and all that it stands on, by qualified name."""
    return catalog.graph().plan(asset)


def is_serial(catalog: Catalog, asset: str) -> bool:
    """Whether the asset, or something that it stands on, needs partitions of its own."""
    return any(link.asset == name for name in ancestry(catalog, asset) for link in catalog.links(name))


class PartitionRuns:
    """The runs of one backfill."""

    def __init__(self, house: House, row: Row, begun: Iterable[str]) -> None:
        """For this backfill's row; `begun` are the texts of the partitions that have runs already."""
        self._house = house
        self._row = row
        self._request: Mapping[str, Any] = row["request"] or {}
        self._slices = house.slices()
        self._forced = row["mode"] in (BackfillMode.ALL, BackfillMode.FAILED)
        self._serial = is_serial(house.catalog, row["asset"])
        self._planned = {Slice(row["asset"], text) for text in begun} if self._serial else set[Slice]()
        self._found: dict[Slice, Standing] = {}
        self._checked: set[str] = set()

    def of(self, texts: Sequence[str]) -> list[NewRun]:
        """A run for each of these partitions."""
        targets = [Slice(self._row["asset"], text) for text in texts]
        return [self._run(each, self._wanted(each)) for each in targets]

    def look(self, texts: Sequence[str]) -> None:
        """How these partitions and all that they need stand now is known."""
        targets = [Slice(self._row["asset"], text) for text in texts]
        needs_nothing = not self._house.catalog.links(self._row["asset"])
        if not (needs_nothing or not self._request.get("with_deps", True)):
            self._found = self._house._assessor().all_of(targets)

    def _wanted(self, target: Slice) -> set[Slice]:
        """The target, and on every way up from it what will not do as it is."""
        wanted = {target}
        ahead = [target] if self._found else []
        while ahead:
            new = {
                each
                for need in self._slices.detailed(ahead.pop())
                for each in need.slices
                if each not in wanted and not self._will_do(each)
            }
            wanted |= new
            ahead.extend(new)
        if self._serial:
            self._planned |= wanted
        return wanted

    def _will_do(self, each: Slice) -> bool:
        found = self._found.get(each)
        return each in self._planned or (found is not None and found.state is Freshness.FRESH)

    def _run(self, target: Slice, wanted: set[Slice]) -> NewRun:
        from flowstone_celery.core.inline import QUEUE

        row, asked, here = self._row, self._request, bool(self._request.get("inline"))
        request = Request(
            [target],
            wanted,
            unless_fresh=wanted - {target} if self._forced else wanted,
            requested_by=row["requested_by"],
            tenant=row["tenant"],
            lane=lane_of(row["id"]),
            lane_width=row["max_concurrent"],
            deadline_in=self._left(),
            **{name: asked[name] for name in _PLAIN if name in asked and not (here and name == "queue")},
        )
        queue_of: Callable[[Any], str] = (lambda _: QUEUE) if here else self._house._queue_of
        new = plan(self._house.catalog, request, queue_of, self._slices.as_of)
        self._check({step.name for step in new.steps})
        return new

    def _left(self) -> float | None:
        """The seconds until the deadline; what begins behind it ends at once."""
        moment = self._request.get("deadline")
        if moment is None:
            return None
        end = datetime.fromisoformat(moment)
        return max(0.0, (end - datetime.now(end.tzinfo)).total_seconds())

    def _check(self, names: set[str]) -> None:
        """Their IO managers and resources are there."""
        new = sorted(names - self._checked)
        if new:
            self._house._check_io(new)
            self._house.catalog.check_resources(new)
            self._checked.update(new)
