"""The verbs of a FlowStone for code in an event loop, also inside the transaction of an AsyncConnection or AsyncSession.

Planning reads in a thread. What is written into the caller's transaction goes through their `run_sync`, on the loop's own connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from flowstone_celery.errors import CannotJoin

if TYPE_CHECKING:
    from uuid import UUID

    from flowstone_celery.assets.handle import Run
    from flowstone_celery.db.joining import Begun

T = TypeVar("T")


class House(Protocol):
    """What this door asks of the FlowStone behind it."""

    def run(self, asset: Any, **options: Any) -> Run:
        """Make what is missing."""

    def materialize(self, asset: Any, **options: Any) -> Run:
        """Make one asset."""

    def materialize_all(self, asset: Any, **options: Any) -> Run:
        """Make all that an asset stands on."""

    def handle(self, run_id: UUID, begun: Begun | None = None, /) -> Run:
        """A handle on a run."""


class Aio:
    """`await fs.aio.run(…)`: as the verb of the same name, without holding up the event loop.

    `connection` is an AsyncConnection or an AsyncSession on psycopg; the act happens if, and only if, its transaction commits. The
    handle that is answered is an ordinary one: to wait for its end, `await asyncio.to_thread(run.get)`.
    """

    def __init__(self, house: House, prepare: Callable[[], None]) -> None:
        """Stand before this house; `prepare` reads ahead what joining a transaction needs to know."""
        self._house = house
        self._prepare = prepare

    async def run(self, asset: Any, *, connection: Any = None, **options: Any) -> Run:
        """As `FlowStone.run`.

        Raises:
            CannotJoin: nothing of ours can be written in that transaction.
        """
        return await self._start(self._house.run, asset, connection, options)

    async def materialize(self, asset: Any, *, connection: Any = None, **options: Any) -> Run:
        """As `FlowStone.materialize`; `connection` as of `run`."""
        return await self._start(self._house.materialize, asset, connection, options)

    async def materialize_all(self, asset: Any, *, connection: Any = None, **options: Any) -> Run:
        """As `FlowStone.materialize_all`; `connection` as of `run`."""
        return await self._start(self._house.materialize_all, asset, connection, options)

    async def cancel(self, run: Run, *, connection: Any = None, **options: Any) -> bool:
        """As `Run.cancel`; `connection` as of `run`."""
        return bool(await self._act(run.cancel, connection, options))

    async def retry(self, run: Run, *, connection: Any = None, **options: Any) -> Run:
        """As `Run.retry`; `connection` as of `run`."""
        found: Run = await self._act(run.retry, connection, options)
        return found

    async def pause(self, run: Run, *, connection: Any = None, **options: Any) -> bool:
        """As `Run.pause`; `connection` as of `run`."""
        return bool(await self._act(run.pause, connection, options))

    async def resume(self, run: Run, *, connection: Any = None, **options: Any) -> bool:
        """As `Run.resume`; `connection` as of `run`."""
        return bool(await self._act(run.resume, connection, options))

    async def _start(self, verb: Callable[..., Run], asset: Any, connection: Any, options: Any) -> Run:
        if connection is None:
            return await _in_thread(verb, asset, **options)
        run_sync = _run_sync(connection)
        from flowstone_celery.core.joining import Later

        later = Later()
        run = await _in_thread(verb, asset, connection=later, **options)
        if later.start is None:  # the value is there: nothing is to be started
            return run
        return self._house.handle(*await run_sync(later.start))

    async def _act(self, verb: Callable[..., Any], connection: Any, options: Any) -> Any:
        if connection is None:
            return await _in_thread(verb, **options)
        run_sync = _run_sync(connection)
        await _in_thread(self._prepare)
        return await run_sync(lambda theirs: verb(connection=theirs, **options))


async def _in_thread(act: Callable[..., T], *args: Any, **options: Any) -> T:
    import asyncio  # it takes longer to load than all the rest of this door

    return await asyncio.to_thread(act, *args, **options)


def _run_sync(connection: Any) -> Any:
    found = getattr(connection, "run_sync", None)
    if found is None:
        raise CannotJoin(
            f"connection= takes an AsyncConnection or an AsyncSession of SQLAlchemy here, not {connection!r:.80}",
            hint="with a Connection or Session, call the verb of the FlowStone itself: fs.run(…, connection=…)",
        )
    return found
