"""What the tier says to a client and hears from it: commands, replies, scripts. No client library is known here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, NamedTuple, Protocol

Command = tuple[bytes | str | int, ...]
"""A command and its arguments."""


@dataclass(frozen=True, slots=True)
class ServerError:
    """The server refused one command of a batch: `code` is the first word of its reply (`WRONGTYPE`, `OOM`, …)."""

    code: str
    message: str


Reply = bytes | int | list[Any] | ServerError | None
"""What the server answers to one command; text is bytes."""


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, known to the server by its digest.

    Attributes:
        name: What it is called in messages.
        source: Its text.
    """

    name: str
    source: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", digest)

    @classmethod
    def packaged(cls, name: str, *functions: str) -> Script:
        """Return the script `scripts/<name>.lua` of this package.

        Args:
            name: Its name.
            functions: Others that it calls, as functions of those names; each may call those before it.
        """
        before = [f"local function {each}(KEYS, ARGV)\n{_text(each)}end\n" for each in functions]
        return cls(name, "".join(before) + _text(name))

    def command(self, keys: Sequence[str], arguments: Iterable[bytes | str | int]) -> Command:
        """Return the command that runs it; its keys must live in one slot."""
        return ("EVALSHA", self.sha, len(keys), *keys, *arguments)


def _text(name: str) -> str:
    return files(__package__).joinpath("scripts", f"{name}.lua").read_text(encoding="utf-8")


class Block(NamedTuple):
    """Packed commands of one slot that run as one transaction: the first is MULTI, the last EXEC.

    Attributes:
        packed: They.
        commands: How many they are.
        key: One of the keys: it says in which slot they all are.
    """

    packed: bytes
    commands: int
    key: str


class Client(Protocol):
    """The one way to a server, whatever its topology: a batch of commands in, one reply per command out."""

    @property
    def wary(self) -> bool:
        """Whether another server may take over that was not told of all that this one was."""
        ...

    async def call(self, commands: Sequence[Command]) -> list[Reply]:
        """Send a batch and return one reply per command, in order.

        Commands on one slot run in their order; between them others' commands may run. A script that the server does
        not know runs after the rest of its batch.

        Raises:
            CacheUnavailable: The server did not answer in time; any part of the batch may have run or may yet run.
            CacheAuthFailed: It wants credentials, or refuses those given.
            Closed: The client is closed.
        """
        ...

    async def each(self, commands: Sequence[Command]) -> list[list[Reply]]:
        """Send the same batch, of commands without keys, to each node that holds keys; return each one's replies.

        Raises:
            CacheUnavailable: One of them did not answer in time.
            CacheAuthFailed: It wants credentials, or refuses those given.
            Closed: The client is closed.
        """
        ...

    def marks(self, key: str) -> list[list[str]]:
        """Return, for each node that can lose what it holds alone, the keys by which something is noted there.

        Of these the first is to be written, and all are to be read: keys move between nodes, and what they say of
        the data of a node holds wherever they come to stand.

        Args:
            key: What is noted, without braces.
        """
        ...

    async def nodes(self) -> Sequence[Client]:
        """Return a client of each node that holds keys, for commands that are about no key.

        Raises:
            CacheUnavailable: It is not known which these are.
            Closed: The client is closed.
        """
        ...

    async def still(self) -> object:
        """Return what stays the same while no keys move between nodes; another one after they have, or while they do.

        Raises:
            CacheUnavailable: A node does not answer.
            Closed: The client is closed.
        """
        ...

    async def ask(self, packed: bytes, key: str) -> Any:
        """Send one command, packed, and return its reply; a script that the server does not know is not sent anew.

        Args:
            packed: The command.
            key: Its key, or one of them.

        Raises:
            CacheUnavailable: The server did not answer in time.
            CacheAuthFailed: It wants credentials, or refuses those given.
            Closed: The client is closed.
        """
        ...

    async def run(self, blocks: Sequence[Block]) -> list[Any]:
        """Run transactions, and return for each the replies of its commands; `ServerError` for one that was refused.

        Raises:
            CacheUnavailable: The server did not answer in time.
            CacheAuthFailed: It wants credentials, or refuses those given.
            Closed: The client is closed.
        """
        ...

    async def close(self) -> None:
        """Release all connections."""
        ...
