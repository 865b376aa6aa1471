"""A process of its own that does hands: `python -m handprocess URL NODE CODE FOLDER`, until its run has ended or it dies."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from corelab import QUEUE, Lab
from handlab import KNOWS, HandLab, Scatters

from flowstone_celery.config import load_settings
from flowstone_celery.core.interrupts import SIGNAL
from flowstone_celery.core.model import Place
from flowstone_celery.core.workers import Node
from flowstone_celery.db.database import Database

if TYPE_CHECKING:
    from flowstone_celery.core.barrier_model import ItemClaim


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def code_of(name: str, folder: Path) -> Any:
    """What the items do: each leaves a line in the file of its index; `poison` dies with item 5, `once` the first time only; `deaf` hangs there."""

    def code(item: ItemClaim) -> int:
        with (folder / str(item.index)).open("a") as lines:
            lines.write(f"{item.attempt}\n")
        if item.index == 5 and name == "deaf":
            time.sleep(600)  # nothing interrupts this process: it does not listen
        if item.index == 5 and (name == "poison" or (name == "once" and not (folder / "died").exists())):
            (folder / "died").touch()
            die()
        return item.index

    return code


def main() -> None:
    url, node, name, folder = sys.argv[1:]
    signal.signal(SIGNAL, signal.SIG_IGN)
    lab = Lab(Database(url, pool_size=5), load_settings(env_file=None, database_url=url, env="test"))
    kind = Scatters((), code_of(name, Path(folder)))
    here = Node(UUID(node), "lab@here", Place.here().pid, "prefork", (QUEUE,), KNOWS, 1)
    executor = HandLab(lab).executor(kind, here)
    while executor.work(None, QUEUE):
        pass


if __name__ == "__main__":
    main()
