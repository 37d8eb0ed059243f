"""Cache URLs: where the shared cache is, and with which credentials. A password never appears in an error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, NamedTuple, NoReturn
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from scrubjay.core.errors import InvalidUrl

DEFAULT_PORT = 6379
SENTINEL_PORT = 26379
MAX_DATABASE = 2**31 - 1
MAX_HOSTS: Final = 100
"""The most hosts that one URL may name."""
_TLS = {"valkey": False, "redis": False, "valkeys": True, "rediss": True}
_FORMS = (
    "valkey://host:6379/0, valkeys:// (TLS), redis://, rediss:// (TLS), unix:///path, "
    "valkey+sentinel://h1,h2,h3/service, valkey+cluster://h1,h2,h3, embedded: or none:"
)
_SENTINEL_OPTIONS = frozenset({"db", "sentinel_username", "sentinel_password"})
_TLS_OPTIONS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"})
_PATH = re.compile(r"[/?#]")
_SECRET_OPTION = re.compile(r"(?<=[?&])([^=&]*(?:pass|secret|token|user|auth)[^=&]*)=[^&#]*", re.IGNORECASE)
_NOT_A_PORT = re.compile(r":(?!\d{1,5}(?:$|[/?#,]))[^/?#,]*$|:(?!\d{1,5}(?:$|[/?#,]))[^/?#,]*(?=[/?#,])")


class CacheKind(StrEnum):
    """What a cache URL names."""

    SERVER = "server"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"
    EMBEDDED = "embedded"
    NONE = "none"


class Address(NamedTuple):
    """Where a server listens: its name or address (IPv6 without brackets), and its TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class CacheUrl:
    """A cache URL, taken apart. Neither its `repr` nor its `str` shows the password.

    Attributes:
        kind: A server, a primary that Sentinels name, a cluster, the private server of `embedded:`, or none at all.
        host: The server's name or address; IPv6 without brackets.
        port: Its TCP port.
        hosts: The addresses of the Sentinels, or of some of the cluster's nodes.
        service: What the Sentinels call the primary.
        path: Its Unix socket; then `host` and `port` mean nothing.
        tls: Whether to speak TLS.
        database: The number of the logical database.
        username: The ACL user; None for the default one.
        password: The password; None for no authentication.
        sentinel_username: The ACL user at the Sentinels; None for the default one.
        sentinel_password: The password there; None for no authentication.
        ca_file: PEM file of the authorities to trust; None for the system's.
        cert_file: PEM file of the client's certificate, if the server asks for one.
        key_file: PEM file of its key.
        check_hostname: Whether the server's certificate must be for `host`.
    """

    kind: CacheKind
    host: str = "localhost"
    port: int = DEFAULT_PORT
    hosts: tuple[Address, ...] = ()
    service: str | None = None
    path: str | None = None
    tls: bool = False
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    check_hostname: bool = True

    def __str__(self) -> str:
        scheme = "valkeys" if self.tls else "valkey"
        if self.kind in {CacheKind.SENTINEL, CacheKind.CLUSTER}:
            path = "" if self.service is None else f"/{quote(self.service)}"
            return f"{scheme}+{self.kind}://{','.join(map(str, self.hosts))}{path}"
        if self.kind is not CacheKind.SERVER:
            return f"{self.kind}:"
        if self.path is not None:
            return f"unix://{self.path}"
        return f"{scheme}://{Address(self.host, self.port)}/{self.database}"

    def at(self, address: Address) -> CacheUrl:
        """Return the URL of one data node, with the same credentials, TLS and database."""
        return replace(
            self, kind=CacheKind.SERVER, host=address.host, port=address.port, hosts=(), service=None,
            sentinel_username=None, sentinel_password=None,
        )  # fmt: skip

    def sentinel(self, address: Address) -> CacheUrl:
        """Return the URL of one Sentinel."""
        return replace(self.at(address), database=0, username=self.sentinel_username, password=self.sentinel_password)


def redact(url: object) -> str:
    """Return `url` on one line, without anything that may be a credential; it need not be a valid URL."""
    text = "".join(c if c.isprintable() else "?" for c in str(url))
    scheme, slashes, rest = text.partition("://")
    if not slashes:
        scheme, slashes, rest = text.partition(":") if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", text) else ("", "", text)
    rest = _SECRET_OPTION.sub(r"\1=***", rest)
    # The last `@`, so that one inside an unescaped password hides nothing less.
    if "@" in rest:
        rest = "***@" + rest.rpartition("@")[2]
    elif not rest.startswith("/") and "[" not in rest and scheme.lower() != "unix":
        # `redis://:secret`, the host forgotten: what stands where a port should is taken for a password.
        rest = _NOT_A_PORT.sub(":***", rest)
    return f"{scheme}{slashes}{rest}"[:300]


def parse_cache_url(url: str) -> CacheUrl:
    """Take a cache URL apart.

    `valkey://`, `redis://` and, with TLS, `valkeys://` and `rediss://` take `user:password@host:port/database`, all
    parts percent-encoded and all but the scheme optional; `unix://` takes a path and `?db=`. With TLS the options
    `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile` (files) and `ssl_check_hostname` (`true`, `false`) may follow.

    With `+sentinel` or `+cluster` behind the scheme several hosts stand where one does otherwise, with commas between
    them. Of Sentinel they are all the Sentinels (port 26379 by default), the path is the name of the service, and
    `?sentinel_username=` and `?sentinel_password=` are for the Sentinels themselves; user and password before the `@`
    are for the data nodes. Of a cluster they are any of its nodes.

    Raises:
        InvalidUrl: It is none of these; the message is one line without credentials.
    """
    if not isinstance(url, str) or not url.isprintable() or url != url.strip() or not url:
        _refuse(url, f"use {_FORMS}")
    scheme = url.partition(":")[0].lower()
    if scheme in {"embedded", "none"}:
        if url[len(scheme) :] not in {":", "://"}:
            _refuse(url, f"nothing may follow `{scheme}:`")
        return CacheUrl(CacheKind(scheme))
    base, plus, topology = scheme.partition("+")
    if (base not in _TLS or (plus and topology not in {"sentinel", "cluster"})) and scheme != "unix":
        _refuse(url, f"use {_FORMS}")
    if not url[len(scheme) :].startswith("://"):
        _refuse(url, f"`{scheme}:` must be followed by `//`")
    try:
        if topology:
            return _several(url, CacheKind(topology), tls=_TLS[base])
        parts = urlsplit(url)
        return _unix(url, parts) if scheme == "unix" else _tcp(url, parts, tls=_TLS[scheme])
    except ValueError as error:
        if isinstance(error, InvalidUrl):
            raise
        # urlsplit quotes its input in its messages, so they are dropped, not chained.
        raise InvalidUrl(_message(url, "host and port cannot be read; percent-encode the password")) from None


def _tcp(url: str, parts: SplitResult, *, tls: bool) -> CacheUrl:
    options = _checked(url, parts, {"db"}, tls=tls)
    path = parts.path.strip("/")
    if path and "db" in options:
        _refuse(url, "the database is given twice")
    host, port = parts.hostname, parts.port
    if not host or port == 0:
        _refuse(url, "the host is missing" if not host else "port 0 cannot be reached")
    return replace(
        _secured(url, options, tls=tls),
        host=_decode(url, host),
        port=port or DEFAULT_PORT,
        database=_database(url, path or options.get("db", "0")),
        username=_decode(url, parts.username) if parts.username else None,
        password=_decode(url, parts.password) if parts.password else None,
    )


def _several(url: str, kind: CacheKind, *, tls: bool) -> CacheUrl:
    # Several hosts are no network location to `urlsplit`, which refuses some of them.
    rest = url.partition("://")[2]
    netloc = _PATH.split(rest, maxsplit=1)[0]
    parts = urlsplit(f"//{rest[len(netloc) :]}")
    sentinel = kind is CacheKind.SENTINEL
    options = _checked(url, parts, _SENTINEL_OPTIONS if sentinel else set(), tls=tls)
    userinfo, _, places = netloc.rpartition("@")
    username, _, password = userinfo.partition(":")
    service = _decode(url, parts.path.strip("/"))
    if sentinel and not service:
        _refuse(url, "the name of the service is missing, as in valkey+sentinel://h1,h2,h3/service")
    if not sentinel and service not in {"", "0"}:
        _refuse(url, "a cluster has no databases, so nothing follows its hosts")
    return replace(
        _secured(url, options, tls=tls),
        kind=kind,
        hosts=_addresses(url, places, SENTINEL_PORT if sentinel else DEFAULT_PORT),
        service=service if sentinel else None,
        database=_database(url, options.get("db", "0")),
        username=_decode(url, username) or None,
        password=_decode(url, password) or None,
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
    )


def _addresses(url: str, places: str, default_port: int) -> tuple[Address, ...]:
    found = []
    for place in places.split(","):
        parts = urlsplit(f"//{place}")
        if not parts.hostname or parts.port == 0:
            _refuse(url, "a host is missing" if not parts.hostname else "port 0 cannot be reached")
        found.append(Address(_decode(url, parts.hostname), parts.port or default_port))
    if len(set(found)) < len(found):
        _refuse(url, "a host is named twice")
    if len(found) > MAX_HOSTS:
        _refuse(url, f"more than {MAX_HOSTS} hosts")
    return tuple(found)


def _checked(url: str, parts: SplitResult, known: frozenset[str] | set[str], *, tls: bool) -> Mapping[str, str]:
    """Return the options, if user name and password hold nothing that had to be encoded."""
    if parts.fragment or "@" in parts.path + parts.query:
        _refuse(url, "percent-encode `/`, `?`, `#` and `@` in user name and password")
    return _options(url, parts.query, known | _TLS_OPTIONS if tls else known)


def _secured(url: str, options: Mapping[str, str], *, tls: bool) -> CacheUrl:
    """Return a server's URL that says nothing but how TLS is spoken."""
    check = options.get("ssl_check_hostname", "true").lower()
    if check not in {"true", "false"}:
        _refuse(url, "ssl_check_hostname is true or false")
    return CacheUrl(
        CacheKind.SERVER,
        tls=tls,
        ca_file=options.get("ssl_ca_certs"),
        cert_file=options.get("ssl_certfile"),
        key_file=options.get("ssl_keyfile"),
        check_hostname=check == "true",
    )


def _unix(url: str, parts: SplitResult) -> CacheUrl:
    if parts.fragment:
        _refuse(url, "percent-encode `#`")
    userinfo, _, start = parts.netloc.rpartition("@")
    path = _decode(url, start + parts.path)
    if not path.strip("/"):
        _refuse(url, "the path of the socket is missing")
    username, _, password = userinfo.partition(":")
    return CacheUrl(
        CacheKind.SERVER,
        path=path,
        database=_database(url, _options(url, parts.query, {"db"}).get("db", "0")),
        username=_decode(url, username) or None,
        password=_decode(url, password) or None,
    )


def _options(url: str, query: str, known: frozenset[str] | set[str]) -> Mapping[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    options = dict(pairs)
    if len(options) < len(pairs):
        _refuse(url, "an option is given twice")
    if unknown := sorted(options.keys() - known):
        _refuse(url, f"unknown option {unknown[0]!r:.40}; known here: {', '.join(sorted(known))}")
    return options


def _database(url: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text[:12]) > MAX_DATABASE:
        _refuse(url, "the database is a number, as in valkey://host:6379/0")
    return int(text)


def _decode(url: str, text: str) -> str:
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise InvalidUrl(_message(url, "a percent-encoded part is not UTF-8")) from None
    if "\x00" in decoded:
        _refuse(url, "a part holds a zero byte")
    return decoded


def _message(url: object, what: str) -> str:
    return f"cache URL {redact(url)}: {what}"


def _refuse(url: object, what: str) -> NoReturn:
    raise InvalidUrl(_message(url, what))
