"""FlowStone: the house that joins the rooms, and the decorated assets in it.

`FlowStone(app)` attaches to an ordinary Celery app and changes nothing of it that is not ours. Everything heavy (SQLAlchemy,
psycopg, pydantic) loads on first use.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeAlias, TypeVar, cast, overload

from flowstone_celery.assets import partition as partitions
from flowstone_celery.assets.asset import AssetSpec, declare
from flowstone_celery.assets.catalog import Catalog
from flowstone_celery.errors import (
    DeclarationError,
    DependencyNotReady,
    InvalidOption,
    ServiceUnavailable,
    UnknownOption,
    did_you_mean,
)

if TYPE_CHECKING:
    from uuid import UUID

    from flowstone_celery.assets.handle import Run
    from flowstone_celery.assets.partition import PartitionKey
    from flowstone_celery.assets.plan import Request
    from flowstone_celery.config import Settings
    from flowstone_celery.core.executor import Executor
    from flowstone_celery.core.inline import InlineWorker
    from flowstone_celery.core.interrupts import Interrupts
    from flowstone_celery.core.model import Carrier, Handler
    from flowstone_celery.core.workers import WorkerProcess
    from flowstone_celery.db.database import Database
    from flowstone_celery.io.manager import IOManager, Shelf
    from flowstone_celery.record.values import AssetValue

P = ParamSpec("P")
R = TypeVar("R")
Named: TypeAlias = "str | Asset[..., Any]"

_CALL_OPTIONS = ("queue", "priority", "countdown", "eta", "task_id", "metadata")

_houses: weakref.WeakSet[FlowStone] = weakref.WeakSet()
_pipelines: list[Pipeline] = []


class Asset(Generic[P, R]):
    """A declared asset. Calling it calls the function itself, with no service: that is how it is unit-tested."""

    def __init__(self, fn: Callable[P, R], spec: AssetSpec, house: Callable[[], FlowStone]) -> None:
        """Wrap a function with its declaration."""
        self.spec = spec
        self._fn = fn
        self._house = house
        functools.update_wrapper(self, fn)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function."""
        return self._fn(*args, **kwargs)

    def __repr__(self) -> str:
        """The qualified name."""
        return f"<Asset: {self.spec.qualified}>"

    @property
    def name(self) -> str:
        """The qualified name, which is also the Celery task's name."""
        return self.spec.qualified

    def delay(self, partition: PartitionKey = None) -> Run:
        """Start a durable run that makes this asset, and first whatever it needs and is missing."""
        return self._house().run(self, partition=partition, force=True)

    def apply_async(
        self, args: Iterable[PartitionKey] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Run:
        """As `delay`, with Celery's names for the options of a call.

        Args:
            args: nothing, or the partition.
            kwargs: nothing, or `{"partition": …}`.
            **options: `queue`, `priority`, `countdown` (seconds), `eta` (aware datetime), `task_id` (an idempotency key), `metadata`.

        Raises:
            UnknownOption: an option is not among these.
        """
        for name in options.keys() - set(_CALL_OPTIONS):
            raise UnknownOption(
                f"apply_async of an asset has no option {name!r}",
                hint=did_you_mean(name, _CALL_OPTIONS) or f"options: {', '.join(_CALL_OPTIONS)}",
            )
        partition = self._partition(tuple(args), dict(kwargs or {}))
        key = options.pop("task_id", None)
        delay = _seconds_until(options.pop("eta", None), options.pop("countdown", None))
        return self._house().run(self, partition=partition, force=True, key=key, delay=delay, **options)

    def _partition(self, args: tuple[PartitionKey, ...], kwargs: dict[str, Any]) -> PartitionKey:
        if len(args) > 1 or (args and kwargs) or kwargs.keys() - {"partition"}:
            raise InvalidOption(
                f"{self.name} takes one argument, its partition, not {args or kwargs!r}",
                hint=f'{self.spec.name}.apply_async(kwargs={{"partition": …}}); values come from its dependencies',
            )
        found: PartitionKey = args[0] if args else kwargs.get("partition")
        return found


def _seconds_until(eta: datetime | None, countdown: float | None) -> float:
    if eta is None:
        return max(0.0, float(countdown or 0))
    if eta.tzinfo is None:
        raise InvalidOption("eta is a naive datetime", hint="give it a time zone: datetime.now(UTC) + …")
    return max(0.0, (eta - datetime.now(UTC)).total_seconds())


class Pipeline:
    """A module's assets under one namespace, for modules that Celery's autodiscovery imports.

    Like `shared_task`, it belongs to every FlowStone of the process; its assets are named `<pipeline>.<asset>`.
    """

    def __init__(self, name: str) -> None:
        """Begin an empty pipeline.

        Args:
            name: the namespace of its assets.
        """
        self.name = name
        self.assets: list[Asset[..., Any]] = []
        _pipelines.append(self)

    @overload
    def asset(self, fn: Callable[P, R], /) -> Asset[P, R]: ...
    @overload
    def asset(self, fn: None = None, /, **options: Any) -> Callable[[Callable[P, R]], Asset[P, R]]: ...
    def asset(self, fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Declare an asset of this pipeline; the options are those of `FlowStone.asset`."""

        def decorate(function: Callable[P, R]) -> Asset[P, R]:
            declared = Asset(function, declare(function, namespace=self.name, **options), _only_house)
            self.assets.append(declared)
            for house in list(_houses):
                house.add(declared)
            return declared

        return decorate if fn is None else decorate(fn)


def _only_house() -> FlowStone:
    houses = list(_houses)
    if len(houses) == 1:
        return houses[0]
    found = f"there are {len(houses)}" if houses else "there is none"
    raise DeclarationError(
        f"an asset of a shared pipeline needs one FlowStone in the process, but {found}",
        hint="create FlowStone(app) first, or start it by name: fs.run('pipeline.asset')",
    )


@dataclass(frozen=True, slots=True)
class AssetStatus:
    """How an asset's slice stands."""

    asset: str
    partition: str
    state: str
    """pending, running, success, failed, skipped, cancelled, … (FS-40), or `missing`."""
    version: int | None = None
    materialized_at: datetime | None = None
    run_id: UUID | None = None
    """The run of the newest attempt."""
    error: Mapping[str, Any] | None = None


class FlowStone:
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
        """
        if mode not in ("celery", "inline"):
            raise InvalidOption(
                f"mode is 'celery' or 'inline', not {mode!r}",
                hint=did_you_mean(str(mode), ("celery", "inline")),
            )
        self.mode = mode
        self.catalog = Catalog()
        self.manage = (app is None) if manage is None else manage
        self._settings = settings
        self._extra_io = tuple(io)
        self._lock = threading.RLock()
        self._parts: dict[str, Any] = {}
        self.app = app if app is not None or mode == "inline" else _own_app()
        self.namespace = namespace or getattr(self.app, "main", None) or "flowstone"
        if self.app is not None:
            self._attach()
        _houses.add(self)
        for pipeline in _pipelines:
            for declared in pipeline.assets:
                self.add(declared)

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
            spec = declare(function, namespace=self.namespace, **options)
            declared = Asset(function, spec, lambda: self)
            self.add(declared)
            return declared

        return decorate if fn is None else decorate(fn)

    def add(self, declared: Asset[..., Any]) -> None:
        """The asset belongs to this house, and its Celery task to the app."""
        self.catalog.add(declared.spec)
        if self.app is not None:
            from flowstone_celery.worker.attach import register_step_task

            register_step_task(self.app, self, declared.spec.qualified)

    def check(self) -> None:
        """All declarations fit together.

        Raises:
            UnknownDependency, DependencyCycle: as `Catalog.check`.
            InvalidOption: an asset names an IO manager that is not on the shelf.
        """
        self.catalog.check()
        for spec in self.catalog.list():
            if spec.io not in self.shelf:
                raise InvalidOption(
                    f"asset {spec.qualified!r} asks for the IO manager {spec.io!r} ({spec.place})",
                    hint=did_you_mean(spec.io, self.shelf) or f"there are: {', '.join(self.shelf)}",
                )

    def graph(
        self, target: Named | None = None, *, format: Literal["ascii", "mermaid", "dot"] = "ascii"
    ) -> str:  # noqa: A002 - the word users expect
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
        **options: Any,
    ) -> Run:
        """Make an asset's value for a partition, and first whatever it needs and is missing.

        With a value already there and no `force`, nothing is made: the answer is a handle on the run that made it (FS-20).

        Args:
            asset: the asset or its name.
            partition: the key of the slice; None for an asset without partitions.
            force: make the target again (its dependencies only if they are missing).
            with_deps: False refuses to make missing dependencies.
            **options: those of `materialize`.

        Raises:
            DependencyNotReady: `with_deps` is False and a dependency is missing.
        """
        spec = self._spec(asset)
        text = partitions.encode(partition)
        ancestry = self.catalog.graph().plan(spec.qualified)
        present = self._present(ancestry, text)
        if spec.qualified in present and not force:
            return self.handle(present[spec.qualified])
        if not with_deps:
            return self.materialize(asset, partition=partition, **options)
        return self.begin([spec.qualified], text, only=self._missing(spec.qualified, present), **options)

    def materialize(self, asset: Named, *, partition: PartitionKey = None, **options: Any) -> Run:
        """Make this asset alone; its dependencies must have values (FS-16).

        Args:
            asset: the asset or its name.
            partition: the key of the slice.
            **options: `key` (idempotency), `queue`, `priority`, `delay` (seconds before it is due), `metadata` (plain JSON, for
                `ctx.metadata`), `requested_by`, `correlation_id`, `inline` (do it in this process and return when it has ended).

        Raises:
            DependencyNotReady: a dependency has no value for the partition.
            IdempotencyConflict: the key belongs to another request.
        """
        from flowstone_celery.assets.plan import dependencies

        spec = self._spec(asset)
        text = partitions.encode(partition)
        needed = [name for dependency, name in dependencies(self.catalog, spec) if not dependency.optional]
        absent = sorted(set(needed) - self._present(needed, text).keys())
        if absent:
            raise DependencyNotReady(
                f"{spec.qualified!r} needs {', '.join(map(repr, absent))}, without a value for partition {text!r}",
                hint=f"make what is missing first: fs.run({spec.name!r}) or fs.materialize_all({spec.name!r})",
                asset=spec.qualified,
                missing=absent,
                partition=text,
            )
        return self.begin([spec.qualified], text, only={spec.qualified}, **options)

    def materialize_all(self, asset: Named, *, partition: PartitionKey = None, **options: Any) -> Run:
        """Make the asset and everything it stands on, in dependency order, in one run (FS-18). Options as `materialize`."""
        return self.begin([self._spec(asset).qualified], partitions.encode(partition), only=None, **options)

    def begin(
        self,
        targets: list[str],
        partition: str,
        *,
        only: set[str] | None,
        inline: bool = False,
        drain: bool = True,
        delay: float | timedelta = 0.0,
        **options: Any,
    ) -> Run:
        """Start a run for these qualified names and a partition's text; `only` narrows what of their ancestry is made.

        The ways in with a meaning are `run`, `materialize` and `materialize_all`; their options are checked here.
        """
        from flowstone_celery.assets.plan import Request, plan
        from flowstone_celery.core import runs
        from flowstone_celery.core.inline import QUEUE
        from flowstone_celery.core.model import NoCarrier

        here = inline or self.mode == "inline"
        request = _request(Request, targets, partition, only, delay, options)
        new = plan(self.catalog, request, (lambda _: QUEUE) if here else self._queue_of)
        carrier = NoCarrier() if here else self.carrier
        run_id = runs.begin(self.database, carrier, new, settings=self.settings, promise=not here)
        if here and drain:
            self._inline_worker.drain(run_id)
        return self.handle(run_id)

    def handle(self, run_id: UUID | str) -> Run:
        """A handle on a run, from its id alone."""
        from flowstone_celery.assets.handle import Run

        return Run(run_id, self.database, self._value_of_run)

    def resume(self, run_id: UUID | str) -> Run:
        """Go on, in this process, with a run that was begun inline and whose process went away."""
        handle = self.handle(run_id)
        self._inline_worker.drain(handle.uuid)
        return handle

    # --- read -----------------------------------------------------------------------------------------------------------------

    def get(self, asset: Named, *, partition: PartitionKey = None) -> Any:
        """The asset's current value.

        Raises:
            ValueNotFound: it has none for this partition.
        """
        from flowstone_celery.assets.handle import value_missing

        name, text = self._spec(asset).qualified, partitions.encode(partition)
        value = self._current(name, text)
        if value is None:
            raise value_missing(name, text)
        return self._load(value)

    def exists(self, asset: Named, *, partition: PartitionKey = None) -> bool:
        """Whether the asset has a value for this partition."""
        return bool(self._present([self._spec(asset).qualified], partitions.encode(partition)))

    def status(self, asset: Named, *, partition: PartitionKey = None) -> AssetStatus:
        """How the asset's slice stands: its newest attempt, and the value it has."""
        from flowstone_celery.core.statements import SQL
        from flowstone_celery.states import materialization

        name, text = self._spec(asset).qualified, partitions.encode(partition)
        step = self.database.first(SQL["latest_of_name"], name=name, partition=text)
        value = self._current(name, text)
        made = {"version": value.id, "materialized_at": value.settled_at} if value else {}
        if step is None:
            run = {"run_id": value.run_id} if value else {}
            return AssetStatus(name, text, "success" if value else "missing", **made, **run)  # type: ignore[arg-type] # two shapes of one dict
        state = materialization(step["status"], step["phase"]).value
        return AssetStatus(name, text, state, run_id=step["run_id"], error=step["error"], **made)  # type: ignore[arg-type] # as above

    # --- parts ----------------------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """The settings, read from the environment on first use.

        Raises:
            ConfigError: a setting has a value that it cannot have.
        """
        if self._settings is None:
            from flowstone_celery.config import load_settings

            self._settings = load_settings()
        return self._settings

    @property
    def database(self) -> Database:
        """The database: by URL, else the embedded one that is up for this project.

        Raises:
            ServiceUnavailable: neither is there.
        """
        return cast("Database", self._part("database", self._open_database))

    @property
    def shelf(self) -> Shelf:
        """The IO managers by name."""
        return cast("Shelf", self._part("shelf", self._fill_shelf))

    def knows(self) -> tuple[str, ...]:
        """The names of the tasks that this process can run."""
        return tuple(spec.qualified for spec in self.catalog.list())

    def executor_for(self, worker: WorkerProcess, interrupts: Interrupts) -> Executor:
        """An executor for this worker process, with the handlers of this house."""
        from flowstone_celery.core.executor import Executor

        return Executor(
            self.database, self.settings, self._handlers(), self.carrier, worker, self.knows, interrupts
        )

    @property
    def carrier(self) -> Carrier:
        """What sends wake-ups."""
        return cast("Carrier", self._part("carrier", self._make_carrier))

    def start(self, task_name: str, kwargs: Mapping[str, Any], key: str) -> None:
        """A plain Celery message asked for an asset by its task name: start a run for it, once for each key."""
        Asset(lambda: None, self.catalog.fetch(task_name), lambda: self).apply_async(
            kwargs=kwargs, task_id=key
        )

    def broker_url(self) -> str | None:
        """The broker for an app that names none: FLOWSTONE_REDIS_URL, else the embedded Redis that is up, else None."""
        if self.settings.redis_url:
            return _broker_form(self.settings.redis_url)
        found = self._embedded()
        return found.broker_url if found else None

    def use(self, *, settings: Settings | None, mode: Literal["celery", "inline"]) -> dict[str, Any]:
        """Work with these settings in this mode from now on; answers the former ones, to put them back (the test kit's door)."""
        before = {"settings": self._settings, "mode": self.mode}
        self.close()
        self._settings, self.mode = settings, mode
        return before

    def close(self) -> None:
        """Give back this process's connections."""
        database = self._parts.pop("database", None)
        self._parts.clear()
        if database is not None:
            database.dispose()

    # --- inside ---------------------------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        from flowstone_celery.worker.attach import attach

        attach(self.app, self)

    def _part(self, name: str, make: Callable[[], object]) -> object:
        if name not in self._parts:
            with self._lock:
                if name not in self._parts:
                    self._parts[name] = make()
        return self._parts[name]

    def _open_database(self) -> Database:
        from flowstone_celery.db.database import Database

        settings = self.settings
        settings.require_production_ready()
        return Database(
            settings.database_url or self._embedded_database_url(),
            schema=settings.db_schema,
            pool_size=settings.pool_size,
            pooler=settings.database_pooler,
        )

    def _embedded_database_url(self) -> str:
        found = self._embedded()
        if found is None:
            raise ServiceUnavailable(
                f"no database is configured, and no embedded one is up for this project ({self.settings.home.absolute()})",
                hint="run `flowstone up` (a real PostgreSQL and Redis under .flowstone/), or set FLOWSTONE_DATABASE_URL",
            )
        return found.database_url

    def _embedded(self) -> Any:
        from flowstone_celery.embedded import servers

        return servers.find(self.settings.home)

    def _fill_shelf(self) -> Shelf:
        from flowstone_celery.io.database import DatabaseIO
        from flowstone_celery.io.manager import Shelf
        from flowstone_celery.io.memory import MemoryIO

        return Shelf(DatabaseIO(self.settings.max_value_bytes), MemoryIO(), *self._extra_io)

    def _handlers(self) -> Mapping[str, Handler]:
        from flowstone_celery.assets.handler import KIND, AssetHandler

        return {KIND: AssetHandler(self.catalog, self.shelf, self.database, self.settings)}

    def _make_carrier(self) -> Carrier:
        if self.app is None:
            from flowstone_celery.core.model import NoCarrier

            return NoCarrier()
        from flowstone_celery.worker.carrier import CeleryCarrier

        return CeleryCarrier(self.app, self.settings)

    @property
    def _inline_worker(self) -> InlineWorker:
        from flowstone_celery.core.inline import InlineWorker

        make = lambda: InlineWorker(self.database, self.settings, self._handlers(), self.knows)  # noqa: E731 - named by the part
        return cast("InlineWorker", self._part("inline", make))

    def _spec(self, asset: Named) -> AssetSpec:
        return asset.spec if isinstance(asset, Asset) else self.catalog.fetch(asset)

    def _present(self, names: Iterable[str], partition: str) -> dict[str, UUID]:
        """Which of these have a value, with the run that made it."""
        from flowstone_celery.record import values

        found = values.current_of_many(self.database, list(names), partition)
        return {name: run_id for name, (_, run_id) in found.items()}

    def _missing(self, target: str, present: Mapping[str, UUID]) -> set[str]:
        """The target, and on every way up from it whatever has no value."""
        graph, wanted, ahead = self.catalog.graph(), {target}, [target]
        while ahead:
            absent = [name for name in graph.needs(ahead.pop()) if name not in present and name not in wanted]
            wanted.update(absent)
            ahead.extend(absent)
        return wanted

    def _queue_of(self, spec: AssetSpec) -> str:
        from flowstone_celery.worker.attach import queue_of

        return queue_of(self.app, spec.qualified, spec.queue)

    def _current(self, name: str, partition: str) -> AssetValue | None:
        from flowstone_celery.record import values

        return values.current(self.database, name, partition)

    def _load(self, value: AssetValue) -> Any:
        from flowstone_celery.io.manager import Slot, Stored

        slot = Slot(value.asset, value.partition, value.run_id, value.step_id, value.fence)
        return self.shelf[value.io].load(slot, Stored(value.size, value.digest, value.content, value.pointer))

    def _value_of_run(self, asset: str, partition: str, run_id: UUID) -> Any:
        from flowstone_celery.assets.handle import value_missing
        from flowstone_celery.record import values

        value = values.of_run(self.database, asset, partition, run_id)
        if value is None:
            raise value_missing(asset, partition, run_id)
        return self._load(value)


def _request(
    kind: type[Request],
    targets: list[str],
    partition: str,
    only: set[str] | None,
    delay: float | timedelta,
    options: dict[str, Any],
) -> Request:
    """The request for a run, with its options checked."""
    known = ("key", "queue", "priority", "metadata", "requested_by", "correlation_id", "tenant")
    for name in options.keys() - set(known):
        raise UnknownOption(
            f"a run has no option {name!r}",
            hint=did_you_mean(name, (*known, "inline", "delay", "partition", "force"))
            or f"options: {', '.join(known)}, inline, delay",
        )
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else float(delay)
    given = {name: value for name, value in options.items() if value is not None}
    return kind(targets=targets, partition=partition, only=only, due_in=max(0.0, seconds), **given)


def _own_app() -> Any:
    from celery import Celery

    return Celery("flowstone")


def _broker_form(redis_url: str) -> str:
    """A Redis URL as kombu reads it: unix sockets have a scheme of their own there."""
    return redis_url.replace("unix://", "redis+socket://", 1).replace("?db=", "?virtual_host=", 1)
