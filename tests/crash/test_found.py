"""What crashes have found, each in small."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from scrubjay.core.errors import ConfigurationError
from scrubjay.core.keys import KeySpace, Kind
from scrubjay.core.ports import JournalKey, Opened, Opening
from scrubjay.core.scope import Scope
from scrubjay.testing.servers import ValkeyServer
from scrubjay.valkey.client import ValkeyClient
from scrubjay.valkey.journal import JOURNAL_SCRIPTS, ValkeyJournal
from scrubjay.valkey.journal_check import unsafe
from scrubjay.valkey.journal_keys import name_of
from scrubjay.valkey.url import parse_cache_url
from tests.conftest import OpenJay

KEY = JournalKey(Scope("t", "u"), Kind.CHAT, "s")
EARLIER, LATER = Opened("1-a", 3, 10), Opened("2-b", 4, 11)


@pytest.fixture
async def journal(valkey9: ValkeyServer) -> AsyncIterator[ValkeyJournal]:
    """A journal with nothing in it."""
    client = ValkeyClient(parse_cache_url(valkey9.url), deadline=5.0, scripts=JOURNAL_SCRIPTS)
    journal = ValkeyJournal(client, KeySpace(f"t{uuid4().hex[:12]}"), "store", "p")
    yield journal
    await journal.close()


async def _came_and_went(journal: ValkeyJournal, opened: Opened) -> None:
    assert await journal.open(KEY, opened) is Opening.NEW
    assert await journal.seal(KEY, opened.epoch)
    await journal.release(KEY, opened.epoch)


async def test_who_opens_late_finds_that_the_list_was_sealed_also_when_it_was_opened_anew(
    journal: ValkeyJournal,
) -> None:
    # A process has marked the list, and stands still. What it would open goes on from where the store no longer is.
    await _came_and_went(journal, EARLIER)
    await _came_and_went(journal, LATER)
    assert await journal.open(KEY, EARLIER) is Opening.SEALED
    assert await journal.open(KEY, LATER) is Opening.SEALED
    assert await journal.open(KEY, Opened("3-c", 5, 12)) is Opening.NEW


async def test_a_mark_that_nobody_has_opened_yet_can_be_sealed(journal: ValkeyJournal) -> None:
    await _came_and_went(journal, EARLIER)
    assert await journal.seal(KEY, LATER.epoch)
    assert await journal.open(KEY, LATER) is Opening.SEALED


async def test_what_is_open_is_not_sealed_under_another_epoch(journal: ValkeyJournal) -> None:
    assert await journal.open(KEY, LATER) is Opening.NEW
    assert not await journal.seal(KEY, EARLIER.epoch)
    assert await journal.discard(KEY, EARLIER.epoch) == 0
    assert await journal.open(KEY, LATER) is Opening.OPEN


async def test_a_journal_that_went_back_before_a_seal_is_closed_and_reported(
    open_jay: OpenJay, valkey9: ValkeyServer
) -> None:
    jay = await open_jay(writes={"chat": "behind"}, journal={"durability": "memory", "age": 3600.0})
    chat = jay.user("u").session("s").chat
    await chat.append(role="user", content="1")
    journalling = jay._open.journalling
    assert journalling is not None
    (mark,) = await journalling.lists._store.behind_marks()
    known = journalling.journal._keys.known(name_of(mark.key))
    client = ValkeyClient(parse_cache_url(valkey9.url), deadline=5.0)
    (old,) = await client.call([("DUMP", known)])
    await jay.flush(release=True)
    await chat.append(role="user", content="2")
    # The server comes back as it was before the list was sealed.
    assert isinstance(old, bytes)
    await client.call([("RESTORE", known, 0, old, "REPLACE"), ("HSET", known, "r", "an earlier run")])
    assert [message.seq for message in await chat.append_many([{"role": "user", "content": "3"}])] == [2]
    assert journalling.lists.counts.lost_lists == 1
    await jay.flush(release=True)
    assert await journalling.lists._store.behind_marks() == []
    await client.close()


async def test_the_answer_to_a_pending_call_can_be_written_by_the_store(open_jay: OpenJay) -> None:
    jay = await open_jay(writes={"chat": "behind"}, journal={"durability": "memory", "age": 3600.0})
    chat = jay.user("u").session("s").chat
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    await chat.append({"role": "assistant", "content": "?", "tool_calls": [call]})
    # As where the journal has not answered.
    answer = chat._new({"role": "tool", "tool_call_id": "c", "content": "!"}, None, {})
    (written,) = await chat._through([answer])
    assert written.seq == 2
    assert [message["content"] for message in await chat.recent()] == ["?", "!"]


@pytest.mark.parametrize(
    ("syncing", "says"),
    [
        ({"appendfsync": "always", "no-appendfsync-on-rewrite": "no"}, None),
        ({"appendfsync": "everysec", "no-appendfsync-on-rewrite": "no"}, "CONFIG SET appendfsync always"),
        ({"appendfsync": "no"}, "CONFIG SET appendfsync always"),
        ({}, "allow this user `CONFIG GET`"),
        ({"appendfsync": "always", "no-appendfsync-on-rewrite": "yes"}, "no-appendfsync-on-rewrite no"),
    ],
)
def test_only_a_server_that_always_syncs_has_on_its_disk_what_it_answers(
    syncing: dict[str, str], says: str | None
) -> None:
    found = unsafe({"aof_enabled": 1}, "fsync", syncing)
    assert found is None if says is None else found is not None and says in found
    assert unsafe({"aof_enabled": 1}, "memory", syncing) is None


async def test_a_server_that_syncs_every_second_is_refused(open_jay: OpenJay) -> None:
    settings = {"writes": {"chat": "behind"}, "journal": {"durability": "fsync"}}
    with (
        ValkeyServer(extra={"appendonly": "yes", "appendfsync": "everysec"}) as server,
        pytest.raises(ConfigurationError, match="appendfsync always"),
    ):
        await open_jay(cache=server.url, **settings)


async def test_a_restart_counts_once_for_all_shards() -> None:
    with ValkeyServer() as server:
        client = ValkeyClient(parse_cache_url(server.url), deadline=5.0, scripts=JOURNAL_SCRIPTS)
        journal = ValkeyJournal(client, KeySpace("t"), "store", "p")
        restarts: list[int] = []
        journal.on_restart = lambda: restarts.append(1)
        await journal.check()
        server.restart()
        client.drop()
        await client.call([("PING",)])
        await journal.check()
        assert len(restarts) == 1
        await journal.close()
