"""Partitions by name: a fixed list, or keys that are added and removed while the system runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

from flowstone_celery.assets import partition as partitions
from flowstone_celery.assets.definitions import AsOf, Definition, backwards, short, wrong
from flowstone_celery.errors import InvalidPartition, did_you_mean

if TYPE_CHECKING:
    from flowstone_celery.assets.partition import PartitionKey

_NEAR = 2_000
_NAME_BYTES = 255


@dataclass(frozen=True, repr=False)
class Static(Definition):
    """These keys, in this order: texts, numbers, whatever can be a key, each once."""

    members: tuple[PartitionKey, ...]
    _by_text: Mapping[str, PartitionKey] = field(init=False, compare=False)
    _by_shown: Mapping[str, PartitionKey] = field(init=False, compare=False)
    _places: Mapping[str, int] = field(init=False, compare=False)

    def __init__(self, keys: Iterable[PartitionKey]) -> None:
        """Take the keys.

        Raises:
            InvalidOption: there is none, one comes twice, or one cannot be a key.
        """
        if isinstance(keys, str | bytes | Mapping) or not isinstance(keys, Iterable):
            wrong("Static takes a list of keys", f"Write Static([{keys!r:.40}]).")
        members = tuple(keys)
        if not members:
            wrong("Static without a key has no partition", 'Write for example Static(["eu", "us"]).')
        by_text: dict[str, PartitionKey] = {}
        for key in members:
            text = _text_of(key)
            if text in by_text:
                wrong(f"Static has the key {key!r:.80} twice", "Name each key once.")
            by_text[text] = key
        object.__setattr__(self, "members", members)
        object.__setattr__(self, "_by_text", by_text)
        object.__setattr__(self, "_by_shown", _shown_once(by_text))
        object.__setattr__(self, "_places", {text: place for place, text in enumerate(by_text)})

    def __repr__(self) -> str:
        """The first keys."""
        more = "" if len(self.members) <= 5 else f", … {len(self.members)} keys"
        return f"Static([{', '.join(short(key) for key in self.members[:5])}{more}])"

    def check(self, key: PartitionKey, now: datetime | AsOf | None = None) -> PartitionKey:  # noqa: ARG002 - the list is fixed
        """As `Definition.check`."""
        text = partitions.encode(key)
        if text not in self._by_text:
            shown = [self.show(each) for each in self.members[:_NEAR]]
            hint = did_you_mean(str(key), shown) or f"The keys are {', '.join(shown[:10])}" + (
                "." if len(shown) <= 10 else ", …"
            )
            self.refuse(key, "it is not in the list", hint)
        return self._by_text[text]

    def parse(self, text: str) -> PartitionKey:
        """As `Definition.parse`: a key as it is, as it is shown, or its encoded text."""
        if partitions.encode(text) in self._by_text:
            return text
        return self._by_shown.get(text, self._by_text.get(text, text))

    def show(self, key: PartitionKey) -> str:
        """As `Definition.show`."""
        shown = _plainly(key)
        return shown if self._by_shown.get(shown) is key or key == shown else partitions.encode(key)

    def keys(self, now: datetime | AsOf | None = None) -> Iterator[PartitionKey]:  # noqa: ARG002 - the list is fixed
        """As `Definition.keys`; the moment makes no difference."""
        return iter(self.members)

    def range(
        self, first: PartitionKey = None, last: PartitionKey = None, now: datetime | AsOf | None = None
    ) -> Iterator[PartitionKey]:
        """As `Definition.range`, by the places in the list."""
        low = 0 if first is None else self._place(self.read(first))
        high = len(self.members) - 1 if last is None else self._place(self.read(last))
        if high < low:
            backwards(first, last)
        return islice(self.keys(now), low, high + 1)

    def previous(self, key: PartitionKey, n: int = 1) -> PartitionKey:
        """As `Definition.previous`, by the places in the list."""
        place = self._place(key) - n
        return self.members[place] if 0 <= place < len(self.members) else None

    def _place(self, key: PartitionKey) -> int:
        return self._places[partitions.encode(self.check(key))]


def _text_of(key: PartitionKey) -> str:
    if key is None:
        wrong("None is no partition's key", "None stands for an asset without partitions.")
    try:
        return partitions.encode(key)
    except InvalidPartition as error:
        return wrong(error.message, error.hint or "")


def _shown_once(by_text: Mapping[str, PartitionKey]) -> dict[str, PartitionKey]:
    """Each key by its plain text, where that is no other key's too."""
    shown: dict[str, list[PartitionKey]] = {}
    for key in by_text.values():
        shown.setdefault(_plainly(key), []).append(key)
    return {text: keys[0] for text, keys in shown.items() if len(keys) == 1}


def _plainly(key: PartitionKey) -> str:
    return key.isoformat() if isinstance(key, date) else str(key)


# --- keys that come and go --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Dynamic(Definition):
    """Keys that are added and removed while the system runs; any text can be one. They are rows, shared by all who use the name."""

    name: str
    ordered: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the name.

        Raises:
            InvalidOption: it is no text of at most 255 bytes without spaces around it.
        """
        name: object = self.name
        right = isinstance(name, str) and name and name == name.strip() and "\x00" not in name
        if not right or len(self.name.encode("utf-8", "replace")) > _NAME_BYTES:
            wrong(
                f"the name of a dynamic definition is text of at most {_NAME_BYTES} bytes, not {name!r:.80}",
                'Write for example Dynamic("customers").',
            )

    def __repr__(self) -> str:
        """The name."""
        return f"Dynamic({self.name!r})"

    def check(self, key: PartitionKey, now: datetime | AsOf | None = None) -> PartitionKey:
        """As `Definition.check`; whether the key has been added is asked only where `now` is given."""
        if not isinstance(key, str):
            self.refuse(key, f"its keys are texts, and this is {type(key).__name__}", "Use str(key).")
        partitions.encode(key)
        known = None if now is None else AsOf.of(now).dynamic(self.name)
        if known is not None and key not in known:
            near = did_you_mean(key, islice(known, _NEAR)) or f"There are {len(known)} keys."
            self.refuse(
                key,
                "it has not been added",
                f"{near} Add it: fs.partitions.add({self.name!r}, {short(key)}).",
            )
        return str.__str__(key)

    def parse(self, text: str) -> PartitionKey:
        """As `Definition.parse`: every text is the key itself."""
        return str.__str__(text)

    def show(self, key: PartitionKey) -> str:
        """As `Definition.show`."""
        return str(key)

    def keys(self, now: datetime | AsOf) -> Iterator[PartitionKey]:
        """As `Definition.keys`, in the order of their text."""
        return iter(AsOf.of(now).dynamic(self.name))

    def range(
        self, first: PartitionKey = None, last: PartitionKey = None, now: datetime | AsOf | None = None
    ) -> Iterator[PartitionKey]:
        """As `Definition.range`: the keys whose text lies between the two; `now` must be given."""
        if now is None:
            wrong(f"the keys of {self} change", "Say as of when: range(…, now=…).")
        if first is not None and last is not None and str(last) < str(first):
            backwards(first, last)
        known = AsOf.of(now).dynamic(self.name)
        return (
            key
            for key in known
            if (first is None or key >= str(first)) and (last is None or key <= str(last))
        )
