"""Hours of the week: when users are here, in whichever time zone their days are counted.

The store keeps hours in UTC. An hour of the week in a time zone is another one in UTC in summer than in winter; so what
is asked for is the very hours, of the last weeks, that it was then.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

from scrubjay.core.errors import InvalidInput
from scrubjay.core.policy import DAY, HOUR, MINUTE, SECOND

WEEKS: Final = 8
"""For how many weeks back users count as being here in an hour of the week."""
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MONDAY: Final = 4 * DAY
"""The first Monday after the beginning of the Unix epoch, a Thursday."""
_WEEK_HOURS: Final = 168
_FORM: Final = re.compile(
    r"(mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?[ \t]+(\d{1,2})(?::(\d\d))?",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class WeekHour:
    """An hour of the week in some time zone.

    Attributes:
        day: 0 (Monday) to 6.
        minute: Its beginning, in minutes from the day's.
    """

    day: int
    minute: int

    def __str__(self) -> str:
        return f"{DAYS[self.day]} {self.minute // 60:02}:{self.minute % 60:02}"


def hour_of_week(at_ms: int) -> int:
    """Return the hour of the week of a time: 0 to 167, from Monday 00:00 UTC."""
    return (at_ms - _MONDAY) // HOUR % _WEEK_HOURS


def parse_hour(text: object) -> WeekHour:
    """Read an hour of the week: a day's English name or its first letters, and a time: `mon 09:00`, `friday 17`.

    Raises:
        InvalidInput: It is none.
    """
    found = _FORM.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is not None and int(found[2]) < 24 and int(found[3] or 0) < 60:
        return WeekHour(DAYS.index(found[1][:3].lower()), int(found[2]) * 60 + int(found[3] or 0))
    raise InvalidInput(f"an hour of the week is a day and a time, such as 'mon 09:00', not {text!r:.40}")


def parse_zone(name: object) -> tzinfo:
    """Return a time zone by its name in the IANA database, such as `Europe/Berlin`.

    Raises:
        InvalidInput: There is none of that name, or the system has no such database.
    """
    if name == "UTC":
        return UTC
    try:
        if isinstance(name, str) and name:
            return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        pass
    raise InvalidInput(
        f"{name!r:.64} is no time zone that this system knows; one is named like Europe/Berlin"
        " (without a database of them: pip install tzdata)"
    )


def past_hours(hour: WeekHour, zone: tzinfo, now_ms: int, weeks: int = WEEKS) -> list[int]:
    """Return the hours of UTC in which an hour of the week has lain lately.

    Args:
        hour: The hour of the week.
        zone: In which time zone.
        now_ms: The time, in milliseconds since the Unix epoch.
        weeks: How many weeks back.

    Returns:
        Their beginnings, in milliseconds since the Unix epoch: one a week, two where it begins within an hour of UTC
        or, when clocks are put back, comes twice.
    """
    today = datetime.fromtimestamp(now_ms / SECOND, zone).date()
    last = today - timedelta((today.weekday() - hour.day) % 7)
    found: set[int] = set()
    for week in range(weeks + 1):
        for fold in (0, 1):
            begins = _at(last - timedelta(weeks=week), hour.minute, zone, fold)
            if begins <= now_ms and begins > now_ms - weeks * 7 * DAY:
                found |= {each // HOUR * HOUR for each in (begins, begins + HOUR - 1)}
    return sorted(found)


def busiest(seen: Mapping[int, int], zone: tzinfo, most: int) -> list[WeekHour]:
    """Return the hours of the week that are busiest: of each day some, that are half as busy at least as the busiest.

    Args:
        seen: How many users were seen, by the beginning of the hour in milliseconds since the Unix epoch.
        zone: In which time zone days are counted.
        most: How many hours of each day.
    """
    users: Counter[WeekHour] = Counter()
    for begins, count in seen.items():
        local = datetime.fromtimestamp(begins / SECOND, zone)
        users[WeekHour(local.weekday(), local.hour * 60)] += count
    least = max(users.values(), default=0) / 2
    found: list[WeekHour] = []
    for day in range(7):
        of_day = [hour for hour, count in users.items() if hour.day == day and count >= least]
        of_day.sort(key=lambda hour: (-users[hour], hour.minute))
        found += sorted(of_day[:most], key=lambda hour: hour.minute)
    return found


def next_hour(hours: Sequence[WeekHour], zone: tzinfo, after_ms: int) -> int | None:
    """Return when the next of some hours of the week begins after a time, in milliseconds since the Unix epoch."""
    today = datetime.fromtimestamp(after_ms / SECOND, zone).date()
    # A day more than a week: of today's hours some are over.
    begins = [
        _at(day, hour.minute, zone)
        for day in (today + timedelta(ahead) for ahead in range(9))
        for hour in hours
        if hour.day == day.weekday()
    ]
    return min((each for each in begins if each > after_ms), default=None)


def hour_at(at_ms: int, zone: tzinfo) -> WeekHour:
    """Return the hour of the week that begins at a time."""
    local = datetime.fromtimestamp(at_ms / SECOND, zone)
    return WeekHour(local.weekday(), local.hour * 60 + local.minute)


def _at(day: date, minute: int, zone: tzinfo, fold: int = 0) -> int:
    local = datetime.combine(day, time(minute // 60, minute % 60, tzinfo=zone, fold=fold))
    return round(local.timestamp()) * SECOND // MINUTE * MINUTE
