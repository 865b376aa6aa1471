"""A declaration is checked once, where it stands, and kept as an `AssetSpec` that never changes."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flowstone_celery.assets.dependencies import Dependency, all_needs, at_home, short_of
from flowstone_celery.assets.fingerprint import code_digest, place, underlying
from flowstone_celery.assets.options import DOTTED, SLUG, Maker, at, read_options
from flowstone_celery.assets.scatter_spec import Part, ScatterSpec, begun, item_parameters
from flowstone_celery.core.retry_policy import RetryPolicy
from flowstone_celery.errors import DeclarationError, InvalidOption

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flowstone_celery.assets.definitions import Definition

DEFAULT_IO = "database"

_CONTEXT_NAMES = frozenset({"ctx", "context"})
_CONTEXT_TYPE = "Context"
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
    listed, optional = (at_home(read.pop(option, ()), subject) for option in ("deps", "optional_deps"))
    resources = resources_of(parameters, context, listed, read.get("requires", ()), subject)
    scatter = read.pop("scatter", None)
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


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose declaration it is, for the sentences of errors."""

    name: str
    namespace: str
    place: str

    def wrong(self, kind: type[DeclarationError], what: str, hint: str, **facts: object) -> DeclarationError:
        """The error for this declaration."""
        return kind(f"asset {self.name!r}: {what}", hint=at(hint, self.place), asset=self.name, **facts)


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


def is_async(fn: Any) -> bool:
    """Whether calling it answers a coroutine."""
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004 - asks what the call is, not whether there is one


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


# --- its parameters -------------------------------------------------------------------------------------------------------------


def parameters_of(fn: Any, subject: Subject) -> list[inspect.Parameter]:
    """The parameters of a function, each of which can name an asset."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (ValueError, TypeError):
        raise subject.wrong(
            DeclarationError,
            "its function does not tell its parameters",
            "Wrap it in a function written in Python.",
        ) from None
    for position, parameter in enumerate(parameters):
        _check_parameter(parameter, position, subject)
    return parameters


def _check_parameter(parameter: inspect.Parameter, position: int, subject: Subject) -> None:
    name = parameter.name
    if parameter.kind is parameter.VAR_POSITIONAL:
        what, hint = f"*{name} names no dependency", "Name each one: def f(orders, prices)."
    elif parameter.kind is parameter.VAR_KEYWORD:
        what, hint = f"**{name} names no dependency", "Name each one: def f(orders, prices)."
    elif parameter.kind is parameter.POSITIONAL_ONLY:
        what, hint = (
            f"parameter {name!r} is positional-only, and values are passed by name",
            "Remove the / behind it.",
        )
    elif position == 0 and name in ("self", "cls"):
        what, hint = f"parameter {name!r} says that this is a method", "Declare a function outside the class."
    elif not SLUG.fullmatch(name):
        what, hint = f"parameter {name!r} cannot be the name of an asset", "Use letters, digits and _ only."
    else:
        return
    raise subject.wrong(DeclarationError, what, hint, parameter=name)


def context_of(parameters: Sequence[inspect.Parameter], subject: Subject) -> str | None:
    """The parameter that takes the context."""
    found = [each.name for each in parameters if _takes_context(each)]
    if len(found) > 1:
        raise subject.wrong(
            DeclarationError,
            f"{' and '.join(map(repr, found))} both take the context",
            "Keep one of them.",
            parameters=found,
        )
    return found[0] if found else None


def _takes_context(parameter: inspect.Parameter) -> bool:
    if parameter.name in _CONTEXT_NAMES:
        return True
    annotation = parameter.annotation
    written = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return written.strip("'\" ").rpartition(".")[2] == _CONTEXT_TYPE


def resources_of(
    parameters: Sequence[inspect.Parameter],
    context: str | None,
    listed: Sequence[str],
    required: Sequence[str],
    subject: Subject,
) -> tuple[str, ...]:
    """The parameters that take a resource: a parameter of its name does, whether it has a default or not."""
    found = tuple(each.name for each in parameters if each.name in required)
    deps = {short_of(name) for name in listed}
    for name in found:
        if name == context or name in deps:
            other = "the context" if name == context else f"the asset {name!r} of deps"
            raise subject.wrong(
                InvalidOption,
                f"parameter {name!r} could take {other} or the resource of that name",
                "Keep one of them, or rename the resource.",
                option="requires",
            )
    return found


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
