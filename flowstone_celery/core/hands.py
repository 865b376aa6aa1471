"""Hands: the steps that do a barrier's items. What a kind of step offers so that its items can be done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from flowstone_celery.core.barrier_model import Barrier, ItemClaim
    from flowstone_celery.core.model import Call, Claim


class ItemCalls(Protocol):
    """The items' code with all that it takes, for one slice of a hand."""

    @property
    def awaiting(self) -> bool:
        """Whether the items' code is a coroutine: `run` is used then, several at a time, and never `call`."""

    def call(self, item: ItemClaim) -> object:
        """The user's code for this item, inside `call.user_code()`: what it returns is returned, what it raises is raised.

        A value, or an outcome: those are understood by the hand.
        """

    async def run(self, item: ItemClaim) -> object:
        """The same as a coroutine, in a loop: interrupts are the loop's affair, `call.user_code()` is not entered."""

    def ended(self, item: ItemClaim, value: object) -> bytes:
        """The value as canonical JSON, as it is stored. Never given an outcome: a `Value` comes as what it holds.

        Raises:
            InvalidValue, ValueTooLarge: it cannot be stored; the item has failed for good, without another attempt.
        """

    def close(self) -> None:
        """What `items` took is given back, however the slice ended."""


@runtime_checkable
class ItemHandler(Protocol):
    """A kind of step that scatters: the same object as its `Handler`."""

    def items(self, hand: Claim, barrier: Barrier, call: Call) -> ItemCalls:
        """Load what the items' code needs: asked once for each slice of a hand, in a thread that may block.

        What it raises is a failed attempt of each item that the hand holds then.

        Args:
            hand: the hand's own claim; its `name` and `partition` are the scattering step's.
            barrier: whose items are to be done.
            call: for `user_code`, `check` (raises if the item that calls it is to end) and `patiently`.
        """
