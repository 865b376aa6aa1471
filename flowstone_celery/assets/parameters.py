"""The parameters of a declared function: each names a dependency, but for the one that takes the context and those of resources."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flowstone_celery.assets.dependencies import short_of
from flowstone_celery.assets.options import SLUG, at
from flowstone_celery.errors import DeclarationError, InvalidOption

_CONTEXT_NAMES = frozenset({"ctx", "context"})
_CONTEXT_TYPE = "Context"


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose declaration it is, for the sentences of errors."""

    name: str
    namespace: str
    place: str

    def wrong(self, kind: type[DeclarationError], what: str, hint: str, **facts: object) -> DeclarationError:
        """The error for this declaration."""
        return kind(f"asset {self.name!r}: {what}", hint=at(hint, self.place), asset=self.name, **facts)


def is_async(fn: Any) -> bool:
    """Whether calling it answers a coroutine."""
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004 - asks what the call is, not whether there is one


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
