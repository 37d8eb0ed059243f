"""Sentinel for tests; the public name is `scrubjay.testing.topologies.SentinelServers`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from scrubjay.testing._process import HOST
from scrubjay.testing._resp import exchange, exchange_at, execute
from scrubjay.testing._topology import (
    Directives,
    Member,
    Servers,
    answering,
    ask_living,
    missing_role,
    most_common,
    node_options,
    pairs,
)
from scrubjay.testing.servers import quoted
from scrubjay.valkey.commands import ServerError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from scrubjay.testing._process import Nest
    from scrubjay.testing.servers import Flavour, ValkeyServer

# Not faster: a sentinel promotes no replica that it has not heard of for five periods of ping, and while the primary is
# down it asks replicas once a second, whatever its periods are.
_SENTINEL_PERIODS: Final = {"ping-period": 400, "info-period": 400, "ask-period": 100, "publish-period": 200}
# A sentinel that did not run for two seconds (a paused one, a busy machine) does nothing for this long; else 30 s.
_TILT_MS: Final = 1000
# How sentinels mark who is away or in the middle of a failover. Not `master_down`: Valkey leaves that on sentinels.
_UNWELL: Final = {
    *("s_down", "o_down", "disconnected", "failover_in_progress"),
    *("promoted", "reconf_sent", "reconf_inprog", "reconf_done"),
}


class _Replica(Member):
    """A server that starts as the replica of another one, which must have been started."""

    def __init__(self, flavour: Flavour, primary: ValkeyServer, **options: Any) -> None:
        super().__init__(flavour, **options)
        self._primary = primary

    def _configure(self, file: Path, port: int) -> None:
        self._directives["replicaof"] = f"{HOST} {self._primary.port}"
        super()._configure(file, port)


class _Sentinel(Member):
    """A sentinel that watches one primary, which must have been started."""

    _arguments = ("--sentinel",)
    _listening = "Sentinel ID is"

    def __init__(
        self,
        flavour: Flavour,
        primary: ValkeyServer,
        service: str,
        quorum: int,
        settings: Mapping[str, str | int],
        timeout: float,
    ) -> None:
        super().__init__(flavour, timeout=timeout)
        self._primary, self._service, self._quorum, self._settings = primary, service, quorum, settings

    def _launch(self, nest: Nest) -> int:
        port = super()._launch(nest)
        # Not kept in its file. With the periods of production it takes 10 s to find the others.
        periods = {**_SENTINEL_PERIODS, "tilt-period": _TILT_MS}
        exchange_at(port, [("SENTINEL", "DEBUG", *(word for pair in periods.items() for word in pair))])
        return port

    def _configure(self, file: Path, port: int) -> None:
        monitor = f"monitor {self._service} {HOST} {self._primary.port} {self._quorum}"
        settings = [f"{name} {self._service} {value}" for name, value in self._settings.items()]
        self._directives["sentinel"] = [monitor, *settings]
        super()._configure(file, port)
        if "auth-pass" in self._settings:
            # Redis writes it without quotes, and with a blank or a quote in it cannot read it again.
            line = f"sentinel auth-pass {self._service} {self._settings['auth-pass']}"
            text = file.read_text(encoding="utf-8", errors="surrogateescape")
            text = re.sub(r"(?m)^sentinel auth-pass .*$", lambda _: line, text)
            file.write_text(text, encoding="utf-8", errors="surrogateescape")


class SentinelServers(Servers):
    """A primary, its replicas, and the sentinels that promote one of them when the primary is gone.

    Parameters:
        flavour: which server.
        replicas: how many.
        sentinels: how many; a majority of them must run for a failover. They have no password.
        password: what the nodes ask for; None for no authentication.
        service: the name of the primary, for the sentinels and their clients.
        down_after_ms: after how long without an answer a sentinel takes a node for dead.
        failover_timeout_ms: after twice this time, a failover that failed is tried again.
        extra: directives for the nodes, as of `ValkeyServer`.
        timeout: how long each server may take to start, and all of them to agree, in seconds.
    """

    _TOPOLOGY = "sentinel"

    def __init__(
        self,
        flavour: Flavour = "valkey",
        *,
        replicas: int = 2,
        sentinels: int = 3,
        password: str | None = None,
        service: str = "scrubjay",
        down_after_ms: int = 500,
        failover_timeout_ms: int = 3000,
        extra: Directives | None = None,
        timeout: float = 20.0,
    ) -> None:
        super().__init__(flavour, password, timeout)
        self.service = service
        options = node_options(password, extra, timeout)
        first = Member(flavour, **options)
        self.nodes = [first, *(_Replica(flavour, first, **options) for _ in range(replicas))]
        settings: dict[str, str | int] = {
            "down-after-milliseconds": down_after_ms,
            "failover-timeout": failover_timeout_ms,
            "parallel-syncs": max(1, replicas),
        }
        if password is not None:
            settings["auth-pass"] = quoted(password)
        quorum = sentinels // 2 + 1
        self.sentinels: list[Member] = [
            _Sentinel(flavour, first, service, quorum, settings, timeout) for _ in range(sentinels)
        ]
        """The sentinels."""

    @property
    def url(self) -> str:
        """The URL of the sentinels: `valkey+sentinel://…` or `redis+sentinel://…`, the password being the nodes'.

        Raises:
            Closed: they were never started, so they have no ports.
        """
        return f"{self._url(self.sentinels)}/{quote(self.service, safe='')}"

    @property
    def primary(self) -> Member:
        """The node that most sentinels name at this moment; it may be dead.

        Raises:
            Unavailable: no sentinel answers.
        """
        return self._named(self.sentinels)

    @property
    def replicas(self) -> list[Member]:
        """The nodes that are not the primary, dead ones among them.

        Raises:
            Unavailable: no sentinel answers.
        """
        primary = self.primary
        return [node for node in self.nodes if node is not primary]

    def failover(self) -> Member:
        """Have a replica promoted while the primary lives, and wait until all is ready again.

        Returns:
            The new primary; it takes writes.

        Raises:
            Unavailable: it did not happen within the timeout.
        """
        before = self.primary
        orderer = next(sentinel for sentinel in self.sentinels if sentinel.answers)

        def missing() -> str:
            if self._named([orderer]) is before:
                # Refused while one is under way, and while nothing good enough is known of any replica. What was begun
                # may also be given up: then it begins again.
                execute(orderer, "SENTINEL", "FAILOVER", self.service)
            return "another primary" if self.primary is before else self._missing()

        self._wait(missing)
        return self.primary

    def wait_for_failover(self, before: Member) -> Member:
        """Return when another node is the primary and all members that run are ready.

        Parameters:
            before: the primary that was, dead or alive.

        Returns:
            The new primary; it takes writes.

        Raises:
            Unavailable: it did not happen within the timeout.
        """
        self._wait(lambda: "another primary" if self.primary is before else self._missing())
        return self.primary

    def _named(self, sentinels: list[Member]) -> Member:
        ask = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
        port = int(most_common(tuple(name) for name in ask_living(sentinels, ask))[1])
        return next(node for node in self.nodes if node.port == port)

    def _members(self) -> list[Member]:
        return [*self.nodes, *self.sentinels]

    def _missing(self) -> str:
        primary = self.primary
        for node in filter(answering, self.nodes):
            if what := missing_role(node, None if node is primary else primary.port):
                return what
        for sentinel in filter(answering, self.sentinels):
            asked = [("SENTINEL", what, self.service) for what in ("MASTER", "REPLICAS", "SENTINELS")]
            replies = exchange(sentinel, *asked)
            if any(isinstance(reply, ServerError) for reply in replies):
                return f"an answer of {sentinel.port}: {replies}"
            rows = [pairs(row) for row in (replies[0], *replies[1], *replies[2])]
            known = {int(row["port"]) for row in rows if not _UNWELL & set(row["flags"].split(","))}
            linked = {int(row["port"]) for row in rows if row.get("master-link-status") == "ok"}
            named = int(rows[0]["port"])
            if named != primary.port:
                return f"sentinel {sentinel.port} knows that the primary is {primary.port}, not {named}"
            for other in filter(answering, self._members()):
                if other is not sentinel and other.port not in known:
                    return f"sentinel {sentinel.port} finds {other.port} well"
                if other in self.nodes and other is not primary and other.port not in linked:
                    return f"sentinel {sentinel.port} knows that {other.port} is linked"
        return ""
