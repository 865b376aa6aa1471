"""Definitions of partitions: their keys, the time that keys stand for, and what cannot be one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from itertools import islice, pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstone_celery import Cron, Daily, Dynamic, Hourly, Monthly, Multi, Static, Weekly
from flowstone_celery.assets import partition as partitions
from flowstone_celery.assets.definitions import AsOf, Definition
from flowstone_celery.assets.windows import TimeWindows
from flowstone_celery.errors import InvalidOption, InvalidPartition

ZONES = ["UTC", "Europe/Prague", "America/New_York", "Australia/Lord_Howe"]
KINDS: dict[str, Callable[..., TimeWindows]] = {
    "day": Daily,
    "week": Weekly,
    "thursday": lambda *args, **options: Weekly(*args, weekday="thursday", **options),
    "month": Monthly,
    "hour": Hourly,
    "cron once a day": lambda *args, **options: Cron("30 2 * * *", *args, **options),
    "cron each 20 minutes": lambda *args, **options: Cron("*/20 * * * *", *args, **options),
    "cron on workdays": lambda *args, **options: Cron("15 0,13 * * 1-5", *args, **options),
}
PRAGUE = ZoneInfo("Europe/Prague")
days = st.dates(date(2020, 1, 1), date(2031, 12, 31))
texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=("Cs",)), max_size=40)


@st.composite
def windows(draw: st.DrawFn) -> TimeWindows:
    kind, start = draw(st.sampled_from(sorted(KINDS))), draw(days)
    return KINDS[kind](start, tz=draw(st.sampled_from(ZONES)), current=draw(st.booleans()))


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


# --- windows of time ------------------------------------------------------------------------------------------------------------------


@given(definition=windows(), hours=st.integers(0, 24 * 200))
@settings(max_examples=150, deadline=None)
def test_windows_tile_the_time_from_the_start_to_now(definition: TimeWindows, hours: int) -> None:
    first = definition.window(definition.first).start.astimezone(UTC)
    now = first + timedelta(hours=hours if isinstance(definition, Daily | Weekly | Monthly) else hours % 200)
    spans = [definition.window(key) for key in definition.keys(now)]
    ends = [first, *(span.end.astimezone(UTC) for span in spans)]
    assert [span.start.astimezone(UTC) for span in spans] == ends[:-1]
    assert all(span.length > timedelta(0) for span in spans)
    # What comes next has not ended, or, where the one under way counts, has not begun.
    following = definition.window(
        next(
            iter(
                definition.overlapping(
                    definition.window(definition.first)._replace(
                        start=ends[-1], end=ends[-1] + timedelta(microseconds=1)
                    )
                )
            )
        )
    )
    assert (following.start if definition.current else following.end).astimezone(UTC) > now


@given(definition=windows(), count=st.integers(1, 60))
@settings(max_examples=150, deadline=None)
def test_a_key_is_the_same_after_its_text_its_encoding_and_its_neighbors(
    definition: TimeWindows, count: int
) -> None:
    in_order = list(islice(definition.range(now=utc("2041-01-01T00:00+00:00")), count))
    for key in in_order:
        assert definition.check(key) == key
        assert definition.parse(definition.show(key)) == key
        assert definition.read(definition.show(key)) == key
        assert definition.check(partitions.decode(partitions.encode(key))) == key
    assert in_order == sorted(in_order)  # type: ignore[type-var]  # all dates, or all datetimes
    for before, behind in pairwise(in_order):
        assert definition.previous(behind) == before
        assert definition.previous(before, -1) == behind
    assert definition.previous(in_order[0]) is None
    assert definition.previous(in_order[-1], len(in_order) - 1) == in_order[0]
    assert definition.previous(in_order[-1], len(in_order)) is None


@given(definition=windows(), ahead=st.integers(-20, 20), length=st.integers(0, 20))
@settings(max_examples=100, deadline=None)
def test_a_range_holds_what_lies_between_its_bounds(definition: TimeWindows, ahead: int, length: int) -> None:
    begin, unit = (
        definition.first,
        timedelta(hours=7) if isinstance(definition.first, datetime) else timedelta(days=1),
    )
    first, last = begin + ahead * unit, begin + (ahead + length) * unit
    if isinstance(first, datetime):
        first += timedelta(minutes=13)
    expected = [key for key in definition.range(last=max(first, last)) if first <= key <= last]
    assert list(definition.range(first, max(first, last))) == expected or last < first


@pytest.mark.parametrize("zone", ZONES)
@given(day=days)
@settings(max_examples=60, deadline=None)
def test_hours_are_the_hours_that_the_clocks_of_the_zone_show(zone: str, day: date) -> None:
    """Oracle: minute by minute, another hour begins where the clock shows another one, or has been set."""
    tz = ZoneInfo(zone)
    definition = Hourly(day, tz=zone)
    begin = definition.window(definition.first).start.astimezone(UTC)
    moments = [begin + timedelta(minutes=minute) for minute in range(0, 60 * 26, 15)]
    shown = [
        (local.replace(minute=0, tzinfo=None, fold=0), local.utcoffset())
        for local in (each.astimezone(tz) for each in moments)
    ]
    begun = [moments[0]] + [
        moment for moment, was, is_ in zip(moments[1:], shown, shown[1:], strict=False) if was != is_
    ]
    assert list(definition.range(last=moments[-1])) == begun


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Prague", "2026-03-29", 23),
        ("Europe/Prague", "2026-10-25", 25),
        ("America/New_York", "2026-03-08", 23),
        ("America/New_York", "2026-11-01", 25),
        ("Australia/Lord_Howe", "2026-10-04", 23.5),
        ("Australia/Lord_Howe", "2026-04-05", 24.5),
        ("America/Sao_Paulo", "2018-11-04", 23),  # midnight itself is skipped
        ("America/Havana", "2026-11-01", 25),  # midnight comes twice: the day begins with the first
    ],
)
def test_a_day_on_which_clocks_are_set_is_shorter_or_longer(zone: str, day: str, hours: float) -> None:
    window = Daily("2015-01-01", tz=zone).window(date.fromisoformat(day))
    assert window.length == timedelta(hours=hours)
    assert (window.start.tzinfo, window.start.date()) == (ZoneInfo(zone), date.fromisoformat(day))


def test_a_day_that_a_zone_left_out_is_no_partition() -> None:
    samoa = Daily("2011-12-28", "2012-01-01", tz="Pacific/Apia")
    assert [key.isoformat()[-5:] for key in samoa.range()] == ["12-28", "12-29", "12-31"]  # type: ignore[union-attr]
    assert samoa.previous(date(2011, 12, 31)) == date(2011, 12, 29)
    with pytest.raises(InvalidPartition, match="2011-12-30"):
        samoa.check(date(2011, 12, 30))


def test_the_hour_that_comes_twice_is_two_partitions_and_the_skipped_one_none() -> None:
    hourly = Hourly("2026-01-01", tz="Europe/Prague")
    first, second = (hourly.parse(f"2026-10-25T02:00+0{offset}:00") for offset in (2, 1))
    assert first != second
    assert partitions.encode(first) != partitions.encode(second)
    assert hourly.window(first).end.astimezone(UTC) == hourly.window(second).start.astimezone(UTC)
    with pytest.raises(InvalidPartition, match=r"twice.*02:00:00\+02:00 or 2026-10-25T02:00:00\+01:00"):
        hourly.parse("2026-10-25T02:00")
    with pytest.raises(InvalidPartition, match="skip it"):
        hourly.parse("2026-03-29T02:30")


def test_a_daily_cron_comes_once_where_its_hour_comes_twice_or_never() -> None:
    nightly = Cron("30 2 * * *", "2026-01-01", tz="Europe/Prague")
    autumn = list(nightly.range("2026-10-24", "2026-10-27"))
    assert [nightly.show(key) for key in autumn] == [
        "2026-10-24T02:30:00+02:00",
        "2026-10-25T02:30:00+02:00",
        "2026-10-26T02:30:00+01:00",
    ]
    spring = list(nightly.range("2026-03-28", "2026-03-31"))
    assert [nightly.show(key) for key in spring] == [
        "2026-03-28T02:30:00+01:00",
        "2026-03-29T03:00:00+02:00",
        "2026-03-30T02:30:00+02:00",
    ]


def test_a_window_counts_once_it_has_ended_or_where_asked_for_once_it_has_begun() -> None:
    now = utc("2026-11-20T15:00+01:00")
    ended, begun = (Daily("2026-11-18", tz="Europe/Prague", current=current) for current in (False, True))
    assert list(ended.keys(now)) == [date(2026, 11, 18), date(2026, 11, 19)]
    assert list(begun.keys(now)) == [date(2026, 11, 18), date(2026, 11, 19), date(2026, 11, 20)]
    assert ended.contains(date(2026, 11, 20))
    assert not ended.contains(date(2026, 11, 20), now)
    with pytest.raises(InvalidPartition, match=r"ends at 2026-11-21 00:00:00\+01:00"):
        ended.check(date(2026, 11, 20), now)


def test_the_first_window_begins_at_or_after_the_start_and_the_last_before_the_end() -> None:
    weekly = Weekly("2026-11-03", "2026-11-16")
    assert list(weekly.range()) == [date(2026, 11, 9)]
    monthly = Monthly("2026-01-02", "2026-04-02")
    assert list(monthly.range()) == [date(2026, month, 1) for month in (2, 3, 4)]


def test_a_refusal_names_what_is_wrong_the_nearest_key_and_the_range() -> None:
    weekly = Weekly("2026-11-02", "2026-12-01", tz="Europe/Prague")
    for key, said in {
        date(2026, 11, 18): "no window begins there. The one that holds it is 2026-11-16.",
        date(2026, 10, 26): "it lies before the first. The first is 2026-11-02.",
        date(2026, 12, 7): "it lies behind the last. The last is 2026-11-30.",
        date(1, 1, 1): "its year is not one from 1900 to 9000",
        datetime(2026, 11, 16, tzinfo=UTC): "its keys are dates, and this is datetime",
        7: "its keys are dates, and this is int",
    }.items():
        with pytest.raises(InvalidPartition) as refusal:
            weekly.check(key)
        assert said in str(refusal.value)
        assert "Weekly('2026-11-02', end='2026-12-01', tz='Europe/Prague')" in str(refusal.value)


# --- lists, dynamic keys, several dimensions ------------------------------------------------------------------------------------------


@given(
    keys=st.lists(
        st.one_of(texts, st.integers(), st.booleans(), days),
        min_size=1,
        max_size=12,
        unique_by=partitions.encode,
    )
)
def test_a_list_has_its_keys_in_its_order_and_reads_what_it_shows(keys: list[Any]) -> None:
    definition = Static(keys)
    assert list(definition.keys()) == keys
    for key in keys:
        read = definition.read(definition.show(key))
        assert (read, type(read)) == (key, type(key))
    assert list(definition.range(keys[0], keys[-1])) == keys
    assert [definition.previous(key) for key in keys] == [None, *keys[:-1]]


@given(keys=st.sets(texts, max_size=8))
def test_any_text_can_be_a_dynamic_key(keys: set[str]) -> None:
    definition, now = Dynamic("customers"), AsOf(datetime.now(UTC), lambda _: keys)
    assert list(definition.keys(now)) == sorted(keys)
    for key in keys:
        assert definition.read(key, now) == key
        assert definition.parse(definition.show(key)) == key
        assert partitions.decode(partitions.encode(key)) == key


def test_a_dynamic_key_is_a_text_without_nul_that_has_been_added() -> None:
    definition, now = Dynamic("customers"), AsOf(datetime.now(UTC), lambda _: ["acme", "zoo"])
    with pytest.raises(InvalidPartition, match=r"has not been added\. Did you mean 'acme'\?"):
        definition.check("acmee", now)
    with pytest.raises(InvalidPartition, match="NUL"):
        definition.check("a\0b")
    with pytest.raises(InvalidPartition, match="texts"):
        definition.check(7)
    assert list(definition.range("b", now=now)) == ["zoo"]


parts = st.sampled_from(["eu", "us", "a|b", "t:x", "s:y", "d:2026-01-01", "🎈 x\n", ""])


@given(region=st.sets(parts, min_size=1), day=st.dates(date(2026, 1, 1), date(2026, 3, 1)))
def test_a_key_of_several_dimensions_reads_what_it_shows(region: set[str], day: date) -> None:
    definition = Multi(region=Static(sorted(region)), day=Daily("2026-01-01"))
    for name in region:
        assert definition.read(definition.show((name, day))) == (name, day)
        assert definition.read((name, day.isoformat())) == (name, day)


def test_dimensions_multiply_in_their_order() -> None:
    definition = Multi(day=Daily("2026-11-01"), region=Static(["eu", "us"]))
    now = utc("2026-11-03T12:00+00:00")
    first, second = date(2026, 11, 1), date(2026, 11, 2)
    assert list(definition.keys(now)) == [(first, "eu"), (first, "us"), (second, "eu"), (second, "us")]
    assert list(definition.range((second, None), (second, "eu"), now)) == [(second, "eu")]  # type: ignore[arg-type]
    assert definition.named((first, "eu")) == {"day": first, "region": "eu"}
    assert definition.window((first, "eu")) == Daily("2026-11-01").window(first)
    assert definition.previous((second, "us")) == (first, "us")
    assert definition.previous((first, "us")) is None
    with pytest.raises(InvalidPartition, match=r"dimension 'region': 'uk'.*eu, us"):
        definition.check((first, "uk"))
    with pytest.raises(InvalidPartition, match=r"tuple of 2 parts"):
        definition.check(first)


# --- what cannot be ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: Daily("2026-11-02", "2026-11-01"), "has no window"),
        (lambda: Daily("2026-11-02", "2026-11-02"), "has no window"),
        (lambda: Monthly("2026-11-02", "2026-11-30"), "has no window"),
        (lambda: Daily("2026-11-02", tz="Europe/Pragu"), "Did you mean 'Europe/Prague'"),
        (lambda: Daily("2026-11-02", tz="../etc/passwd"), "there is no time zone"),
        (lambda: Daily(datetime(2026, 11, 2, tzinfo=UTC)), "start of Daily is a date"),
        (lambda: Daily("next week"), "start of Daily is a date"),
        (lambda: Hourly(7), "start of Hourly is a date or datetime"),  # type: ignore[arg-type]
        (lambda: Weekly("2026-11-02", weekday="mnday"), "Did you mean 'monday'"),
        (lambda: Cron("61 * * * *", "2026-11-02"), "no cron expression"),
        (lambda: Cron("* * * *", "2026-11-02"), "no cron expression of five fields"),
        (lambda: Cron("R R * * *", "2026-11-02"), "no cron expression of five fields"),
        (lambda: Cron("0 0 30 2 *", "2026-11-02"), "ever comes"),
        (lambda: Static([]), "without a key"),
        (lambda: Static(["a", "b", "a"]), "twice"),
        (lambda: Static("abc"), "takes a list"),
        (lambda: Static([None]), "None is no partition's key"),
        (lambda: Static([1.5]), "a partition key is"),  # type: ignore[list-item]
        (lambda: Dynamic(""), "text of at most 255 bytes"),
        (Multi, "two dimensions or more"),
        (lambda: Multi(day=Daily("2026-01-01")), "two dimensions or more"),
        (lambda: Multi(a=Static([1]), b=Multi(c=Static([1]), d=Static([2]))), "a Multi itself"),
        (lambda: Multi(a=Static([1]), b=["x"]), "no definition"),  # type: ignore[arg-type]
    ],
)
def test_a_definition_that_cannot_be_is_told_where_it_stands(
    wrong: Callable[[], Definition], said: str
) -> None:
    with pytest.raises(InvalidOption) as refusal:
        wrong()
    assert said in str(refusal.value)


def test_a_range_backwards_or_without_an_end_is_refused() -> None:
    with pytest.raises(InvalidPartition, match="runs backwards"):
        Daily("2026-01-01").range("2026-02-02", "2026-01-01")
    with pytest.raises(InvalidPartition, match="has no end"):
        Daily("2026-01-01").range("2026-02-02")
    with pytest.raises(InvalidPartition, match="runs backwards"):
        Static(["a", "b"]).range("b", "a")


def test_definitions_that_say_the_same_are_equal() -> None:
    assert Daily("2026-01-01") == Daily(date(2026, 1, 1)) != Daily("2026-01-02")
    assert Cron("@daily", "2026-01-01") == Cron("0  0 * * *", "2026-01-01")
    assert hash(Multi(a=Static([1]), b=Static([2]))) == hash(Multi(a=Static([1]), b=Static([2])))
