"""From a request for assets to a run with its steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flowstone_celery import codec
from flowstone_celery.assets.deadline import seconds_until
from flowstone_celery.assets.handler import KIND, UNLESS_FRESH
from flowstone_celery.assets.inputs import PLANNED_AT
from flowstone_celery.assets.options import OPTIONS, Maker, seconds_of
from flowstone_celery.assets.plain import plain_object
from flowstone_celery.assets.slices import Need, Slice, Slices
from flowstone_celery.core.model import NewRun, NewStep, json_text
from flowstone_celery.errors import InvalidOption, InvalidValue, UnknownOption, did_you_mean

if TYPE_CHECKING:
    from flowstone_celery.assets.asset import AssetSpec
    from flowstone_celery.assets.catalog import Catalog
    from flowstone_celery.assets.definitions import AsOf

QueueOf = Callable[["AssetSpec"], str]

_TEXTS = ("key", "requested_by", "correlation_id", "tenant")
_REQUEST_OPTIONS = (*_TEXTS, "queue", "priority", "metadata", "delay", "deadline", "lane", "lane_width")
_OTHER_WORDS = ("inline", "connection", "partition", "force", "with_deps")
_LONGEST_TEXT = 255
_LONGEST_NAME = 1_000


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for: slices, with the options of the call."""

    targets: Sequence[Slice]
    only: Collection[Slice] | None = None
    """Which slices of the targets' ancestry are made; None: all of them."""
    priority: int | None = None
    queue: str | None = None
    due_in: float = 0.0
    unless_fresh: Collection[Slice] = ()
    """Those slices whose value that stands will do, if it is fresh by the time that their turn comes; the others are made in any case."""
    key: str | None = None
    """Idempotency key: a second request with the same key and content answers the same run."""
    requested_by: str = ""
    tenant: str = ""
    correlation_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    lane: str | None = None
    """Runs of one lane go one after the other, in the order of their start."""
    lane_width: int = 1
    """How many of the lane's runs go at a time."""
    deadline_in: float | None = None
    """Seconds from its start after which the run ends as failed."""

    @property
    def digest(self) -> str:
        """What two requests with the same key must share: readable where it is short, so that a difference can be told.

        The deadline is no part of it: the same moment is another number of seconds each time it is asked for.
        """
        parts = {
            "slices": [list(each) for each in self.targets],
            "queue": self.queue,
            "priority": self.priority,
            "metadata": dict(self.metadata),
            "lane": self.lane,
        }
        return json_text({name: _brief(part) for name, part in parts.items() if part not in (None, {})}) or ""

    @property
    def name(self) -> str:
        """The assets' names; of many the first, and how many others: runs are looked up by it, and an index takes no long text."""
        names = list(dict.fromkeys(each.asset for each in self.targets))
        text = ",".join(names)
        return text if len(text) <= _LONGEST_NAME else f"{names[0]} and {len(names) - 1} others"

    @property
    def partition(self) -> str:
        """The partition's text, if all targets have the same; else the empty text."""
        found = {each.partition for each in self.targets}
        return found.pop() if len(found) == 1 else ""


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a call that starts a run, as fields of a `Request`; those that are None count as not given.

    Raises:
        UnknownOption: a name that is no option, with the nearest one.
        InvalidOption: a value that an option cannot have.
    """
    for name in options:
        if name not in _REQUEST_OPTIONS:
            words = [word for word in (*_REQUEST_OPTIONS, *_OTHER_WORDS) if word != name]
            hint = did_you_mean(name, words) or f"Options: {', '.join(_REQUEST_OPTIONS)}, inline."
            raise UnknownOption(f"this way to start a run has no option {name!r}", hint=hint, option=name)
    given = {name: _option(name, value) for name, value in options.items() if value is not None}
    renamed = {"delay": "due_in", "deadline": "deadline_in"}
    return {renamed.get(name, name): value for name, value in given.items()}


def _brief(part: Any) -> Any:
    return part if len(json_text(part) or "") <= _LONGEST_TEXT else codec.digest(part)


def _option(name: str, value: Any) -> Any:
    if name == "metadata":
        try:
            return plain_object(value, "metadata of a run")
        except InvalidValue as error:
            raise InvalidOption(error.message, hint=error.hint, option=name) from None
    if name == "deadline":
        return seconds_until(value)
    what, example, read = _RULES[name]
    try:
        return read(value)
    except ValueError:
        raise InvalidOption(
            f"{name} of a run is {what}, not {value!r:.80}", hint=f"Write for example {example}.", option=name
        ) from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\x00" in value or len(value.encode("utf-8")) > _LONGEST_TEXT:
        raise ValueError
    return value


def _width(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise ValueError
    return value


_A_TEXT = f"text of at most {_LONGEST_TEXT} bytes"
_RULES: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    **{
        name: (OPTIONS[name].is_, OPTIONS[name].example, OPTIONS[name].read) for name in ("queue", "priority")
    },
    **{name: (_A_TEXT, f'{name}="nightly-2026-11-20"', _text) for name in _TEXTS},
    "delay": ("a number of seconds from 0 up, or a timedelta", "delay=90", seconds_of),
    "lane": (OPTIONS["queue"].is_, 'lane="customer-17"', OPTIONS["queue"].read),
    "lane_width": ("a whole number from 1 up", "lane_width=2", _width),
}


def plan(catalog: Catalog, request: Request, queue_of: QueueOf, as_of: AsOf | None = None) -> NewRun:
    """A run that makes the wanted slices in dependency order, each in one step.

    Args:
        catalog: the assets.
        request: what is asked for.
        queue_of: answers the queue of an asset.
        as_of: the moment, with the keys of dynamic definitions; by default the present one, without any.

    Raises:
        InvalidMapping: a slice needs what is no partition of its dependency.
        InvalidPartition: the partition of a slice is none of its asset, or its time has not come.
    """
    slices, only = Slices(catalog, as_of), request.only
    planned = slices.plan(request.targets, lambda each: only is None or each in only)
    if only is not None:
        planned = {each: needs for each, needs in planned.items() if each in only}
    positions = {each: position for position, each in enumerate(planned)}
    return NewRun(
        kind=KIND,
        name=request.name,
        partition=request.partition,
        steps=[_step(catalog, each, needs, positions, request, queue_of) for each, needs in planned.items()],
        tenant=request.tenant,
        requested_by=request.requested_by,
        idempotency_key=request.key,
        request_digest=request.digest,
        priority=request.priority or 0,
        correlation_id=request.correlation_id,
        input=_input(request, slices.as_of),
        lane=request.lane,
        lane_width=request.lane_width,
        deadline_in=request.deadline_in,
    )


def _input(request: Request, as_of: AsOf) -> dict[str, Any] | None:
    """What the run's steps read: its metadata, and the moment of the plan where the plan depends on it."""
    found: dict[str, Any] = {"metadata": dict(request.metadata)} if request.metadata else {}
    if as_of.asked:
        found[PLANNED_AT] = as_of.now.isoformat()
    return found or None


def _step(
    catalog: Catalog,
    slice_: Slice,
    needed: Sequence[Need],
    positions: Mapping[Slice, int],
    request: Request,
    queue_of: QueueOf,
) -> NewStep:
    spec = catalog.fetch(slice_.asset)
    needs = {
        positions[each]: need.dependency.optional
        for need in needed
        for each in need.slices
        if each in positions
    }
    return NewStep(
        kind=KIND,
        name=slice_.asset,
        task=slice_.asset,
        queue=request.queue or queue_of(spec),
        partition=slice_.partition,
        priority=spec.priority if request.priority is None else request.priority,
        needs=needs,
        max_failures=spec.retries + 1,
        timeout=spec.timeout,
        retry=spec.retry,
        code_digest=spec.code_digest,
        due_in=request.due_in if not needs else 0.0,
        sole=spec.maker != Maker.ALLOW,
        input=UNLESS_FRESH if spec.maker == Maker.SHARE and slice_ in request.unless_fresh else None,
    )
