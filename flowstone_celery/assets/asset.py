"""A declaration is checked once, where it stands, and kept as an `AssetSpec` that never changes."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flowstone_celery.assets.dependencies import Dependency, all_needs, at_home
from flowstone_celery.assets.fingerprint import code_digest, place, underlying
from flowstone_celery.assets.options import DOTTED, SLUG, Maker, at, read_options
from flowstone_celery.assets.parameters import Subject, context_of, is_async, parameters_of, resources_of
from flowstone_celery.assets.scatter_spec import Part, ScatterSpec, begun, item_parameters
from flowstone_celery.core.retry_policy import RetryPolicy
from flowstone_celery.errors import DeclarationError, InvalidOption

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flowstone_celery.assets.definitions import Definition

DEFAULT_IO = "database"

_RETRY_OPTIONS = {"backoff": "backoff", "retry_delay": "delay", "retry_cap": "cap", "jitter": "jitter"}


@dataclass(frozen=True, slots=True, eq=False)
class AssetSpec:
    """What one declaration says, checked. Two declarations are never equal, even when they say the same."""

    name: str
    namespace: str
    fn: Callable[..., Any]
    dependencies: tuple[Dependency, ...] = ()
    context_parameter: str | None = None
    """The parameter that takes the context, if there is one."""
    description: str = ""
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] | None = None
    owner: str | None = None
    queue: str | None = None
    """None: the application's default queue."""
    priority: int = 0
    """Larger runs sooner."""
    retries: int = 0
    """Attempts after the first."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    timeout: float | None = None
    """Seconds that one attempt may take."""
    code_version: str | None = None
    maker: str = Maker.SHARE
    """What several runs do that are to make one slice at the same time: share one value, queue up, or run side by side (allow)."""
    io: str = DEFAULT_IO
    requires: tuple[str, ...] = ()
    """The resources that it asks for, in the order of the declaration (FS-10)."""
    resource_parameters: tuple[str, ...] = ()
    """The parameters that take one of them, by its name."""
    partitions: Definition | None = None
    """Which partitions it has; None: any key will do."""
    scatter: ScatterSpec | None = None
    """How it spreads into items; None: it makes its value in one call."""
    is_async: bool = False
    place: str = ""
    """Where the function stands: `folder/file.py:14`."""

    @property
    def qualified(self) -> str:
        """The name that no other asset has: namespace, dot, name."""
        return f"{self.namespace}.{self.name}"

    @property
    def deps(self) -> tuple[str, ...]:
        """The names of what it needs, as declared."""
        return tuple(dependency.name for dependency in self.dependencies)

    @property
    def passed(self) -> dict[str, str]:
        """The name of what each parameter takes, as declared, by parameter."""
        return {each.parameter: each.name for each in self.dependencies if each.parameter is not None}

    @property
    def optional_deps(self) -> tuple[str, ...]:
        """The names of what may be missing, as declared."""
        return tuple(dependency.name for dependency in self.dependencies if dependency.optional)

    @property
    def code_digest(self) -> str:
        """The SHA-256 of the function's code; of a scatter, of all its functions."""
        own = code_digest(self.fn)
        return own if self.scatter is None else self.scatter.code_digest(own)


def declare(fn: Callable[..., Any], *, namespace: str, **options: Any) -> AssetSpec:
    """The checked declaration of the asset that `fn` makes.

    Args:
        fn: the function that returns the value; each parameter without a default names an asset whose value it takes, except one
            that is called `ctx` or `context` or is annotated `Context`.
        namespace: where the name lives, for example the Celery app's name.
        **options: `name`, `deps`, `optional_deps`, `description`, `tags`, `metadata`, `owner`, `queue`, `priority`, `retries`,
            `backoff` (fixed, linear, exponential), `retry_delay` and `retry_cap` and `timeout` (seconds or timedelta), `jitter`
            (0 to 1), `code_version`, `io`, `requires` (names of resources), `partitions` (a definition), `mappings` (of
            dependencies' partitions, by name), `scatter` (a `Scatter`). None counts as not given.

    Raises:
        UnknownOption: an option does not exist.
        InvalidOption: an option has a value that it cannot have.
        DeclarationError: the function is of a kind that cannot make an asset.
        DependencyCycle: the asset needs itself, and not by `Previous`.
    """
    where = place(fn)
    _check_kind(fn, where)
    read = read_options(f"asset {options.get('name') or _own_name(fn)!r}", where, options)
    name = read.pop("name", None) or _named(fn, where)
    subject = Subject(name, _checked_namespace(namespace, where), where)
    parameters = parameters_of(fn, subject)
    context = context_of(parameters, subject)
    scatter = read.pop("scatter", None)
    over = () if scatter is None or scatter.over is None else (scatter.over,)
    listed = at_home((*read.pop("deps", ()), *over), subject)
    optional = at_home(read.pop("optional_deps", ()), subject)
    resources = resources_of(parameters, context, listed, read.get("requires", ()), subject)
    item = None if scatter is None else item_parameters(parameters, scatter, subject)
    others = [each for each in parameters if each.name not in (*resources, item)]
    dependencies = all_needs(others, context, listed, optional, read.pop("mappings", {}), subject)
    if scatter is not None:
        takes = frozenset(each.parameter for each in dependencies if each.parameter)
        part = Part(fn, takes, context, resources, item)
        read["scatter"], dependencies = begun(scatter, part, dependencies, subject, read.get("requires", ()))
    return AssetSpec(
        name=name,
        namespace=namespace,
        fn=fn,
        dependencies=dependencies,
        context_parameter=context,
        resource_parameters=resources,
        description=read.pop("description", None) or _first_line(fn),
        retry=_retry(read, subject),
        is_async=is_async(fn),
        place=where,
        **read,
    )


# --- the function ---------------------------------------------------------------------------------------------------------------


def _check_kind(fn: Any, where: str) -> None:
    if isinstance(fn, type):
        what, hint = (
            f"the class {fn.__name__!r} cannot be an asset",
            "Declare a function that returns the value.",
        )
    elif not callable(fn):
        what, hint = (
            f"{type(fn).__name__} {fn!r} cannot be an asset",
            "Declare a function that returns the value.",
        )
    elif _is_generator(fn):
        what, hint = (
            f"the generator function {_own_name(fn)!r} cannot be an asset",
            "Return a list in place of yielding.",
        )
    else:
        return
    raise DeclarationError(what, hint=at(hint, where))


def _is_generator(fn: Any) -> bool:
    return any(
        inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each) for each in (fn, underlying(fn))
    )


def _own_name(fn: Any) -> str:
    return str(getattr(fn, "__name__", "")) or type(fn).__name__


def _named(fn: Any, where: str) -> str:
    name = getattr(fn, "__name__", "")
    if not SLUG.fullmatch(name):
        raise DeclarationError(
            f"an asset cannot take its name from {name or type(fn).__name__!r}",
            hint=at('Give it one of letters, digits and _: name="daily_revenue".', where),
        )
    return str(name)


def _checked_namespace(namespace: Any, where: str) -> str:
    if not isinstance(namespace, str) or not DOTTED.fullmatch(namespace):
        raise InvalidOption(
            f"namespace is names joined by dots, not {namespace!r}",
            hint=at('Use for example "shop" or "shop.sales".', where),
        )
    return namespace


def _first_line(fn: Any) -> str:
    return (inspect.getdoc(underlying(fn)) or "").partition("\n")[0].strip()


# --- its retries ----------------------------------------------------------------------------------------------------------------


def _retry(read: dict[str, Any], subject: Subject) -> RetryPolicy:
    """Take the options of the retry policy out of those that were read; a delay above the usual cap lifts it."""
    given = {field: read.pop(option) for option, field in _RETRY_OPTIONS.items() if option in read}
    usual = RetryPolicy()
    delay = given.get("delay", usual.delay)
    cap = given.setdefault("cap", max(usual.cap, delay))
    if cap < delay:
        if "delay" in given:
            raise subject.wrong(
                InvalidOption,
                f"retry_cap ({cap:g} s) is shorter than retry_delay ({delay:g} s)",
                "The cap is the longest pause: make it the larger one.",
                option="retry_cap",
            )
        given["delay"] = cap
    if "backoff" in given:
        given["backoff"] = str(given["backoff"])
    return RetryPolicy(**given)
