"""How an asset scatters: its items are told and written, each is made by a hand, and what they came to is folded into its value.

The scattering step is called twice. In its phase `call` it answers `Scattered`, and waits; in its phase `gather` it makes the value.
All that works for one barrier takes the versions that were taken when it opened: they are noted with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from flowstone_celery import codec
from flowstone_celery.assets.batching import batches
from flowstone_celery.assets.gathered import IO, Counts, Gathered, pointer_to
from flowstone_celery.assets.inputs import record_of
from flowstone_celery.assets.item_calls import AssetItems
from flowstone_celery.assets.keys import distinct, element_of, key_of, keys_of
from flowstone_celery.assets.making import making
from flowstone_celery.assets.page_by_page import PageByPage, Pages, some_of
from flowstone_celery.assets.scatter_spec import Part
from flowstone_celery.assets.slices import Slice
from flowstone_celery.assets.telling import Reads, elements_of
from flowstone_celery.core import barriers
from flowstone_celery.core.barrier_model import NewBarrier, Policy, Scattered, item_task
from flowstone_celery.core.model import INLINE_QUEUE, NoCarrier
from flowstone_celery.core.retry_policy import RetryPolicy
from flowstone_celery.errors import CorruptRow, InvalidOption
from flowstone_celery.outcomes import Cancel, Fail, Retry, Skip, Value, as_outcome
from flowstone_celery.record import values
from flowstone_celery.states import BarrierStatus
from flowstone_celery.telemetry import emit

if TYPE_CHECKING:
    from flowstone_celery.assets.asset import AssetSpec
    from flowstone_celery.assets.inputs import Inputs, Taken
    from flowstone_celery.assets.scatter_spec import ScatterSpec
    from flowstone_celery.config import Settings
    from flowstone_celery.core.barrier_model import Barrier
    from flowstone_celery.core.model import Answer, Call, Carrier, Claim
    from flowstone_celery.db.database import Database

GATHER = "gather"
"""The phase of a scattering step whose items have ended."""

_AT_ONCE = 5_000
"""Keys of an iterable that are collected before the first page is written: fewer are written with the step's own settlement."""

QueueOf = Callable[[str, "str | None"], str]
"""The queue of a task, by the application's own routes."""


class Maker(Protocol):
    """What is asked of the handler of assets."""

    def making(
        self,
        spec: AssetSpec,
        claim: Claim,
        call: Call,
        inputs: list[Taken],
        part: Part | None = None,
        *,
        given: Mapping[str, object] | None = None,
    ) -> Any:
        """A function of this asset about to be called: `arguments`, what is `held` for it, `call`, `close`."""


@dataclass(frozen=True, slots=True)
class Outside:
    """What scattering needs of the house: who carries wake-ups, and how tasks are routed."""

    carrier: Callable[[], Carrier] = NoCarrier
    queue_of: QueueOf = lambda _task, _queue: INLINE_QUEUE


class Scattering:
    """The part of the handler that is for assets with `scatter=`."""

    def __init__(
        self, maker: Maker, inputs: Inputs, database: Database, settings: Settings, outside: Outside
    ) -> None:
        """Work beside this maker."""
        self._maker = maker
        self._inputs = inputs
        self._database = database
        self._settings = settings
        self._outside = outside

    # --- call: which items there are ------------------------------------------------------------------------------------------

    def scatter(self, spec: AssetSpec, claim: Claim, call: Call, inputs: list[Taken]) -> Answer:
        """The answer of a scattering step: its items, or those of an earlier round that failed, to be done again."""
        earlier = call.patiently(lambda: self._earlier(claim))
        if earlier is not None and _is_read(claim, earlier) and self._goes_on(claim, earlier, call):
            return Scattered(again=earlier.id)
        begun = earlier if earlier is not None and not earlier.sealed else None
        try:
            slice_ = Slice(claim.name, claim.partition)
            with making(slice_), self._told(spec, claim, call, inputs) as told:
                if isinstance(told, Skip | Retry | Fail | Cancel):
                    return told
                new = self._new_barrier(spec, claim, call, inputs)
                return self._scattered(spec, claim, call, new, told, begun)
        except Exception as error:
            about = {"asset": claim.name, "partition": claim.partition, "run_id": str(claim.run_id)}
            emit("flowstone.materialization.exception", **about, error=repr(error), attempt=claim.attempt)
            raise

    def _earlier(self, claim: Claim) -> Barrier | None:
        """The step's barrier of an earlier attempt or round: at the first there is none, and nobody looks."""
        if claim.round == 1 and claim.attempt == 1:
            return None
        return barriers.of_step(self._database, claim.id)

    def _goes_on(self, claim: Claim, earlier: Barrier, call: Call) -> bool:
        """Whether this round does again what failed. What succeeded as a whole, its fold too, was asked for anew."""
        if earlier.status != "completed" or earlier.round == claim.round:
            return True
        made = call.patiently(
            lambda: values.of_run(self._database, claim.name, claim.partition, claim.run_id)
        )
        return made is None

    @contextmanager
    def _told(
        self, spec: AssetSpec, claim: Claim, call: Call, inputs: list[Taken]
    ) -> Iterator[Skip | Retry | Fail | Cancel | Sequence[Any] | Iterable[Any] | Reads]:
        """In the block, the elements; what `keys` took is given back behind it."""
        scatter = _of(spec)
        if scatter.keys is None:
            assert scatter.over is not None, "a declaration without either is refused before it runs"
            [taken] = [each for each in inputs if each.dependency.name == scatter.over]
            there = bool(taken.versions) or taken.many
            value = call.patiently(lambda: self._inputs.argument(taken)) if there else ()
            yield elements_of(value, asset=claim.name, who=f"{scatter.over!r}")
            return
        made = self._maker.making(spec, claim, call, inputs, scatter.keys)
        try:
            with call.user_code():
                answer = scatter.keys.fn(**made.arguments)
            outcome = as_outcome(answer)
            if isinstance(outcome, Value):
                yield elements_of(outcome.value, asset=claim.name, who="its keys")
            else:
                yield outcome
        finally:
            made.close()

    def _scattered(
        self,
        spec: AssetSpec,
        claim: Claim,
        call: Call,
        new: NewBarrier,
        told: Sequence[Any] | Iterable[Any] | Reads,
        begun: Barrier | None,
    ) -> Scattered:
        """All keys, where they are few or there already; else they are written page by page as they come."""
        scatter = _of(spec)
        if isinstance(told, Reads) and not isinstance(told, Iterable):
            return self._page_by_page(scatter, claim, call, new).reader(told, begun)
        if begun is None and (isinstance(told, list | tuple) or scatter.batched):
            with call.user_code():
                return _at_once(scatter, claim.name, new, told)
        keys = keys_of(told, asset=claim.name)
        first, ended = ([], False) if begun else some_of(keys, _AT_ONCE, call)
        if ended:
            found, collapsed = distinct(first)
            return Scattered(new, found, collapsed)
        return self._page_by_page(scatter, claim, call, new).iterable(first, keys)

    def _page_by_page(self, scatter: ScatterSpec, claim: Claim, call: Call, new: NewBarrier) -> PageByPage:
        pages = Pages(self._database, self._outside.carrier, self._settings.min_wakeups, claim, call)
        return PageByPage(pages, new, scatter.options)

    def _new_barrier(self, spec: AssetSpec, claim: Claim, call: Call, inputs: list[Taken]) -> NewBarrier:
        options, task = _of(spec).options, item_task(claim.name)
        metadata: dict[str, Any] = {"inputs": record_of(inputs)}
        given = self._batch_input(spec, claim, call, inputs)
        if given is not None:
            metadata["batch_input"] = given
        return NewBarrier(
            name=claim.name,
            task=task,
            queue=self._queue(spec, claim),
            priority=options.priority,
            policy=policy_of(spec, self._settings),
            metadata=metadata,
        )

    def _queue(self, spec: AssetSpec, claim: Claim) -> str:
        """Where the scatter, or a route of its items' task, sends them; else where its step is, which the run may have chosen."""
        own, queue_of = _of(spec).options.queue, self._outside.queue_of
        if claim.queue == INLINE_QUEUE:
            return claim.queue
        found = queue_of(item_task(claim.name), own or spec.queue)
        return found if own or found != queue_of(claim.name, spec.queue) else claim.queue

    def _batch_input(self, spec: AssetSpec, claim: Claim, call: Call, inputs: list[Taken]) -> Any:
        """What every batch is given: as declared, or what its function answers now, once."""
        scatter = _of(spec)
        if scatter.batch_input is None:
            return scatter.options.batch.batch_input if scatter.options.batch else None
        made = self._maker.making(spec, claim, call, inputs, scatter.batch_input)
        try:
            with call.user_code():
                answer = scatter.batch_input.fn(**made.arguments)
        finally:
            made.close()
        return orjson.loads(codec.encode(answer, where=f"batch_input of asset {claim.name!r}"))

    # --- item: each is made by a hand -----------------------------------------------------------------------------------------

    def items(self, spec: AssetSpec, hand: Claim, barrier: Barrier, call: Call) -> AssetItems:
        """The function of the items, with what was taken when the barrier opened."""
        scatter = _of(spec)
        inputs = call.patiently(lambda: self._recorded(spec, barrier))
        made = self._maker.making(spec, hand, call, inputs, scatter.item)
        return AssetItems(
            scatter, hand, barrier, call, made.arguments, spec.is_async, scatter.each, made.held
        )

    # --- gather: what they came to --------------------------------------------------------------------------------------------

    def gather(self, spec: AssetSpec, claim: Claim, call: Call) -> Any:
        """The fold about to be called; without one, what was gathered is the value as it is."""
        scatter = _of(spec)
        barrier = call.patiently(lambda: self._closed(claim))
        gathered = call.patiently(lambda: self._gathered(scatter, barrier))
        inputs = call.patiently(lambda: self._recorded(spec, barrier))
        fold = scatter.gather
        if fold is None or fold.subject is None:
            nothing = Part(lambda: gathered, frozenset())
            return self._maker.making(replace(spec, io=IO), claim, call, inputs, nothing)
        return self._maker.making(spec, claim, call, inputs, fold, given={fold.subject: gathered})

    def _closed(self, claim: Claim) -> Barrier:
        found = barriers.of_step(self._database, claim.id)
        if found is None:
            raise CorruptRow(
                f"step {claim.id} of asset {claim.name!r} is to gather, and its items are gone",
                hint="somebody deleted their barrier: run it again with force=True",
                asset=claim.name,
            )
        return found

    def _gathered(self, scatter: ScatterSpec, barrier: Barrier) -> Gathered[Any]:
        done = barrier.done
        if done + barrier.failed < barrier.total:  # accepted as it was: its pages are not complete
            progress = barriers.progress(self._database, barrier.id)
            done = progress.succeeded if progress else done
        counts = Counts(barrier.total, done, barrier.failed, barrier.collapsed)
        pointer = pointer_to(barrier.id, barrier.round, counts, batched=scatter.batched, each=scatter.each)
        return Gathered.at(self._database, pointer)

    def _recorded(self, spec: AssetSpec, barrier: Barrier) -> list[Taken]:
        return self._inputs.recorded(spec, (barrier.metadata or {}).get("inputs") or {})


def _is_read(claim: Claim, barrier: Barrier) -> bool:
    """Whether no further keys are to be read: all have been, or what there is was accepted for this round."""
    return barrier.sealed or (barrier.round == claim.round and barrier.status != BarrierStatus.OPEN)


def policy_of(spec: AssetSpec, settings: Settings) -> Policy:
    """What holds for the items of this asset: its options, and where they say nothing those of the asset and of the settings."""
    options = _of(spec).options
    return Policy(
        max_concurrent=options.max_concurrent,
        failure_threshold=options.failure_threshold,
        failure_mode=options.failure_mode,
        retry_strategy=options.retry_strategy,
        max_attempts=options.max_attempts,
        retry=_retry(spec),
        timeout=options.timeout,
        crash_limit=settings.crash_limit,
        dispatch=options.dispatch,
        rate_limit=options.rate_limit,
        width=(options.width or settings.async_width) if spec.is_async else 1,
        result_bytes=options.max_result_bytes,
        batch={**options.batch.plain(), "each": _of(spec).each} if options.batch else None,
    )


def _retry(spec: AssetSpec) -> RetryPolicy:
    options, of_asset = _of(spec).options, spec.retry
    delay = of_asset.delay if options.retry_delay is None else options.retry_delay
    cap = max(of_asset.cap, delay) if options.retry_cap is None else options.retry_cap
    return RetryPolicy(
        backoff=options.backoff or of_asset.backoff,
        delay=min(delay, cap),
        cap=cap,
        jitter=of_asset.jitter if options.jitter is None else options.jitter,
    )


def _of(spec: AssetSpec) -> ScatterSpec:
    if spec.scatter is None:
        raise InvalidOption(
            f"asset {spec.qualified!r} does not scatter here, and a step of it does",
            hint="Is this process's code older or newer than the one that began the run?",
            asset=spec.qualified,
        )
    return spec.scatter


def _at_once(scatter: ScatterSpec, asset: str, new: NewBarrier, told: Iterable[Any]) -> Scattered:
    keys, collapsed = distinct(list(keys_of(told, asset=asset)))
    batch = scatter.options.batch
    if batch is not None:
        found = batches(batch, map(element_of, keys), asset=asset)
        keys = [key_of(each.element(), asset=asset) for each in found]
    return Scattered(new, keys, collapsed)
