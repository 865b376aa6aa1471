"""Values in the row itself (FS-35): JSON, compressed, written in the settling transaction."""

from __future__ import annotations

from hashlib import sha256

from flowstone_celery import codec
from flowstone_celery.errors import CorruptRow, FlowStoneError, ValueTooLarge
from flowstone_celery.io.manager import Slot, Stored


class DatabaseIO:
    """Keeps JSON-like values (see `codec`) as compressed bytes in the value's row."""

    name = "database"

    def __init__(self, max_bytes: int) -> None:
        """Refuse values whose encoding is larger than `max_bytes`."""
        self._max_bytes = max_bytes

    def store(self, slot: Slot, value: object) -> Stored:
        """The value's encoding, for the row.

        Raises:
            InvalidValue: the value is not JSON-like; the error names the path inside it.
            ValueTooLarge: its encoding is over the limit.
        """
        text = codec.encode(value, where=_where(slot))
        if len(text) > self._max_bytes:
            raise ValueTooLarge(
                f"the value of {_where(slot)} takes {len(text):,} bytes, the limit is {self._max_bytes:,}",
                hint="split the asset by partitions, keep the bulk in a file and return its path, or raise FLOWSTONE_MAX_VALUE_BYTES",
                asset=slot.asset,
                partition=slot.partition,
                size=len(text),
            )
        return Stored(size=len(text), digest=sha256(text).hexdigest(), content=codec.compress(text))

    def load(self, slot: Slot, stored: Stored) -> object:
        """The value back.

        Raises:
            CorruptRow: the bytes are not those that were stored.
        """
        assert stored.content is not None
        try:
            text = codec.decompress(stored.content)
            intact = sha256(text).hexdigest() == stored.digest
            value = codec.decode(text) if intact else None
        except (ValueError, FlowStoneError) as error:
            raise _corrupt(slot) from error
        if not intact:
            raise _corrupt(slot)
        return value

    def delete(self, slot: Slot, stored: Stored) -> None:
        """Nothing lies outside the row."""


def _where(slot: Slot) -> str:
    return f"asset {slot.asset!r}" + (f", partition {slot.partition!r}" if slot.partition else "")


def _corrupt(slot: Slot) -> CorruptRow:
    return CorruptRow(
        f"the stored value of {_where(slot)} (step {slot.step_id}, fence {slot.fence}) is damaged: its digest does not match",
        hint="materialize it again; if this repeats, check the database's storage",
        asset=slot.asset,
        partition=slot.partition,
    )
