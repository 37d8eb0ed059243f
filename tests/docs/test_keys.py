"""docs/keys.md names every key that is built, with its type and its time to live."""

from __future__ import annotations

import re

import pytest
from redis.asyncio import Redis

from scrubjay.cache.flights import JITTER, NOTHING_MS
from scrubjay.cache.source import Source
from scrubjay.core import notices
from scrubjay.core.codec import Header
from scrubjay.core.keys import HotKey, KeySpace, Kind
from scrubjay.core.policy import DAY, HOUR, MINUTE, SECOND, Limits, Policies
from scrubjay.core.ports import Load, Loaded, Read, Shape
from scrubjay.core.scope import Scope
from scrubjay.testing.servers import ValkeyServer
from scrubjay.valkey.line import Lines
from scrubjay.valkey.tier import GENERATION_MS
from tests.conftest import OpenJay
from tests.docs.markdown import ROOT, codes, tables

PAGE = ROOT / "docs" / "keys.md"
KEYS = KeySpace()
USER = Scope("TENANT", "USER")
TENANT = Scope("TENANT")
POLICIES = Policies()
BUILT: dict[str, HotKey] = {
    "context of a user": KEYS.context(USER, "TYPE"),
    "context of a tenant": KEYS.context(TENANT, "TYPE"),
    "computed context of a user": KEYS.computed(USER, "TYPE"),
    "computed context of a tenant": KEYS.computed(TENANT, "TYPE"),
    "user memory": KEYS.memory(USER),
    "agent": KEYS.agent(USER, "AGENT"),
    "chat, the newest messages": KEYS.chat(USER, "SESSION"),
    "chat, leading system messages and pinned ones": KEYS.chat_lead(USER, "SESSION"),
    "state": KEYS.state(USER, "SESSION"),
    "tool output": KEYS.tool(USER, "SESSION", 7),
    "tool outputs, the newest, large ones cut": KEYS.tool_index(USER, "SESSION"),
    "summaries of a date": KEYS.summary(USER, "DATE"),
    "summaries, the newest": KEYS.summary(USER, "recent"),
    "metrics of a session's last assembly": KEYS.metrics(USER, "SESSION"),
    "layout of a session's windows, with its rolling summary": KEYS.layout(USER, "SESSION"),
}
TYPES = {"string": "string", "hash": "hash", "list": "list", "sorted set": "zset"}
UNITS = {"s": SECOND, "min": MINUTE, "h": HOUR, "d": DAY}


def shown(key: str) -> str:
    """Return a built key as the page writes it."""
    return (
        re.sub(r"\b(TENANT|USER|TYPE|AGENT|SESSION|DATE)\b", lambda m: f"<{m[0].lower()}>", key)
        .replace("step_7", "step_<n>")
        .replace(KEYS.prefix, "<p>", 1)
    )


def milliseconds(text: str) -> int:
    number, unit = re.match(r"(\d+) (\w+)", text).groups()  # type: ignore[union-attr]
    return int(number) * UNITS[unit]


def test_every_kind_is_there() -> None:
    assert [row[0] for row in tables(PAGE)["Cached things"]] == list(BUILT)
    assert {key.kind for key in BUILT.values()} == set(Kind)


@pytest.mark.parametrize("name", BUILT)
def test_key(name: str) -> None:
    _, type_, key, ttl = next(row for row in tables(PAGE)["Cached things"] if row[0] == name)
    built = BUILT[name]
    assert codes(key) == [shown(built.key)]
    assert type_ in {"string", "hash", "list"}
    if built.kind is Kind.CONTEXT:
        return
    assert (0 if ttl == "none" else milliseconds(ttl)) == POLICIES.ttl_ms(built.kind)


def test_times_of_contexts() -> None:
    text = tables(PAGE)["Cached things"][0][3]
    times = dict(re.findall(r"`?(\w+)`? (\d+ (?:min|h))", text))
    assert {type_: milliseconds(time) for type_, time in times.items()} == {
        **{type_: policy.ttl_ms for type_, policy in POLICIES.contexts.items()},
        "other": POLICIES.default_context.ttl_ms,
    }


def test_other_keys() -> None:
    rows = tables(PAGE)["Other keys"]
    assert codes(rows[0][2]) == [shown(KEYS.generation(USER)), shown(KEYS.generation(TENANT))]
    assert milliseconds(rows[0][3]) == GENERATION_MS
    for built in BUILT.values():
        owner, _, what = built.key.removeprefix("sj1:").removeprefix("c:").partition("}:")
        assert built.lease == f"sj1:l:{owner}}}:{what}"
    assert milliseconds(rows[1][3]) == POLICIES.lease_ms
    assert codes(rows[2][2]) == [shown(KEYS.recent_metrics(USER).key)]
    assert milliseconds(rows[2][3]) == POLICIES.metrics_ttl_ms
    assert f"{Limits().metrics_window:,}" in rows[2][0]
    assert codes(rows[3][2]) == [shown(KEYS.stats("PROCESS")).replace("PROCESS", "<process>")]
    assert codes(rows[4][2]) == [shown(KEYS.stats_index())]
    assert codes(rows[5][2]) == [shown(LINES.stamp)]
    assert milliseconds(rows[5][3]) == GENERATION_MS
    assert codes(rows[6][2]) == [shown(KEYS.mark())]
    assert NOTHING_MS == 30 * MINUTE
    assert "remembered for 30 minutes" in PAGE.read_text()
    assert f"up to {JITTER:.0%}".replace("%", " %") in PAGE.read_text()


LINES = Lines(KEYS.prefix, "ID")


def test_channels() -> None:
    rows = tables(PAGE)["Channels"]
    assert [codes(row[1]) for row in rows] == [
        [shown(LINES.shared)],
        [shown(LINES.own).replace("ID", "<id>")],
        [notices.FOREIGN_CHANNEL],
    ]
    assert codes(rows[0][2]) == [
        notices.change("<process>", 7, "<key>").replace("7", "<version>"),
        notices.generation("<process>", "<generation>", "<its key>"),
        notices.epoch("<process>", "<epoch>", "TENANT").replace("TENANT", "<tenant>"),
    ]
    assert f"`{shown(LINES.tracked_prefix)}`" in PAGE.read_text()


async def test_a_lease_names_those_who_wait(open_jay: OpenJay, valkey9: ValkeyServer) -> None:
    """`<token>|<channel>`, as the page has it."""
    jay, waiting = await open_jay(), await open_jay()
    key = jay._services.keys.context(USER, "TYPE")
    reads = [Read(key, Shape.VALUE)]
    (miss,) = await jay._open.server.hot.read(reads)
    await waiting._open.server.hot.read(reads)
    client = Redis.from_url(valkey9.url.replace("valkey://", "redis://"), decode_responses=True)
    assert await client.get(key.lease) == f"{miss.lease}|{waiting._open.server.lines.own}"  # type: ignore[union-attr]
    await client.aclose()


def test_the_header_has_as_many_parts_as_the_page_says() -> None:
    text = PAGE.read_text()
    form = next(line for line in text.splitlines() if line.startswith("1;<store"))
    parts = [row[0] for row in tables(PAGE)["The header"]]
    written = Header("life", "gen", 1, 1, fresh_until_ms=2, cost_ms=3).encode().decode()
    assert len(written.split(";")) == len(form.split(";")) == len(parts) == 10
    assert len(Header("life", "gen", 1, 1).encode().decode().split(";")) == 8, "the last two are left out together"


def layout_of(keys: KeySpace, scope: Scope) -> Source[Loaded]:
    """Return how a layout is read."""
    read, ttl_ms = Read(keys.layout(scope, "s"), Shape.VALUE, slide=True), POLICIES.ttl_ms(Kind.LAYOUT)
    return Source(read, Load(Kind.LAYOUT, scope, "s"), lambda loaded: loaded, ttl_ms=ttl_ms)


async def test_a_server_holds_just_these(open_jay: OpenJay, valkey9: ValkeyServer) -> None:
    """Use every kind, twice, and compare what the server then holds: names, types, times to live."""
    jay = await open_jay()
    tenant, user = jay.tenant("acme"), jay.tenant("acme").user("alice")
    session = user.session("s")
    for owner in (tenant, user):
        owner.contexts.compute("visits", lambda: 7)
    for _ in range(2):
        await tenant.agents.set("bot", {"system_prompt": "Help."})
        await tenant.contexts.set("reference", {"a": 1})
        await user.contexts.set("profile", {"a": 1})
        await user.memory.set("a", 1)
        await session.chat.append_many([{"role": "system", "content": "x"}, {"role": "user", "content": "Why? " * 20}])
        await session.state.set("a", 1)
        await session.tools.record(1, "t", output=1)
        await jay._services.store.layout_put(Scope("acme", "alice"), "s", b"1", expected=0)
        await session.close("A summary.")
        await tenant.invalidate()
        for _ in range(2):
            await session.assemble(agent="bot")
            await session.tools.get(1)
            day = (await user.summaries.recent())[0]["date"]
            await user.summaries.on(day)
            await tenant.contexts.latest("reference")
            assert (await tenant.contexts.latest("visits"), await user.contexts.latest("visits")) == (7, 7)
            await session.metrics.record(sources_used=1)
            await session.metrics.get()
            await jay._services.aside.get(layout_of(jay._services.keys, Scope("acme", "alice")))
            await jay.stats()
    # A value is given before it is cached.
    await jay._services.aside.flights.drain()
    prefix = jay._running.settings.prefix  # type: ignore[union-attr]
    rows = {row[0]: row for heading in ("Cached things", "Other keys") for row in tables(PAGE)[heading]}
    seen = set()
    client = Redis.from_url(valkey9.url.replace("valkey://", "redis://"), decode_responses=True)
    async for key in client.scan_iter(f"{prefix}:*"):
        owners = [name for name, row in rows.items() if any(matches(key, code, prefix) for code in codes(row[2]))]
        assert owners, f"{key} stands on no row of the page"
        # The newest summaries also look like those of a date, and the like: the last row that fits is the narrower one.
        _, type_, _, ttl = rows[owners[-1]]
        seen.add(owners[-1])
        assert await client.type(key) == TYPES[type_]
        lives = await client.pttl(key)
        if ttl == "none":
            assert lives == -1
        elif re.match(r"\d", ttl):
            assert 0 < lives <= milliseconds(ttl)
            assert lives > milliseconds(ttl) * (1 - JITTER) - MINUTE
    await client.aclose()
    assert seen == {name for name in rows if not name.startswith("lease")}


def matches(key: str, code: str, prefix: str) -> bool:
    pattern = re.escape(code).replace(re.escape("<p>"), re.escape(prefix))
    pattern = re.sub("<date>", r"\\d{4}-\\d\\d-\\d\\d", pattern)
    return re.fullmatch(re.sub(r"<\w+>", "[^:{}]+", pattern), key) is not None
