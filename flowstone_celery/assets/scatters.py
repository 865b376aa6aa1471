"""The verbs of a FlowStone that are about scatters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from flowstone_celery.errors import InvalidOption, did_you_mean
from flowstone_celery.states import BarrierStatus

if TYPE_CHECKING:
    from flowstone_celery.assets.asset import AssetSpec
    from flowstone_celery.assets.catalog import Catalog
    from flowstone_celery.assets.scatter_handle import ScatterHandle
    from flowstone_celery.core.joining import Joiner
    from flowstone_celery.db.database import Database

_PAGE = 50


class Scatters:
    """What a FlowStone says of its scatters."""

    catalog: Catalog

    if TYPE_CHECKING:

        @property
        def database(self) -> Database:
            """The database."""

        def _spec(self, asset: Any) -> AssetSpec: ...

        def _joiner(self) -> Joiner: ...

    def redeclare(self, was: AssetSpec, spec: AssetSpec) -> None:
        """The asset, if it is one of this house, is declared so from now on: its `keys` or `gather` were added."""
        self.catalog.replace(was, spec)

    def scatter(self, scatter_id: int) -> ScatterHandle:
        """A handle on a scatter, from its id alone."""
        from flowstone_celery.assets.scatter_handle import ScatterHandle

        return ScatterHandle(scatter_id, self.database, self._joiner)

    def scatters(self, asset: Any = None, *, status: str | None = None) -> Iterator[ScatterHandle]:
        """The scatters of an asset, or of all, the newest first; with a status (open, completed, …) those of it.

        Raises:
            InvalidOption: scatters have no such status.
            UnknownAsset: no asset has this name.
        """
        words = tuple(BarrierStatus)
        if status is not None and status not in words:
            raise InvalidOption(
                f"a scatter is never {status!r:.80}",
                hint=did_you_mean(str(status), words) or f"It is one of {', '.join(words)}.",
                option="status",
            )
        name = None if asset is None else self._spec(asset).qualified
        return self._scatters(name, status)

    def _scatters(self, name: str | None, status: str | None) -> Iterator[ScatterHandle]:
        from flowstone_celery.core import barriers

        before = None
        while page := barriers.page_of(self.database, name=name, status=status, before=before, limit=_PAGE):
            yield from (self.scatter(each.id) for each in page)
            before = page[-1].id
