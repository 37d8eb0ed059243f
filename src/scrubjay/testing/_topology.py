"""What Sentinel and Cluster have in common for tests: servers with roles, and waiting until all of them agree."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote

from scrubjay.core.errors import Unavailable
from scrubjay.testing._process import HOST
from scrubjay.testing._resp import Word, execute
from scrubjay.testing.servers import ValkeyServer, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from types import TracebackType

    from scrubjay.testing._process import Nest
    from scrubjay.testing.servers import Flavour

Directives = Mapping[str, str | int | Sequence[str]]
"""Directives of the configuration file, as of `ValkeyServer`."""

_POLL_S: Final = 0.03
# How long one of many is waited for: what it would say, the others say, too.
_ASK_S: Final = 2.0


class Member(ValkeyServer):
    """A server of an arrangement.

    Sentinels, and on their word nodes, rewrite their configuration files: a file that is there is left as it is.
    """

    _silent = False

    def pause(self) -> None:
        """Stop the server in its tracks: connections stay open, and nothing answers."""
        super().pause()
        self._silent = True

    def resume(self) -> None:
        """Let a paused server go on."""
        super().resume()
        self._silent = False

    @property
    def answers(self) -> bool:
        """Whether it runs and is not paused."""
        return self.pid is not None and not self._silent

    def _launch(self, nest: Nest) -> int:
        self._silent = False
        return super()._launch(nest)

    def _configure(self, file: Path, port: int) -> None:
        if self._port is None or not file.exists():
            super()._configure(file, port)


class Servers:
    """What both arrangements share: a life cycle, and waiting until all members agree."""

    _TOPOLOGY: str
    nodes: list[Member]
    """The servers with data, whatever their roles."""

    def __init__(self, flavour: Flavour, password: str | None, timeout: float) -> None:
        self.flavour: Flavour = flavour
        self.password = password
        self.timeout = timeout

    def start(self) -> Self:
        """Start what does not run and wait until it is ready; after `kill` of a member, it comes back.

        Returns:
            The servers themselves.

        Raises:
            ConfigurationError: the program is not installed or cannot run.
            Unavailable: a server ended at once, or they did not find together in time.
        """
        try:
            for server in self._members():
                server.start()
            self._form()
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End all servers and remove their data; does nothing if there are none."""
        for server in reversed(self._members()):
            server.stop()

    def wait_until_ready(self) -> None:
        """Return when all members that run, paused ones aside, know each other, agree on the roles, and replicate.

        Raises:
            Unavailable: they do not within the timeout; the message says what is missing.
        """
        self._wait(self._missing)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _members(self) -> list[Member]:
        """All servers; a server follows those that it needs."""
        raise NotImplementedError

    def _form(self) -> None:
        """Tell servers that have just started of each other."""

    def _missing(self) -> str:
        """Return what is missing to be ready, or nothing; an `Unavailable` is something that is missing."""
        raise NotImplementedError

    def _wait(self, missing: Callable[[], str]) -> None:
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                what = missing()
            except Unavailable as error:
                what = str(error)
            if not what:
                return
            if time.monotonic() > deadline:
                raise Unavailable(f"{self._TOPOLOGY}: after {self.timeout:g} s still not: {what}")
            time.sleep(_POLL_S)

    def _url(self, servers: Sequence[ValkeyServer]) -> str:
        scheme = "valkey" if self.flavour == "valkey" else "redis"
        secret = "" if self.password is None else f":{quote(self.password, safe='')}@"
        return f"{scheme}+{self._TOPOLOGY}://{secret}{','.join(f'{HOST}:{server.port}' for server in servers)}"


def node_options(password: str | None, extra: Directives | None, timeout: float) -> dict[str, Any]:
    """Return what all nodes are made with."""
    # Otherwise a primary waits five seconds for more replicas before it fills the first one.
    directives: dict[str, str | int | Sequence[str]] = {"repl-diskless-sync-delay": 0}
    if password is not None:
        directives["masterauth"] = quoted(password)
    return {"password": password, "timeout": timeout, "extra": {**directives, **(extra or {})}}


def answering(server: Member) -> bool:
    return server.answers


def ask_living(servers: Iterable[Member], command: tuple[Word, ...]) -> list[Any]:
    """Return the replies of the servers that answer.

    Raises:
        Unavailable: none does.
    """
    replies = []
    for server in servers:
        if server.answers:
            with contextlib.suppress(Unavailable):
                replies.append(execute(server, *command, timeout=_ASK_S))
    if not replies:
        raise Unavailable("no server answers")
    return replies


def most_common(answers: Iterable[Any]) -> Any:
    return Counter(answers).most_common(1)[0][0]


def pairs(flat: list[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def facts(node: Member, *command: str) -> dict[str, str]:
    """Return the reply to a command that answers lines of `name:value`."""
    lines = [line.partition(":") for line in execute(node, *command).splitlines()]
    return {name: value for name, _, value in lines}


def missing_role(node: Member, primary: int | None) -> str:
    """Return what is missing until a node is a linked replica of a port, or, of none, a primary."""
    said = facts(node, "INFO", "replication")
    if primary is None:
        return "" if said["role"] == "master" else f"{node.port} is a primary"
    linked = said["role"] == "slave" and said["master_port"] == str(primary) and said["master_link_status"] == "up"
    return "" if linked else f"{node.port} is linked to {primary}"
