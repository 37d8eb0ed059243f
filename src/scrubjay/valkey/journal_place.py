"""What who appends knows of a list of the journal: where it is, and what an append says but for its entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from scrubjay.core.ports import Mutation
from scrubjay.valkey.client import ValkeyClient
from scrubjay.valkey.commands import Command, Script
from scrubjay.valkey.tier import ValkeyTier
from scrubjay.valkey.wire import pack

APPEND: Final = Script.packaged("journal_append", "settle", "apply")
APPEND_ONE: Final = Script.packaged("journal_append_one")

_NO_CACHE: Final[tuple[bytes | str | int, ...]] = ("", 0, 0, "", "", "", 0)
_EMPTY: Final = b"$0\r\n\r\n"


class Life(NamedTuple):
    """A run of a server.

    Attributes:
        client: What leads there.
        connects: By which connection of it.
        run: The run's id.
        unsafe: Why it cannot hold a journal; None if it can.
        direct: Whether what it has answered is as durable as it has to be.
        simple: Whether that is so, and it is the only server, and safe.
    """

    client: ValkeyClient
    connects: int
    run: str
    unsafe: str | None
    direct: bool
    simple: bool


@dataclass(slots=True)
class Place:
    """Where a list is, and what plain appends to it have in common.

    Attributes:
        name: Its name.
        shard: Its shard.
        keys: The keys of an append.
        most: How many entries, and how many bytes, may be pending in its shard.
        begun: What a plain append is before its entry, as it goes over the wire.
        one: The same where the cached list was left behind.
        left: The epoch under which it was, as far as is known; empty for none.
        mutation: How the cached list changes, as it says.
        life: The run of the server that it names.
        moment: When the lives of cached entries were looked at, one of which it names; see `Lives`.
    """

    name: str
    shard: int
    keys: list[str]
    most: tuple[int, int]
    begun: bytes = b""
    one: bytes = b""
    left: str = ""
    mutation: Mutation | None = None
    life: Life | None = None
    moment: int = -1

    def command(
        self,
        life: Life,
        cache: ValkeyTier | None,
        mutation: Mutation | None,
        epoch: str,
        entries: Sequence[bytes | str | int],
    ) -> Command:
        """Return the command that appends entries.

        Args:
            life: The run of the server that it is for.
            cache: The cache on that server, to be told in the same step; None for none.
            mutation: How the cached list changes.
            epoch: Under which the list must be open; empty for any.
            entries: The arguments that say what to append.
        """
        keys, told = self.keys, _NO_CACHE
        if cache is not None and mutation is not None:
            keys, told = [*keys, mutation.key.key, mutation.key.lease], cache.beside(mutation)
        return APPEND.command(keys, [life.run, epoch, *self.most, self.name, *told, *entries])

    def prepare(self, life: Life, cache: ValkeyTier | None, mutation: Mutation | None, moment: int) -> None:
        """Note what plain appends have in common; it is the same for one as for the next."""
        if self.life is life and self.moment == moment and self.mutation == mutation:
            self.mutation = mutation
            return
        self.begun = _without_entry(self.command(life, cache, mutation, "", ["", "", ""]))
        self.mutation, self.life, self.moment, self.left = mutation, life, moment, ""

    def leave(self, epoch: str, cache: ValkeyTier, mutation: Mutation) -> None:
        """Note the same for as long as the cached list is left behind, and the list open under an epoch."""
        assert self.life is not None
        keys = [*self.keys, mutation.key.key, mutation.key.lease]
        arguments: list[str | int] = [self.life.run, epoch, *self.most, self.name, cache.left_by_this, "", ""]
        self.one, self.left = _without_entry(APPEND_ONE.command(keys, arguments)), epoch


def _without_entry(command: Command) -> bytes:
    """Return a command as it goes over the wire, but for its last two arguments, which are empty."""
    return pack([command]).removesuffix(_EMPTY + _EMPTY)
