"""Golden entries of wire version 1: what any release wrote under the prefix `sj1` stays readable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis

from scrubjay import AsyncScrubjay
from scrubjay.testing.servers import ValkeyServer

# Each as it stands in the server; `%` stands for the store's incarnation and the owner's generation.
USER_KEYS: dict[str, Any] = {
    "sj1:c:{acme:alice}:ctx:profile": (
        b"1;%s;%s;1750000000000000;-;1;w;3600000\n"
        b'[{"id":"current","type":"profile","content":{"plan":"pro"},"metadata":{"source":"crm"},'
        b'"version":1750000000000000,"created_at":"2025-06-15T15:06:40.000Z","updated_at":"2025-06-15T15:06:40.000Z"}]'
    ),
    "sj1:c:{acme:alice}:memory": {b"\0": b"1;%s;%s;7;-;2;w;0", b"likes": b'"birds"', "é *".encode(): b"[1,null]"},
    "sj1:{acme:alice}:chat:s%201": [
        b"1;%s;%s;9;-;2;p;1800000",
        b'[41,"key-1",1750000000000,3,"o200k_base",{"role":"user","content":"hi"}]',
        b'[42,"0c0ffee0",1750000001000,2,"o200k_base",{"role":"assistant","content":null,"tool_calls":'
        b'[{"id":"c1","type":"function","function":{"name":"f","arguments":"{}"}}]}]',
    ],
    "sj1:{acme:alice}:chat:s%201:system": (
        b"1;%s;%s;9;-;1;w;1800000\n"
        b'[[1,"a",1750000000000,2,"o200k_base",{"role":"system","content":"be brief"}]]'
    ),
    "sj1:{acme:alice}:layout:s%201": b'1;%s;%s;9;-;1;w;1800000\n[0,null,"they said hello",4,40]',
    "sj1:{acme:alice}:session:s%201": {b"\0": b"1;%s;%s;3;-;1;w;1800000", b"topic": b'{"a":1}'},
    "sj1:{acme:alice}:tools:s%201": [
        b"1;%s;%s;5;-;1;w;3600000",
        b'{"step":1,"name":"look","arguments":null,"output":"found","tool_call_id":"c1","error":null,'
        b'"recorded_at":"2025-06-15T15:06:40.000Z"}',
    ],
    "sj1:{acme:alice}:tool:s%201:step_1": {
        b"\0": b"1;%s;%s;5;-;7;w;3600000", b"step": b"1", b"name": b'"look"', b"arguments": b"null",
        b"output": b'"found"', b"tool_call_id": b'"c1"', b"error": b"null",
        b"recorded_at": b'"2025-06-15T15:06:40.000Z"',
    },
    "sj1:{acme:alice}:summary:recent": (
        b"1;%s;%s;6;-;1;w;2592000000\n"
        b'[{"session_id":"old","summary":"what was said","timestamp":"2025-06-14T15:06:40.000Z","date":"2025-06-14"}]'
    ),
    "sj1:{acme:alice}:summary:2025-06-14": {
        b"\0": b"1;%s;%s;6;-;1;w;2592000000",
        b"old": b'{"session_id":"old","summary":"what was said","timestamp":"2025-06-14T15:06:40.000Z",'
        b'"date":"2025-06-14"}',
    },
    "sj1:{acme:alice}:metrics:context:s%201": {b"\0": b"1;%s;%s;8;-;1;w;604800000", b"total_tokens": b"812"},
}  # fmt: skip
TENANT_KEYS: dict[str, Any] = {
    "sj1:c:{acme}:agent:config:support": {b"\0": b"1;%s;%s;4;-;1;w;0", b"system_prompt": b'"be kind"'},
    "sj1:c:{acme}:ctx:faq": (
        b"1;%s;%s;2;-;1;w;1800000\n"
        b'[{"id":"current","type":"faq","content":["q"],"metadata":{},"version":2,'
        b'"created_at":"2025-06-15T15:06:40.000Z","updated_at":"2025-06-15T15:06:40.000Z"}]'
    ),
}


def plant(view: redis.Redis, keys: dict[str, Any], names: tuple[bytes, bytes]) -> None:
    """Put the golden entries where they belong."""
    for key, entry in keys.items():
        if isinstance(entry, bytes):
            view.set(key, entry % names)
        elif isinstance(entry, list):
            view.rpush(key, entry[0] % names, *entry[1:])
        else:
            view.hset(key, mapping={**entry, b"\0": entry[b"\0"] % names})


@pytest.fixture
def server() -> Any:
    with ValkeyServer("valkey") as server:
        yield server


async def test_golden_entries_are_hits(server: ValkeyServer, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"cache": server.url, "housekeeping": 3600.0, "cache_timeout": 5.0}
    async with AsyncScrubjay.open(store=f"sqlite:///{tmp_path}/x.db", **settings) as jay:
        with redis.Redis(port=server.port) as view:
            incarnation = jay._services.store.incarnation.encode()
            for tag, keys in ((b"acme:alice", USER_KEYS), (b"acme", TENANT_KEYS)):
                view.set(b"sj1:{%s}:gen" % tag, b"Zk3_x-9")
                plant(view, keys, (incarnation, b"Zk3_x-9"))
        tenant = jay.tenant("acme")
        alice, session = tenant.user("alice"), tenant.user("alice").session("s 1")
        (profile,) = await alice.contexts.list("profile", 1)
        assert (profile.content, profile["metadata"], profile.version) == (
            {"plan": "pro"}, {"source": "crm"}, 1_750_000_000_000_000,
        )  # fmt: skip
        assert await alice.memory.all() == {"likes": "birds", "é *": [1, None]}
        first, second = await session.chat.recent(2)
        assert (first, first.seq, first.id, first.tokens) == ({"role": "user", "content": "hi"}, 41, "key-1", 3)
        assert (second["tool_calls"][0]["id"], second.created_at_ms, second.encoding) == (
            "c1", 1_750_000_001_000, "o200k_base",
        )  # fmt: skip
        assert await session.state.all() == {"topic": {"a": 1}}
        (output,) = await session.tools.all()
        assert output == await session.tools.get(1)
        assert (output.step, output.output, output["tool_call_id"]) == (1, "found", "c1")
        (summary,) = await alice.summaries.recent(3)
        assert [summary] == await alice.summaries.on("2025-06-14")
        assert (summary.text, summary["session_id"]) == ("what was said", "old")
        assert await session.metrics.get() == {"total_tokens": 812}
        agent = await tenant.agents.get("support")
        assert agent == {"system_prompt": "be kind"}
        assert agent is not None
        assert agent.version == 4
        assert await tenant.contexts.latest("faq") == ["q"]
        window = await session.assemble(agent="support", history=2)
        assert window.messages[0]["content"].startswith("be kind")
        assert any("be brief" in str(each["content"]) for each in window.messages)
        assert any("they said hello" in str(each["content"]) for each in window.messages)
        misses = {name for name in jay._open.counters.as_dict()["misses"] if not name.startswith("context.")}
        assert misses == set(), "each was a hit"
