"""What a definition of partitions is: a frozen value that knows its keys, their order, and how a person writes them.

The kinds stand in `lists.py` (fixed, dynamic), `windows.py` and `moments.py` (time), `multi.py` (several dimensions). What changes
from moment to moment (the time, and the keys of dynamic definitions) is handed in as an `AsOf`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, NamedTuple, NoReturn

from flowstone_celery.errors import InvalidOption, InvalidPartition

if TYPE_CHECKING:
    from flowstone_celery.assets.partition import PartitionKey


class AsOf:
    """What holds at one moment: the time, and the keys that dynamic definitions have then. Each is read once, when it is asked for."""

    def __init__(
        self,
        now: datetime | Callable[[], datetime],
        dynamic: Callable[[str], Iterable[str]] = lambda _: (),
    ) -> None:
        """Take the moment (aware) and what answers the keys of a dynamic definition, by its name."""
        self._now = now
        self._dynamic = dynamic
        self._keys: dict[str, dict[str, None]] = {}

    @cached_property
    def now(self) -> datetime:
        """The moment."""
        return self._now() if callable(self._now) else self._now

    def dynamic(self, name: str) -> Collection[str]:
        """The keys of the dynamic definition of this name, in the order of their text."""
        if name not in self._keys:
            self._keys[name] = dict.fromkeys(sorted(self._dynamic(name)))
        return self._keys[name].keys()

    @property
    def asked(self) -> bool:
        """Whether anybody has asked: what was told then may be otherwise at another moment."""
        return "now" in vars(self) or bool(self._keys)

    @staticmethod
    def of(moment: datetime | AsOf) -> AsOf:
        """The moment as it is, or made from a datetime alone: then no dynamic definition has a key."""
        return moment if isinstance(moment, AsOf) else AsOf(moment)


class Span(NamedTuple):
    """A stretch of time: from `start` up to, and without, `end`; both aware, in the zone of the definition."""

    start: datetime
    end: datetime

    @property
    def length(self) -> timedelta:
        """How long it lasts; 23 or 25 hours for a day on which the clocks are set."""
        return self.end.astimezone(UTC) - self.start.astimezone(UTC)


class Definition:
    """Which partitions an asset has. What takes `now` takes a datetime (aware) or an `AsOf`; without it the clock is not asked."""

    ordered: ClassVar[bool] = True
    """Whether one key comes before another, so that there is a previous one."""

    def check(self, key: PartitionKey, now: datetime | AsOf | None = None) -> PartitionKey:
        """The key in its one form.

        Raises:
            InvalidPartition: it is no key of this definition; says what is wrong, the nearest key, and the range.
        """
        raise NotImplementedError

    def parse(self, text: str) -> PartitionKey:
        """The key that a person means by this text; every text that `show` answers is read.

        Raises:
            InvalidPartition: it cannot be one.
        """
        raise NotImplementedError

    def show(self, key: PartitionKey) -> str:
        """The key as a person writes it; `parse` reads it back."""
        raise NotImplementedError

    def keys(self, now: datetime | AsOf) -> Iterator[PartitionKey]:
        """All keys that there are at that moment, in order; made one by one as they are asked for."""
        raise NotImplementedError

    def range(
        self, first: PartitionKey = None, last: PartitionKey = None, now: datetime | AsOf | None = None
    ) -> Iterator[PartitionKey]:
        """The keys from the first to the last, both included, in order; texts are read as `parse` reads them.

        Without `first` from the beginning; without `last`, or where `now` is given, no further than that moment.

        Raises:
            InvalidPartition: a bound cannot be one, or the last comes before the first.
        """
        raise NotImplementedError

    def previous(self, key: PartitionKey, n: int = 1) -> PartitionKey:
        """The key that comes `n` before this one (after it, where `n` is negative), or None where the definition ends before."""
        raise NotImplementedError

    def window(self, key: PartitionKey) -> Span | None:  # noqa: ARG002 - what is no time has none for any key
        """The time that the key stands for; None if it stands for none."""
        return None

    def contains(self, key: PartitionKey, now: datetime | AsOf | None = None) -> bool:
        """Whether this is a key of the definition."""
        try:
            self.check(key, now)
        except InvalidPartition:
            return False
        return True

    def read(self, given: PartitionKey, now: datetime | AsOf | None = None) -> PartitionKey:
        """The key that was given as itself, or as the text that a person writes.

        Raises:
            InvalidPartition: it is no key of this definition.
        """
        return self.check(self.parse(given) if isinstance(given, str) else given, now)

    def refuse(self, key: object, why: str, hint: str) -> NoReturn:
        """The key is none of this definition."""
        shown = key.isoformat() if isinstance(key, date | datetime) else short(key)
        raise InvalidPartition(
            f"{shown} is no partition of {self}: {why}", hint=hint, key=shown, definition=str(self)
        ) from None


# --- refusals ---------------------------------------------------------------------------------------------------------------------


def backwards(first: object, last: object) -> NoReturn:
    """A range ends before it begins."""
    raise InvalidPartition(
        f"the range from {first!s:.80} to {last!s:.80} runs backwards", hint="Swap the two."
    )


def wrong(what: str, hint: str) -> NoReturn:
    """A definition cannot be."""
    raise InvalidOption(what, hint=hint, option="partitions") from None


def short(key: object) -> str:
    """How Python writes the key, cut off where it is long."""
    text = repr(key)
    return text if len(text) <= 80 else f"{text[:77]}..."
