"""Times as text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from scrubjay.core.records import date_of, iso

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_MS, LAST_MS = -62_135_596_800_000, 253_402_300_799_999
"""The years 1 to 9999."""


@given(st.integers(FIRST_MS, LAST_MS))
def test_a_time_is_told_to_the_millisecond(at_ms: int) -> None:
    text = iso(at_ms)
    assert len(text) == len("2026-01-31T12:34:56.789Z")
    assert datetime.fromisoformat(text) == EPOCH + timedelta(milliseconds=at_ms)
    assert date_of(at_ms) == text[:10]
