"""Hours of the week in time zones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.core.errors import InvalidInput
from scrubjay.core.hours import (
    WeekHour,
    busiest,
    hour_at,
    hour_of_week,
    next_hour,
    parse_hour,
    parse_zone,
    past_hours,
)
from scrubjay.core.policy import HOUR, WEEK

BERLIN = ZoneInfo("Europe/Berlin")
KOLKATA = ZoneInfo("Asia/Kolkata")
ZONES = [UTC, BERLIN, KOLKATA, *map(ZoneInfo, ("America/Los_Angeles", "Australia/Lord_Howe", "Pacific/Apia"))]


def ms(text: str, zone: tzinfo = UTC) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=zone).timestamp() * 1000)


def texts(hours: list[int]) -> list[str]:
    return [datetime.fromtimestamp(each / 1000, UTC).strftime("%m-%dT%H:%M") for each in hours]


@pytest.mark.parametrize(
    ("text", "hour"),
    [
        ("mon 09:00", WeekHour(0, 540)),
        ("Monday 9", WeekHour(0, 540)),
        ("  sun 23:59 ", WeekHour(6, 1439)),
        ("TUESDAY 0:00", WeekHour(1, 0)),
        ("tue 1", WeekHour(1, 60)),
        ("wednesday 12:30", WeekHour(2, 750)),
        ("thursday 8", WeekHour(3, 480)),
        ("fri 17", WeekHour(4, 1020)),
        ("saturday 10:05", WeekHour(5, 605)),
    ],
)
def test_an_hour_is_read(text: str, hour: WeekHour) -> None:
    assert parse_hour(text) == hour
    assert parse_hour(str(hour)) == hour


@pytest.mark.parametrize(
    "text",
    ["", "mon", "09:00", "mon 24:00", "mon 9:60", "mon 9:5", "mo 9", "monkey 9", "mon 9:00 pm", "mon ٩", None, 9],
)
def test_what_is_no_hour(text: object) -> None:
    with pytest.raises(InvalidInput, match="such as 'mon 09:00'"):
        parse_hour(text)


@pytest.mark.parametrize("name", ["", "Europe", "Europe/Nowhere", "../etc/passwd", "/etc/localtime", "a\0b", None, 1])
def test_what_is_no_zone(name: object) -> None:
    with pytest.raises(InvalidInput, match="time zone"):
        parse_zone(name)
    assert parse_zone("UTC") is UTC
    assert parse_zone("Europe/Berlin") == BERLIN


def test_an_hour_of_the_week_is_another_one_of_utc_in_winter() -> None:
    # Clocks were put back on 26 October 2025.
    found = past_hours(parse_hour("mon 09:00"), BERLIN, ms("2025-11-04T12:00"), weeks=3)
    assert texts(found) == ["10-20T07:00", "10-27T08:00", "11-03T08:00"]


def test_the_hour_that_has_just_begun_counts_and_the_next_one_does_not() -> None:
    hour = parse_hour("mon 09:00")
    assert texts(past_hours(hour, UTC, ms("2025-11-03T09:00"), weeks=1)) == ["11-03T09:00"]
    assert texts(past_hours(hour, UTC, ms("2025-11-03T08:59"), weeks=1)) == ["10-27T09:00"]


def test_an_hour_that_lies_in_two_of_utc() -> None:
    found = past_hours(parse_hour("mon 09:00"), KOLKATA, ms("2025-11-04T12:00"), weeks=1)
    assert texts(found) == ["11-03T03:00", "11-03T04:00"]
    assert texts(past_hours(parse_hour("mon 09:15"), UTC, ms("2025-11-04T12:00"), weeks=1)) == [
        "11-03T09:00",
        "11-03T10:00",
    ]


def test_hours_that_come_twice_or_never() -> None:
    twice = past_hours(parse_hour("sun 02:00"), BERLIN, ms("2025-10-27T12:00"), weeks=1)
    assert texts(twice) == ["10-26T00:00", "10-26T01:00"]
    never = past_hours(parse_hour("sun 02:00"), BERLIN, ms("2025-03-31T12:00"), weeks=1)
    assert texts(never) == ["03-30T00:00", "03-30T01:00"], "it is taken for the hours on both sides"


@given(st.integers(0, 6), st.integers(0, 1439), st.sampled_from(ZONES), st.integers(0, 2**41), st.integers(1, 10))
def test_past_hours_are_that_hour(day: int, minute: int, zone: tzinfo, now_ms: int, weeks: int) -> None:
    found = past_hours(WeekHour(day, minute), zone, now_ms, weeks)
    assert weeks - 1 <= len(found) <= 4 * weeks + 2
    assert found == sorted(set(found))
    for each in found:
        assert each % HOUR == 0
        assert now_ms - weeks * WEEK - HOUR < each <= now_ms + HOUR
        # Some minute of it is in the hour that was asked for, by the zone's clock; give or take a change of clocks.
        began = datetime.fromtimestamp(each / 1000, zone)
        wanted = timedelta(days=day, minutes=minute)
        actual = timedelta(days=began.weekday(), minutes=began.hour * 60 + began.minute)
        distance = (wanted - actual) % timedelta(days=7)
        assert min(distance, timedelta(days=7) - distance) <= timedelta(hours=2)


@given(st.integers(0, 2**41))
def test_hours_of_the_week_begin_on_monday(at_ms: int) -> None:
    at = datetime.fromtimestamp(at_ms // 1000, UTC)
    assert hour_of_week(at_ms) == at.weekday() * 24 + at.hour


def test_the_busiest_hours() -> None:
    seen = {ms("2025-11-03T09:00"): 10, ms("2025-11-03T10:00"): 8, ms("2025-11-03T11:00"): 9, ms("2025-11-03T12:00"): 8}
    seen |= {ms("2025-11-04T09:00"): 4, ms("2025-11-05T07:00"): 3, ms("2025-11-12T07:00"): 3}
    found = [str(hour) for hour in busiest(seen, UTC, 3)]
    # Of equals the first; Tuesday is too quiet; Wednesday's hour has six users in two weeks.
    assert found == ["mon 09:00", "mon 10:00", "mon 11:00", "wed 07:00"]
    assert [str(hour) for hour in busiest(seen, BERLIN, 1)] == ["mon 10:00", "wed 08:00"]
    assert busiest({}, UTC, 3) == []


def test_the_next_of_some_hours() -> None:
    hours = [parse_hour("mon 09:00"), parse_hour("fri 17:00")]
    assert next_hour(hours, UTC, ms("2025-11-03T08:59")) == ms("2025-11-03T09:00")
    assert next_hour(hours, UTC, ms("2025-11-03T09:00")) == ms("2025-11-07T17:00")
    assert next_hour(hours, UTC, ms("2025-11-07T17:00")) == ms("2025-11-10T09:00")
    assert next_hour(hours[:1], UTC, ms("2025-11-03T09:00")) == ms("2025-11-10T09:00")
    assert next_hour(hours, BERLIN, ms("2025-10-25T00:00")) == ms("2025-10-27T08:00"), "clocks are put back in between"
    assert next_hour([], UTC, 0) is None
    assert hour_at(ms("2025-11-03T09:00"), BERLIN) == parse_hour("mon 10:00")
