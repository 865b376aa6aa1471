"""Which values are fresh: what each was made of is compared with the code and the inputs that stand now.

A handful of statements for any number of slices: the current values with their recipes, and, of those whose recipe does not fit, the
versions that they were made from. The rest is a walk over the slices, each behind what it needs.

1. A value is fresh while its recipe (`recipe.py`) is the one that it would be made by now, and all that it was made from is fresh.
2. An input that was made anew with the same content changes no recipe: what stands on it stays fresh.
3. An optional input that is missing, or that was passed over though it was there, makes nothing stale.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from flowstone_celery.assets import recipe as recipes
from flowstone_celery.assets.reasons import (
    CodeChanged,
    DependencyAdded,
    DependencyRemoved,
    Freshness,
    InputChanged,
    InputMissing,
    InputStale,
    Invalidated,
    NeverMade,
    Reason,
    Standing,
)
from flowstone_celery.assets.slices import Slice
from flowstone_celery.errors import InvalidMapping, InvalidPartition
from flowstone_celery.record import standing

if TYPE_CHECKING:
    from flowstone_celery.assets.asset import AssetSpec
    from flowstone_celery.assets.catalog import Catalog
    from flowstone_celery.assets.dependencies import Dependency
    from flowstone_celery.assets.slices import Slices
    from flowstone_celery.db.database import Database
    from flowstone_celery.record.standing import Current, Used

V = TypeVar("V")

NeedsOf = Callable[[Slice], "Sequence[tuple[Dependency, Sequence[Slice]]]"]
"""What a slice needs, dependency by dependency: `Slices.needs`."""

_Wanted = Mapping[Slice, bool]
"""The slices that one needs, and whether it can do without."""


def assess(
    catalog: Catalog, database: Database, needs: NeedsOf, targets: Iterable[Slice]
) -> dict[Slice, Standing]:
    """How the targets stand, and everything that they need; each behind what it needs."""
    untold: set[Slice] = set()
    wanted = _ordered(targets, lambda slice_: _wanted(needs, slice_, untold))
    rows = _as_slices(standing.currents(database, wanted))
    told = {each: row for each, row in rows.items() if each not in untold}
    unlike = {each: row.value_id for each, row in told.items() if _is_unlike(row, wanted[each], rows)}
    used = standing.consumed_by(database, unlike.values())
    found: dict[Slice, Standing] = {}
    for slice_, needed in wanted.items():
        row = rows.get(slice_)
        if row is None:
            found[slice_] = Standing(slice_, Freshness.MISSING, (NeverMade(),))
            continue
        judge = _Judge(catalog.fetch(slice_.asset), row, needed, rows, found)
        reasons = tuple(judge.reasons(_as_slices(used[row.value_id]) if slice_ in unlike else None))
        state = Freshness.STALE if reasons else Freshness.FRESH
        found[slice_] = Standing(slice_, state, reasons, row.value_id, row.settled_at, row.run_id)
    return found


def _as_slices(by_key: Mapping[tuple[str, str], V]) -> dict[Slice, V]:
    return {Slice(*key): each for key, each in by_key.items()}


def _wanted(needs: NeedsOf, slice_: Slice, untold: set[Slice]) -> dict[Slice, bool]:
    """What the slice needs. Where definitions that have changed no longer tell, its inputs are not judged."""
    try:
        listed = needs(slice_)
    except (InvalidMapping, InvalidPartition):
        untold.add(slice_)
        return {}
    wanted: dict[Slice, bool] = {}
    for dependency, slices in listed:
        for each in slices:
            wanted[each] = dependency.optional and wanted.get(each, True)
    return wanted


def _ordered(targets: Iterable[Slice], wanted: Callable[[Slice], _Wanted]) -> dict[Slice, _Wanted]:
    """The targets and all that they need, each behind what it needs."""
    seen: dict[Slice, _Wanted] = {}
    ordered: dict[Slice, _Wanted] = {}
    for target in targets:
        way: list[tuple[Slice, Iterator[Slice]]] = [] if target in seen else [_entered(target, wanted, seen)]
        while way:
            here, ahead = way[-1]
            for each in ahead:
                if each not in seen:
                    way.append(_entered(each, wanted, seen))
                    break
            else:
                ordered[here] = seen[here]
                way.pop()
    return ordered


def _entered(
    slice_: Slice, wanted: Callable[[Slice], _Wanted], seen: dict[Slice, _Wanted]
) -> tuple[Slice, Iterator[Slice]]:
    seen[slice_] = found = wanted(slice_)
    return slice_, iter(found)


def _is_unlike(row: Current, needed: _Wanted, rows: Mapping[Slice, Current]) -> bool:
    """Whether what the value was made from is not, content by content, what it would be made from now."""
    if row.recipe is None:
        return True
    return recipes.halves(row.recipe)[1] != recipes.digest_of(
        (each.asset, each.partition, rows[each].digest) for each in needed if each in rows
    )


class Assessor:
    """Asks how slices stand, at one moment."""

    def __init__(self, catalog: Catalog, database: Database, slices: Slices) -> None:
        """Look at these assets, and at what they need as `slices` tells it."""
        self._catalog = catalog
        self._database = database
        self._slices = slices

    def of(self, targets: Iterable[Slice]) -> dict[Slice, Standing]:
        """How these slices stand, in their order."""
        listed = list(targets)
        found = assess(self._catalog, self._database, self._slices.needs, listed)
        return {each: found[each] for each in listed}

    def all_of(self, targets: Iterable[Slice]) -> dict[Slice, Standing]:
        """How these slices stand, and everything that they need."""
        return assess(self._catalog, self._database, self._slices.needs, targets)

    def stale(self, assets: Collection[str]) -> list[Standing]:
        """Every slice of these assets that has a value which is stale; each behind what it needs."""
        made = [Slice(*key) for key in standing.slices_of(self._database, assets)]
        found = assess(self._catalog, self._database, self._slices.needs, made)
        wanted = set(made)
        return [each for key, each in found.items() if key in wanted and each.state is Freshness.STALE]

    def to_make(self, target: Slice, *, force: bool, accept_stale: bool) -> tuple[Standing, set[Slice]]:
        """How the target stands, and what a run for it makes: it and, on every way up, what will not do as it is; perhaps nothing."""
        found = assess(self._catalog, self._database, self._slices.needs, [target])

        def will_do(each: Slice) -> bool:
            state = found[each].state
            return state is Freshness.FRESH or (accept_stale and state is Freshness.STALE)

        if will_do(target) and not force:
            return found[target], set()
        wanted = self._slices.missing([target], lambda asked: [each for each in asked if will_do(each)])
        return found[target], wanted


class _Judge:
    """One value before the court."""

    def __init__(
        self,
        spec: AssetSpec,
        row: Current,
        needed: _Wanted,
        rows: Mapping[Slice, Current],
        found: Mapping[Slice, Standing],
    ) -> None:
        self._spec = spec
        self._row = row
        self._needed = needed
        self._rows = rows
        self._found = found

    def reasons(self, used: Mapping[Slice, Used] | None) -> Iterator[Reason]:
        """Its own, then those of its inputs. `used` is None where the content of all inputs is what it was."""
        yield from self._marks()
        yield from self._code()
        if used is not None:
            yield from self._added(used)
            yield from self._removed(used)
            yield from self._changed(used)
        yield from self._of_inputs(used)

    def _marks(self) -> Iterator[Reason]:
        if self._row.invalidated_at is not None:
            mark = self._row.invalidation or {}
            named = mark.get("with")
            by, reason = mark.get("by") or "somebody", mark.get("reason") or ""
            yield Invalidated(by, self._row.invalidated_at, reason, Slice(*named) if named else None)

    def _code(self) -> Iterator[Reason]:
        recipe, version = self._row.recipe, self._row.code_version
        was = recipes.halves(recipe)[0] if recipe is not None else recipes.code_named(version)
        change = recipes.code_change(self._spec, was, self._row.code_digest) if was else None
        if change:
            yield CodeChanged(*change)

    def _added(self, used: Mapping[Slice, Used]) -> Iterator[Reason]:
        before = {each.asset for each in used}
        here = {each.asset for each, optional in self._needed.items() if not optional}
        yield from (DependencyAdded(asset) for asset in sorted(here - before))

    def _removed(self, used: Mapping[Slice, Used]) -> Iterator[Reason]:
        now = {each.asset for each in self._needed}
        yield from (DependencyRemoved(asset) for asset in sorted({each.asset for each in used} - now))

    def _changed(self, used: Mapping[Slice, Used]) -> Iterator[Reason]:
        """Inputs of dependencies that it had then and has now, and optional ones that have come to be there."""
        before = {each.asset for each in used}
        for each, optional in self._needed.items():
            was, stands = used.get(each), self._rows.get(each)
            known = each.asset in before or (optional and not self._may_lack(each, used))
            if known and stands is not None and (was is None or not _is_same(was, stands)):
                yield InputChanged(each, was.version if was else None, stands.value_id)
        now = {each.asset for each in self._needed}
        for each, was in used.items():
            if each.asset in now and each not in self._needed:
                yield InputChanged(each, was.version, None)

    def _of_inputs(self, used: Mapping[Slice, Used] | None) -> Iterator[Reason]:
        for each, optional in self._needed.items():
            input_ = self._found[each]
            if input_.state is Freshness.MISSING and not optional:
                yield InputMissing(each, input_)
            elif input_.state is Freshness.STALE and (used is None or not self._may_lack(each, used)):
                yield InputStale(each, input_)

    def _may_lack(self, each: Slice, used: Mapping[Slice, Used]) -> bool:
        """Whether it may be without this input: optional, not used, and missing still or passed over though it was there."""
        if not self._needed[each] or each in used:
            return False
        stands = self._rows.get(each)
        return stands is None or stands.value_id < self._row.value_id


def _is_same(was: Used, stands: Current) -> bool:
    return was.version == stands.value_id or (was.digest is not None and was.digest == stands.digest)
