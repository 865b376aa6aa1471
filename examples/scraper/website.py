"""A web site to scrape, on this machine: slow, sometimes busy, and with pages that are gone."""

from __future__ import annotations

import asyncio
import random
import sys
from http import HTTPStatus

_SECTIONS = ("news", "prices", "recipes", "people")
_WORDS = ("tea", "cake", "mug", "spoon", "kettle", "sugar", "cup", "table")
_GONE = 73
_BUSY = 17


class Site:
    """So many pages; each 73rd is gone, each 17th is busy when it is asked for the first time."""

    def __init__(self, size: int) -> None:
        self.paths = [f"/{_SECTIONS[number % len(_SECTIONS)]}/{number}" for number in range(1, size + 1)]
        self._asked: set[int] = set()

    def answer(self, path: str) -> tuple[HTTPStatus, str]:
        """What the site says to a request."""
        if path == "/sitemap.txt":
            return HTTPStatus.OK, "\n".join(self.paths)
        number = int(path.rpartition("/")[2])
        first = number not in self._asked
        self._asked.add(number)
        if number % _GONE == 0:
            return HTTPStatus.GONE, "It was here."
        if number % _BUSY == 0 and first:
            return HTTPStatus.SERVICE_UNAVAILABLE, "Come again."
        return HTTPStatus.OK, self._page(number)

    def _page(self, number: int) -> str:
        chance = random.Random(number)
        text = " ".join(chance.choices(_WORDS, k=chance.randint(20, 200)))
        links = "".join(f'<a href="{path}">more</a>' for path in chance.sample(self.paths[:40], 3))
        return f"<html><title>Page {number}</title><p>{text}</p>{links}</html>"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, after a while, as sites do."""
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        status, body = self.answer(request.split(None, 2)[1])
        await asyncio.sleep(0.02)
        writer.write(f"HTTP/1.0 {status.value} {status.phrase}\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()


async def main(size: int, port: int) -> None:
    """Tell the address on one line, and serve until somebody ends this process."""
    server = await asyncio.start_server(Site(size).serve, "127.0.0.1", port, backlog=512)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(
        main(
            int(sys.argv[1]) if len(sys.argv) > 1 else 2_000, int(sys.argv[2]) if len(sys.argv) > 2 else 8642
        )
    )
