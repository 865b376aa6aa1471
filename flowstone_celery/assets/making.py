"""Which slices the code that calls is making just now: a run of one of them would wait for its own maker for ever."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from flowstone_celery.assets.slices import Slice
from flowstone_celery.errors import DependencyCycle

_MAKING: ContextVar[tuple[Slice, ...]] = ContextVar("flowstone_making", default=())


@contextmanager
def making(slice_: Slice) -> Iterator[None]:
    """In the block this slice is being made, outermost first those around it."""
    token = _MAKING.set((*_MAKING.get(), slice_))
    try:
        yield
    finally:
        _MAKING.reset(token)


def is_making() -> bool:
    """Whether the code that calls is making a slice."""
    return bool(_MAKING.get())


def refuse_circle(awaited: Iterable[Slice]) -> None:
    """Return if none of these slices, of which only one maker is at work at a time, is being made by the code that waits for them.

    Raises:
        DependencyCycle: one is; names the way from it back to itself.
    """
    ahead = _MAKING.get()
    for slice_ in awaited if ahead else ():
        if slice_ in ahead:
            way = [each.asset for each in ahead[ahead.index(slice_) :]]
            raise DependencyCycle(
                f"{' -> '.join([*way, slice_.asset])}: the code that makes {slice_.asset!r} (partition {slice_.partition!r}) waits for "
                "a run that is to make the same, and would wait for itself",
                hint="Take the value as a dependency, do not wait for the run, or declare the asset with maker='allow'.",
                path=[*way, slice_.asset],
            )
