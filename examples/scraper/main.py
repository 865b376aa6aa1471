"""Scrape a site of 2,000 pages with a real worker; servers, site and worker are started here and stopped at the end.

python examples/scraper/main.py              # SCRAPER_PAGES=200 for a smaller site
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flowstone_celery.embedded import servers

HERE = Path(__file__).parent
PAGES = os.environ.get("SCRAPER_PAGES", "2000")


@contextmanager
def process(*command: str, **options: object) -> Iterator[subprocess.Popen[str]]:
    """In the block this Python runs so in another process."""
    started = subprocess.Popen([sys.executable, *command], cwd=HERE, text=True, **options)  # type: ignore[call-overload]
    try:
        yield started
    finally:
        started.terminate()
        started.wait(30)


def flowstone(*words: str) -> None:
    """A command as it is typed on a terminal."""
    print(f"\n$ flowstone {' '.join(words)}", flush=True)
    command = [sys.executable, "-m", "flowstone_celery.cli.main", *words]
    subprocess.run(command, cwd=HERE, check=True, stderr=subprocess.STDOUT)


def main(folder: Path) -> None:
    """Tell the story."""
    with ExitStack() as things:
        found = servers.up(folder)
        things.callback(servers.down, folder)
        os.environ.update(
            FLOWSTONE_DATABASE_URL=found.database_url,
            FLOWSTONE_REDIS_URL=found.redis_url,
            CELERY_BROKER_URL=found.broker_url,
            FLOWSTONE_APP="scraper",
        )
        site = things.enter_context(process("website.py", PAGES, "0", stdout=subprocess.PIPE))
        assert site.stdout
        os.environ["SCRAPER_SITE"] = site.stdout.readline().strip()
        flowstone("db", "migrate")
        log = things.enter_context((folder / "worker.log").open("w"))
        worker = ("-m", "celery", "-A", "scraper", "worker", "--concurrency", "2")
        things.enter_context(process(*worker, stdout=log, stderr=log))

        flowstone("asset", "run", "report", "--timeout", "120s")
        flowstone("scatter", "ls")
        flowstone("scatter", "items", "1", "--status", "failed", "--limit", "3")
        flowstone("asset", "get", "report")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        main(Path(home))
