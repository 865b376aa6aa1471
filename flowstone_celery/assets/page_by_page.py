"""Keys that are written while they are read: a page at a time, each in a transaction of its own, with the place where to go on.

Items begin while there is still something to read. Who dies in the middle is followed by an attempt that goes on from the last
checkpoint; a reader without one begins again, and the keys that are there are not added twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from flowstone_celery import codec, faults
from flowstone_celery.assets.batching import batches
from flowstone_celery.assets.keys import distinct, element_of, key_of, keys_of
from flowstone_celery.core import barriers, steps
from flowstone_celery.core.barrier_model import PAGE, NewBarrier, Scattered
from flowstone_celery.core.wake import send_promised
from flowstone_celery.errors import CommitUnknown, DeclarationError, InvalidValue, StaleFence
from flowstone_celery.telemetry import emit

if TYPE_CHECKING:
    from flowstone_celery.assets.scatter import Scatter
    from flowstone_celery.assets.telling import Reads
    from flowstone_celery.core.barrier_model import Barrier
    from flowstone_celery.core.model import Call, Carrier, Claim, WakeUp
    from flowstone_celery.db.database import Database, Tx

_READ, _READS, _BATCHES = "reader", "reads", "batches"
_SECONDS = 1.0
"""An iterable that tells slowly does not keep its items back for longer."""


@dataclass(frozen=True, slots=True)
class Pages:
    """Writes pages of one scattering step's barrier."""

    database: Database
    carrier: Callable[[], Carrier]
    min_wakeups: int
    claim: Claim
    call: Call

    def open(self, new: NewBarrier) -> int:
        """The barrier that the pages are written to: the one there is, or a new one.

        Raises:
            StaleFence: another worker holds the step by now.
        """
        found = self.call.patiently(
            lambda: self.database.attempt(lambda tx: barriers.open_barrier(tx, self.claim, new))
        )
        if found is None:
            raise StaleFence(
                f"step {self.claim.id} of asset {self.claim.name!r} was given to another worker while it read its items"
            )
        return found

    def add(
        self, barrier: int, keys: Sequence[bytes], checkpoint: Mapping[str, Any], *, unique: bool
    ) -> bool:
        """The keys are items, and the checkpoint is kept with them; False: nobody waits for them any more."""
        while True:
            try:
                added = self.call.patiently(lambda: self._add(barrier, keys, checkpoint, unique))
            except CommitUnknown:
                found = self.call.patiently(lambda: barriers.barrier(self.database, barrier))
                if found is None or (found.checkpoint or {}).get(_READS) != checkpoint[_READS]:
                    continue  # it did not happen
                added = True
            faults.point("scatter.page_added")
            return added

    def _add(self, barrier: int, keys: Sequence[bytes], checkpoint: Mapping[str, Any], unique: bool) -> bool:
        done = False

        def work(tx: Tx) -> list[WakeUp]:
            nonlocal done
            done, queues = True, list[str]()
            for first in range(0, max(len(keys), 1), PAGE):
                page = keys[first : first + PAGE]
                added = barriers.add_page(tx, self.claim, barrier, page, checkpoint, unique=unique)
                if added is None:
                    done = False
                    return []
                queues += added.opened
            return steps.promise_all(tx, queues, min_wakeups=self.min_wakeups)

        send_promised(self.database, self.carrier(), work)
        return done


@dataclass(slots=True)
class PageByPage:
    """Reads, and writes what was read, until there is nothing more, or nobody waits for it."""

    pages: Pages
    new: NewBarrier
    options: Scatter
    _reads: int = 0
    _batches: int = 0

    def iterable(self, first: Sequence[bytes], keys: Iterator[bytes]) -> Scattered:
        """The keys of an iterable, of which the first were taken already."""
        barrier = self.pages.open(self.new)
        page, ended = first, False
        while not page or self._add(barrier, page, None):
            if ended:
                break
            page, ended = some_of(keys, PAGE, self.pages.call)
        return Scattered(barrier=barrier)

    def reader(self, reader: Reads, begun: Barrier | None) -> Scattered:
        """What a reader reads; one that was begun by an earlier attempt goes on from its checkpoint."""
        barrier = self.pages.open(self.new)
        try:
            self._open(reader, begun)
            while True:
                elements = self._read(reader)
                if not elements or not self._add(barrier, self._keys(elements), self._checkpoint(reader)):
                    break
        except BaseException:
            with suppress(Exception):  # what broke first is what is told
                _called(reader, "close")
            raise
        _called(reader, "close")
        return Scattered(barrier=barrier)

    # --- the reader ---------------------------------------------------------------------------------------------------------------

    def _open(self, reader: Reads, begun: Barrier | None) -> None:
        kept = (begun.checkpoint or {}) if begun else {}
        self._reads, self._batches = kept.get(_READS, 0), kept.get(_BATCHES, 0)
        checkpoints, restores = (callable(getattr(reader, name, None)) for name in ("checkpoint", "restore"))
        if checkpoints != restores:
            raise DeclarationError(
                f"the reader {type(reader).__name__} of asset {self.new.name!r} has {'checkpoint' if checkpoints else 'restore'} without the other",
                hint="Give it both, so that a new process goes on where the former one died, or neither.",
            )
        where = kept.get(_READ)
        with self.pages.call.user_code():
            _called(reader, "init")
            if where is not None and restores:
                _called(reader, "restore", codec.decode(orjson.dumps(where)))
        emit("flowstone.reader.open", **self._about, restored=where is not None)

    def _read(self, reader: Reads) -> Sequence[Any]:
        started = time.monotonic()
        with self.pages.call.user_code():
            found = reader.read(PAGE)
        if found is not None and not isinstance(found, list | tuple):
            raise InvalidValue(
                f"the reader {type(reader).__name__} of asset {self.new.name!r} answered {found!r:.80} from read(), which is no list",
                hint="Answer a list of the next elements, an empty one at the end.",
                asset=self.new.name,
            )
        took = (time.monotonic() - started) * 1000
        emit("flowstone.reader.read", **self._about, duration_ms=took, count=len(found or ()))
        return found or ()

    def _checkpoint(self, reader: Reads) -> Any:
        with self.pages.call.user_code():
            found = _called(reader, "checkpoint")
        if found is None:
            return None
        return orjson.loads(
            codec.encode(found, where=f"the checkpoint of the reader of asset {self.new.name!r}")
        )

    def _keys(self, elements: Sequence[Any]) -> list[bytes]:
        """The keys of what was read; batches end where a reading ends, so that a checkpoint stands between two of them."""
        asset, batch = self.new.name, self.options.batch
        keys = list(keys_of(elements, asset=asset))
        if batch is None:
            return keys
        with self.pages.call.user_code():
            found = list(batches(batch, map(element_of, distinct(keys)[0]), asset=asset, first=self._batches))
        self._batches += len(found)
        return [key_of(each.element(), asset=asset) for each in found]

    def _add(self, barrier: int, keys: Sequence[bytes], where: Any) -> bool:
        self._reads += 1
        checkpoint = {_READS: self._reads, _BATCHES: self._batches, _READ: where}
        # Whoever cannot go on from here begins again, and tells the same keys once more, whatever was vouched for.
        return self.pages.add(barrier, keys, checkpoint, unique=self.options.unique or where is None)

    @property
    def _about(self) -> dict[str, Any]:
        claim = self.pages.claim
        return {"asset": claim.name, "partition": claim.partition, "run_id": str(claim.run_id)}


def some_of(keys: Iterator[bytes], most: int, call: Call) -> tuple[list[bytes], bool]:
    """The next keys of an iterable, as many as are wanted, and no longer than a moment; and whether it has ended."""
    found: list[bytes] = []
    until = time.monotonic() + _SECONDS
    with call.user_code():
        for key in keys:
            found.append(key)
            if len(found) >= most or time.monotonic() > until:
                return found, False
    return found, True


def _called(reader: object, name: str, *given: object) -> Any:
    """What this method answers; None, if the reader has none of that name."""
    method = getattr(reader, name, None)
    return method(*given) if callable(method) else None
