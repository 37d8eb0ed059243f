"""Process memory: it is bounded, and never answers with what has changed, is too old, or cannot be proven."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scrubjay.cache.l1 import _ENTRY_BYTES, L1, MAX_SHARE, Ticket, deep_size
from scrubjay.cache.queues import GHOST_BYTES
from scrubjay.testing.clock import ManualClock

KEYS = [f"k{n}" for n in range(12)]
OWNERS = {key: f"owner{n % 4}" for n, key in enumerate(KEYS)}
TENANTS = {key: f"tenant{n % 2}" for n, key in enumerate(KEYS)}
MAX_BYTES = 12 * 1024
keys = st.sampled_from(KEYS)


@dataclass
class Known:
    """What the model knows of a key: what may be served, if it is still held."""

    value: Any
    version: int
    until: float


class Memory(RuleBasedStateMachine):
    """Does everything at random, beside a model that never evicts."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.l1 = L1(MAX_BYTES, self.clock.monotonic)
        self.alive_until = 0.0
        self.model: dict[str, Known] = {}
        self.tickets: list[tuple[Ticket, bool]] = []
        self.made = 0

    # --- reading and filling

    @rule(key=keys)
    def take_ticket(self, key: str) -> None:
        self.tickets.append((self.l1.ticket(key, OWNERS[key], TENANTS[key]), True))

    @precondition(lambda self: self.tickets)
    @rule(which=st.integers(0, 99))
    def give_back(self, which: int) -> None:
        ticket, _ = self.tickets.pop(which % len(self.tickets))
        self.l1.give_back(ticket)

    @precondition(lambda self: self.tickets)
    @rule(
        which=st.integers(0, 99),
        version=st.integers(0, 5),
        size=st.sampled_from([0, 10, 100, 700, 1_000, 3_000]),
        life=st.sampled_from([-1.0, 0.0, 1.0, 100.0, math.inf]),
    )
    def put(self, which: int, version: int, size: int, life: float) -> None:
        ticket, good = self.tickets.pop(which % len(self.tickets))
        self.made += 1
        value = [self.made, "x" * size]
        key, now = ticket.key, self.clock.monotonic()
        held = self.held(key)
        before = set(self.l1._entries)
        kept = self.l1.put(ticket, value, version, whole=True, count=1, until=now + life)
        assert not (kept and not good), "a spoiled ticket never puts"
        if not good or now >= self.alive_until or life <= 0:
            assert not kept
            return
        if held is not None and held.version > version:
            assert not kept, "an older version never replaces a newer one"
            assert self.held(key) == held
            return
        fits = (deep_size(value) + _ENTRY_BYTES) * MAX_SHARE <= MAX_BYTES
        assert kept == fits
        # What was there before was older, or the same: it goes in any case.
        self.model.pop(key, None)
        if kept:
            self.model[key] = Known(value, version, now + life)
            assert key in self.l1._entries or key not in before, "what is put may go at once, and nothing older stays"

    def held(self, key: str) -> Known | None:
        entry = self.l1._entries.get(key)
        return None if entry is None else Known(entry.value, entry.version, entry.until)

    @rule(key=keys)
    def get(self, key: str) -> None:
        entry, now, known = self.l1.get(key), self.clock.monotonic(), self.model.get(key)
        if entry is not None:
            assert known is not None, "what was dropped is never served"
            assert (entry.value, entry.version) == (known.value, known.version)
            assert now < self.alive_until
            assert now < known.until

    # --- changes

    @rule(key=keys, version=st.integers(0, 6))
    def drop(self, key: str, version: int) -> None:
        self.l1.drop(key, version)
        self.forget(lambda each: each == key, version)
        self.spoil(lambda each: each == key)

    @rule(key=keys, version=st.integers(1, 6))
    def outdate(self, key: str, version: int) -> None:
        self.l1.outdate(key, version)
        self.forget(lambda each: each == key, version)

    @rule(key=keys)
    def drop_owner(self, key: str) -> None:
        self.l1.drop_owner(OWNERS[key])
        self.forget(lambda each: OWNERS[each] == OWNERS[key])
        self.spoil(lambda each: OWNERS[each] == OWNERS[key])

    @rule(key=keys)
    def drop_tenant(self, key: str) -> None:
        self.l1.drop_tenant(TENANTS[key])
        self.forget(lambda each: TENANTS[each] == TENANTS[key])
        self.spoil(lambda each: TENANTS[each] == TENANTS[key])

    @rule()
    def clear(self) -> None:
        self.l1.clear()
        self.forget(lambda _: True)
        self.spoil(lambda _: True)
        assert (len(self.l1), self.l1.bytes) == (0, 0)

    def forget(self, which: Any, version: int = 0) -> None:
        for key, known in list(self.model.items()):
            if which(key) and (not version or known.version < version):
                del self.model[key]

    def spoil(self, which: Any) -> None:
        self.tickets = [(ticket, good and not which(ticket.key)) for ticket, good in self.tickets]

    # --- time

    @rule(seconds=st.sampled_from([0.5, 1.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-1.0, 0.0, 5.0, 500.0]))
    def prove(self, seconds: float) -> None:
        self.l1.alive_until = self.alive_until = self.clock.monotonic() + seconds

    # --- what holds after every step

    @invariant()
    def it_is_bounded(self) -> None:
        assert self.l1.bytes <= MAX_BYTES

    @invariant()
    def nothing_is_held_that_was_dropped(self) -> None:
        for key, entry in self.l1._entries.items():
            assert self.model[key].value == entry.value
            assert self.model[key].version == entry.version

    @invariant()
    def its_tables_agree(self) -> None:
        entries, queues = self.l1._entries, self.l1._queues
        assert self.l1._bytes == sum(entry.size for entry in entries.values())
        assert self.l1.bytes == self.l1._bytes + len(queues._ghosts) * GHOST_BYTES
        by_owner: dict[str, set[str]] = {}
        for key, entry in entries.items():
            assert entry.key == key
            assert not entry.gone
            by_owner.setdefault(entry.owner, set()).add(key)
        assert self.l1._owners == by_owner
        queued = [each for each in (*queues._first, *queues._clock) if not each.gone]
        assert sorted(each.key for each in queued) == sorted(entries)
        assert all(entries[each.key] is each for each in queued)
        assert queues._first_bytes == sum(each.size for each in queues._first if not each.gone)
        assert queues._gone == sum(each.gone for each in (*queues._first, *queues._clock))
        assert queues._ghosts_bytes == sum(queues._ghosts.values())

    @invariant()
    def tickets_are_those_that_are_out(self) -> None:
        out = {ticket.key: ticket for ticket, good in self.tickets if good}
        assert self.l1._tickets == out
        for ticket in out.values():
            assert ticket.holders == sum(each is ticket for each, _ in self.tickets)


TestMemory = Memory.TestCase


def memory(max_bytes: int = 100_000) -> tuple[L1, ManualClock]:
    clock = ManualClock()
    l1 = L1(max_bytes, clock.monotonic)
    l1.alive_until = math.inf
    return l1, clock


def put(l1: L1, key: str, value: Any = 1, version: int = 1, until: float = math.inf) -> bool:
    return l1.put(l1.ticket(key, "owner", "tenant"), value, version, whole=True, count=1, until=until)


def test_nothing_is_served_before_anything_was_proven() -> None:
    l1, _ = memory()
    l1.alive_until = 0.0
    assert not put(l1, "a")
    assert l1.get("a") is None


def test_what_falls_silent_is_served_again_if_it_was_proven_again() -> None:
    l1, clock = memory()
    l1.alive_until = clock.monotonic() + 1
    assert put(l1, "a")
    clock.advance(1)
    assert l1.get("a") is None, "to the millisecond"
    l1.alive_until = clock.monotonic() + 1
    assert l1.get("a") is not None


def test_an_entry_ends_at_its_time() -> None:
    l1, clock = memory()
    assert put(l1, "a", until=clock.monotonic() + 1)
    clock.advance(0.999)
    assert l1.get("a") is not None
    clock.advance(0.001)
    assert l1.get("a") is None
    assert len(l1) == 0, "and makes room"


@pytest.mark.parametrize(("version", "held"), [(0, False), (1, True), (2, True), (3, False)])
def test_a_notice_of_what_it_already_shows_drops_nothing(version: int, held: bool) -> None:
    l1, _ = memory()
    put(l1, "a", version=2)
    ticket = l1.ticket("a", "owner", "tenant")
    l1.drop("a", version)
    assert (l1.get("a") is not None) is held
    assert not ticket.good, "what is on its way may be older all the same"


def test_one_large_value_does_not_drive_out_everything_else() -> None:
    l1, _ = memory(80_000)
    assert put(l1, "a")
    assert not put(l1, "large", "x" * 10_000)
    assert put(l1, "b", "x" * 9_000)
    assert l1.get("a") is not None


def test_a_value_too_large_to_be_kept_leaves_no_older_one() -> None:
    l1, _ = memory(80_000)
    assert put(l1, "a", version=1)
    assert not put(l1, "a", "x" * 10_000, version=2)
    assert l1.get("a") is None


def test_what_is_used_survives_a_scan() -> None:
    l1, _ = memory(200_000)
    for n in range(50):
        put(l1, f"hot{n}", "x" * 500)
    for n in range(2_000):
        for hot in range(50):
            l1.get(f"hot{hot}")
        put(l1, f"scanned{n}", "x" * 500)
        assert l1.bytes <= 200_000
    assert sum(l1.get(f"hot{n}") is not None for n in range(50)) >= 45
    assert l1.evictions > 1_500


def test_with_no_bytes_it_holds_nothing() -> None:
    l1, _ = memory(0)
    assert not l1.on
    assert not put(l1, "a")
    assert (len(l1), l1.bytes) == (0, 0)
