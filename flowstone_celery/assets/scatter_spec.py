"""A declared scatter: the functions that it is made of, and what each of them takes.

The asset's own function makes one item. `keys` names the items, `gather` folds their results; both are declared after it, so the
declaration is made anew with them. All three share the dependencies of the asset; each is given only what its parameters name.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from flowstone_celery import codec
from flowstone_celery.assets.batch import OnItemError
from flowstone_celery.assets.dependencies import Dependency, all_needs, at_home, short_of
from flowstone_celery.assets.fingerprint import code_digest, place, underlying
from flowstone_celery.assets.options import at
from flowstone_celery.assets.parameters import Subject, context_of, is_async, parameters_of, resources_of
from flowstone_celery.assets.scatter import Scatter
from flowstone_celery.errors import DeclarationError, InvalidOption

if TYPE_CHECKING:
    from flowstone_celery.assets.asset import AssetSpec

ITEM, ITEMS = "item", "items"
_GATHERED = "gathered"
_KEEPERS = ("database", "gathered")
"""The IO managers that an asset without a fold may name: the usual one, and the one that it has."""


@dataclass(frozen=True, slots=True)
class Part:
    """One function of a scatter."""

    fn: Callable[..., Any]
    takes: frozenset[str]
    """Parameters that take a dependency."""
    context_parameter: str | None = None
    resource_parameters: tuple[str, ...] = ()
    subject: str | None = None
    """The parameter that takes what this function is about: the item, the items of a batch, or what was gathered."""


@dataclass(frozen=True, slots=True)
class ScatterSpec:
    """What one declaration says of its scatter, checked."""

    options: Scatter
    item: Part
    over: str | None = None
    """The dependency whose elements are the items, as declared."""
    keys: Part | None = None
    gather: Part | None = None
    batch_input: Part | None = None

    @property
    def batched(self) -> bool:
        """Whether its items are batches."""
        return self.options.batch is not None

    @property
    def each(self) -> bool:
        """Whether the function is called once for each element of a batch."""
        return self.batched and self.item.subject != ITEMS

    @property
    def collects(self) -> bool:
        """Whether elements that fail leave their batch to succeed."""
        return (
            self.options.batch is not None and self.options.batch.on_item_error == OnItemError.COLLECT_ERRORS
        )

    def code_digest(self, own: str) -> str:
        """The SHA-256 of all its functions, and of what is in a batch: a change of any of them is a change of the asset."""
        batch = self.options.batch
        more = [batch.batch_fn, batch.group_by, batch.size_fn] if batch else []
        parts = [self.keys, self.gather, self.batch_input]
        functions = [*(each.fn if each else None for each in parts), *more]
        digests = [own, self.over or "", *("" if each is None else code_digest(each) for each in functions)]
        if batch:
            digests.append(codec.digest(batch.content()))
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def item_parameters(
    parameters: Sequence[inspect.Parameter], scatter: Scatter, subject: Subject
) -> str | None:
    """The parameter that takes the item: `item`, or, for a batch, `items`.

    Raises:
        DeclarationError: both are there, or the one that this scatter does not have.
        InvalidOption: errors are to be collected, and the function is called once for a whole batch.
    """
    found = [each.name for each in parameters if each.name in (ITEM, ITEMS)]
    if len(found) > 1:
        raise subject.wrong(
            DeclarationError,
            "it takes both 'item' and 'items'",
            "Take `items` to be called once for each batch, `item` to be called once for each element.",
        )
    if found == [ITEMS] and scatter.batch is None:
        raise subject.wrong(
            DeclarationError,
            "it takes 'items', but its scatter has no batches",
            "Take `item`, or declare Scatter(…, batch=Batch(size=50)).",
        )
    collecting = scatter.batch is not None and scatter.batch.on_item_error == OnItemError.COLLECT_ERRORS
    if collecting and found != [ITEM]:
        raise subject.wrong(
            InvalidOption,
            "on_item_error='collect_errors' is about single elements, but its function is not called once for each",
            "Take `item` in place of `items`.",
            option="on_item_error",
        )
    return found[0] if found else None


def begun(
    scatter: Scatter,
    part: Part,
    dependencies: tuple[Dependency, ...],
    subject: Subject,
    requires: Sequence[str],
) -> tuple[ScatterSpec, tuple[Dependency, ...]]:
    """The scatter of a declaration that has only its own function yet, and all that it needs.

    Raises:
        DeclarationError: the function sees nothing of its item.
    """
    if part.subject is None and part.context_parameter is None:
        raise subject.wrong(
            DeclarationError,
            "its function takes neither `item` nor the context, so it would make every item the same",
            f"Add the parameter: def {subject.name}(item, …).",
        )
    if scatter.width is not None and not is_async(part.fn):
        raise subject.wrong(
            InvalidOption,
            "width is for items that are awaited, and its function is no `async def`",
            "Leave it out: max_concurrent= says how many items are at work at once.",
            option="width",
        )
    over = None if scatter.over is None else at_home((scatter.over,), subject)[0]
    batch_input = scatter.batch.batch_input if scatter.batch else None
    read = None
    if callable(batch_input):
        read, dependencies = _part(batch_input, "batch_input", dependencies, subject, requires)
    return ScatterSpec(scatter, part, over, batch_input=read), dependencies


def with_keys(spec: AssetSpec, fn: Callable[..., Any]) -> AssetSpec:
    """The declaration, whose items are named by this function from now on.

    Raises:
        DeclarationError: it has no scatter, or one that is told its items otherwise; or the function is of a wrong kind.
    """
    scatter, subject = _scatter_of(spec, "keys", fn)
    if scatter.over is not None:
        raise subject.wrong(
            DeclarationError,
            f"its items are the elements of {scatter.over!r} (over=), and `keys` would name others",
            "Keep one of the two.",
        )
    if scatter.keys is not None:
        raise _twice(subject, "keys", scatter.keys)
    part, dependencies = _part(fn, "keys", spec.dependencies, subject, spec.requires)
    return replace(spec, scatter=replace(scatter, keys=part), dependencies=dependencies)


def with_gather(spec: AssetSpec, fn: Callable[..., Any]) -> AssetSpec:
    """The declaration, whose results are folded by this function from now on.

    Raises:
        DeclarationError: it has no scatter, or is folded already; or the function is of a wrong kind, or takes nothing.
    """
    scatter, subject = _scatter_of(spec, "gather", fn)
    if scatter.gather is not None:
        raise _twice(subject, "gather", scatter.gather)
    part, dependencies = _part(fn, "gather", spec.dependencies, subject, spec.requires)
    return replace(spec, scatter=replace(scatter, gather=part), dependencies=dependencies)


def check_complete(spec: AssetSpec) -> None:
    """Return if the scatter of this asset, if it has one, is told its items, and `io` is for a fold that there is.

    Raises:
        DeclarationError: neither `over` nor `keys` tells them.
        InvalidOption: an IO manager is named, and no fold makes a value for it.
    """
    scatter = spec.scatter
    if scatter is None:
        return
    if scatter.gather is None and spec.io not in _KEEPERS:
        raise InvalidOption(
            f"asset {spec.name!r}: io={spec.io!r} would keep what a fold makes, and its scatter has none",
            hint=at(f"Add @{spec.name}.gather, or leave io out: results lie with their items.", spec.place),
            asset=spec.qualified,
            option="io",
        )
    if scatter.over is not None or scatter.keys is not None:
        return
    raise DeclarationError(
        f"asset {spec.name!r}: nothing tells which items it scatters into",
        hint=at(
            f'Write Scatter(over="…") with the name of a dependency, or name them in code: @{spec.name}.keys.',
            spec.place,
        ),
        asset=spec.qualified,
    )


def _scatter_of(spec: AssetSpec, what: str, fn: Callable[..., Any]) -> tuple[ScatterSpec, Subject]:
    subject = Subject(spec.name, spec.namespace, place(fn) or spec.place)
    if spec.scatter is None:
        raise subject.wrong(
            DeclarationError,
            f"it has no scatter, so there is nothing to {'name' if what == 'keys' else 'gather'}",
            "Declare it: @fs.asset(scatter=Scatter(…)).",
        )
    return spec.scatter, subject


def _twice(subject: Subject, what: str, first: Part) -> DeclarationError:
    return subject.wrong(
        DeclarationError, f"its `{what}` is declared twice, first at {place(first.fn)}", "Keep one of them."
    )


def _part(
    fn: Callable[..., Any],
    what: str,
    dependencies: tuple[Dependency, ...],
    subject: Subject,
    requires: Sequence[str],
) -> tuple[Part, tuple[Dependency, ...]]:
    if not callable(fn) or isinstance(fn, type):
        raise subject.wrong(
            DeclarationError, f"its `{what}` is {fn!r:.80}, not a function", "Decorate a function."
        )
    if is_async(fn) or inspect.isasyncgenfunction(underlying(fn)):
        raise subject.wrong(
            DeclarationError,
            f"its `{what}` is async, and only the items of a scatter are awaited",
            "Make it a plain function: asyncio.run(…) inside it where something must be awaited.",
        )
    if what == "gather" and inspect.isgeneratorfunction(underlying(fn)):
        raise subject.wrong(
            DeclarationError, "its `gather` is a generator function", "Return a list in place of yielding."
        )
    parameters = parameters_of(fn, subject)
    context = context_of(parameters, subject)
    about = _gathered(parameters, context, requires, subject) if what == "gather" else None
    listed = tuple(each.name for each in dependencies)
    resources = resources_of(parameters, context, listed, requires, subject)
    rest = [each for each in parameters if each.name != about and each.name not in resources]
    needs = all_needs(rest, context, listed, (), {}, subject)
    for each in needs:
        dependencies = _with(dependencies, each, each.name, subject) if each.parameter else dependencies
    takes = frozenset(each.parameter for each in needs if each.parameter)
    return Part(fn, takes, context, resources, about), dependencies


def _gathered(
    parameters: Sequence[inspect.Parameter], context: str | None, requires: Sequence[str], subject: Subject
) -> str:
    """The parameter that takes what was gathered: the one of that name or type, else the first that takes nothing else."""
    others = [each for each in parameters if each.name not in (context, *requires)]
    named = [each.name for each in others if each.name == _GATHERED or _is_gathered(each.annotation)]
    if not others:
        raise subject.wrong(
            DeclarationError, "its `gather` takes nothing", "Take what was gathered: def fold(gathered)."
        )
    return named[0] if named else others[0].name


def _is_gathered(annotation: Any) -> bool:
    origin = getattr(annotation, "__origin__", annotation)
    written = annotation if isinstance(annotation, str) else getattr(origin, "__name__", "")
    return written.strip("'\" ").partition("[")[0].rpartition(".")[2] == "Gathered"


def _with(
    dependencies: tuple[Dependency, ...], new: Dependency, name: str, subject: Subject
) -> tuple[Dependency, ...]:
    """The dependencies, with this one among them; one that nobody took by a parameter is taken by this one's."""
    for position, each in enumerate(dependencies):
        if each.name == name:
            taken = replace(each, parameter=each.parameter or new.parameter)
            return (*dependencies[:position], taken, *dependencies[position + 1 :])
    if short_of(name) == name and name in (ITEM, ITEMS):
        raise subject.wrong(
            DeclarationError, f"an asset called {name!r} cannot be needed by a scatter", "Rename it."
        )
    return (*dependencies, new)
