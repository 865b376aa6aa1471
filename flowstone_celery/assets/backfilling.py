"""`fs.backfill`: many partitions of one asset made by runs of their own, so many at a time (FS-19, FS-23)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from flowstone_celery.assets.asset import AssetSpec
    from flowstone_celery.assets.backfill import Backfill, House
    from flowstone_celery.assets.partition import PartitionKey
    from flowstone_celery.assets.picking import PartitionsAsked
    from flowstone_celery.core.backfills import NewBackfill

_OPTIONS = ("key", "queue", "priority", "metadata", "requested_by", "correlation_id", "tenant", "deadline")


@dataclass(frozen=True, slots=True)
class BackfillPlan:
    """What a backfill would make, as of now. Nothing is begun, and no row says so."""

    spec: AssetSpec
    to_make: tuple[str, ...]
    """Texts of the partitions, in the order of their start."""
    skipped: tuple[str, ...]
    """Texts of those that were asked for and need not be made."""
    new: NewBackfill
    """What `start` begins."""

    @property
    def total(self) -> int:
        """How many partitions were asked for."""
        return len(self.to_make) + len(self.skipped)

    @property
    def keys(self) -> list[PartitionKey]:
        """The partitions that would be made, in the order of their start."""
        from flowstone_celery.assets import partition as partitions

        return [partitions.decode(text) for text in self.to_make]


class Backfills:
    """The backfills of a FlowStone: called, it begins one."""

    def __init__(self, house: House) -> None:
        """Stand before this house; nothing is opened."""
        self._house = house

    def __call__(
        self,
        asset: Any,
        partitions: PartitionsAsked = None,
        *,
        start: PartitionKey = None,
        end: PartitionKey = None,
        mode: str = "missing",
        max_concurrent: int = 4,
        reverse: bool = False,
        with_deps: bool = True,
        inline: bool = False,
        on_begun: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Backfill:
        """Make many partitions of an asset, each by a run of its own, `max_concurrent` of them at a time.

        Once the answer is there, all runs stand: they go on whatever becomes of this process. If it dies before, the same call with the
        same `key` goes on where it had got to; so does `Backfill.resume`. A partition that fails does not stop the others.

        Args:
            asset: the asset or its name.
            partitions: a list (or anything that answers keys, such as a `range`), a pair `(first, last)`, both included, or a function
                that takes nothing, or the definition, and answers keys. None: all that the definition has until now.
            start: the first of a range.
            end: the last of a range; it is included.
            mode: "missing" (no value), "failed" (the newest attempt failed), "stale" (missing or stale, as `run` means it) or "all".
            max_concurrent: how many partitions are made at a time, in all workers together.
            reverse: the last partition first.
            with_deps: what a partition needs and is missing or stale is made first. False: it must be there.
            inline: do it in this process and return when all has ended; so it is done in mode "inline".
            on_begun: told how many partitions have a run, and how many will.
            **options: as of `materialize`: `key` (of the backfill), `queue`, `priority`, `metadata`, `requested_by`, `correlation_id`,
                `tenant`, and `deadline` (of the whole: what has not ended by then ends as failed).

        Raises:
            InvalidPartition: keys that are none of the asset's, all of them told; nothing is begun then.
            InvalidOption: a mode, a width or an order that cannot be; `reverse` where each partition needs the one before it.
            DependencyNotReady: `with_deps` is False and something that is needed is missing.
            IdempotencyConflict: the key belongs to another backfill.
        """
        plan = self.plan(
            asset,
            partitions,
            start=start,
            end=end,
            mode=mode,
            max_concurrent=max_concurrent,
            reverse=reverse,
            with_deps=with_deps,
            inline=inline,
            **options,
        )
        return self.start(plan, on_begun=on_begun)

    def plan(
        self,
        asset: Any,
        partitions: PartitionsAsked = None,
        *,
        start: PartitionKey = None,
        end: PartitionKey = None,
        mode: str = "missing",
        max_concurrent: int = 4,
        reverse: bool = False,
        with_deps: bool = True,
        inline: bool = False,
        **options: Any,
    ) -> BackfillPlan:
        """What a backfill of these words would make and what it would leave; arguments and errors as of the call itself."""
        from flowstone_celery.assets.backfill_checks import check_needs, is_chained, put_options, width_of
        from flowstone_celery.assets.picking import asked, mode_of, needed
        from flowstone_celery.assets.plan import checked
        from flowstone_celery.core.backfills import NewBackfill
        from flowstone_celery.core.model import json_text

        house, wanted = self._house, mode_of(mode)
        spec = house._spec(asset)
        options = {name: value for name, value in options.items() if value is not None}
        request = put_options(checked(options), options, _OPTIONS)
        chained = is_chained(house.catalog, spec, reverse=reverse)
        width = width_of(max_concurrent)
        found = asked(spec, house.partitions.now(), partitions, start=start, end=end)
        chosen = needed(wanted, house.database, house._assessor, spec.qualified, found.texts)
        to_make = [text for text in found.texts if text in chosen]
        check_needs(house, spec, to_make, must_be_there=not with_deps)
        digest = {
            "asset": spec.qualified,
            "partitions": found.written,
            "mode": wanted.value,
            "max_concurrent": max_concurrent,
            "reverse": reverse,
            "with_deps": with_deps,
            **{name: value for name, value in request.items() if name in ("queue", "priority", "metadata")},
        }
        told = {name: request.pop(name) for name in ("key", "tenant", "requested_by") if name in request}
        here = inline or house.mode == "inline"
        new = NewBackfill(
            asset=spec.qualified,
            mode=wanted.value,
            partitions=tuple(reversed(to_make)) if reverse else tuple(to_make),
            skipped=tuple(text for text in found.texts if text not in chosen),
            max_concurrent=1 if chained else width,
            request={**request, "with_deps": with_deps, "inline": here},
            digest=json_text(digest) or "",
            **told,
        )
        return BackfillPlan(spec, tuple(new.partitions), tuple(new.skipped), new)

    def start(
        self, plan: BackfillPlan, *, drain: bool = True, on_begun: Callable[[int, int], None] | None = None
    ) -> Backfill:
        """Begin what was planned. A key that was used for the same before answers, and goes on with, that backfill.

        Args:
            plan: what `plan` answered.
            drain: what is to be done in this process is done now; False leaves it to `Backfill.resume`.
            on_begun: as of the call itself.

        Raises:
            IdempotencyConflict: the key belongs to another backfill.
        """
        from flowstone_celery.assets.backfill import Backfill
        from flowstone_celery.assets.backfill_checks import started_before
        from flowstone_celery.core import backfills

        new, database = plan.new, self._house.database
        before = None if new.key is None else backfills.by_key(database, new.tenant, new.key)
        if before is None and not backfills.add(database, new, actor=new.requested_by or "python"):
            before = backfills.by_key(database, new.tenant, new.key or "")
        found = Backfill(started_before(new, before) if before else new.id, self._house)
        found.go_on(drain=drain, on_begun=on_begun)
        return found

    def handle(self, backfill_id: UUID | str) -> Backfill:
        """A handle on a backfill, from its id alone.

        Raises:
            BackfillNotFound: the text is not the form of an id.
        """
        from flowstone_celery.assets.backfill import Backfill

        return Backfill(backfill_id, self._house)

    def ls(self, asset: Any = None) -> Iterator[Backfill]:
        """A handle on each backfill, or on each of one asset, newest first; read in pages as they are asked for."""
        from flowstone_celery.core import backfills

        name = None if asset is None else self._house._spec(asset).qualified
        last = None
        while rows := backfills.page(self._house.database, name=name, before=last):
            for row in rows:
                yield self.handle(row["id"])
            last = (rows[-1]["created_at"], rows[-1]["id"])


class Backfilling:
    """The verb of a FlowStone that is about backfills."""

    @cached_property
    def backfill(self) -> Backfills:
        """Begins backfills when it is called, and finds those that there are: `plan`, `start`, `handle`, `ls`."""
        house: Any = self
        return Backfills(house)
