"""Sentinels: who of a primary and its replicas is the primary now.

All Sentinels of the URL are asked, and the answer of the latest failover counts: one that is cut off from the others
may name a primary that has been replaced. What a replaced primary is told is lost, so a primary is trusted only while a
majority of the Sentinels can be heard, and dropped as soon as one of them names another: without a majority they can
elect no other one, but a process that hears no majority cannot know that they have none.

Source: the Sentinel client protocol, https://valkey.io/topics/sentinel-clients/.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from scrubjay.core.credentials import CredentialProvider
from scrubjay.core.errors import CacheAuthFailed, CacheMisconfigured, CacheUnavailable
from scrubjay.valkey.commands import ServerError
from scrubjay.valkey.dialler import Dialler
from scrubjay.valkey.url import Address, CacheUrl
from scrubjay.valkey.wire import Wire, pack, seen

ASK_S: Final = 0.5
"""How long one question to a Sentinel may take, connecting included, in seconds."""
EVERY_S: Final = 0.5
"""How often the Sentinels are asked beside a connection, in seconds."""
UNHEARD_S: Final = 5.0
"""For how long no majority of the Sentinels may answer before the primary is no longer trusted, in seconds."""
P = TypeVar("P", bound=asyncio.BaseProtocol)


@dataclass(frozen=True, slots=True)
class Named:
    """What one Sentinel says.

    Attributes:
        primary: Where the primary is; None if it knows none of the name.
        epoch: Which failover made it the primary: the latest has the highest.
    """

    primary: Address | None
    epoch: int


class Sentinel:
    """One Sentinel, asked over a connection that is kept.

    Args:
        url: Where it is.
        service: What the primary is called there.
    """

    def __init__(self, url: CacheUrl, service: str) -> None:
        self.url = url
        self._dialler = Dialler(url)
        self._wire: Wire | None = None
        self._connecting = asyncio.Lock()
        # In one batch: the address changes a moment before, or after, the epoch is known to all.
        self._question = pack([("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service), ("SENTINEL", "MASTER", service)])

    async def ask(self) -> Named:
        """Return what it says.

        Raises:
            CacheUnavailable: It does not answer, or refuses to.
        """
        fresh = False
        try:
            async with asyncio.timeout(ASK_S):
                async with self._connecting:
                    wire = self._wire
                    if fresh := wire is None or wire.lost is not None:
                        wire = self._wire = await self._connect()
                assert wire is not None
                address, known = await wire.ask_all(self._question, 2)
        except CacheUnavailable as error:
            refusal = await self._dialler.refused(self._wire) if fresh and self._wire is not None else None
            if refusal is None:
                raise
            raise refusal from error
        except TimeoutError:
            raise CacheUnavailable(f"the Sentinel {self.url} did not answer within {ASK_S:g} s") from None
        except (OSError, ValueError, OverflowError) as error:
            raise CacheUnavailable(f"the Sentinel {self.url}: {error}") from error
        return _named(self.url, address, known)

    def close(self) -> None:
        """Drop the connection."""
        if self._wire is not None:
            self._wire.abort()

    async def _connect(self) -> Wire:
        login = (await self._dialler.login()).commands
        wire = await self._dialler.connect(lambda: Wire(f"the Sentinel {self.url}", ASK_S))
        if login:
            # What it refuses it says at each question, too.
            wire.ask_all(pack(login), len(login)).add_done_callback(seen)
        return wire


def _named(url: CacheUrl, address: Any, known: Any) -> Named:
    if isinstance(address, ServerError):
        if address.code in {"NOAUTH", "NOPERM", "WRONGPASS"}:
            hint = "give sentinel_username and sentinel_password in the cache URL"
            raise CacheAuthFailed(f"the Sentinel {url}: {address.message}; {hint}")
        raise CacheUnavailable(f"the Sentinel {url}: {address.message}")
    if address is None:
        return Named(None, 0)
    try:
        host, port = address
        pairs = dict(zip(known[::2], known[1::2], strict=False)) if isinstance(known, list) else {}
        return Named(Address(host.decode(), int(port)), int(pairs.get(b"config-epoch", 0)))
    except (TypeError, ValueError, AttributeError) as error:
        raise CacheUnavailable(f"the Sentinel {url} does not speak the protocol: {error}") from error


class SentinelDialler(Dialler):
    """Connects to the primary that the Sentinels name; see `Dialler` for its arguments."""

    def __init__(self, url: CacheUrl, provider: CredentialProvider | None = None) -> None:
        super().__init__(url, provider)
        assert url.service is not None
        self._service = url.service
        self._sentinels = [Sentinel(url.sentinel(address), url.service) for address in url.hosts]
        self._majority = len(self._sentinels) // 2 + 1

    async def primary(self) -> Address:
        """Return where the primary is, by the latest failover that a majority of the Sentinels can tell of.

        Raises:
            CacheUnavailable: No majority answers, or there is no primary.
            CacheMisconfigured: They know no primary of that name, or want other credentials.
        """
        answers = await asyncio.gather(*(each.ask() for each in self._sentinels), return_exceptions=True)
        heard = [each for each in answers if isinstance(each, Named)]
        if len(heard) < self._majority:
            errors = [each for each in answers if isinstance(each, BaseException)]
            raise next((each for each in errors if isinstance(each, CacheMisconfigured)), errors[0])
        latest = max(heard, key=lambda each: (each.primary is not None, each.epoch))
        if latest.primary is None:
            hint = "name one of those that `SENTINEL MASTERS` lists"
            raise CacheMisconfigured(f"{self.url}: the Sentinels know no service {self._service!r:.100}; {hint}")
        return latest.primary

    async def connect(self, make: Callable[[], P]) -> P:
        """Return a protocol that is connected to the primary.

        Raises:
            OSError: Nobody listens there.
            CacheMisconfigured: The Sentinels know no such service, or the certificate is not trusted.
            CacheUnavailable: No majority of the Sentinels answers.
        """
        primary = await self.primary()
        protocol = await self._connect(self.url.at(primary), make)
        if isinstance(protocol, Wire):
            protocol.peer = primary
        return protocol

    def watch(self, wire: Wire) -> Coroutine[Any, Any, None] | None:
        """Return what drops a connection as soon as it is to the primary no more."""
        return self._watch(wire)

    async def _watch(self, wire: Wire) -> None:
        loop = asyncio.get_running_loop()
        heard_at = loop.time()
        while wire.lost is None:
            with contextlib.suppress(CacheUnavailable):
                primary = await self.primary()
                if wire.peer != primary:
                    wire.abort(CacheUnavailable(f"{self.url}: {primary} is the primary now"))
                    return
                heard_at = loop.time()
            if loop.time() - heard_at > UNHEARD_S:
                wire.abort(CacheUnavailable(f"{self.url}: no majority of the Sentinels answers"))
                return
            await asyncio.sleep(EVERY_S)

    def replica(self) -> CacheUnavailable:
        """Return the error of a server that is a replica: in the middle of a failover, that is to be expected."""
        return CacheUnavailable(f"{self.url}: the primary that the Sentinels name is a replica")

    def close(self) -> None:
        """Drop the connections to the Sentinels."""
        for each in self._sentinels:
            each.close()
