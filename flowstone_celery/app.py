"""FlowStone: the house that joins the rooms.

`FlowStone(app)` attaches to an ordinary Celery app and changes nothing of it that is not ours. Everything heavy (SQLAlchemy,
psycopg, pydantic) loads on first use.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeAlias, TypeVar, overload

from flowstone_celery.assets.aio import Aio
from flowstone_celery.assets.asset import AssetSpec, declare
from flowstone_celery.assets.backfilling import Backfilling
from flowstone_celery.assets.catalog import Catalog, tasks_of
from flowstone_celery.assets.declared import Asset, as_namespace, namespaced, settle_in, unwrapped
from flowstone_celery.assets.judging import Judging
from flowstone_celery.assets.parted import Parted
from flowstone_celery.assets.resource import ResourceSpec, declare_resource
from flowstone_celery.assets.resources import Resources
from flowstone_celery.assets.scatters import Scatters
from flowstone_celery.assets.slices import Slice, as_slice, not_ready
from flowstone_celery.errors import InvalidOption, did_you_mean
from flowstone_celery.parts import Parts, own_app

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from uuid import UUID

    from flowstone_celery.assets.bulk import Runs
    from flowstone_celery.assets.handle import Run
    from flowstone_celery.assets.partition import PartitionKey
    from flowstone_celery.assets.reader import AssetStatus
    from flowstone_celery.assets.resource_state import ResourceStatus
    from flowstone_celery.config import Settings
    from flowstone_celery.core.executor import Executor
    from flowstone_celery.core.interrupts import Interrupts
    from flowstone_celery.core.joining import Joiner
    from flowstone_celery.core.model import Carrier
    from flowstone_celery.core.workers import WorkerProcess
    from flowstone_celery.db.database import Database
    from flowstone_celery.db.joining import Begun
    from flowstone_celery.io.manager import IOManager

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Named: TypeAlias = "str | Asset[..., Any]"


class FlowStone(Parted, Judging, Backfilling, Scatters):
    """Durable assets on a Celery app."""

    def __init__(
        self,
        app: Any = None,
        *,
        namespace: str | None = None,
        mode: Literal["celery", "inline"] = "celery",
        settings: Settings | None = None,
        io: Iterable[IOManager] = (),
        manage: bool | None = None,
    ) -> None:
        """Attach to a Celery app, or make one.

        Args:
            app: the user's Celery app; None makes one (mode "celery") or none at all (mode "inline").
            namespace: what asset names begin with; by default the app's own name.
            mode: "inline" does every run in the calling process, with the same core and no Celery.
            settings: by default read from the environment on first use.
            io: further IO managers.
            manage: whether FlowStone may change app-wide settings; by default only of an app that it made.

        Raises:
            InvalidOption: the mode, the namespace or an IO manager is none.
        """
        if mode not in ("celery", "inline"):
            raise InvalidOption(
                f"mode is 'celery' or 'inline', not {mode!r}",
                hint=did_you_mean(str(mode), ("celery", "inline")),
            )
        self.mode = mode
        self.catalog = Catalog()
        self.manage = (app is None) if manage is None else manage
        self.app = app if app is not None or mode == "inline" else own_app()
        self.namespace = namespaced(namespace or as_namespace(getattr(self.app, "main", None) or "flowstone"))
        self._extra_io = tuple(io)
        self._room = Resources(self.catalog.resources)
        self.parts = self._new_parts(settings)
        if self.app is not None:
            from flowstone_celery.worker.attach import attach

            attach(self.app, self)
        self.aio = Aio(self, lambda: self.parts.joiner.prepare())  # noqa: PLW0108 - opened when needed
        settle_in(self)

    # --- declare --------------------------------------------------------------------------------------------------------------

    @overload
    def asset(self, fn: Callable[P, R], /) -> Asset[P, R]: ...
    @overload
    def asset(self, fn: None = None, /, **options: Any) -> Callable[[Callable[P, R]], Asset[P, R]]: ...
    def asset(self, fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Declare the asset that a function makes. Its options are those of `flowstone_celery.assets.asset.declare`.

        Raises:
            DeclarationError: what can be told here is told here: unknown options, wrong values, a name used twice.
        """

        def decorate(function: Callable[P, R]) -> Asset[P, R]:
            plain = unwrapped(function)
            declared = Asset(plain, declare(plain, namespace=self.namespace, **options), lambda: self)
            self.add(declared)
            return declared

        return decorate if fn is None else decorate(fn)

    def add(self, declared: Asset[..., Any]) -> None:
        """The asset belongs to this house, and its Celery task to the app."""
        self.catalog.add(declared.spec)
        if self.app is not None:
            from flowstone_celery.worker.attach import register_step_task

            # Without its queue: Celery deprecates that attribute of tasks, and our wake-ups name the queue themselves.
            for task in tasks_of(declared.spec):
                register_step_task(self.app, task, doc=declared.spec.description or None)

    @overload
    def resource(self, made: T, /, **options: Any) -> T: ...
    @overload
    def resource(self, made: None = None, /, **options: Any) -> Callable[[T], T]: ...
    def resource(self, made: Any = None, /, **options: Any) -> Any:
        """Declare what steps require and each worker process sets up once (FS-61); it stays what it is. As `declare_resource`.

        Raises:
            DeclarationError: what can be told here is told here: a wrong kind (async), wrong options, a name used twice, a circle.
        """

        def declare_it(made: T) -> T:
            self.add_resource(declare_resource(made, **options))
            return made

        return declare_it if made is None else declare_it(made)

    def add_resource(self, spec: ResourceSpec) -> None:
        """The resource belongs to this house: its assets may require it."""
        self.catalog.resources.add(spec)

    def override(self, **values: Any) -> AbstractContextManager[None]:
        """In the block these values stand for resources, for tests; they are neither set up nor torn down. As `Resources.override`."""
        return self._room.override(values)

    def check(self) -> None:
        """All declarations fit together.

        Raises:
            UnknownDependency, DependencyCycle, UnknownResource: as `Catalog.check`.
            InvalidOption: an asset names an IO manager that is not on the shelf.
        """
        self.catalog.check()
        self._check_io(self.catalog.names)

    def graph(
        self,
        target: Named | None = None,
        *,
        format: Literal["ascii", "mermaid", "dot"] = "ascii",  # noqa: A002 - the word users expect
    ) -> str:
        """The assets and what they need, drawn as text; with a target, only what it stands on."""
        self.catalog.check()
        return self.catalog.graph().render(
            format, target=None if target is None else self._spec(target).qualified
        )

    # --- run ------------------------------------------------------------------------------------------------------------------

    def run(
        self,
        asset: Named,
        *,
        partition: PartitionKey = None,
        force: bool = False,
        with_deps: bool = True,
        accept_stale: bool = False,
        **options: Any,
    ) -> Run:
        """Make an asset's value for a partition, and first whatever it needs and is missing or stale.

        With a fresh value there and no `force`, nothing is made: the answer is a handle on the run that made it (FS-20).

        Args:
            asset: the asset or its name.
            partition: the key of the slice; None for an asset without partitions.
            force: make the target again (its dependencies only if they are missing or stale).
            with_deps: False makes the target alone: missing dependencies are refused, stale ones used as they are.
            accept_stale: a value that is there will do though it is stale.
            **options: those of `materialize`.

        Raises:
            DependencyNotReady: `with_deps` is False and a dependency is missing.
        """
        from flowstone_celery.assets.plan import checked

        checked({name: value for name, value in options.items() if name not in ("inline", "connection")})
        target = self.slice(asset, partition)
        asked = self.ask(target, force=force, accept_stale=accept_stale)
        if asked.made_by is not None:
            return self.handle(asked.made_by, made=target)
        if not with_deps:
            return self.materialize(asset, partition=partition, **options)
        return self.begin([target], only=asked.to_make, unless_fresh=asked.unless_fresh, **options)

    def materialize(self, asset: Named, *, partition: PartitionKey = None, **options: Any) -> Run:
        """Make this asset alone; its dependencies must have values (FS-16).

        Args:
            asset: the asset or its name.
            partition: the key of the slice.
            **options: `key` (idempotency), `queue`, `priority`, `delay` (seconds before it is due), `metadata` (plain JSON, for
                `ctx.metadata`), `requested_by`, `correlation_id`, `inline` (do it in this process and return when it has ended), `connection` (a SQLAlchemy Connection or Session: the run
                starts if, and only if, its transaction commits; what is missing is decided by what is committed now),
                `deadline` (seconds, timedelta or aware moment: what has not ended by then ends as failed), `lane` (runs of one lane go
                one after the other, in the order of their start; `lane_width` at a time).

        Raises:
            DependencyNotReady: a dependency has no value for the partition.
            IdempotencyConflict: the key belongs to another request.
            CannotJoin: `connection` is none in which our rows can be written.
        """
        target = self.slice(asset, partition)
        needed = [need for need in self.slices().detailed(target) if not need.dependency.optional]
        there = self.parts.reader.standing(each for need in needed for each in need.slices)
        absent = sorted({each for need in needed for each in need.slices if each not in there})
        if absent:
            raise not_ready(target, absent)
        return self.begin([target], only={target}, **options)

    def materialize_all(self, asset: Named, *, partition: PartitionKey = None, **options: Any) -> Run:
        """Make the asset and everything it stands on, in dependency order, in one run (FS-18). Options as `materialize`."""
        return self.begin([self.slice(asset, partition)], only=None, **options)

    def begin(
        self,
        targets: Iterable[Slice | str],
        partition: str = "",
        *,
        only: Iterable[Slice | str] | None,
        unless_fresh: Collection[Slice] = (),
        inline: bool = False,
        drain: bool = True,
        connection: Any = None,
        **options: Any,
    ) -> Run:
        """Start a run for these slices, or qualified names with a partition's text; `only` narrows what of their ancestry is made.

        The ways in with a meaning are `run`, `materialize` and `materialize_all`; their options are checked here.
        """
        from flowstone_celery.assets.plan import Request, checked, plan
        from flowstone_celery.core import runs
        from flowstone_celery.core.inline import QUEUE
        from flowstone_celery.core.model import NoCarrier

        here = inline or self.mode == "inline"
        wanted, narrowed = (
            None if each is None else [as_slice(one, partition) for one in each] for each in (targets, only)
        )
        only_these = None if narrowed is None else frozenset(narrowed)
        request = Request(wanted or (), only_these, unless_fresh=unless_fresh, **checked(options))
        if here:
            request = replace(request, queue=None)  # inline work has a queue of its own
        new = plan(
            self.catalog, request, (lambda _: QUEUE) if here else self._queue_of, self.partitions.now()
        )
        names = dict.fromkeys(step.name for step in new.steps)
        self._check_io(names)
        self.catalog.check_resources(names)
        if connection is not None:
            return self.handle(*self.parts.joiner.start(connection, new, inline=here, drain=drain))
        carrier = NoCarrier() if here else self.carrier
        run_id = runs.begin(self.database, carrier, new, settings=self.settings, promise=not here)
        return self.resume(run_id) if here and drain else self.handle(run_id, fresh=True)

    def handle(self, run_id: UUID | str, begun: Begun | None = None, **known: Any) -> Run:
        """A handle on a run, from its id alone."""
        from flowstone_celery.assets.handle import Run

        joiner = lambda: self.parts.joiner  # noqa: E731 - opened when an act needs it
        return Run(run_id, self.database, self.parts.reader.of_run, begun=begun, joiner=joiner, **known)

    def runs(self, *, name: Named | None = None, **which: Any) -> Runs:
        """All runs that these filters name: to count them, to read them, to `cancel`, `retry`, `pause` or `resume` them.

        Args:
            name: the asset that they are for.
            **which: `status` (one or several), `partition` (a key), `lane`, `since` and `until` (aware moments of their start), `paused`.

        Raises:
            InvalidOption: a filter has a value that it cannot have.
            UnknownAsset: a short name is that of no asset.
        """
        from flowstone_celery.assets.bulk import Runs, filtered

        full = name if name is None or (isinstance(name, str) and "." in name) else self._spec(name).qualified
        return Runs(filtered(name=full, **which), self.database, self.handle)

    def resume(self, run_id: UUID | str) -> Run:
        """Go on, in this process, with a run that was begun inline: its process went away, or it was paused."""
        handle = self.handle(run_id)
        handle.resume()
        handle.refuse_circle(cancel=True)
        self.parts.inline.drain(handle.uuid)
        return handle

    # --- read -----------------------------------------------------------------------------------------------------------------

    def get(self, asset: Named, *, partition: PartitionKey = None) -> Any:
        """The asset's current value.

        Raises:
            ValueNotFound: it has none for this partition.
        """
        return self.parts.reader.get(*self.slice(asset, partition))

    def exists(self, asset: Named, *, partition: PartitionKey = None) -> bool:
        """Whether the asset has a value for this partition."""
        return bool(self.parts.reader.standing([self.slice(asset, partition)]))

    def status(self, asset: Named, *, partition: PartitionKey = None) -> AssetStatus:
        """How the asset's slice stands: its newest attempt, and the value it has."""
        return self.parts.reader.status(*self.slice(asset, partition))

    def resources(self, *, failed: bool = False) -> list[ResourceStatus]:
        """How each declared resource stands in this very process, by name; with `failed`, only those that could not be set up."""
        return [each for each in self._room.status() if not failed or each.state == "failed"]

    # --- what workers and the command line ask ------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """The settings, read from the environment on first use."""
        return self.parts.settings

    @property
    def database(self) -> Database:
        """The database: by URL, else the embedded one that is up for this project."""
        return self.parts.database

    @property
    def carrier(self) -> Carrier:
        """What sends wake-ups."""
        return self.parts.carrier

    def knows(self) -> tuple[str, ...]:
        """The names of the tasks that this process can run."""
        return self.catalog.tasks

    def executor_for(self, worker: WorkerProcess, interrupts: Interrupts) -> Executor:
        """An executor for this worker process, with the handlers of this house."""
        from flowstone_celery.core.executor import Executor

        return Executor(
            self.database, self.settings, self.parts.handlers, self.carrier, worker, self.knows, interrupts
        )

    def start(self, task_name: str, kwargs: Mapping[str, Any], key: str) -> None:
        """A plain Celery message asked for an asset by its task name: start a run for it, once for each key."""
        spec = self.catalog.startable(task_name)
        Asset(spec.fn, spec, lambda: self).apply_async(kwargs=kwargs, task_id=key)

    def broker_url(self) -> str | None:
        """The broker for an app that names none."""
        return self.parts.broker_url()

    def use(self, *, settings: Settings | None, mode: Literal["celery", "inline"]) -> dict[str, Any]:
        """Work with these settings in this mode from now on; answers the former ones, to put them back (the test kit's door)."""
        before = {"settings": self.parts.__dict__.get("settings"), "mode": self.mode}
        self.parts.close()
        self.mode = mode
        self.parts = self._new_parts(settings)
        return before

    def close(self) -> None:
        """Tear down this process's resources and give back its connections; both open again when they are used."""
        self.close_resources()
        self.parts.close()

    def close_resources(self) -> None:
        """Tear down what this process has set up, the newest first; errors there are told as events, not raised."""
        self._room.close()

    # --- inside ---------------------------------------------------------------------------------------------------------------

    def _new_parts(self, settings: Settings | None) -> Parts:
        room, more = self._room, self._extra_io
        return Parts(self.app, self.catalog, self.knows, settings=settings, io=more, resources=room)

    def _check_io(self, names: Iterable[str]) -> None:
        for spec in map(self.catalog.fetch, names):
            if spec.io not in self.parts.shelf:
                near = did_you_mean(spec.io, self.parts.shelf)
                raise InvalidOption(
                    f"asset {spec.qualified!r} asks for the IO manager {spec.io!r}, which is not there ({spec.place})",
                    hint=near
                    or f"There are: {', '.join(self.parts.shelf)}; FlowStone(…, io=[…]) adds others.",
                    asset=spec.qualified,
                )

    def _spec(self, asset: Named) -> AssetSpec:
        return asset.spec if isinstance(asset, Asset) else self.catalog.fetch(asset)

    def _joiner(self) -> Joiner:
        return self.parts.joiner

    def _queue_of(self, spec: AssetSpec) -> str:
        return self.parts.queue_of(spec.qualified, spec.queue)
