"""Which slices the code that calls is making just now: a run of one of them would wait for its own maker for ever."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar, Token

from flowstone_celery.assets.slices import Slice
from flowstone_celery.errors import DependencyCycle

_MAKING: ContextVar[tuple[Slice, ...]] = ContextVar("flowstone_making", default=())


class making:  # noqa: N801 - reads as a verb; a class, for it is entered once for each item of a scatter
    """In the block this slice is being made, outermost first those around it."""

    __slots__ = ("_slice", "_token")

    def __init__(self, slice_: Slice) -> None:
        """Change nothing yet."""
        self._slice = slice_

    def __enter__(self) -> None:
        """The slice is being made."""
        self._token: Token[tuple[Slice, ...]] = _MAKING.set((*_MAKING.get(), self._slice))

    def __exit__(self, *_: object) -> None:
        """It is not, any more."""
        _MAKING.reset(self._token)


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
