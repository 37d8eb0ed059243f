"""Values beside the bytes that they were decoded from: bounded by what they really take, and gone with their owner."""

from __future__ import annotations

import sys
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.cache.decoded import MAX_BYTES, PART, SHARE, Decoded
from scrubjay.cache.l1 import L1, deep_size
from scrubjay.core.frozen import freeze
from tests.conftest import OpenJay
from tests.waiting import until

KEYS = [f"k{n}" for n in range(6)]
OWNERS = {key: f"owner{n % 2}" for n, key in enumerate(KEYS)}


def seen(decoded: Decoded, key: str, payload: bytes, owner: str = "owner") -> Any:
    """Read as a reader does; return what was remembered."""
    value = decoded.get(key, payload, 1)
    if value is None:
        decoded.put(key, payload, 1, freeze(orjson.loads(payload)), owner)
    return value


def test_a_value_is_remembered_when_its_bytes_are_seen_again() -> None:
    decoded = Decoded()
    assert seen(decoded, "k", b"[1]") is None
    assert seen(decoded, "k", b"[1]") is None
    value = seen(decoded, "k", b"[1]")
    assert value == [1]
    assert seen(decoded, "k", b"[1]") is value, "nothing is made again"
    assert decoded.get("k", b"[1]", 2) is None
    assert seen(decoded, "k", b"[2]") is None, "other bytes"
    assert decoded.get("k", b"[1]", 1) is None


def test_what_it_takes_is_counted_in_objects() -> None:
    decoded = Decoded()
    # Bytes that become some twenty times as much: the worst that JSON can be.
    payload = b"[" + b",".join([b"[]"] * 5_000) + b"]"
    real = deep_size(freeze(orjson.loads(payload)))
    assert real > 15 * len(payload)
    remembered = 0
    for n in range(50):
        for _ in range(2):
            seen(decoded, f"k{n}", payload)
            assert decoded.size <= MAX_BYTES
        remembered += decoded.get(f"k{n}", payload, 1) is not None
    assert remembered == (50 if real * SHARE <= MAX_BYTES else 0)
    held = [known.value for half in (decoded._young, decoded._old) for known in half.known.values()]
    assert sum(deep_size(value) for value in held if value is not None) <= MAX_BYTES


def test_a_large_value_drives_nothing_out() -> None:
    decoded = Decoded(80_000)
    for _ in range(3):
        seen(decoded, "small", b"[1]")
    for _ in range(3):
        seen(decoded, "large", orjson.dumps(["x" * 10_000]))
    assert decoded.get("small", b"[1]", 1) == [1]
    assert decoded.size < 2_000


def test_without_memory_it_remembers_nothing() -> None:
    decoded = Decoded(0)
    for _ in range(3):
        assert seen(decoded, "k", b"[1]") is None
    assert decoded.size == 0


steps = st.lists(
    st.tuples(
        st.sampled_from(["read", "read", "read", "change", "key", "owner", "all"]),
        st.sampled_from(KEYS),
        st.integers(0, 700),
    ),
    max_size=80,
)


@given(steps)
def test_it_never_gives_what_other_bytes_were_decoded_to(done: list[tuple[str, str, int]]) -> None:
    decoded = Decoded(16_000)
    now = dict.fromkeys(KEYS, b"[0]")
    for what, key, n in done:
        if what == "read":
            value = seen(decoded, key, now[key], OWNERS[key])
            assert value is None or value == orjson.loads(now[key])
        elif what == "change":
            now[key] = orjson.dumps([n, "x" * n])
        elif what == "key":
            decoded.forget(key)
            assert decoded.get(key, now[key], 1) is None
        elif what == "owner":
            decoded.forget_owner(OWNERS[key])
            assert all(decoded.get(each, now[each], 1) is None for each in KEYS if OWNERS[each] == OWNERS[key])
        else:
            decoded.clear()
        assert decoded.size <= 16_000
        for half in (decoded._young, decoded._old):
            assert half.bytes == sum(known.size for known in half.known.values())
            assert {key for keys in half.owners.values() for key in keys} == set(half.known)
            assert all(half.owners.values()), "no owner of nothing"


@pytest.mark.parametrize("how", ["forgotten", "invalidated", "by another process"])
async def test_what_a_user_had_is_gone_with_the_user(open_jay: OpenJay, how: str) -> None:
    jay, other = await open_jay(), await open_jay()
    aside = jay._open.aside
    decoded = aside.reads.decoded
    user, bystander = jay.user("alice"), jay.user("bob")
    for each in (user, bystander):
        await each.contexts.set("profile", "x" * 1_000)
        for _ in range(4):
            aside.l1.clear()
            assert await each.contexts.latest("profile") == "x" * 1_000
            await aside.drain()
    held = decoded.size
    assert held > 2_000
    if how == "forgotten":
        await user.forget()
    elif how == "invalidated":
        await user.invalidate()
    else:
        before = jay._open.coherence.health.changes  # type: ignore[union-attr]
        await other.user("alice").forget()
        await until(lambda: jay._open.coherence.health.changes > before)  # type: ignore[union-attr]
    assert 0 < decoded.size < held * 0.6, "of one of two"


def test_it_takes_its_memory_from_that_of_the_process() -> None:
    clock = [0.0]
    l1 = L1(100_000, lambda: clock[0])
    l1.alive_until = sys.maxsize
    assert l1.lend(l1.max_bytes // SHARE) == 12_500
    for n in range(200):
        l1.put(l1.ticket(f"k{n}", "owner", "tenant"), "x" * 1_000, 1, whole=True, count=1, until=sys.maxsize)
        assert l1.bytes <= 87_500
    assert len(l1) > 40


async def test_with_process_memory_it_has_a_share_of_it_and_without_it_stays_small(open_jay: OpenJay) -> None:
    without, small, large = [await open_jay(local_memory=size) for size in (0, 80_000, 1 << 30)]
    sizes = [jay._open.aside.reads.decoded._max_bytes for jay in (without, small, large)]
    assert sizes == [MAX_BYTES, 20_000, (1 << 30) // PART]
