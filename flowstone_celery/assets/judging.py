"""The verbs of a FlowStone that are about freshness: how slices stand, why, what a run of one would make, and invalidation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flowstone_celery.assets.slices import Slice

if TYPE_CHECKING:
    from uuid import UUID

    from flowstone_celery.assets.asset import AssetSpec
    from flowstone_celery.assets.catalog import Catalog
    from flowstone_celery.assets.freshness import Assessor
    from flowstone_celery.assets.partition import PartitionKey
    from flowstone_celery.assets.reasons import Standing
    from flowstone_celery.assets.slices import Slices
    from flowstone_celery.db.database import Database


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request for a slice comes to."""

    slice: Slice
    standing: Standing | None
    """How the slice stands; None if it is made whatever that is."""
    to_make: frozenset[Slice]
    """What a run makes for it; empty if the value that is there will do."""
    unless_fresh: frozenset[Slice]
    """Of these, what is left alone if it turns out to be fresh when its turn comes."""

    @property
    def made_by(self) -> UUID | None:
        """The run that made the value, if that will do."""
        return None if self.to_make or self.standing is None else self.standing.run_id


class Judging:
    """What a FlowStone says of the freshness of its assets."""

    catalog: Catalog

    if TYPE_CHECKING:

        @property
        def database(self) -> Database:
            """The database."""

        def slice(self, asset: Any, partition: PartitionKey = None) -> Slice:
            """The asset's slice for a partition."""

        def slices(self) -> Slices:
            """What slices need, as of now."""

        def _spec(self, asset: Any) -> AssetSpec: ...

    def freshness(self, asset: Any, *, partition: PartitionKey = None) -> Standing:
        """Whether the slice's value is fresh: made by the code of now from what its inputs are now; if not, why.

        What makes a value stale: another `code_version` (or, where none is declared, other code), an input with another content than the
        one that was used, a dependency that was added or removed, an input that is itself stale or missing, and `invalidate`.

        Args:
            asset: the asset or its name.
            partition: the key of the slice.
        """
        slice_ = self.slice(asset, partition)
        return self.freshness_of([slice_])[slice_]

    def freshness_of(self, slices: Iterable[Slice]) -> dict[Slice, Standing]:
        """How these slices stand, in their order: a handful of statements, however many they are."""
        return self._assessor().of(slices)

    def stale(self, *assets: Any) -> list[Standing]:
        """Every slice of these assets, or of all, that has a value which is stale; each behind what it needs."""
        names = [self._spec(each).qualified for each in assets] if assets else self.catalog.names
        return self._assessor().stale(names)

    def why(self, asset: Any, *, partition: PartitionKey = None) -> str:
        """The story for people: how the slice stands, its reasons, and below them those of its stale inputs up to where it began."""
        from flowstone_celery.assets.why import as_text

        return as_text(self.freshness(asset, partition=partition))

    def ask(self, target: Slice, *, force: bool = False, accept_stale: bool = False) -> Asked:
        """What `run` would make for this slice."""
        if force and not self.catalog.links(target.asset):
            # Nothing to look at: no input, and its own value is made anew whatever it is.
            return Asked(target, None, frozenset({target}), frozenset())
        standing, wanted = self._assessor().to_make(target, force=force, accept_stale=accept_stale)
        found = frozenset(wanted)
        return Asked(target, standing, found, found - {target} if force else found)

    def invalidate(
        self,
        asset: Any,
        *,
        partition: PartitionKey = None,
        cascade: bool = False,
        reason: str = "",
        actor: str = "python",
    ) -> int:
        """The slice's value counts as wrong until it is made anew; answers how many values were marked (FS-21).

        It is kept and can be read, it is stale, and what was made from it is stale with it. Each mark leaves a row in the audit log.

        Args:
            asset: the asset or its name.
            partition: the key of the slice.
            cascade: mark everything too that was made from it, directly or through others: its own new value alone will not make
                those fresh, even if it comes out as it was.
            reason: why, for people.
            actor: who says so.
        """
        from flowstone_celery.record import standing

        slice_ = self.slice(asset, partition)
        marked = standing.invalidate(self.database, *slice_, cascade=cascade, reason=reason, actor=actor)
        return len(marked)

    def _assessor(self) -> Assessor:
        from flowstone_celery.assets.freshness import Assessor

        return Assessor(self.catalog, self.database, self.slices())
