"""A scraper: every page of a web site is an item, fetched by coroutines side by side, tried again where it failed, and gathered.

`main.py` runs it by itself; README.md tells what it shows. SCRAPER_SITE names the site.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from celery import Celery

from flowstone_celery import Fail, FlowStone, Gathered, Retry, Scatter

app = Celery("scraper")
fs = FlowStone(app)

Page = dict[str, Any]
_SITE = os.environ.get("SCRAPER_SITE", "http://127.0.0.1:8642")
_TRIES_LATER = (429, 503)


@fs.asset
def urls() -> list[str]:
    """The pages that the site lists."""
    with urlopen(f"{_SITE}/sitemap.txt") as answer:
        return [f"{_SITE}{path}" for path in answer.read().decode().split()]


# Pages that are gone are no reason to throw the others away: 2 in a hundred may fail. What failed is listed, and can be retried alone.
@fs.asset(
    scatter=Scatter(
        over="urls", failure_threshold="2%", max_attempts=4, retry_delay=0.3, timeout=10, width=50
    )
)
async def pages(item: str) -> Page | Retry | Fail:
    """One page: its title, its words, where it links to."""
    status, body = await fetch(item)
    if status in _TRIES_LATER:
        return Retry(0.2, reason=f"{item} answered {status}")
    if status != 200:
        return Fail(f"{item} answered {status}")
    title = re.search("<title>(.*?)</title>", body)
    return {
        "section": urlsplit(item).path.split("/")[1],
        "title": title[1] if title else "",
        "words": len(re.sub("<[^>]*>", " ", body).split()),
        "links": re.findall('href="([^"]*)"', body),
    }


@pages.gather
def _(gathered: Gathered[Page]) -> dict[str, Any]:
    """The fold: results come page by page, however many there are."""
    found: Counter[str] = Counter()
    words: Counter[str] = Counter()
    links: Counter[str] = Counter()
    for page in gathered:
        found[page["section"]] += 1
        words[page["section"]] += page["words"]
        links.update(page["links"])
    sections = [{"section": name, "pages": found[name], "words": words[name]} for name in sorted(found)]
    gone = [{"url": failure.key, "why": failure.message} for failure in gathered.failed]
    return {"sections": sections, "gone": gone, "linked": links.most_common(3)}


@fs.asset
def report(pages: dict[str, Any]) -> str:
    """A small table for people."""
    rows = [
        ("section", "pages", "words"),
        *((s["section"], s["pages"], s["words"]) for s in pages["sections"]),
    ]
    lines = [f"{name:10}{count:>8}{words:>10}" for name, count, words in rows]
    linked = ", ".join(f"{path} ({times})" for path, times in pages["linked"])
    return "\n".join([*lines, f"linked most: {linked}", f"gone: {len(pages['gone'])}"])


async def fetch(url: str) -> tuple[int, str]:
    """Status and body. A real scraper uses a client from PyPI; the standard library has none that can be awaited."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(f"GET {parts.path} HTTP/1.0\r\nHost: {parts.netloc}\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    return int(head.split(None, 2)[1]), body.decode()
