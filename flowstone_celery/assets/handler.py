"""The handler of asset steps: load the dependencies, call the function, store its value."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from flowstone_celery import faults
from flowstone_celery.assets import partition as partitions
from flowstone_celery.assets.context import Context
from flowstone_celery.assets.inputs import Inputs, Taken
from flowstone_celery.assets.making import making
from flowstone_celery.assets.multi import Multi
from flowstone_celery.assets.plain import plain_object
from flowstone_celery.assets.recipe import recipe
from flowstone_celery.assets.scattering import GATHER, Outside, Scattering
from flowstone_celery.assets.slices import Slice
from flowstone_celery.core.model import Answer, Awaited, Call, Claim, Done
from flowstone_celery.errors import InvalidValue
from flowstone_celery.io.manager import Slot, kept, watched
from flowstone_celery.outcomes import Cancel, Skip, Value, as_outcome
from flowstone_celery.record import values
from flowstone_celery.record.values import AssetValue, NewValue, RecentValues, Upstream
from flowstone_celery.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping

    from flowstone_celery.assets.asset import AssetSpec
    from flowstone_celery.assets.catalog import Catalog
    from flowstone_celery.assets.item_calls import AssetItems
    from flowstone_celery.assets.recipe import Consumed
    from flowstone_celery.assets.resources import Resources
    from flowstone_celery.assets.scatter_spec import Part
    from flowstone_celery.config import Settings
    from flowstone_celery.core.barrier_model import Barrier
    from flowstone_celery.db.database import Database, Tx
    from flowstone_celery.io.manager import Shelf

KIND = "asset"
UNLESS_FRESH = {"unless": "fresh"}
"""The input of a step that makes nothing where a value of the same recipe stands when its turn comes."""


class AssetHandler:
    """Makes one asset's value for one claim."""

    def __init__(
        self,
        catalog: Catalog,
        shelf: Shelf,
        database: Database,
        settings: Settings,
        resources: Resources,
        outside: Outside | None = None,
    ) -> None:
        """Look assets up in the catalog, their managers on the shelf, and what they require among the resources.

        `outside` is what scattering needs of the house; without it items are done on the queue of their step, and nobody is woken.
        """
        self._catalog = catalog
        self._resources = resources
        self._shelf = shelf
        self._database = database
        self._settings = settings
        self._inputs = Inputs(catalog, shelf, database)
        self._scattering = Scattering(self, self._inputs, database, settings, outside or Outside())

    def __call__(self, claim: Claim, call: Call) -> Answer:
        """Load, call, store; the value itself is settled by the executor's transaction."""
        making_ = self._begin(claim, call)
        if not isinstance(making_, _Making):
            return making_
        try:
            result = making_.call()
        finally:
            making_.close()
        return making_.answer(result)

    # --- side by side ---------------------------------------------------------------------------------------------------------

    def awaiting(self) -> tuple[str, ...]:
        """The tasks of the assets whose function is `async def`."""
        return self._catalog.awaiting

    def begin(self, claim: Claim, call: Call) -> Awaited | Answer:
        """Load; what is to be awaited, or the answer if nothing is."""
        return self._begin(claim, call)

    def items(self, hand: Claim, barrier: Barrier, call: Call) -> AssetItems:
        """What a hand calls for the items of an asset that scatters."""
        return self._scattering.items(self._catalog.fetch(hand.name), hand, barrier, call)

    # --- load -----------------------------------------------------------------------------------------------------------------

    def _begin(self, claim: Claim, call: Call) -> _Making | Answer:
        begun = time.monotonic()
        spec = self._catalog.fetch(claim.name)
        if claim.phase == GATHER:
            fold: _Making = self._scattering.gather(spec, claim, call)
            return fold
        inputs = call.patiently(lambda: self._inputs.find(claim))
        standing = call.patiently(lambda: self._standing(spec, claim, inputs))
        if standing is not None:
            return _shared(claim, standing)
        if spec.scatter is not None:
            return self._scattering.scatter(spec, claim, call, inputs)
        return self.making(spec, claim, call, inputs, begun=begun)

    def making(
        self,
        spec: AssetSpec,
        claim: Claim,
        call: Call,
        inputs: list[Taken],
        part: Part | None = None,
        *,
        begun: float | None = None,
        given: Mapping[str, object] | None = None,
    ) -> _Making:
        """The asset's function, or another one of its scatter, about to be called; `given` are arguments that are known."""
        who, takes = (spec, None) if part is None else (part, part.takes)
        arguments = call.patiently(lambda: self._inputs.arguments(inputs, takes))
        with ExitStack() as held:
            lent = held.enter_context(self._resources.lent(spec.requires, asset=claim.name, call=call))
            arguments.update({name: lent[name] for name in who.resource_parameters} | dict(given or {}))
            if who.context_parameter:
                arguments[who.context_parameter] = self._context(claim, call, lent)
            since = time.monotonic() if begun is None else begun
            return _Making(self, spec, who.fn, claim, call, inputs, arguments, since, held.pop_all())

    def answer(self, making_: _Making, answer: object) -> Answer:
        """What the step answers when its function has returned this: a value is stored first."""
        outcome = as_outcome(answer)
        match outcome:
            case Value():
                return self._done(
                    making_.spec, making_.claim, making_.to_end, outcome, making_.inputs, making_.begun
                )
            case Skip(reason):
                return Skip(_storable(reason))
            case Cancel(reason):
                return Cancel(_storable(reason))
            case _:
                return outcome

    def _standing(self, spec: AssetSpec, claim: Claim, inputs: list[Taken]) -> AssetValue | None:
        """The value that stands, if this step would only make the same again: another run has made it meanwhile, or an input that was
        stale came out as it was before. A later round was asked for as such: it makes its own.
        """
        if claim.stands is None or claim.round > 1 or claim.input != UNLESS_FRESH:
            return None
        found = self._inputs.versions([claim.stands]).get(claim.stands)
        return found if found is not None and found.recipe == recipe(spec, _consumed(inputs)) else None

    # --- call -----------------------------------------------------------------------------------------------------------------

    def _context(self, claim: Claim, call: Call, resources: Mapping[str, Any]) -> Context:
        key, definition = partitions.decode(claim.partition), self._catalog.fetch(claim.name).partitions
        return Context(
            asset=claim.name,
            partition=key,
            window=None if definition is None else definition.window(key),
            partitions=definition.named(key) if isinstance(definition, Multi) else {},
            run_id=claim.run_id,
            step_id=claim.id,
            attempt=claim.attempt,
            fence=claim.fence,
            idempotency_key=claim.idempotency_key,
            started_at=datetime.now(UTC),
            requested_by=claim.requested_by,
            metadata=(claim.run_input or {}).get("metadata") or {},
            resources=resources,
            ask=call.check,
        )

    # --- store ----------------------------------------------------------------------------------------------------------------

    def _done(
        self,
        spec: AssetSpec,
        claim: Claim,
        call: Call,
        outcome: Value,
        inputs: list[Taken],
        begun: float,
    ) -> Done:
        value = self._stored(spec, claim, call, outcome, inputs)
        prepared = None
        if value.content is not None and len(value.content) > self._settings.inline_value_bytes:
            prepared = call.patiently(lambda: values.prepare(self._database, value))
            faults.point("settle.value_written")
        return Done(write=partial(_settle, value, prepared, self._inputs.recent, begun))

    def _stored(
        self,
        spec: AssetSpec,
        claim: Claim,
        call: Call,
        outcome: Value,
        inputs: list[Taken],
    ) -> NewValue:
        slot = Slot(claim.name, claim.partition, claim.run_id, claim.id, claim.fence)
        where = f"metadata of asset {claim.name!r}, partition {claim.partition!r},"
        metadata = None if outcome.metadata is None else plain_object(outcome.metadata, where)
        with watched("store", spec.io, slot) as told:
            stored = call.patiently(lambda: self._shelf[spec.io].store(slot, outcome.value))
            kept(spec.io, slot, stored)
            told["bytes"] = stored.size
        pointer = None if stored.pointer is None else plain_object(stored.pointer, f"pointer of {spec.io!r}")
        return NewValue(
            asset=claim.name,
            partition=claim.partition,
            run_id=claim.run_id,
            step_id=claim.id,
            fence=claim.fence,
            io=spec.io,
            size=stored.size,
            digest=stored.digest,
            content=stored.content,
            pointer=pointer,
            metadata=metadata,
            code_version=spec.code_version,
            code_digest=spec.code_digest,
            recipe=recipe(spec, _consumed(inputs)),
            upstream=[
                Upstream(each.asset, each.partition, each.id) for taken in inputs for each in taken.versions
            ],
        )


@dataclass(frozen=True, slots=True)
class _Making:
    """One claim's function about to be called, with all that it takes."""

    handler: AssetHandler
    spec: AssetSpec
    fn: Callable[..., object]
    claim: Claim
    to_end: Call
    inputs: list[Taken]
    arguments: dict[str, object]
    begun: float
    held: ExitStack

    def call(self) -> object:
        """What the function returns."""
        with self._told(), self.to_end.user_code():
            faults.point("user.start")
            answer = self.fn(**self.arguments)
        faults.point("user.end")
        return answer

    async def run(self) -> object:
        """What the coroutine function returns; interrupts are its loop's affair."""
        with self._told():
            faults.point("user.start")
            answer = await cast("Coroutine[Any, Any, object]", self.fn(**self.arguments))
        faults.point("user.end")
        return answer

    @contextmanager
    def _told(self) -> Iterator[None]:
        claim = self.claim
        about = {"asset": claim.name, "partition": claim.partition, "run_id": str(claim.run_id)}
        emit("flowstone.materialization.start", **about, step_id=claim.id, attempt=claim.attempt)
        try:
            with making(Slice(claim.name, claim.partition)):
                yield
        except Exception as error:
            emit("flowstone.materialization.exception", **about, error=repr(error), attempt=claim.attempt)
            raise

    def answer(self, result: object) -> Answer:
        """What follows from it; a value is stored first."""
        return self.handler.answer(self, result)

    def close(self) -> None:
        """The resources are given back."""
        self.held.close()


def _consumed(inputs: list[Taken]) -> list[Consumed]:
    return [(each.asset, each.partition, each.digest) for taken in inputs for each in taken.versions]


def _shared(claim: Claim, standing: AssetValue) -> Done:
    """The step ends with the version that stands; its lineage is the maker's."""

    def told(tx: Tx) -> dict[str, Any]:
        about = {"asset": claim.name, "partition": claim.partition, "run_id": str(claim.run_id)}
        made_by = str(standing.run_id)
        tx.after_commit(
            lambda: emit(
                "flowstone.materialization.shared",
                **about,
                step_id=claim.id,
                version=standing.id,
                made_by=made_by,
            )
        )
        return {"value": standing.id, "made_by": made_by}

    return Done(write=told)


def _settle(
    value: NewValue, prepared: int | None, recent: RecentValues, begun: float, tx: Tx
) -> dict[str, Any] | Callable[[], None]:
    about = {"asset": value.asset, "partition": value.partition, "run_id": str(value.run_id)}

    def settled(version: int) -> None:
        tx.after_commit(lambda: recent.keep(version, value))
        tx.after_commit(
            lambda: emit("flowstone.materialization.stop", **about, **_took(begun), bytes=value.size)
        )

    if prepared is None:
        asked = values.settle_later(tx, value)
        return lambda: settled(asked())
    version = values.settle(tx, value, prepared=prepared)
    if version is None:
        raise InvalidValue(
            f"the prepared value of {value.asset!r} (step {value.step_id}) was removed before it was settled",
            hint="the attempt lasted longer than unsettled values are kept; it is made again",
        )
    settled(version)
    return {"value": version}


def _took(begun: float) -> dict[str, float]:
    return {"duration_ms": (time.monotonic() - begun) * 1000}


def _storable(reason: str) -> str:
    """Text that a jsonb column takes: no NUL, no half of a surrogate pair."""
    return reason.encode("utf-8", "backslashreplace").decode("utf-8").replace("\x00", "\ufffd")
