"""Declared assets: the decorated names, and pipelines of them that belong to every FlowStone of the process."""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, overload

from flowstone_celery.assets.asset import AssetSpec, declare
from flowstone_celery.assets.options import DOTTED, at
from flowstone_celery.assets.resource import ResourceSpec, declare_resource
from flowstone_celery.assets.resource_book import twice
from flowstone_celery.assets.scatter_spec import with_gather, with_keys
from flowstone_celery.errors import (
    DeclarationError,
    DuplicateAsset,
    InvalidOption,
    UnknownOption,
    did_you_mean,
)

if TYPE_CHECKING:
    from flowstone_celery.assets.definitions import Definition
    from flowstone_celery.assets.handle import Run
    from flowstone_celery.assets.partition import PartitionKey

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
P2 = ParamSpec("P2")
R2 = TypeVar("R2")

_RUN_OPTIONS = ("queue", "priority", "metadata", "deadline", "lane", "lane_width", "connection")
_CALL_OPTIONS = (*_RUN_OPTIONS, "countdown", "eta", "task_id")


class House(Protocol):
    """What an asset asks of the FlowStone that it belongs to."""

    def run(self, asset: Any, *, partition: PartitionKey = None, force: bool = False, **options: Any) -> Run:
        """Start a run for the asset."""

    def add(self, declared: Asset[..., Any]) -> None:
        """Take the asset in."""

    def add_resource(self, spec: ResourceSpec) -> None:
        """Take the resource in."""

    def redeclare(self, was: AssetSpec, spec: AssetSpec) -> None:
        """The asset, if it is one of this house, is declared so from now on."""


_houses: weakref.WeakSet[House] = weakref.WeakSet()
_pipelines: list[Pipeline] = []


def settle_in(house: House) -> None:
    """The house belongs to this process: it has the assets of all pipelines, those declared later too."""
    _houses.add(house)
    for pipeline in _pipelines:
        for resource in pipeline.resources:
            house.add_resource(resource)
        for declared in pipeline.assets:
            house.add(declared)


def houses() -> list[House]:
    """The houses of this process."""
    return list(_houses)


class Asset(Generic[P, R]):
    """A declared asset. Calling it calls the function itself, with no service: that is how it is unit-tested."""

    def __init__(self, fn: Callable[P, R], spec: AssetSpec, house: Callable[[], House]) -> None:
        """Wrap a function with its declaration."""
        functools.update_wrapper(
            self, fn
        )  # first: it copies the function's attributes, whatever they are called
        self.spec = spec
        self._fn = fn
        self._house = house

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

    @property
    def partitions(self) -> Definition | None:
        """Which partitions it has, to declare others with the same; None: any key will do."""
        return self.spec.partitions

    def keys(self, fn: Callable[P2, R2]) -> Callable[P2, R2]:
        """This function names the items of the scatter: it takes dependencies, and answers a list, an iterable, or a reader.

        Raises:
            DeclarationError: the asset has no scatter, or is told its items otherwise.
        """
        self._redeclare(with_keys(self.spec, fn))
        return fn

    def gather(self, fn: Callable[P2, R2]) -> Callable[P2, R2]:
        """This function folds the results of the items: it takes a `Gathered`, and dependencies; what it returns is the value.

        Raises:
            DeclarationError: the asset has no scatter, or is folded already.
        """
        self._redeclare(with_gather(self.spec, fn))
        return fn

    def _redeclare(self, spec: AssetSpec) -> None:
        was, self.spec = self.spec, spec
        for house in houses():
            house.redeclare(was, spec)

    def delay(self, partition: PartitionKey = None, *, connection: Any = None) -> Run:
        """Start a durable run that makes this asset, and first whatever it needs and is missing. `connection` as of `FlowStone.run`."""
        return self._house().run(self, partition=partition, force=True, connection=connection)

    def apply_async(
        self,
        args: Iterable[PartitionKey] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Run:
        """As `delay`, with Celery's names for the options of a call.

        Args:
            args: nothing, or the partition.
            kwargs: nothing, or `{"partition": …}`.
            **options: `queue`, `priority`, `countdown` (seconds), `eta` (aware datetime), `task_id` (an idempotency key), `metadata`,
                `deadline`, `lane`, `lane_width`, `connection` (as of `FlowStone.materialize`).

        Raises:
            UnknownOption: an option is not among these.
            InvalidOption: an option, or the partition, is given in a form that it cannot have.
        """
        for name in options.keys() - set(_CALL_OPTIONS):
            raise UnknownOption(
                f"apply_async of an asset has no option {name!r}",
                hint=did_you_mean(name, _CALL_OPTIONS) or f"options: {', '.join(_CALL_OPTIONS)}",
            )
        partition = self._partition(tuple(args or ()), dict(kwargs or {}))
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


def unwrapped(fn: Callable[P, R]) -> Callable[P, R]:
    """The function itself, also of one that is declared already: two FlowStones may declare the same."""
    return fn._fn if isinstance(fn, Asset) else fn


def _seconds_until(eta: datetime | None, countdown: float | None) -> float:
    if eta is None:
        return _countdown(countdown or 0)
    if not isinstance(eta, datetime) or eta.tzinfo is None:
        kind = "a naive datetime" if isinstance(eta, datetime) else f"{eta!r:.80}, not a datetime"
        raise InvalidOption(f"eta is {kind}", hint="give it a time zone: datetime.now(UTC) + …", option="eta")
    return max(0.0, (eta - datetime.now(UTC)).total_seconds())


def _countdown(value: Any) -> float:
    try:
        return max(0.0, value.total_seconds() if isinstance(value, timedelta) else float(value))
    except (TypeError, ValueError):
        raise InvalidOption(
            f"countdown is a number of seconds, not {value!r:.80}",
            hint="Write countdown=90.",
            option="countdown",
        ) from None


class Pipeline:
    """A module's assets under one namespace, for modules that Celery's autodiscovery imports.

    Like `shared_task`, it belongs to every FlowStone of the process; its assets are named `<pipeline>.<asset>`.
    """

    def __init__(self, name: str) -> None:
        """Begin an empty pipeline.

        Args:
            name: the namespace of its assets.

        Raises:
            InvalidOption: it is not names joined by dots.
        """
        self.name = namespaced(name)
        self.assets: list[Asset[..., Any]] = []
        self.resources: list[ResourceSpec] = []
        _pipelines.append(self)

    @overload
    def asset(self, fn: Callable[P, R], /) -> Asset[P, R]: ...
    @overload
    def asset(self, fn: None = None, /, **options: Any) -> Callable[[Callable[P, R]], Asset[P, R]]: ...
    def asset(self, fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Declare an asset of this pipeline; the options are those of `FlowStone.asset`."""

        def decorate(function: Callable[P, R]) -> Asset[P, R]:
            plain = unwrapped(function)
            declared = Asset(plain, declare(plain, namespace=self.name, **options), _only_house)
            _refuse_second(declared)
            for house in list(_houses):
                house.add(declared)
            self.assets.append(declared)
            return declared

        return decorate if fn is None else decorate(fn)

    @overload
    def resource(self, made: T, /, **options: Any) -> T: ...
    @overload
    def resource(self, made: None = None, /, **options: Any) -> Callable[[T], T]: ...
    def resource(self, made: Any = None, /, **options: Any) -> Any:
        """Declare a resource for every FlowStone of the process; as `FlowStone.resource`. Its name has no namespace."""

        def declare_it(made: T) -> T:
            spec = declare_resource(made, **options)
            for first in (each for pipeline in _pipelines for each in pipeline.resources):
                if first.name == spec.name:
                    raise twice(first, spec)
            for house in list(_houses):
                house.add_resource(spec)
            self.resources.append(spec)
            return made

        return declare_it if made is None else declare_it(made)


def namespaced(name: Any) -> str:
    """The name, which can be the namespace of assets.

    Raises:
        InvalidOption: it is not names joined by dots.
    """
    if not isinstance(name, str) or not DOTTED.fullmatch(name):
        raise InvalidOption(
            f"a namespace is names joined by dots, not {name!r:.80}",
            hint='Use for example "shop" or "shop.sales".',
        )
    return name


def as_namespace(name: str) -> str:
    """An app's name as names joined by dots: whatever else is in it becomes an underscore."""
    parts = [re.sub(r"\W", "_", part, flags=re.ASCII) for part in name.split(".") if part]
    return ".".join(part if not part[0].isdigit() else f"_{part}" for part in parts) or "flowstone"


def _refuse_second(declared: Asset[..., Any]) -> None:
    """Tell a name that a pipeline of this process has already, also while there is no FlowStone yet."""
    for pipeline in _pipelines:
        for first in pipeline.assets:
            if first.name == declared.name:
                raise DuplicateAsset(
                    f"asset {declared.name!r} is declared twice, first at {first.spec.place}",
                    hint=at(
                        "Rename one of them, or import the module under one name only.", declared.spec.place
                    ),
                    asset=declared.name,
                )


def _only_house() -> House:
    found = houses()
    if len(found) == 1:
        return found[0]
    count = f"there are {len(found)}" if found else "there is none"
    raise DeclarationError(
        f"an asset of a shared pipeline needs one FlowStone in the process, but {count}",
        hint="create FlowStone(app) first, or start it by name: fs.run('pipeline.asset')",
    )
