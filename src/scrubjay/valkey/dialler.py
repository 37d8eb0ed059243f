"""Making connections: where a server is, how it is spoken to, and who speaks."""

from __future__ import annotations

import asyncio
import inspect
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from scrubjay.core.credentials import CredentialProvider, Credentials
from scrubjay.core.errors import CacheAuthFailed, CacheMisconfigured, CacheUnavailable, ConfigurationError
from scrubjay.valkey.commands import Command
from scrubjay.valkey.url import CacheKind, CacheUrl
from scrubjay.valkey.wire import Wire

RENEWED_AT = 0.75
"""After which part of their time credentials are replaced."""
SOONEST_S = 0.25
"""The shortest time after which credentials are replaced, in seconds: who gives old ones is not asked on and on."""
REFUSAL_S = 0.5
"""How long a server that hangs up may take to say why, in seconds."""
P = TypeVar("P", bound=asyncio.BaseProtocol)

# What is to be done about a server's certificate, by OpenSSL's codes.
_HINTS = {
    9: "it is not valid yet: check the clocks",
    10: "it has to be renewed",
    62: "connect by a name that it is for, or make one for this name",
    64: "connect by a name that it is for, or make one for this address",
}
# What servers say of a client's certificate; before TLS 1.3 they only say that they do not agree where there is none.
_REFUSED = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "HANDSHAKE_FAILURE")


class Login:
    """How a connection logs in.

    Args:
        commands: What it begins with: who it is, and which database it uses.
        valid_s: For how many seconds that is good; None for good.
    """

    __slots__ = ("commands", "valid_s")

    def __init__(self, commands: list[Command], valid_s: float | None) -> None:
        self.commands = commands
        self.valid_s = valid_s


class Dialler:
    """Connects to one server.

    Args:
        url: The server.
        provider: Gives the credentials; None for those of the URL.

    Raises:
        ConfigurationError: `url` names no server, or its TLS files cannot be used.
    """

    def __init__(self, url: CacheUrl, provider: CredentialProvider | None = None) -> None:
        if url.kind in {CacheKind.EMBEDDED, CacheKind.NONE}:
            raise ConfigurationError(f"{url} names no server to connect to")
        self.url = url
        self._provider = provider
        self._tls = tls_context(url) if url.tls else None

    async def connect(self, make: Callable[[], P]) -> P:
        """Return a connected protocol.

        Raises:
            OSError: Nobody listens there.
            CacheMisconfigured: The certificate is not trusted.
            CacheUnavailable: It is not known where the server is.
        """
        return await self._connect(self.url, make)

    async def _connect(self, url: CacheUrl, make: Callable[[], P]) -> P:
        loop = asyncio.get_running_loop()
        if url.path is not None:
            _, protocol = await loop.create_unix_connection(make, url.path)
            return protocol
        name = url.host if self._tls else None
        try:
            _, protocol = await loop.create_connection(make, url.host, url.port, ssl=self._tls, server_hostname=name)
        except ssl.SSLCertVerificationError as error:
            hint = _HINTS.get(error.verify_code, "name its authority with ssl_ca_certs=FILE in the cache URL")
            why = error.verify_message.rstrip(".")
            raise CacheMisconfigured(f"{url}: its certificate is not trusted: {why}; {hint}") from error
        except ssl.SSLError as error:
            refusal = _refusal(url, error)
            if refusal is None:
                raise
            raise refusal from error
        return protocol

    async def refused(self, wire: Wire) -> CacheMisconfigured | None:
        """Return why a server has hung up that had nothing to object to at first; None if it does not say.

        Since TLS 1.3 a client takes itself for connected before its own certificate has been looked at. What the server
        says then is lost where something was sent meanwhile; so nothing is.
        """
        if self._tls is None or wire.lost is None:
            return None
        url, silent = self.url if wire.peer is None else self.url.at(wire.peer), _Silent()
        error: Exception | None
        try:
            async with asyncio.timeout(REFUSAL_S):
                await self._connect(url, lambda: silent)
                error = await silent.lost
        except (CacheMisconfigured, OSError, TimeoutError) as found:
            error = found
        finally:
            silent.abort()
        if isinstance(error, CacheMisconfigured):
            return error
        return _refusal(url, error) if isinstance(error, ssl.SSLError) else None

    def watch(self, wire: Wire) -> Coroutine[Any, Any, None] | None:  # noqa: ARG002 - other diallers do
        """Return what makes sure, beside a connection, that the server stays the right one; None for nothing."""
        return None

    def close(self) -> None:
        """Release what it keeps."""

    def replica(self) -> CacheUnavailable | None:
        """Return the error of a server that is a replica; None if it is welcome."""
        return CacheMisconfigured(f"{self.url} is a replica; give the URL of the primary")

    async def login(self) -> Login:
        """Return how a new connection logs in.

        Raises:
            CacheAuthFailed: The provider of the credentials failed.
        """
        credentials = await self._credentials()
        commands: list[Command] = []
        if credentials is not None:
            user = () if credentials.username is None else (credentials.username,)
            commands.append(("AUTH", *user, credentials.password))
        if self.url.database:
            commands.append(("SELECT", self.url.database))
        return Login(commands, None if credentials is None else credentials.valid_s)

    async def _credentials(self) -> Credentials | None:
        if self._provider is None:
            return None if self.url.password is None else Credentials(self.url.password, self.url.username)
        try:
            found = await _call(self._provider)
        except Exception as error:
            raise CacheAuthFailed(
                f"{self.url}: the provider of its credentials failed: {type(error).__name__}"
            ) from error
        if not isinstance(found, Credentials):
            raise CacheAuthFailed(f"{self.url}: the provider of its credentials gave {type(found).__name__}")
        if not isinstance(found.password, str) or not isinstance(found.username, str | None):
            raise CacheAuthFailed(f"{self.url}: the provider of its credentials gave no text")
        if found.valid_s is not None and not found.valid_s > 0:
            raise CacheAuthFailed(f"{self.url}: the provider gave credentials that have run out")
        return found


class NodeDialler(Dialler):
    """Connects to one node of a cluster; see `Dialler` for its first arguments.

    Args:
        url: The node.
        provider: Gives the credentials; None for those of the URL.
        any_role: Whether a replica is welcome.
    """

    def __init__(self, url: CacheUrl, provider: CredentialProvider | None = None, *, any_role: bool = False) -> None:
        super().__init__(url, provider)
        self._any_role = any_role

    def replica(self) -> CacheUnavailable | None:
        """Return the error of a node that is a replica: it was a primary a moment ago."""
        return None if self._any_role else CacheUnavailable(f"{self.url} is a replica now")


class _Silent(asyncio.Protocol):
    """A connection on which nothing is said."""

    def __init__(self) -> None:
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(exc)

    def abort(self) -> None:
        # To take leave by TLS is to wait, half a minute where the server hangs, for an answer.
        if self._transport is not None:
            self._transport.abort()


def _refusal(url: CacheUrl, error: ssl.SSLError) -> CacheMisconfigured | None:
    """Return the error of a server that does not accept the certificate of this client; None if it is another one."""
    reason = error.reason or ""
    if "_ALERT_" not in reason or not any(word in reason for word in _REFUSED):
        return None
    said = reason.partition("_ALERT_")[2].lower().replace("_", " ")
    hint = "name one with ssl_certfile=FILE and ssl_keyfile=FILE in the cache URL"
    return CacheMisconfigured(f"{url} does not accept this client's certificate: {said}; {hint}")


def renewed_after(valid_s: float) -> float:
    """Return after how many seconds credentials are to be replaced that are good for so many."""
    return max(valid_s * RENEWED_AT, SOONEST_S)


async def _call(provider: Callable[[], Any]) -> object:
    found = provider()
    return await found if inspect.isawaitable(found) else found


class InOneThread:
    """Asks a plain function for credentials, in a thread: what asks a service must not hold up the event loop.

    Who asks while it is being asked has the same answer. So one that hangs keeps one thread, and not one for each
    connection that was given up meanwhile.

    Args:
        provider: The function.
    """

    def __init__(self, provider: Callable[[], Any]) -> None:
        self._provider = provider
        self._asking: asyncio.Task[Any] | None = None

    async def __call__(self) -> Any:
        """Return its answer."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name="scrubjay-credentials")
            self._asking.add_done_callback(self._answered)
        return await asyncio.shield(self._asking)

    async def _ask(self) -> Any:
        found = await asyncio.to_thread(self._provider)
        return await found if inspect.isawaitable(found) else found

    def _answered(self, task: asyncio.Task[Any]) -> None:
        self._asking = None
        if not task.cancelled():
            task.exception()


def off_the_loop(provider: CredentialProvider | None) -> CredentialProvider | None:
    """Return a provider that holds up no event loop."""
    if provider is None or isinstance(provider, InOneThread) or inspect.iscoroutinefunction(provider):
        return provider
    return InOneThread(provider)


def tls_context(url: CacheUrl) -> ssl.SSLContext:
    """Return how TLS is spoken.

    Raises:
        ConfigurationError: Its files cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=url.ca_file)
        if url.cert_file is not None:
            context.load_cert_chain(url.cert_file, url.key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"{url}: its TLS files cannot be used: {error}") from error
    context.check_hostname = url.check_hostname
    return context
