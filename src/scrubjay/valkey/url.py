"""Cache URLs: where the shared cache is, and with which credentials. A password never appears in an error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NoReturn
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from scrubjay.core.errors import ConfigurationError, InvalidUrl

DEFAULT_PORT = 6379
MAX_DATABASE = 2**31 - 1
_TLS = {"valkey": False, "redis": False, "valkeys": True, "rediss": True}
_LATER = {"sentinel": "Sentinel", "cluster": "Cluster"}
_FORMS = "valkey://host:6379/0, valkeys:// (TLS), redis://, rediss:// (TLS), unix:///path, embedded: or none:"
_TLS_OPTIONS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"})
_SECRET_OPTION = re.compile(r"(?<=[?&])([^=&]*(?:pass|secret|token|user|auth)[^=&]*)=[^&#]*", re.IGNORECASE)
_NOT_A_PORT = re.compile(r":(?!\d{1,5}(?:$|[/?#,]))[^/?#,]*$|:(?!\d{1,5}(?:$|[/?#,]))[^/?#,]*(?=[/?#,])")


class CacheKind(StrEnum):
    """What a cache URL names."""

    SERVER = "server"
    EMBEDDED = "embedded"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class CacheUrl:
    """A cache URL, taken apart. Neither its `repr` nor its `str` shows the password.

    Attributes:
        kind: A server, the private one of `embedded:`, or none at all.
        host: The server's name or address; IPv6 without brackets.
        port: Its TCP port.
        path: Its Unix socket; then `host` and `port` mean nothing.
        tls: Whether to speak TLS.
        database: The number of the logical database.
        username: The ACL user; None for the default one.
        password: The password; None for no authentication.
        ca_file: PEM file of the authorities to trust; None for the system's.
        cert_file: PEM file of the client's certificate, if the server asks for one.
        key_file: PEM file of its key.
        check_hostname: Whether the server's certificate must be for `host`.
    """

    kind: CacheKind
    host: str = "localhost"
    port: int = DEFAULT_PORT
    path: str | None = None
    tls: bool = False
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    check_hostname: bool = True

    def __str__(self) -> str:
        if self.kind is not CacheKind.SERVER:
            return f"{self.kind}:"
        if self.path is not None:
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'valkeys' if self.tls else 'valkey'}://{host}:{self.port}/{self.database}"


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

    Raises:
        InvalidUrl: It is none of these; the message is one line without credentials.
        ConfigurationError: Its topology is recognised and not supported yet.
    """
    if not isinstance(url, str) or not url.isprintable() or url != url.strip() or not url:
        _refuse(url, f"use {_FORMS}")
    scheme = url.partition(":")[0].lower()
    if scheme in {"embedded", "none"}:
        if url[len(scheme) :] not in {":", "://"}:
            _refuse(url, f"nothing may follow `{scheme}:`")
        return CacheUrl(CacheKind(scheme))
    topology = scheme.partition("+")[2]
    if scheme.partition("+")[0] in _TLS and topology in _LATER:
        raise ConfigurationError(f"cache URL {redact(url)}: {_LATER[topology]} is not yet supported; use {_FORMS}")
    if scheme not in _TLS and scheme != "unix":
        _refuse(url, f"use {_FORMS}")
    if not url[len(scheme) :].startswith("://"):
        _refuse(url, f"`{scheme}:` must be followed by `//`")
    try:
        parts = urlsplit(url)
        return _unix(url, parts) if scheme == "unix" else _tcp(url, parts, tls=_TLS[scheme])
    except ValueError as error:
        if isinstance(error, InvalidUrl):
            raise
        # urlsplit quotes its input in its messages, so they are dropped, not chained.
        raise InvalidUrl(_message(url, "host and port cannot be read; percent-encode the password")) from None


def _tcp(url: str, parts: SplitResult, *, tls: bool) -> CacheUrl:
    if parts.fragment or "@" in parts.path + parts.query:
        _refuse(url, "percent-encode `/`, `?`, `#` and `@` in user name and password")
    options = _options(url, parts.query, _TLS_OPTIONS | {"db"} if tls else {"db"})
    path = parts.path.strip("/")
    if path and "db" in options:
        _refuse(url, "the database is given twice")
    host, port = parts.hostname, parts.port
    if not host or port == 0:
        _refuse(url, "the host is missing" if not host else "port 0 cannot be reached")
    check = options.get("ssl_check_hostname", "true").lower()
    if check not in {"true", "false"}:
        _refuse(url, "ssl_check_hostname is true or false")
    return CacheUrl(
        CacheKind.SERVER,
        host=_decode(url, host),
        port=port or DEFAULT_PORT,
        tls=tls,
        database=_database(url, path or options.get("db", "0")),
        username=_decode(url, parts.username) if parts.username else None,
        password=_decode(url, parts.password) if parts.password else None,
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
