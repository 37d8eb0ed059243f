"""What one node is asked when it is examined. Each question may be refused; that is noted, and no error."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from scrubjay.core.credentials import CredentialProvider
from scrubjay.core.errors import CacheUnavailable
from scrubjay.core.facts import ServerFacts, SlowCall
from scrubjay.core.keys import KeySpace
from scrubjay.valkey.client import CONNECT_DEADLINE_S, ValkeyClient
from scrubjay.valkey.commands import Command, Reply, ServerError
from scrubjay.valkey.dialler import Dialler, NodeDialler
from scrubjay.valkey.info import facts
from scrubjay.valkey.key_kinds import look_at, names_of
from scrubjay.valkey.scan import Refused
from scrubjay.valkey.url import Address, CacheUrl
from scrubjay.valkey.wire import Wire, pack

DEADLINE_S: Final = 5.0
"""How long one question may take, in seconds: what is examined may be slow, and nobody else waits."""
PINGS: Final = 20
SLOW_CALLS: Final = 128
_ALL: Final[Command] = ("INFO", "everything")
PARAMETERS: Final = (
    "maxmemory", "maxmemory-policy", "maxclients", "timeout", "tcp-keepalive", "client-output-buffer-limit",
    "lazyfree-lazy-eviction", "lazyfree-lazy-expire", "lazyfree-lazy-server-del", "lazyfree-lazy-user-del",
    "tracking-table-max-keys", "save", "appendonly", "stop-writes-on-bgsave-error", "activedefrag", "bind",
    "protected-mode", "port", "tls-port", "slowlog-log-slower-than", "latency-monitor-threshold",
    "min-replicas-to-write", "min-replicas-max-lag", "repl-backlog-size",
)  # fmt: skip
"""Of what CONFIG GET is asked: nothing that holds a password."""
DESTROYING: Final[tuple[Command, ...]] = (("FLUSHALL",), ("CONFIG", "SET", "dir", "/"), ("SHUTDOWN",), ("KEYS", "*"))
"""What the application never does; whether it might is asked, and nothing of it is done."""


_CLOSED: Final = frozenset({"NOAUTH", "NOPERM", "DENIED", "WRONGPASS"})
"""What a server says who answers nobody that has not logged in; DENIED from afar, in protected mode."""


@dataclass(frozen=True, slots=True)
class Application:
    """How the application logs in, where it is an operator who asks.

    Attributes:
        url: Its URL.
        provider: Gives its credentials; None for those of the URL.
    """

    url: CacheUrl
    provider: CredentialProvider | None = None


@dataclass(frozen=True, slots=True)
class Asking:
    """How nodes are examined.

    Attributes:
        keys: How our keys are named.
        sample: How many keys of each primary are looked at.
        watch_s: The time between the two looks at what grows, in seconds.
        app_user: The application's user.
        provider: Gives the credentials; None for those of the URL.
        application: The application, if somebody else asks.
    """

    keys: KeySpace
    sample: int
    watch_s: float
    app_user: str
    provider: CredentialProvider | None = None
    application: Application | None = None


async def ask_node(url: CacheUrl, asking: Asking) -> ServerFacts:
    """Return what a node tells of itself.

    Raises:
        CacheUnavailable: It does not answer, or wants other credentials.
    """
    dialler = NodeDialler(url, asking.provider, any_role=True)
    client = ValkeyClient(url, deadline=DEADLINE_S, dialler=dialler)
    try:
        wire = await client.connected(CONNECT_DEADLINE_S)
        found = await _told(client, ServerFacts(node_name(url), local=_is_local(url, wire), tls=url.tls))
        # Whose credentials a provider gives only the server knows.
        user = found.user if asking.provider is not None and asking.application is None else None
        found = await _rights(client, found, user or asking.app_user)
        found = await _door(url, found)
        if asking.sample and found.primary:
            found = await _sampled(client, found, asking, url)
        return await _watched(client, found, asking.watch_s)
    finally:
        await client.close()


def node_name(url: CacheUrl) -> str:
    """Return what a node is called in findings."""
    return url.path if url.path is not None else str(Address(url.host, url.port))


async def _told(client: ValkeyClient, found: ServerFacts) -> ServerFacts:
    refused: dict[str, str] = {}
    (info,) = await client.call([_ALL])
    config: dict[str, str] = {}
    for name, reply in zip(
        PARAMETERS, await client.call([("CONFIG", "GET", name) for name in PARAMETERS]), strict=True
    ):
        if isinstance(reply, list) and len(reply) == 2:
            config[name] = _text(reply[1])
        elif isinstance(reply, ServerError):
            refused["config|get"] = _refusal("config|get", reply)
    slow, events, user = await client.call([("SLOWLOG", "GET", SLOW_CALLS), ("LATENCY", "LATEST"), ("ACL", "WHOAMI")])
    for name, reply in (("info", info), ("slowlog|get", slow), ("latency|latest", events), ("acl|whoami", user)):
        if isinstance(reply, ServerError):
            refused[name] = _refusal(name, reply)
    ahead, why = await _ahead(client)
    if why is not None:
        refused["time"] = why
    return replace(
        found,
        info=facts(info) if isinstance(info, bytes) else {},
        config=config,
        refused=refused,
        slow=_slow_calls(slow),
        events=_events(events),
        user=user.decode(errors="replace") if isinstance(user, bytes) else None,
        ahead_s=ahead,
    )


async def _ahead(client: ValkeyClient) -> tuple[float | None, str | None]:
    before = time.time()
    (reply,) = await client.call([("TIME",)])
    after = time.time()
    if isinstance(reply, ServerError):
        return None, _refusal("time", reply)
    assert isinstance(reply, list)
    # It was read in the middle of the round trip, as far as anybody knows.
    return int(reply[0]) + int(reply[1]) / 1e6 - (before + after) / 2, None


async def round_trips(url: CacheUrl, asking: Asking) -> tuple[float, ...]:
    """Return how long each of some PINGs took, in milliseconds, one after the other.

    While others are asked on the same event loop, it would be theirs that is measured.

    Raises:
        CacheUnavailable: It does not answer.
    """
    dialler = NodeDialler(url, asking.provider, any_role=True)
    client = ValkeyClient(url, deadline=DEADLINE_S, dialler=dialler)
    found = []
    try:
        await client.connected(CONNECT_DEADLINE_S)
        for _ in range(PINGS):
            started = time.perf_counter()
            await client.call([("PING",)])
            found.append((time.perf_counter() - started) * 1000)
    finally:
        await client.close()
    return tuple(found)


async def _rights(client: ValkeyClient, found: ServerFacts, user: str) -> ServerFacts:
    allowed, why = await _allowed(client.call, user)
    refused = found.refused if why is None else {**found.refused, "acl|dryrun": why}
    return replace(found, app_user=user, app_commands=allowed, refused=refused)


async def _allowed(call: Any, user: str) -> tuple[tuple[str, ...] | None, str | None]:
    """Return what a user may do of what destroys, by ACL DRYRUN, or why that is not known."""
    replies = await call([("ACL", "DRYRUN", user, *command) for command in DESTROYING])
    for reply in replies:
        if isinstance(reply, ServerError):
            return None, _refusal("acl|dryrun", reply)
    names = [command[0] if command[0] != "CONFIG" else "CONFIG SET" for command in DESTROYING]
    return tuple(str(name) for name, reply in zip(names, replies, strict=True) if reply == b"OK"), None


async def _door(url: CacheUrl, found: ServerFacts) -> ServerFacts:
    """Knock without credentials."""
    bare = replace(url, username=None, password=None, database=0)
    wire: Wire | None = None
    try:
        async with asyncio.timeout(DEADLINE_S):
            wire = await Dialler(bare).connect(lambda: Wire(str(bare), DEADLINE_S))
            (reply,) = await wire.ask_all(pack([("PING",)]), 1)
            if isinstance(reply, ServerError) and reply.code not in _CLOSED:
                reason = f"without credentials the server said: {reply.message:.160}"
                return replace(found, refused={**found.refused, "open": reason})
            if isinstance(reply, ServerError):
                return replace(found, open_door=False)
            door = wire
            commands, _ = await _allowed(lambda batch: door.ask_all(pack(batch), len(batch)), "default")
            return replace(found, open_door=True, open_commands=commands)
    except (CacheUnavailable, OSError, TimeoutError) as error:
        reason = f"a connection without credentials could not be tried: {type(error).__name__}"
        return replace(found, refused={**found.refused, "open": reason})
    finally:
        if wire is not None:
            wire.abort()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)


async def _sampled(client: ValkeyClient, found: ServerFacts, asking: Asking, url: CacheUrl) -> ServerFacts:
    names: list[bytes] | None = None
    if asking.application is not None:
        # Who looks need not be allowed to list keys, and the application is.
        names = await _names_for_the_application(url, asking, asking.application)
    if names is None:
        try:
            names = await names_of(client, asking.sample)
        except Refused as refusal:
            return replace(found, refused={**found.refused, "scan": _refusal("scan", refusal.reply)})
    sample = await look_at(client, asking.keys, names)
    refused = dict(found.refused)
    if sample.unsized:
        refused["memory|usage"] = _lacking("memory|usage")
    if sample.undated:
        refused["pttl"] = _lacking("pttl")
    return replace(found, sample=sample, refused=refused)


async def _names_for_the_application(url: CacheUrl, asking: Asking, application: Application) -> list[bytes] | None:
    """List keys as the application; None if it cannot."""
    own = replace(url, username=application.url.username, password=application.url.password)
    client = ValkeyClient(own, deadline=DEADLINE_S, dialler=NodeDialler(own, application.provider, any_role=True))
    try:
        await client.connected(CONNECT_DEADLINE_S)
        return await names_of(client, asking.sample)
    except (CacheUnavailable, Refused):
        return None
    finally:
        await client.close()


async def _watched(client: ValkeyClient, found: ServerFacts, watch_s: float) -> ServerFacts:
    """Look once more at what grows."""
    if not watch_s or not found.info:
        return found
    (before,) = await client.call([_ALL])
    started = time.perf_counter()
    await asyncio.sleep(watch_s)
    (after,) = await client.call([_ALL])
    if not isinstance(before, bytes) or not isinstance(after, bytes):
        return found
    return replace(found, info=facts(before), later=facts(after), watched_s=time.perf_counter() - started)


def _slow_calls(reply: Reply) -> tuple[SlowCall, ...]:
    found = []
    for entry in reply if isinstance(reply, list) else []:
        _, at, us, words, *_ = entry
        # Of the arguments only their number: the last stands for those that the server left out.
        found.append(SlowCall(_text(words[0]).upper()[:40], len(words) - 1, us, max(time.time() - at, 0.0)))
    return tuple(found)


def _events(reply: Reply) -> Mapping[str, tuple[int, int]]:
    return {_text(each[0]): (each[2], each[3]) for each in (reply if isinstance(reply, list) else [])}


def _text(raw: object) -> str:
    return raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)


def _refusal(question: str, reply: ServerError) -> str:
    return _lacking(question) if reply.code == "NOPERM" else f"{question}: {reply.message:.160}"


def _lacking(question: str) -> str:
    return f"the user has no right to it: give +{question}, or an operator's URL (--server-url)"


def _is_local(url: CacheUrl, wire: Wire) -> bool:
    """Return whether a server was reached on this machine."""
    if url.path is not None:
        return True
    host = wire.remote
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
