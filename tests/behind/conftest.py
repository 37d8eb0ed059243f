"""Processes that write chats behind: over one SQLite file, one cache, and a journal of the test's choice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from scrubjay.journalling import Journalling
from scrubjay.memory.chat import Chat
from scrubjay.testing.servers import ValkeyServer
from scrubjay.valkey.client import ValkeyClient
from scrubjay.valkey.tier import ValkeyTier
from tests.coherence.conftest import QUIET_S, Open, Process, opened
from tests.deployments import Deployment

BEHIND = {"chat": "behind", "tools": "behind"}


def chat_of(process: Process, session: str = "s", user: str = "alice") -> Chat:
    """Return a chat as a process has it."""
    return process.tenant.user(user).session(session).chat


def behind(process: Process) -> Journalling:
    """Return the write-behind of a process."""
    found = process.engine.journalling
    assert found is not None
    return found


async def say(process: Process, *texts: str, session: str = "s", user: str = "alice") -> None:
    """Append messages one after the other."""
    for text in texts:
        await chat_of(process, session, user).append(role="user", content=text)


async def shown(process: Process, n: int = 100, session: str = "s", user: str = "alice") -> list[str]:
    """Return the newest messages of a chat as a process reads them."""
    return [message["content"] for message in await chat_of(process, session, user).recent(n)]


async def stored(process: Process, session: str = "s", user: str = "alice") -> list[str]:
    """Return the messages of a chat that the store has."""
    from scrubjay.core.scope import Scope
    from scrubjay.testing.store import texts_of

    return await texts_of(behind(process).lists._store, Scope("acme", user), session)  # type: ignore[arg-type]


async def pending(process: Process) -> int:
    """Return how many entries the journal holds."""
    return (await behind(process).journal.backlog()).entries


@pytest.fixture(scope="session")
def journal_server() -> Iterator[ValkeyServer]:
    """One server for the run that is nothing but the journal, and puts everything on disk at once."""
    with ValkeyServer(extra={"appendonly": "yes", "appendfsync": "always"}) as running:
        yield running


@pytest.fixture
def own_journal() -> Iterator[ValkeyServer]:
    """One for a single test, that may go away."""
    with ValkeyServer(extra={"appendonly": "yes", "appendfsync": "always"}) as running:
        yield running


@pytest.fixture
async def open_behind(tmp_path: Path, usual_server: Deployment) -> AsyncIterator[Open]:
    """Opens processes that write chats behind, to the cache's own server unless told otherwise; nobody flushes."""
    prefix = f"t{uuid4().hex[:12]}"
    async with AsyncExitStack() as stack:

        async def open_one(**settings: Any) -> Process:
            journal = settings.pop("journal", None)
            given = {"url": journal} if isinstance(journal, str) else dict(journal or {})
            durability = "memory" if isinstance(usual_server, ValkeyServer) and "url" not in given else "auto"
            defaults = {
                "store": f"sqlite:///{tmp_path}/store.db?synchronous=off",
                "cache": usual_server.url,
                "prefix": prefix,
                "housekeeping": 3600.0,
                "cache_timeout": 5.0,
                "cache_deadline": QUIET_S,
                "store_timeout": 30.0,
                "tokenizer": "heuristic",
                "writes": BEHIND,
                "journal": {"age": 3600.0, "durability": durability, **given},
            }
            process = await opened(stack, **{**defaults, **settings})
            tier, client = getattr(process.engine.server.hot, "_real", None), process.engine.client
            if isinstance(tier, ValkeyTier) and isinstance(client, ValkeyClient) and process.engine.journalling:
                # What wraps the cache hides from the journal that it is on the same server.
                process.engine.journalling.beside(tier, client)
            return process

        yield open_one
