"""The verbs of a FlowStone that are about partitions: slices of its assets, what they need, and which partitions there are."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from flowstone_celery.assets.slices import Slice, Slices, slice_of

if TYPE_CHECKING:
    from flowstone_celery.assets.asset import AssetSpec
    from flowstone_celery.assets.catalog import Catalog
    from flowstone_celery.assets.keyring import Partitions
    from flowstone_celery.assets.partition import PartitionKey
    from flowstone_celery.db.database import Database


class Parted:
    """What a FlowStone says of the partitions of its assets."""

    catalog: Catalog

    if TYPE_CHECKING:

        @property
        def database(self) -> Database:
            """The database."""

        def _spec(self, asset: Any) -> AssetSpec: ...

    def slice(self, asset: Any, partition: PartitionKey = None) -> Slice:
        """The asset's slice for a partition: a key, or the text of one where the asset declares its partitions.

        Raises:
            InvalidPartition: it is no partition of the asset.
        """
        return slice_of(self._spec(asset), partition)

    def slices(self) -> Slices:
        """What slices need, as of now."""
        return Slices(self.catalog, self.partitions.now())

    @cached_property
    def partitions(self) -> Partitions:
        """Which partitions the assets have, and the keys of dynamic definitions."""
        from flowstone_celery.assets.keyring import Partitions

        return Partitions(self.catalog, lambda: self.database)
