"""Hash slots, and what nodes say of their cluster."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.core.errors import CacheMisconfigured, CacheUnavailable
from scrubjay.core.keys import KeySpace
from scrubjay.core.scope import Scope
from scrubjay.valkey.cluster import _most
from scrubjay.valkey.slots import (
    MARKS,
    SLOTS,
    Node,
    Redirect,
    SlotMap,
    mark_tags,
    merged,
    read_map,
    slot_of,
    stage_of,
    tag_of,
)
from scrubjay.valkey.url import Address

ASKED = Address("h0", 7000)
INFO = b"cluster_state:ok\r\ncluster_known_nodes:6\r\ncluster_current_epoch:7\r\n"
SLOTS_REPLY: list[Any] = [
    [0, 8191, [b"h1", 7001, b"a", []], [b"h4", 7004, b"d", []]],
    [8192, 16383, [b"h2", 7002, b"b", []]],
]
NODES = (
    b"a h1:7001@17001,name1,shard-id=x master - 0 0 1 connected 0-8191\n"
    b"b h2:7002@17002 myself,master - 0 0 2 connected 8192-16383\n"
    b"c h3:7003@17003 master - 0 0 3 connected\n"
    b"d h4:7004@17004 slave a 0 0 1 connected\n"
    b"e h5:7005@17005 master,fail - 0 0 4 disconnected\n"
)


# The examples of the specification, and those that its reference implementation is known by.
@pytest.mark.parametrize(
    ("key", "slot"),
    [("123456789", 12739), ("foo", 12182), ("{foo}bar", 12182), ("x{foo}{bar}", 12182), ("", 0), (b"foo", 12182)],
)
def test_the_slot_of_a_key(key: str | bytes, slot: int) -> None:
    assert slot_of(key) == slot


def test_braces_that_hold_nothing_are_part_of_the_key() -> None:
    assert slot_of("{}foo") != slot_of("{}bar")
    assert slot_of("foo{") == slot_of(b"foo{")
    assert slot_of("{{bar}}x") == slot_of("{bar")


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_all_keys_of_an_owner_are_in_one_slot(tenant: str, user: str, name: str) -> None:
    keys, scope = KeySpace(), Scope(tenant, user)
    found = [keys.context(scope, name), keys.chat(scope, name), keys.memory(scope), keys.layout(scope, name)]
    assert len({slot_of(text) for key in found for text in (key.key, key.lease, key.generation)}) == 1


def test_marks_are_spread_over_all_slots() -> None:
    slots = [slot for slot, _ in mark_tags()]
    assert [slot // (SLOTS // MARKS) for slot in slots] == list(range(MARKS))
    assert [slot_of(f"sj1:mark:{{{tag}}}") for _, tag in mark_tags()] == slots


@given(st.integers(0, SLOTS - 1))
def test_a_tag_for_every_slot(slot: int) -> None:
    assert slot_of(tag_of(slot)) == slot


def test_a_map() -> None:
    found = read_map(SLOTS_REPLY, INFO, NODES, ASKED)
    a, b, c = Node("a", Address("h1", 7001)), Node("b", Address("h2", 7002)), Node("c", Address("h3", 7003))
    assert (found.nodes, found.idle, found.primaries) == ((a, b), (c,), (a, b, c))
    assert (found.owner(0), found.owner(8191), found.owner(8192), found.owner(16383)) == (a, a, b, b)
    assert found.uncovered == ""
    assert found.stage == stage_of(INFO) == (6, 7)
    # One may not be allowed to ask for the nodes.
    assert read_map(SLOTS_REPLY, INFO, None, ASKED).primaries == (a, b)


@pytest.mark.parametrize("host", [b"", None, b"?"])
def test_a_node_that_does_not_know_its_name(host: bytes | None) -> None:
    assert read_map([[0, 16383, [host, 7001, b"a"]]], INFO, None, ASKED).nodes[0].address == Address("h0", 7001)


def test_slots_that_nobody_holds() -> None:
    found = read_map([[1, 99, SLOTS_REPLY[0][2]], [101, 16382, SLOTS_REPLY[1][2]]], INFO, None, ASKED)
    assert found.uncovered == "0,100,16383"
    assert found.owner(0) is None


def test_a_cluster_that_is_down_says_why() -> None:
    """Because nobody holds some slots, which somebody has to mend; or because of what may pass by itself."""
    down = INFO.replace(b"ok", b"fail")
    with pytest.raises(CacheMisconfigured, match="no node holds the slots 8192-16383; give them to a node"):
        read_map(SLOTS_REPLY[:1], down, NODES, ASKED)
    with pytest.raises(CacheUnavailable, match="the cluster is down, h0:7000 says") as caught:
        read_map(SLOTS_REPLY, down, NODES, ASKED)
    assert not isinstance(caught.value, CacheMisconfigured)


@pytest.mark.parametrize(
    ("slots", "info"),
    [
        (SLOTS_REPLY, INFO.replace(b"ok", b"fail")),
        (SLOTS_REPLY, b""),
        (SLOTS_REPLY, None),
        (b"OK", INFO),
        ([[0, 5]], INFO),
        ([[0, 5, [b"h", b"x", b"a"]]], INFO),
    ],
)
def test_what_is_no_map(slots: Any, info: Any) -> None:
    with pytest.raises(CacheUnavailable):
        read_map(slots, info, NODES, ASKED)


def test_who_holds_a_slot_knows_it_first() -> None:
    """One node was told that a slot has moved to it; a third one, of the same epoch, was not told yet."""
    a, b = Node("a", Address("h1", 7001)), Node("b", Address("h2", 7002))
    late = read_map(SLOTS_REPLY, INFO, NODES, ASKED)
    first, second = SLOTS_REPLY[0][2], SLOTS_REPLY[1][2]
    told = [[0, 99, second], [100, 8191, first], [8192, 16383, second]]
    known = read_map(told, INFO, NODES, Address("h2", 7002))
    for maps in ([late, known], [known, late]):
        found = merged(maps)
        assert [found.owner(slot) for slot in (0, 99, 100, 8192)] == [b, b, a, b]
        assert (found.uncovered, found.stage) == ("", (6, 7))
    # It has given all away, and stays a primary.
    alone = merged([late, read_map([[0, 16383, second]], INFO, NODES, Address("h2", 7002))])
    assert (set(alone.nodes), a in alone.idle) == ({b}, True)


def owned(*nodes: Node, idle: tuple[Node, ...] = ()) -> SlotMap:
    """Return a map in which nodes share the slots."""
    return SlotMap(nodes, tuple(slot * len(nodes) // SLOTS for slot in range(SLOTS)), idle)


def test_who_was_replaced() -> None:
    a, b, c = (Node(name, Address(name, 1)) for name in "abc")
    assert owned(a, b).replaced(owned(a, b)) == []
    assert owned(a, b).replaced(owned(a, c)) == [b]
    assert owned(a, b).replaced(owned(b, c)) == [a]
    # Slots that move from one that stays a primary, be it without any, take their keys along.
    assert owned(a, b).replaced(owned(a, b, c)) == []
    assert owned(a, b).replaced(owned(a, idle=(b,))) == []


def test_a_node_that_was_cut_off_claims_nothing() -> None:
    """It knows of no later epoch, in which others were given what it held."""
    first, second = SLOTS_REPLY[0][2], SLOTS_REPLY[1][2]
    cut_off = read_map([[0, 16383, first]], INFO, None, Address("h1", 7001))
    later = read_map([[0, 16383, second]], INFO.replace(b"epoch:7", b"epoch:8"), None, ASKED)
    for maps in ([cut_off, later], [later, cut_off]):
        assert merged(maps).owner(5) == Node("b", Address("h2", 7002))


@pytest.mark.parametrize(
    "slots",
    [
        [[0, 16384, [b"h", 7001, b"a"]]],
        [[-1, 5, [b"h", 7001, b"a"]]],
        [[9, 5, [b"h", 7001, b"a"]]],
        [[0, 16383, [b"h", 99_999, b"a"]]],
        [[0, 16383, [b"h", 0, b"a"]]],
    ],
)
def test_slots_and_ports_that_cannot_be(slots: Any) -> None:
    with pytest.raises(CacheUnavailable):
        read_map(slots, INFO, None, ASKED)


def test_a_redirect() -> None:
    assert Redirect.of("MOVED 5 h:7000") == (5, Address("h", 7000))
    assert Redirect.of("ASK 16383 [::1]:7000") == (16383, Address("::1", 7000))
    assert Redirect.of("ASK 5 :7000").address.host == ""


@pytest.mark.parametrize(
    "message", ["MOVED", "MOVED 5", "MOVED 16384 h:1", "MOVED x h:1", "ASK 5 h:x", "ASK 5 h:99999", "ASK 5 h"]
)
def test_what_is_no_redirect(message: str) -> None:
    with pytest.raises(CacheUnavailable):
        Redirect.of(message)


async def test_one_that_hangs_holds_up_nobody_when_most_have_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scrubjay.valkey.cluster.GRACE_S", 0.0)
    hung = asyncio.Event()
    given_up: list[bool] = []

    async def says(answer: int) -> int:
        return answer

    async def fails() -> int:
        raise CacheUnavailable("not there")

    async def hangs() -> int:
        try:
            await hung.wait()
        except asyncio.CancelledError:
            given_up.append(True)
            raise
        return 4

    first = await _most([says(1), hangs(), says(2), fails(), says(3)])
    assert first[:2] == [1, 2]
    assert first[3] == 3
    assert isinstance(first[2], CacheUnavailable)
    assert given_up
    # Two of four are not most: what the other ones say is waited for.
    asking = asyncio.create_task(_most([says(1), hangs(), says(2), fails()]))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not asking.done()
    hung.set()
    second = await asking
    assert second[:3] == [1, 4, 2]
    failed = await _most([fails(), fails()])
    assert [type(each) for each in failed] == [CacheUnavailable] * 2


async def test_who_stops_asking_leaves_nothing_behind() -> None:
    """No task goes on, and asyncio does not complain of errors that nobody has looked at."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    before, begun = asyncio.all_tasks(), asyncio.Event()

    async def fails_when_given_up() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise CacheUnavailable("the client was closed") from None

    asking = asyncio.create_task(_most([fails_when_given_up(), fails_when_given_up()]))
    await begun.wait()
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    assert asyncio.all_tasks() == before
    del asking
    gc.collect()
    assert not complaints
