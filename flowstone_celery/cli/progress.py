"""How far a long act is, on the terminal."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from flowstone_celery.cli.show import console

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def counted(word: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar stands on stderr while the block works, told by the number that is done; nothing where nobody looks."""
    output = console(err=True)
    if not output.is_terminal or not total:
        yield lambda _: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output, transient=True) as bar:
        task = bar.add_task(word, total=total)
        yield lambda done: bar.update(task, completed=done)
