"""Readers: keys are written while they are read, and who dies in the middle is followed by one who goes on from the checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from flowstone_celery import Batch, Context, FileReader, FlowStone, Reader, Scatter, SqlReader
from flowstone_celery.core import doctor
from flowstone_celery.errors import RunFailed

if TYPE_CHECKING:
    from flowstone_celery.config import Settings
    from flowstone_celery.testing.kit import TestKit


class Numbers(Reader):
    """Tells the numbers below `most`, ten at a time; it notes what is asked of it."""

    def __init__(self, most: int, asked: list[str], fails_at: int | None = None) -> None:
        self.most, self.asked, self.fails_at = most, asked, fails_at
        self.next = 0

    def init(self) -> None:
        self.asked.append("init")

    def read(self, limit: int) -> Sequence[int]:
        if self.fails_at is not None and self.next >= self.fails_at:
            self.asked.append("fail")
            raise ConnectionError("the table is away")
        first, self.next = self.next, min(self.next + 10, self.most)
        self.asked.append(f"read {first}")
        return list(range(first, self.next))

    def checkpoint(self) -> Mapping[str, Any]:
        return {"next": self.next}

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        self.next = checkpoint["next"]
        self.asked.append(f"restore {self.next}")

    def close(self) -> None:
        self.asked.append("close")


def numbers(fs: FlowStone, make: Any, **options: Any) -> tuple[Any, list[Any]]:
    """An asset over what this reader tells, and the items that were made."""
    made: list[Any] = []

    def page(item: Any) -> Any:
        made.append(item)
        return item

    pages = fs.asset(name="pages", scatter=Scatter(**options), retries=1, retry_delay=0)(page)
    pages.keys(make)
    return pages, made


def test_a_reader_is_opened_read_to_its_end_and_closed(fs: FlowStone) -> None:
    asked: list[str] = []
    pages, made = numbers(fs, lambda: Numbers(25, asked))
    assert list(fs.run(pages).get()) == list(range(25))
    assert sorted(made) == list(range(25))
    assert asked == ["init", "read 0", "read 10", "read 20", "read 25", "close"]


def test_a_reader_that_fails_goes_on_from_its_checkpoint_in_the_next_attempt(fs: FlowStone) -> None:
    asked: list[str] = []
    pages, made = numbers(fs, lambda ctx: Numbers(25, asked, fails_at=20 if ctx.attempt == 1 else None))
    assert list(fs.run(pages).get()) == list(range(25))
    assert sorted(made) == list(range(25))
    assert asked == [
        "init",
        "read 0",
        "read 10",
        "fail",
        "close",
        "init",
        "restore 20",
        "read 20",
        "read 25",
        "close",
    ]


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_reader_whose_process_dies_after_a_page_goes_on_without_doubling_a_key(
    fs_test: TestKit, nth: int
) -> None:
    asked: list[str] = []
    pages, made = numbers(fs_test.fs, lambda: Numbers(25, asked))
    run = fs_test.start(pages)
    with fs_test.crash_at("scatter.page_added", nth=nth):
        fs_test.drain(run)
    fs_test.drain(run)
    value = run.get()
    assert list(value) == list(range(25))
    assert (value.counts.total, value.counts.collapsed) == (25, 0)
    assert sorted(made) == list(range(25))
    assert f"restore {min(10 * nth, 25)}" in asked


@pytest.mark.parametrize("unique", [True, False])
def test_an_iterable_whose_process_dies_is_read_again_without_doubling_a_key(
    fs_test: TestKit, unique: bool
) -> None:
    begun: list[int] = []

    def many(ctx: Context) -> Iterator[int]:
        begun.append(ctx.attempt)
        yield from range(7_000)

    pages, made = numbers(fs_test.fs, many, unique=unique)
    run = fs_test.start(pages)
    with fs_test.crash_at("scatter.page_added", nth=2):
        fs_test.drain(run)
    fs_test.drain(run)
    value = run.get()
    assert (len(begun), len(value), value.counts.total) == (2, 7_000, 7_000)
    assert sorted(made) == list(range(7_000))


def test_a_reader_that_fails_for_good_ends_its_run_and_leaves_no_item_at_work(fs: FlowStone) -> None:
    asked: list[str] = []
    pages, _ = numbers(fs, lambda: Numbers(25, asked, fails_at=20))
    run = fs.run(pages)
    with pytest.raises(RunFailed, match="the table is away"):
        run.get()
    assert asked.count("close") == 2
    run.retry()  # the next round goes on as well
    assert asked[-1] == "close"
    assert "restore 20" in asked[-3:]


def test_what_broke_a_reader_is_told_though_it_cannot_be_closed_either(fs: FlowStone) -> None:
    class Stuck(Numbers):
        def close(self) -> None:
            raise OSError("it is closed already")

    pages, _ = numbers(fs, lambda: Stuck(25, [], fails_at=20))
    with pytest.raises(RunFailed, match="the table is away"):
        fs.run(pages).get()


def test_an_iterable_that_tells_slowly_keeps_no_key_back_for_long(
    fs: FlowStone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowstone_celery.assets.page_by_page._SECONDS", -1.0)
    there: list[int] = []

    def slowly() -> Iterator[int]:
        for number in range(4):
            there.extend(scatter.progress().total for scatter in fs.scatters("pages"))
            yield number

    pages, made = numbers(fs, slowly)
    assert len(fs.run(pages).get()) == 4
    assert there == [1, 2, 3]
    assert sorted(made) == [0, 1, 2, 3]


def test_equal_keys_of_different_pages_collapse(fs: FlowStone) -> None:
    class Twice(Numbers):
        def read(self, limit: int) -> Sequence[int]:
            return [number % 15 for number in super().read(limit)]

    pages, made = numbers(fs, lambda: Twice(30, []))
    value = fs.run(pages).get()
    assert sorted(made) == list(range(15))
    assert (value.counts.total, value.counts.collapsed) == (15, 15)


def test_a_reader_that_vouches_for_its_keys_is_believed(fs: FlowStone) -> None:
    pages, _ = numbers(fs, lambda: Numbers(25, []), unique=False)
    assert list(fs.run(pages).get()) == list(range(25))


def test_a_reader_that_tells_nothing_is_an_empty_gathering(fs: FlowStone) -> None:
    pages, _ = numbers(fs, lambda: Numbers(0, []))
    assert list(fs.run(pages).get()) == []


def test_batches_end_where_a_reading_ends(fs: FlowStone) -> None:
    pages = fs.asset(name="pages", scatter=Scatter(batch=Batch(size=4)))(
        lambda items, ctx: [ctx.batch.index, *items]
    )
    pages.keys(lambda: Numbers(25, []))
    assert list(fs.run(pages).get()) == [
        [0, 0, 1, 2, 3],
        [1, 4, 5, 6, 7],
        [2, 8, 9],
        [3, 10, 11, 12, 13],
        [4, 14, 15, 16, 17],
        [5, 18, 19],
        [6, 20, 21, 22, 23],
        [7, 24],
    ]


class Halfway:
    """Has a checkpoint that nobody can go on from."""

    def read(self, limit: int) -> list[int]:
        return []

    def checkpoint(self) -> dict[str, int]:
        return {}


class Talking:
    """Answers what is no list."""

    def read(self, limit: int) -> Any:
        return "abc"


@pytest.mark.parametrize(
    ("reader", "sentence"),
    [
        (Halfway(), "the reader Halfway of asset 'test.pages' has checkpoint without the other"),
        (Talking(), "the reader Talking of asset 'test.pages' answered 'abc' from read(), which is no list"),
    ],
)
def test_a_reader_that_is_none_is_told(fs: FlowStone, reader: Any, sentence: str) -> None:
    pages, _ = numbers(fs, lambda: reader)
    with pytest.raises(RunFailed) as caught:
        fs.run(pages).get()
    assert sentence in str(caught.value)


def test_the_least_reader_has_read_alone(fs: FlowStone) -> None:
    class Least:
        def __init__(self) -> None:
            self.pages = [["a"], ["b", "c"], None]

        def read(self, limit: int) -> list[str] | None:
            return self.pages.pop(0)

    pages, _ = numbers(fs, lambda: Least())  # noqa: PLW0108 - a class declares nothing
    assert list(fs.run(pages).get()) == ["a", "b", "c"]


def test_rows_of_a_query_are_items(fs: FlowStone) -> None:
    fs.asset(name="hosts")(lambda: ["a", "b"])

    @fs.resource
    def warehouse() -> Iterator[sa.Engine]:
        engine = sa.create_engine(
            "sqlite://", poolclass=sa.pool.StaticPool, connect_args={"check_same_thread": False}
        )
        with engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE links (id INTEGER PRIMARY KEY, host TEXT)"))
            for number in range(1_200):
                connection.execute(
                    sa.text("INSERT INTO links (host) VALUES (:host)"), {"host": "abc"[number % 3]}
                )
        yield engine
        engine.dispose()

    pages = fs.asset(name="pages", scatter=Scatter(), requires=["warehouse"])(lambda item: item["id"])

    @pages.keys
    def links(warehouse: sa.Engine, hosts: list[str]) -> SqlReader:
        query = "SELECT id, host FROM links WHERE host IN (:one, :two)"
        return SqlReader(
            warehouse, query, cursor="id", parameters=dict(zip(("one", "two"), hosts, strict=True))
        )

    assert len(fs.run(pages).get()) == 800


def test_files_are_items(fs: FlowStone, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name * 2)
    pages = fs.asset(name="pages", scatter=Scatter())(lambda item: (tmp_path / item).read_text())
    pages.keys(lambda: FileReader("*.txt", root=tmp_path))
    assert list(fs.run(pages).get()) == ["a.txta.txt", "b.txtb.txt"]


_SHOP = """
    from pathlib import Path
    from flowstone_celery import FlowStone, Reader, Scatter

    class Numbers(Reader):
        next = 0
        def read(self, limit):
            first, self.next = self.next, min(self.next + 10, 45)
            return list(range(first, self.next))
        def checkpoint(self):
            return {"next": self.next}
        def restore(self, checkpoint):
            self.next = checkpoint["next"]
            print("restored", self.next)

    fs = FlowStone(mode="inline", namespace="shop")
    pages = fs.asset(name="pages", scatter=Scatter())(lambda item: item * 2)
    pages.keys(lambda: Numbers())
"""


def test_a_killed_process_is_followed_by_one_that_goes_on(flowstone_settings: Settings) -> None:
    dead = _python(
        f"{_SHOP}\n    fs.run(pages)", flowstone_settings, FLOWSTONE_FAULT="scatter.page_added:3:kill9"
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    text = f"""{_SHOP}
    run = fs.resume(fs.status(pages).run_id)
    value = run.get()
    print(list(value) == [2 * number for number in range(45)], value.counts)
    """
    alive = _python(text, flowstone_settings)
    assert alive.stdout == "restored 30\nTrue Counts(total=45, succeeded=45, failed=0, collapsed=0)\n", (
        alive.stderr
    )
    house = FlowStone(namespace="shop", mode="inline", settings=flowstone_settings)
    assert doctor.examine(house.database) == []
    house.close()


def _python(text: str, settings: Settings, **more: str) -> subprocess.CompletedProcess[str]:
    assert settings.database_url
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)],
        env={**os.environ, "FLOWSTONE_DATABASE_URL": settings.database_url, **more},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
