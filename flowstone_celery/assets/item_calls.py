"""The items' code with all that it takes, for one slice of a hand: the function of an asset that scatters, called for each item."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from flowstone_celery import codec, faults
from flowstone_celery.assets.batching import Batched
from flowstone_celery.assets.keys import element_of, shown
from flowstone_celery.assets.making import making
from flowstone_celery.assets.slices import Slice
from flowstone_celery.errors import ExecutionError, FlowStoneError, InvalidValue, ValueTooLarge
from flowstone_celery.outcomes import Fail, Outcome, Skip, Value, as_outcome

if TYPE_CHECKING:
    from contextlib import ExitStack

    from flowstone_celery.assets.context import Context
    from flowstone_celery.assets.scatter_spec import ScatterSpec
    from flowstone_celery.core.barrier_model import Barrier, ItemClaim
    from flowstone_celery.core.model import Call, Claim


class _Answered(Exception):  # noqa: N818 - an event: an element's outcome is that of its batch
    def __init__(self, outcome: Outcome) -> None:
        super().__init__()
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class _OfElement:
    """What became of one element of a batch."""

    value: object
    error: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class AssetItems:
    """Calls one asset's function for items of one barrier."""

    scatter: ScatterSpec
    hand: Claim
    barrier: Barrier
    to_end: Call
    arguments: dict[str, object]
    """What is the same for all items: dependencies, resources, and the context of the hand."""
    awaiting: bool
    each: bool
    """Whether the function is called once for each element of a batch."""
    held: ExitStack
    _slice: Slice = field(init=False)
    _simple: bool = field(init=False)
    """Whether the element is all that differs between two calls."""

    def __post_init__(self) -> None:
        """What is the same for all items is found out once."""
        part = self.scatter.item
        object.__setattr__(self, "_slice", Slice(self.hand.name, self.hand.partition))
        object.__setattr__(
            self, "_simple", self.scatter.options.batch is None and part.context_parameter is None
        )

    def call(self, item: ItemClaim) -> object:
        """What the function returns for this item."""
        if self._simple:
            given = self._given(item, element_of(item.key), None)
            with making(self._slice), self.to_end.user_code():
                return self.scatter.item.fn(**given)
        calls = self._calls(item)
        with making(self._slice), self.to_end.user_code():
            if not self.each:
                return self.scatter.item.fn(**next(calls))
            try:
                return self._collected([self._one(given) for given in calls])
            except _Answered as answered:
                return answered.outcome

    async def run(self, item: ItemClaim) -> object:
        """What the coroutine function returns for this item."""
        if self._simple:
            given = self._given(item, element_of(item.key), None)
            with making(self._slice):
                return await self._coroutine(given)
        calls = self._calls(item)
        with making(self._slice):
            if not self.each:
                return await self._coroutine(next(calls))
            try:
                return self._collected([await self._one_awaited(given) for given in calls])
            except _Answered as answered:
                return answered.outcome

    def ended(self, item: ItemClaim, value: object) -> bytes:
        """The result as JSON.

        Raises:
            InvalidValue: it is not JSON-like; names the item and the part that is wrong.
            ValueTooLarge: it is over the limit.
        """
        try:
            text = codec.encode(value, where="the result")
        except InvalidValue as error:
            message = error.message.replace("the result", self._where(item), 1)
            raise InvalidValue(message, hint=error.hint, **error.facts) from None
        most = self.barrier.policy.result_bytes
        if len(text) > most:
            raise ValueTooLarge(
                f"{self._where(item)} takes {len(text):,} bytes, the limit is {most:,}",
                hint="Keep the bulk in a file and return its path, or raise Scatter(max_result_bytes=…).",
                asset=self.hand.name,
                key=shown(item.key),
                size=len(text),
            )
        return text

    def close(self) -> None:
        """The resources are given back."""
        self.held.close()

    # --- what the function takes --------------------------------------------------------------------------------------------------

    def _calls(self, item: ItemClaim) -> Iterator[dict[str, object]]:
        """The arguments of each call: one for an item, or for a batch that is taken whole."""
        found = element_of(item.key)
        if self.scatter.options.batch is None:
            return iter((self._given(item, found, None),))
        batch = Batched.of(found, (self.barrier.metadata or {}).get("batch_input"))
        if not self.each:
            return iter((self._given(item, batch.items, batch),))
        return (self._given(item, each, batch, place) for place, each in enumerate(batch.items))

    def _given(
        self, item: ItemClaim, element: object, batch: Batched | None, place: int | None = None
    ) -> dict[str, object]:
        part = self.scatter.item
        given = dict(self.arguments)
        if part.subject is not None:
            given[part.subject] = element
        if part.context_parameter is not None:
            context = cast("Context", given[part.context_parameter])
            given[part.context_parameter] = self._context(context, item, element, batch, place)
        return given

    def _context(
        self, of_hand: Context, item: ItemClaim, element: object, batch: Batched | None, place: int | None
    ) -> Context:
        barrier = self.barrier
        key = f"{barrier.run_id}/{barrier.step_id}/{barrier.round}/{item.index}/{item.failures}"
        if place is not None:  # each element of a batch is a call of its own
            key = f"{key}/{place}"
        return replace(
            of_hand, key=element, index=item.index, batch=batch, attempt=item.attempt, idempotency_key=key
        )

    # --- element by element -------------------------------------------------------------------------------------------------------

    def _coroutine(self, given: dict[str, object]) -> Coroutine[Any, Any, object]:
        return cast("Coroutine[Any, Any, object]", self.scatter.item.fn(**given))

    def _one(self, given: dict[str, object]) -> _OfElement:
        try:
            return self._judged(self.scatter.item.fn(**given))
        except (_Answered, faults.FaultInjectedError):
            raise
        except Exception as error:
            if not self.scatter.collects:
                raise
            return self._failed(error)

    async def _one_awaited(self, given: dict[str, object]) -> _OfElement:
        try:
            return self._judged(await self._coroutine(given))
        except (_Answered, faults.FaultInjectedError):
            raise
        except Exception as error:
            if not self.scatter.collects:
                raise
            return self._failed(error)

    def _judged(self, answer: object) -> _OfElement:
        outcome = as_outcome(answer)
        match outcome:
            case Value(value):
                return _OfElement(value)
            case Skip():
                return _OfElement(None)
            case Fail(reason) if self.scatter.collects:
                return self._failed(ExecutionError(reason or "failed"))
        raise _Answered(outcome)

    def _failed(self, error: Exception) -> _OfElement:
        known = (
            error
            if isinstance(error, FlowStoneError)
            else ExecutionError.of(error, self.hand.name, self.hand.partition)
        )
        plain = known.to_dict()
        return _OfElement(None, {name: plain[name] for name in ("code", "type", "message")})

    def _collected(self, found: list[_OfElement]) -> object:
        errors = [(position, each.error) for position, each in enumerate(found) if each.error is not None]
        if errors and len(errors) == len(found):
            raise ExecutionError(
                f"all {len(found)} elements of the batch failed, the first with: {(errors[0][1] or {}).get('message')}",
                asset=self.hand.name,
            )
        return {"values": [each.value for each in found if each.error is None], "errors": errors}

    def _where(self, item: ItemClaim) -> str:
        of_partition = f", partition {self.hand.partition!r}" if self.hand.partition else ""
        return (
            f"the result of item {item.index} ({shown(item.key)}) of asset {self.hand.name!r}{of_partition}"
        )
