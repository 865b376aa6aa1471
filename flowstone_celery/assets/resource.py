"""What a resource is: something that steps need and that each worker process sets up once. Its declaration, checked where it stands.

A function answers the value; a generator function yields it and goes on behind the `yield` when it is torn down; a class, or an
object, has `setup` with `teardown` and `health_check`, or is a context manager.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from flowstone_celery.assets.fingerprint import place, underlying
from flowstone_celery.assets.options import SLUG, Option, at, name_list, read_options, seconds_of, slug_of
from flowstone_celery.errors import (
    DeclarationError,
    DependencyCycle,
    InvalidOption,
    did_you_mean,
)

_ASYNC = "Write it as a plain `def`: it runs once for each process, outside every event loop."
_FORMS = "Declare a function that answers the value, a generator function that yields it, or a class with setup and teardown."


@dataclass(frozen=True, slots=True)
class Opened:
    """A resource that was set up: its value, and how it is checked and torn down, as far as it can be."""

    value: Any
    close: Callable[[], object] | None = None
    health: Callable[[], object] | None = None
    owner: object = None
    """The object whose methods these are."""


@dataclass(frozen=True, slots=True, eq=False)
class ResourceSpec:
    """What one declaration says, checked."""

    name: str
    open: Callable[[Mapping[str, Any]], Opened]
    """Sets it up, with the values of what it requires."""
    requires: tuple[str, ...] = ()
    timeout: float = 30.0
    """Seconds that set-up, check and teardown may each take; 0: as long as they like, on the thread that asks."""
    health_every: float = 30.0
    """Seconds after which a use is preceded by a check."""
    retry_after: float = 0.5
    """Seconds after a set-up that failed during which no other is tried."""
    description: str = ""
    place: str = ""


def _checker(value: Any) -> Callable[[Any], object]:
    if not callable(value) or _is_async(value) or not _takes(value, 1):
        raise ValueError
    found: Callable[[Any], object] = value
    return found


RESOURCE_OPTIONS: dict[str, Option] = {
    "name": Option(
        "a name of letters, digits and _, not beginning with a digit, at most 128 long",
        'name="warehouse"',
        lambda value: slug_of(SLUG, value),
    ),
    "requires": Option("a list of names of other resources", 'requires=["secrets"]', name_list),
    "timeout": Option(
        "a number of seconds, or a timedelta; 0 for no limit, on the thread that asks",
        "timeout=10",
        seconds_of,
    ),
    "health": Option(
        "a plain function of the value: True or None for healthy; False, a reason, or an exception for not",
        "health=lambda pool: pool.ping()",
        _checker,
    ),
    "health_every": Option("a number of seconds from 0 up, or a timedelta", "health_every=60", seconds_of),
    "retry_after": Option("a number of seconds from 0 up, or a timedelta", "retry_after=10", seconds_of),
}


def declare_resource(made: Any, **options: Any) -> ResourceSpec:
    """The checked declaration of a resource (FS-61).

    Args:
        made: a function, a generator function, a class or an object; each parameter without a default of a function, or of a class's
            constructor, names another resource, whose value it takes.
        **options: those of `RESOURCE_OPTIONS`. None counts as not given.

    Raises:
        UnknownOption: an option does not exist.
        InvalidOption: an option has a value that it cannot have.
        DeclarationError: the object is of a kind that cannot be a resource.
        DependencyCycle: it requires itself.
    """
    where = _place(made)
    shown = options.get("name") or _shown(made)
    read = read_options(f"resource {shown!r}", where, options, RESOURCE_OPTIONS)
    subject = _Subject(f"resource {shown!r}", where)
    form = _form(made, subject)
    health = read.pop("health", None)
    _check_health(health, form.checks, "health_every" in read, subject)
    listed = read.pop("requires", ())
    passed = _parameters(form.make, listed, subject) if form.make else ()
    name = read.pop("name", None) or _own_name(made, subject)
    requires = tuple(dict.fromkeys((*passed, *listed)))
    if name in requires:
        raise DependencyCycle(
            f"resource {name!r} requires itself",
            hint=at("Rename the parameter, or give it a default.", where),
            path=[name, name],
        )

    def open_(values: Mapping[str, Any]) -> Opened:
        opened = form.open({each: values[each] for each in passed})
        if health is None:
            return opened
        return Opened(opened.value, opened.close, lambda: health(opened.value), opened.owner)

    about = (inspect.getdoc(underlying(made)) or "").partition("\n")[0].strip()
    return ResourceSpec(name, open_, requires, description=about, place=where, **read)


@dataclass(frozen=True, slots=True)
class _Subject:
    shown: str
    place: str

    def wrong(
        self, what: str, hint: str, kind: type[DeclarationError] = DeclarationError
    ) -> DeclarationError:
        return kind(f"{self.shown}: {what}", hint=at(hint, self.place))


def _check_health(given: object, own: bool, every: bool, subject: _Subject) -> None:
    if given is not None and own:
        raise subject.wrong("health is given, and it has a health_check", "Keep one of them.", InvalidOption)
    if every and given is None and not own:
        raise subject.wrong(
            "health_every is given, and there is nothing to check",
            "Add health=…, or a method health_check.",
            InvalidOption,
        )


# --- its forms ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Form:
    make: Callable[..., Any] | None
    """What takes the values of other resources; None for an object that is there already."""
    open: Callable[[dict[str, Any]], Opened]
    checks: bool = False


def _form(made: Any, subject: _Subject) -> _Form:
    """How this kind is set up.

    Raises:
        DeclarationError: it is of no kind that can be.
    """
    if _is_async(made):
        raise subject.wrong("its set-up is async", _ASYNC)
    if inspect.isroutine(made) or (
        callable(made) and inspect.isfunction(underlying(made)) and not _opens(made)
    ):
        if inspect.isgeneratorfunction(underlying(made)):
            return _Form(made, lambda values: _entered(made(**values)))
        return _Form(made, lambda values: Opened(made(**values)))
    if hasattr(made, "setup"):
        return _with_methods(made, subject)
    if hasattr(made, "__enter__") and hasattr(made, "__exit__"):
        if isinstance(made, type):
            return _Form(made, lambda values: _entered(made(**values)))
        return _Form(None, lambda _: _entered(made))
    what = f"the class {made.__name__!r}" if isinstance(made, type) else f"{made!r:.80}"
    if hasattr(made, "__aenter__"):
        raise subject.wrong(f"{what} is an async context manager", _ASYNC)
    near = did_you_mean("setup", [each for each in dir(made) if not each.startswith("_")])
    meant = f"{near.replace('Did you mean', 'Is')[:-1]} meant to be its 'setup'? " if near else ""
    raise subject.wrong(f"{what} cannot be set up", f"{meant}{_FORMS}")


def _opens(made: Any) -> bool:
    return isinstance(made, type) or any(hasattr(made, each) for each in ("setup", "__enter__"))


def _with_methods(made: Any, subject: _Subject) -> _Form:
    bound = 1 if isinstance(made, type) else 0
    for method, most in (("setup", 0), ("teardown", 1), ("health_check", 1)):
        found = getattr(made, method, None)
        if found is None:
            continue
        if _is_async(found):
            raise subject.wrong(f"its {method} is async", _ASYNC)
        if not callable(found) or not any(_takes(found, bound + count) for count in range(most + 1)):
            takes = "nothing, or the value" if most else "nothing"
            raise subject.wrong(f"its {method} must take {takes}", f"Write def {method}(self).")

    def open_(values: dict[str, Any]) -> Opened:
        owner = made(**values) if isinstance(made, type) else made
        answer = owner.setup()
        value = owner if answer is None else answer
        return Opened(value, _method(owner, "teardown", value), _method(owner, "health_check", value), owner)

    return _Form(made if isinstance(made, type) else None, open_, checks=hasattr(made, "health_check"))


def _method(owner: Any, name: str, value: Any) -> Callable[[], object] | None:
    """The call of a method that takes nothing, or the value; None if there is no such method."""
    method = getattr(owner, name, None)
    if method is None:
        return None
    if _takes(method, 1):
        return lambda: method(value)
    found: Callable[[], object] = method
    return found


def _entered(manager: Any) -> Opened:
    """A generator that has come to its `yield`, or a context manager that was entered."""
    if inspect.isgenerator(manager):
        return Opened(_first_of(manager), lambda: _finish(manager))
    value = manager.__enter__()
    return Opened(value, lambda: manager.__exit__(None, None, None), owner=manager)


def _first_of(generator: Generator[Any, Any, Any]) -> Any:
    try:
        return next(generator)
    except StopIteration:
        raise RuntimeError("its generator ended without a yield") from None


def _finish(generator: Generator[Any, Any, Any]) -> None:
    with suppress(StopIteration):
        next(generator)
        generator.close()
        raise RuntimeError("its generator yields more than once")


def _parameters(make: Callable[..., Any], listed: Iterable[str], subject: _Subject) -> tuple[str, ...]:
    """The parameters that take resources: those without a default, and those that are listed."""
    try:
        parameters = list(inspect.signature(make).parameters.values())
    except (ValueError, TypeError):
        raise subject.wrong(
            "it does not tell its parameters", "Wrap it in a function written in Python."
        ) from None
    for each in parameters:
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD, each.POSITIONAL_ONLY):
            raise subject.wrong(
                f"parameter {each.name!r} cannot take a resource by its name",
                "Wrap it in a function whose parameters are names of resources.",
            )
    return tuple(each.name for each in parameters if each.default is each.empty or each.name in listed)


def _is_async(made: Any) -> bool:
    call = getattr(made, "__call__", None)  # noqa: B004 - asks what the call is, not whether there is one
    return any(
        inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each)
        for each in (
            made,
            underlying(made) if callable(made) else None,
            None if isinstance(made, type) else call,
        )
    )


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether it can be called with so many positional arguments; one that does not tell is believed to take one."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:
        return count == 1
    return True


def _shown(made: Any) -> str:
    return str(getattr(made, "__name__", "")) or type(made).__name__


def _own_name(made: Any, subject: _Subject) -> str:
    """A function's name; a class's in small letters with underscores."""
    name = str(getattr(made, "__name__", ""))
    if isinstance(made, type):
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    if not SLUG.fullmatch(name):
        raise subject.wrong(
            "it has no name that a resource can have",
            'Give it one of letters, digits and _: name="warehouse".',
        )
    return name


def _place(made: Any) -> str:
    found = place(made) if callable(made) else ""
    kind = made if isinstance(made, type) else type(made)
    return found or f"{kind.__module__}.{kind.__qualname__}"
