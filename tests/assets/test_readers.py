"""Readers tell everything once, page by page, and go on behind the place that they were told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from flowstone_celery import FileReader, Gathered, Reader, SqlReader
from flowstone_celery.assets.readers import is_reader
from flowstone_celery.assets.telling import elements_of
from flowstone_celery.errors import InvalidOption, InvalidValue


@pytest.fixture
def engine(tmp_path: Path) -> sa.Engine:
    """A table of links in a file: 25 rows, two for each host but one."""
    found = sa.create_engine(f"sqlite:///{tmp_path / 'links.db'}")
    with found.begin() as connection:
        connection.execute(sa.text("CREATE TABLE links (id INTEGER PRIMARY KEY, host TEXT, url TEXT)"))
        for number in range(1, 26):
            connection.execute(
                sa.text("INSERT INTO links VALUES (:id, :host, :url)"),
                {"id": number, "host": f"h{number // 2:02}", "url": f"/{number}"},
            )
    return found


def drained(reader: Reader, limit: int = 10) -> list[Any]:
    found: list[Any] = []
    while page := reader.read(limit):
        assert len(page) <= limit
        found += page
    return found


def opened(reader: Any) -> Any:
    reader.init()
    return reader


# --- SqlReader --------------------------------------------------------------------------------------------------------------------


def test_a_query_is_read_in_pages_behind_the_last_row(engine: sa.Engine) -> None:
    reader = opened(SqlReader(engine, "SELECT id, url FROM links;", cursor="id"))
    assert drained(reader) == [{"id": number, "url": f"/{number}"} for number in range(1, 26)]


def test_one_column_is_told_as_its_value_and_a_function_may_make_the_element(engine: sa.Engine) -> None:
    assert drained(opened(SqlReader(engine, "SELECT id FROM links", cursor="id")))[:2] == [1, 2]
    reader = opened(SqlReader(engine, "SELECT id, url FROM links", cursor="id", row=lambda row: row["url"]))
    assert drained(reader)[:2] == ["/1", "/2"]


def test_several_columns_are_one_cursor(engine: sa.Engine) -> None:
    query = sa.select(sa.column("host"), sa.column("id")).select_from(sa.table("links"))
    reader = opened(SqlReader(engine, query, cursor=["host", "id"]))
    assert [row["id"] for row in drained(reader, limit=3)] == list(range(1, 26))
    rest = opened(SqlReader(engine, query, cursor=["host", "id"], start_after=["h10", 20]))
    assert [row["id"] for row in drained(rest)] == [21, 22, 23, 24, 25]


def test_the_querys_own_parameters_are_bound(engine: sa.Engine) -> None:
    query = "SELECT id FROM links WHERE host = :host"
    assert drained(opened(SqlReader(engine, query, cursor="id", parameters={"host": "h07"}))) == [14, 15]


@pytest.mark.parametrize("read_before", [0, 1, 2])
def test_another_process_goes_on_behind_the_checkpoint(engine: sa.Engine, read_before: int) -> None:
    def reader() -> Any:
        return opened(SqlReader(str(engine.url), "SELECT id FROM links", cursor="id"))

    first = reader()
    seen = [each for _ in range(read_before) for each in first.read(10)]
    where = first.checkpoint()
    first.close()
    second = reader()
    if where is not None:
        second.restore(where)
    assert [*seen, *drained(second)] == list(range(1, 26))
    second.close()


def test_a_cursor_that_the_query_does_not_have_is_told(engine: sa.Engine) -> None:
    with pytest.raises(sa.exc.OperationalError, match="no such column: id"):
        opened(SqlReader(engine, "SELECT url FROM links", cursor="id")).read(1)
    for wrong in ("", [], [1], None):
        with pytest.raises(InvalidOption, match="cursor is the name of a column"):
            SqlReader(engine, "SELECT 1", cursor=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match=r"no column 'id', only 'Id'\. Did you mean 'Id'"):
        opened(SqlReader(engine, "SELECT id AS Id FROM links", cursor="id")).read(1)


@pytest.mark.parametrize("limit", [1, 2, 10])
@pytest.mark.parametrize(("ids", "why"), [("1, 1, 2", "two rows have"), ("1, 2, NULL", "a row has NULL")])
def test_a_cursor_that_would_pass_rows_over_is_told(
    engine: sa.Engine, ids: str, why: str, limit: int
) -> None:
    rows = " UNION ALL ".join(f"SELECT {each} AS id" for each in ids.split(", "))
    with pytest.raises(InvalidValue, match=f"the cursor id does not tell rows apart: {why}"):
        drained(opened(SqlReader(engine, rows, cursor="id")), limit=limit)


def test_what_a_query_reader_cannot_begin_with_is_refused_where_it_stands(engine: sa.Engine) -> None:
    for start_after in ("ab", [1], 5):
        with pytest.raises(InvalidOption, match="start_after is a list of 2 values"):
            SqlReader(engine, "SELECT 1", cursor=["id", "url"], start_after=start_after)
    with engine.connect() as connection, pytest.raises(InvalidOption, match="bind is an Engine"):
        SqlReader(connection, "SELECT 1", cursor="id")  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="start_after is a path"):
        FileReader("*", start_after=5)  # type: ignore[arg-type]


def test_a_table_is_a_query_of_all_its_rows(engine: sa.Engine) -> None:
    links = sa.Table("links", sa.MetaData(), autoload_with=engine)
    whole = drained(opened(SqlReader(engine, "SELECT * FROM links", cursor="id")), limit=3)
    assert drained(opened(SqlReader(engine, links, cursor="id")), limit=3) == whole  # type: ignore[arg-type]


# --- FileReader -------------------------------------------------------------------------------------------------------------------


def test_files_are_told_by_their_paths_in_order(tmp_path: Path) -> None:
    for name in ("b/2.csv", "a/1.csv", "a/10.csv", "c.txt", "b/deep/3.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "folder.csv").mkdir()
    found = ["a/1.csv", "a/10.csv", "b/2.csv", "b/deep/3.csv"]
    assert drained(opened(FileReader("**/*.csv", root=tmp_path)), limit=3) == found
    first = opened(FileReader("**/*.csv", root=tmp_path))
    assert first.checkpoint() is None
    assert first.read(2) == found[:2]
    second = opened(FileReader("**/*.csv", root=tmp_path))
    second.restore(first.checkpoint())
    assert drained(second) == found[2:]
    assert drained(opened(FileReader("**/*.csv", root=tmp_path, start_after="b/2.csv"))) == found[3:]


@pytest.mark.parametrize("pattern", ["../*.csv", "/etc/*", "a/../../b", "", 7])
def test_a_pattern_that_leads_out_of_its_root_is_refused(pattern: Any) -> None:
    with pytest.raises(InvalidOption, match="the pattern is a relative path below its root"):
        FileReader(pattern)


def test_a_root_that_is_not_there_is_told_when_it_is_opened(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="is no folder on this machine"):
        FileReader("*", root=tmp_path / "nowhere").init()


# --- what tells items ---------------------------------------------------------------------------------------------------------------


class Least:
    """The least that a reader is."""

    def read(self, limit: int) -> list[int]:
        return []


def test_a_reader_is_what_reads_and_is_not_iterated(tmp_path: Path) -> None:
    assert is_reader(Least())
    assert is_reader(FileReader("*"))
    with (tmp_path / "lines.txt").open("w+") as file:
        assert not is_reader(file)
    assert not is_reader([1])


def told(what: object) -> Any:
    return elements_of(what, asset="shop.pages", who="its keys")


def test_lists_iterables_readers_and_what_was_gathered_tell_items() -> None:
    least = Least()
    assert told([1, 2]) == [1, 2]
    assert told(range(2)) == range(2)
    assert told({"b", "a"}) == ["a", "b"]
    assert list(told(Gathered.for_test({"a": 1}))) == [1]
    assert list(told(each for each in "ab")) == ["a", "b"]
    assert told(least) is least


@pytest.mark.parametrize(
    ("nonsense", "hint"),
    [
        (None, "Answer a list"),
        ("https://…", "a list with it has one"),
        (b"raw", "a list with it has one"),
        ({"a": 1}, "list(d.items())"),
        (7, "Answer a list"),
        (Least, "It was never called: Least(…)"),
        (memoryview(b"raw"), "a list with it has one"),
    ],
)
def test_nonsense_is_told_with_what_it_is_and_what_to_answer(nonsense: object, hint: str) -> None:
    with pytest.raises(InvalidValue, match=r"asset 'shop\.pages' cannot scatter over") as caught:
        told(nonsense)
    assert "its keys answered" in str(caught.value)
    assert hint in str(caught.value)
