"""What an asset needs: its parameters and its `deps`, `optional_deps` and `mappings` put together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowstone_celery.assets.mappings import PartitionMapping, Previous
from flowstone_celery.errors import DependencyCycle, InvalidOption, did_you_mean

if TYPE_CHECKING:
    import inspect
    from collections.abc import Mapping, Sequence

    from flowstone_celery.assets.parameters import Subject


@dataclass(frozen=True, slots=True)
class Dependency:
    """One need of an asset: the name as declared, the parameter that takes its value (or None), whether it may be missing."""

    name: str
    parameter: str | None = None
    optional: bool = False
    mapping: PartitionMapping | None = None
    """Which of its partitions are needed; None: what the definitions say."""


def at_home(names: Sequence[str], subject: Subject) -> tuple[str, ...]:
    """The names, those of the asset's own namespace in their short form: each asset has one name here."""
    form = re.compile(rf"{re.escape(subject.namespace)}\.([^.]+)")
    return tuple(dict.fromkeys(form.sub(r"\1", name) if form.fullmatch(name) else name for name in names))


def all_needs(
    parameters: Sequence[inspect.Parameter],
    context: str | None,
    listed: Sequence[str],
    optional: Sequence[str],
    mappings: Mapping[str, PartitionMapping],
    subject: Subject,
) -> tuple[Dependency, ...]:
    """Those that are passed, in the order of the parameters, then the others in the order of the list."""
    passed = _passed(parameters, context, listed, subject)
    silent = {name: None for name in listed if name not in passed}
    names = {**passed, **silent}
    marked = {_marked(name, names, "optional_deps", subject) for name in optional}
    mapped = {_marked(name, names, "mappings", subject): each for name, each in mappings.items()}
    for name in names:
        _check_not_itself(name, mapped.get(name), subject)
    return tuple(
        Dependency(name, parameter, name in marked, mapped.get(name)) for name, parameter in names.items()
    )


def _passed(
    parameters: Sequence[inspect.Parameter], context: str | None, listed: Sequence[str], subject: Subject
) -> dict[str, str]:
    passed: dict[str, str] = {}
    for parameter in parameters:
        if parameter.name == context:
            continue
        meant = [name for name in listed if short_of(name) == parameter.name]
        if len(meant) > 1:
            raise subject.wrong(
                InvalidOption,
                f"parameter {parameter.name!r} could take {' or '.join(map(repr, meant))}",
                "Keep one of them in deps.",
                option="deps",
            )
        if meant or parameter.default is parameter.empty:
            passed[meant[0] if meant else parameter.name] = parameter.name
    return passed


def _marked(name: str, names: Mapping[str, str | None], option: str, subject: Subject) -> str:
    """The dependency that an entry of the option means."""
    for candidate in names:
        if name == candidate or (
            short_of(name) == short_of(candidate) and "." not in min(name, candidate, key=len)
        ):
            return candidate
    raise subject.wrong(
        InvalidOption,
        f"{option} names {name!r}, which is not one of its dependencies",
        did_you_mean(name, names) or f"It needs {', '.join(map(repr, names)) or 'nothing'}.",
        option=option,
    )


def _check_not_itself(name: str, mapping: PartitionMapping | None, subject: Subject) -> None:
    """An asset may need its own earlier partitions, and nothing else of itself."""
    if name != subject.name or isinstance(mapping, Previous):
        return
    raise subject.wrong(
        DependencyCycle,
        "it needs itself",
        f"Rename the parameter, give it a default, or let it take what was before: mappings={{{name!r}: Previous()}}.",
        path=[subject.name, subject.name],
    )


def short_of(name: str) -> str:
    """The last part of a name."""
    return name.rpartition(".")[2]
