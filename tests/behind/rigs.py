"""A journal on real servers, with a hand in them."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from scrubjay.core.keys import KeySpace
from scrubjay.core.ports import Durability
from scrubjay.testing.servers import ValkeyServer
from scrubjay.valkey.commands import Reply, ServerError
from scrubjay.valkey.journal import JOURNAL_SCRIPTS, ValkeyJournal
from scrubjay.valkey.open import AnyClient, client_of
from scrubjay.valkey.url import parse_cache_url
from tests.deployments import Deployment, primaries

PATIENT_S = 5.0


class ValkeyJournalRig:
    """A journal on a server, Sentinels or a cluster."""

    def __init__(self, server: Deployment, durability: Durability = "memory") -> None:
        self.server = server
        self.durability = durability
        self.prefix = f"t{uuid4().hex[:12]}"
        self.journals: list[ValkeyJournal] = []
        self.journal = self.make()

    def make(self, **options: Any) -> ValkeyJournal:
        """Return the journal as one more process has it."""
        client = client_of(parse_cache_url(self.server.url), deadline=PATIENT_S, scripts=JOURNAL_SCRIPTS)
        if options.keys() & {"most_entries", "most_bytes"}:
            options.setdefault("shards", 1)
        name = f"process{len(self.journals)}"
        journal = ValkeyJournal(
            client, KeySpace(self.prefix), "store", name, durability=self.durability, timeout_s=PATIENT_S, **options
        )
        self.journals.append(journal)
        return journal

    async def other(self, **options: Any) -> ValkeyJournal:
        return self.make(**options)

    async def restart(self) -> None:
        assert isinstance(self.server, ValkeyServer)
        self.server.restart()
        for journal in self.journals:
            # A connection that is gone is found out by who uses it next, who cannot know what became of that.
            await _connected(journal.client)

    async def lose(self) -> None:
        await self.raw("FLUSHALL")

    async def raw(self, *command: bytes | str | int) -> list[Reply]:
        """Send a command to every primary, and return what each says."""
        replies = [reply for (reply,) in await self.journal.client.each([command])]
        assert not any(isinstance(reply, ServerError) for reply in replies), replies
        return replies

    async def keys(self) -> set[str]:
        """Return the keys of this journal."""
        found = await self.raw("KEYS", f"{self.prefix}:*")
        return {key.decode() for keys in found for key in keys}  # type: ignore[union-attr]

    async def close(self) -> None:
        for journal in self.journals:
            await journal.close()


async def _connected(client: AnyClient) -> None:
    for node in await client.nodes():
        node.drop()
        await node.check(PATIENT_S)


def servers_of(deployment: Deployment) -> list[ValkeyServer]:
    """Return the servers of a deployment that hold keys."""
    return primaries(deployment)
