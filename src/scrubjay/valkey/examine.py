"""Examining the servers of a cache URL: all nodes of its topology, each asked by itself, whatever state they are in."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from scrubjay.core.errors import CacheUnavailable, ConfigurationError
from scrubjay.core.facts import CacheFacts, ClusterFacts, SentinelFacts, ServerFacts, Unreached, replicas_of
from scrubjay.valkey.client import CONNECT_DEADLINE_S, ValkeyClient
from scrubjay.valkey.commands import Reply, ServerError
from scrubjay.valkey.dialler import Dialler, NodeDialler
from scrubjay.valkey.info import facts
from scrubjay.valkey.open import client_of
from scrubjay.valkey.questions import DEADLINE_S, Asking, ask_node, node_name, round_trips
from scrubjay.valkey.slots import SLOTS
from scrubjay.valkey.url import Address, CacheKind, CacheUrl
from scrubjay.valkey.wire import Wire, pack

MAX_NODES: Final = 100
"""The most nodes that are examined."""
AT_ONCE: Final = 8
"""How many are examined at once."""


async def examine(url: CacheUrl, asking: Asking) -> CacheFacts:
    """Return what is to be known of a cache; what cannot be reached is a part of it.

    Args:
        url: One server, Sentinels, or a cluster.
        asking: How.

    Raises:
        ConfigurationError: `url` names no server, or its TLS files cannot be used.
    """
    match url.kind:
        case CacheKind.CLUSTER:
            return await _cluster(url, asking)
        case CacheKind.SENTINEL:
            return await _service(url, asking)
        case CacheKind.SERVER:
            nodes, unreached = await _all([(url, True)], asking)
            return CacheFacts(str(url), str(url.kind), nodes, unreached)
        case _:
            raise ConfigurationError(f"{url} names no server to examine")


async def try_url(url: CacheUrl, asking: Asking) -> Unreached | None:
    """Return why a URL cannot be used as a cache's, or None."""
    client = client_of(url, deadline=DEADLINE_S, provider=asking.provider)
    try:
        await client.check()
    except CacheUnavailable as error:
        return Unreached(str(url), error.code, error.message)
    finally:
        await client.close()
    return None


async def _all(
    urls: Sequence[tuple[CacheUrl, bool]], asking: Asking
) -> tuple[tuple[ServerFacts, ...], tuple[Unreached, ...]]:
    """Examine nodes, each given with whether it is needed."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(url: CacheUrl, needed: bool) -> ServerFacts | Unreached:
        async with slots:
            try:
                return await ask_node(url, asking)
            except CacheUnavailable as error:
                return Unreached(node_name(url), error.code, error.message, needed)

    found = await asyncio.gather(*(one(url, needed) for url, needed in urls[:MAX_NODES]))
    for place, (url, _) in enumerate(urls[:MAX_NODES]):
        told = found[place]
        if isinstance(told, ServerFacts):
            # Where it has gone meanwhile, nothing was measured.
            with contextlib.suppress(CacheUnavailable):
                found[place] = replace(told, round_trips_ms=await round_trips(url, asking))
    return (
        tuple(each for each in found if isinstance(each, ServerFacts)),
        tuple(each for each in found if isinstance(each, Unreached)),
    )


# --- Sentinels


async def _service(url: CacheUrl, asking: Asking) -> CacheFacts:
    assert url.service is not None
    answers = await asyncio.gather(*(_sentinel(url, address) for address in url.hosts))
    heard = [each for each in answers if isinstance(each, dict)]
    silent = [each for each in answers if isinstance(each, Unreached)]
    # As the library does: what the latest failover has made the primary.
    knowing = sorted((each for each in heard if each["primary"] is not None), key=lambda each: -each["epoch"])
    if not knowing:
        if heard:
            why = f"{url}: the Sentinels know no service {url.service!r:.100}"
            silent = [Unreached(str(url), "cache_misconfigured", why), *silent]
        told = SentinelFacts(url.service, len(url.hosts), len(heard)) if heard else None
        return CacheFacts(str(url), str(url.kind), (), tuple(silent), sentinel=told)
    latest = knowing[0]
    replicas = [address for address in latest["replicas"] if address != latest["primary"]]
    targets = [(url.at(latest["primary"]), True), *((url.at(address), False) for address in replicas)]
    nodes, unreached = await _all(targets, asking)
    if not replicas and nodes:
        # The application may not ask the Sentinels for them.
        replicas = list(_replicas(nodes[0]))
        more, gone = await _all([(url.at(address), False) for address in replicas], asking)
        nodes, unreached = nodes + more, unreached + gone
    told = SentinelFacts(
        url.service,
        len(url.hosts),
        len(heard),
        known=latest["others"] + 1,
        quorum=latest["quorum"],
        replicas=len(replicas),
        primaries=tuple(str(each["primary"]) for each in knowing),
        down=tuple(sorted({flag for each in knowing for flag in each["flags"]})),
    )
    return CacheFacts(str(url), str(url.kind), nodes, (*unreached, *silent), sentinel=told)


async def _sentinel(url: CacheUrl, address: Address) -> dict[str, Any] | Unreached:
    """Return what one Sentinel says of the service."""
    at = url.sentinel(address)
    wire: Wire | None = None
    try:
        async with asyncio.timeout(CONNECT_DEADLINE_S):
            dialler = Dialler(at)
            login = (await dialler.login()).commands
            wire = await dialler.connect(lambda: Wire(f"the Sentinel {at}", CONNECT_DEADLINE_S))
            batch = [*login, ("SENTINEL", "MASTER", url.service or ""), ("SENTINEL", "REPLICAS", url.service or "")]
            *said, primary, replicas = await wire.ask_all(pack(batch), len(batch))
    except (CacheUnavailable, OSError, TimeoutError) as error:
        why = f"the Sentinel {at} did not answer: {error or type(error).__name__}"
        return Unreached(str(address), "cache_unavailable", why, needed=False)
    finally:
        if wire is not None:
            wire.abort()
    refused = next((each for each in (*said, primary) if isinstance(each, ServerError)), None)
    if refused is not None and refused.code in {"NOAUTH", "WRONGPASS", "NOPERM"}:
        why = f"the Sentinel {at}: {refused.message}; give sentinel_username and sentinel_password in the cache URL"
        return Unreached(str(address), "cache_auth_failed", why)
    return _service_of(primary, replicas)


def _service_of(primary: Any, replicas: Any) -> dict[str, Any]:
    """Return what a Sentinel says, as far as it can be read; `primary` is None if it knows of none."""
    told = _pairs(primary)
    others = [_address(_pairs(each)) for each in (replicas if isinstance(replicas, list) else ())]
    return {
        "primary": _address(told),
        "epoch": _number(told, "config-epoch"),
        "quorum": _number(told, "quorum"),
        "others": _number(told, "num-other-sentinels"),
        "flags": [flag for flag in told.get("flags", "").split(",") if flag and flag not in {"master", "primary"}],
        "replicas": [address for address in others if address is not None],
    }


def _replicas(primary: ServerFacts) -> Iterable[Address]:
    """Yield where a primary's replicas are, by its own account."""
    for _, told in replicas_of(primary.info):
        address = _address(told)
        if address is not None:
            yield address


def _pairs(flat: object) -> dict[str, str]:
    if not isinstance(flat, list):
        return {}
    words = [each.decode(errors="replace") if isinstance(each, bytes) else str(each) for each in flat]
    return dict(zip(words[::2], words[1::2], strict=False))


def _number(told: dict[str, str], name: str) -> int:
    text = told.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else 0


def _address(told: dict[str, str]) -> Address | None:
    """Return where somebody is said to be; None if that is no place."""
    host, port = told.get("ip", ""), _number(told, "port")
    return Address(host, port) if host and 0 < port < 65_536 else None


# --- a cluster


@dataclass(frozen=True, slots=True)
class _Member:
    """A line of CLUSTER NODES."""

    id: str
    address: Address
    flags: frozenset[str]
    primary: str
    slots: tuple[tuple[int, int], ...]

    @property
    def gone(self) -> bool:
        """Whether others cannot reach it."""
        return bool(self.flags & {"fail", "fail?", "noaddr"})


async def _cluster(url: CacheUrl, asking: Asking) -> CacheFacts:
    silent: list[Unreached] = []
    for address in url.hosts:
        found = await _members(url.at(address), asking)
        if not isinstance(found, Unreached):
            state, members = found
            break
        silent.append(found)
    else:
        return CacheFacts(str(url), str(url.kind), (), tuple(silent))
    targets = [(url.at(each.address), bool(each.slots)) for each in members if "noaddr" not in each.flags]
    nodes, unreached = await _all(targets, asking)
    known = {str(each.address) for each in members}
    lost = [each for each in silent if each.node not in known]
    return CacheFacts(str(url), str(url.kind), nodes, (*unreached, *lost), cluster=_account(state, members))


async def _members(url: CacheUrl, asking: Asking) -> tuple[str, list[_Member]] | Unreached:
    """Return what a node says of its cluster's state, and of its members."""
    client = ValkeyClient(url, deadline=DEADLINE_S, dialler=NodeDialler(url, asking.provider, any_role=True))
    try:
        await client.connected(CONNECT_DEADLINE_S)
        info, nodes = await client.call([("CLUSTER", "INFO"), ("CLUSTER", "NODES")])
    except CacheUnavailable as error:
        return Unreached(node_name(url), error.code, error.message, needed=False)
    finally:
        await client.close()
    refused = _first_error(info, nodes)
    if refused is not None:
        return Unreached(node_name(url), "cache_misconfigured", f"{node_name(url)}: {refused.message}")
    assert isinstance(info, bytes)
    assert isinstance(nodes, bytes)
    return str(facts(info).get("cluster_state")), list(_read(nodes.decode(errors="replace"), url.host))


def _first_error(*replies: Reply) -> ServerError | None:
    return next((each for each in replies if isinstance(each, ServerError)), None)


def _read(text: str, asked: str) -> Iterable[_Member]:
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            id_, where, flags, primary, _, _, _, _, *slots = line.split(" ")
            place, _, name = where.partition(",")
            host, _, port = place.partition("@")[0].rpartition(":")
            host = name.split(",")[0] or host.strip("[]") or asked
            yield _Member(id_, Address(host, int(port)), frozenset(flags.split(",")), primary, tuple(_slots(slots)))


def _slots(words: Sequence[str]) -> Iterable[tuple[int, int]]:
    for word in words:
        # What stands in brackets is on its way.
        if not word.startswith("["):
            first, _, last = word.partition("-")
            yield int(first), int(last or first)


def _account(state: str, members: Sequence[_Member]) -> ClusterFacts:
    held = [False] * SLOTS
    primaries = [each for each in members if "master" in each.flags and each.slots]
    for each in primaries:
        if not each.gone:
            for first, last in each.slots:
                held[first : last + 1] = [True] * (last + 1 - first)
    followed = {each.primary for each in members if "slave" in each.flags and not each.gone}
    return ClusterFacts(
        state,
        ",".join(_ranges([slot for slot in range(SLOTS) if not held[slot]])),
        failing=tuple(str(each.address) for each in members if each.gone),
        alone=tuple(str(each.address) for each in primaries if each.id not in followed),
        primaries=len(primaries),
    )


def _ranges(slots: Sequence[int]) -> Iterable[str]:
    start = 0
    for place, slot in enumerate(slots):
        if place + 1 == len(slots) or slots[place + 1] != slot + 1:
            yield f"{slots[start]}-{slot}" if place > start else str(slot)
            start = place + 1
