"""Cache URLs are understood, or refused in one line without credentials."""

from __future__ import annotations

import contextlib
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.core.errors import ConfigurationError, InvalidUrl, ScrubjayError
from scrubjay.valkey.url import Address, CacheKind, CacheUrl, parse_cache_url, redact

SERVER = CacheKind.SERVER


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("embedded:", {"kind": CacheKind.EMBEDDED}),
        ("none:", {"kind": CacheKind.NONE}),
        ("valkey://localhost", {}),
        ("VALKEY://Cache:7000/3", {"host": "cache", "port": 7000, "database": 3}),
        ("redis://cache/?db=2", {"host": "cache", "database": 2}),
        ("valkeys://cache", {"host": "cache", "tls": True}),
        (
            "rediss://u:p@c?ssl_ca_certs=/ca.pem&ssl_check_hostname=false",
            {"host": "c", "tls": True, "username": "u", "password": "p", "ca_file": "/ca.pem", "check_hostname": False},
        ),
        ("valkey://:s%40%2F%3A%23@cache", {"host": "cache", "password": "s@/:#"}),
        ("valkey://%C3%A9:%F0%9F%94%91@cache", {"host": "cache", "username": "é", "password": "🔑"}),
        ("valkey://[::1]:6380/1", {"host": "::1", "port": 6380, "database": 1}),
        ("valkey://[fe80::1]", {"host": "fe80::1"}),
        ("unix:///run/valkey.sock", {"path": "/run/valkey.sock"}),
        ("unix://run/a%20b.sock?db=4", {"path": "run/a b.sock", "database": 4}),
        ("unix://u:p@/run/valkey.sock", {"path": "/run/valkey.sock", "username": "u", "password": "p"}),
    ],
)
def test_what_is_understood(url: str, expected: dict[str, Any]) -> None:
    assert parse_cache_url(url) == CacheUrl(**{"kind": SERVER, **expected})


@pytest.mark.parametrize(
    "url",
    [
        "",
        " valkey://cache",
        "localhost:6379",
        "valkey:cache",
        "valkey://",
        "valkey://:6379",
        "http://cache",
        "memcached://cache",
        "valkey://cache:port",
        "valkey://cache:0",
        "valkey://cache:99999",
        "valkey://cache/x",
        "valkey://cache/-1",
        "valkey://cache/99999999999",
        "valkey://cache/٣",
        "valkey://cache/1?db=2",
        "valkey://cache?db=1&db=2",
        "valkey://cache?ssl_ca_certs=/x",
        "valkeys://cache?ssl_check_hostname=perhaps",
        "valkeys://cache?timeout=3",
        "valkey://[::1",
        "valkey://cache\n",
        "valkey://ca\x00che",
        "valkey://%FF@cache",
        "valkey://:a%00b@cache",
        "unix://",
        "unix:///",
        "unix:/run/x",
        "unix:///run/x?db=y",
        "embedded:stuff",
        "none:x",
    ],
)
def test_what_is_refused(url: str) -> None:
    with pytest.raises(InvalidUrl) as caught:
        parse_cache_url(url)
    assert "\n" not in str(caught.value)


SENTINELS = (Address("h1", 26379), Address("h2", 7000), Address("::1", 26379))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("valkey+sentinel://h1,h2:7000,[::1]/main", {"hosts": SENTINELS, "service": "main"}),
        ("REDIS+SENTINEL://H1/my%20service?db=3", {"hosts": SENTINELS[:1], "service": "my service", "database": 3}),
        (
            "rediss+sentinel://u:p%40@h1/main?sentinel_username=s&sentinel_password=q%40&ssl_ca_certs=/ca.pem",
            {
                "hosts": SENTINELS[:1], "service": "main", "tls": True, "username": "u", "password": "p@",
                "sentinel_username": "s", "sentinel_password": "q@", "ca_file": "/ca.pem",
            },
        ),
        ("valkey+cluster://h1,h2:7000", {"kind": CacheKind.CLUSTER, "hosts": (Address("h1", 6379), SENTINELS[1])}),
        ("valkeys+cluster://:pw@h1/0", {"kind": CacheKind.CLUSTER, "hosts": (Address("h1", 6379),), "tls": True,
                                        "password": "pw"}),
    ],
)  # fmt: skip
def test_topologies(url: str, expected: dict[str, Any]) -> None:
    parsed = parse_cache_url(url)
    assert parsed == CacheUrl(**{"kind": CacheKind.SENTINEL, **expected})
    for text in (str(parsed), repr(parsed)):
        assert not any(secret in text for secret in ("p@", "q@", "pw"))


@pytest.mark.parametrize(
    "url",
    [
        "valkey+sentinel://h1,h2",
        "valkey+sentinel://h1,h2/",
        "valkey+sentinel:///main",
        "valkey+sentinel://h1,,h2/main",
        "valkey+sentinel://h1,h1:26379/main",
        "valkey+sentinel://h1:0/main",
        "valkey+sentinel://h1/main?sentinel_password=a&sentinel_password=b",
        "valkey+sentinel://h1/main?ssl_ca_certs=/ca.pem",
        "valkey+cluster://",
        "valkey+cluster://h1/1",
        "valkey+cluster://h1?db=1",
        "valkey+cluster://h1#x",
        "valkey+shards://h1",
        "valkey+://h1",
        "unix+cluster://h1",
        "valkey+cluster://" + ",".join(f"h{n}" for n in range(101)),
    ],
)
def test_topologies_that_are_refused(url: str) -> None:
    with pytest.raises(InvalidUrl) as caught:
        parse_cache_url(url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "valkey+sentinel://h1/s?sentinel_password=hunter2&x=y",
        "redis+cluster://u:hunter2@h1/9",
        "valkey+cluster://u:hun/hunter2@h",
    ],
)
def test_secrets_of_topologies_that_are_refused(url: str) -> None:
    with pytest.raises(InvalidUrl) as caught:
        parse_cache_url(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "valkey://:hunter2@cache:port",
        "valkey://user:hunter2@cache/x",
        "valkey://hunter2@cache:x",
        "valkey://:hun/ter2@cache",
        "valkey://:x#hunter2@cache",
        "valkey://:x@hunter2@cache/x",
        "valkey://:x?hunter2@cache",
        "valkey://:hunter2",
        "valkey://cache:hunter2",
        "valkey://cache:hunter2/0",
        "http://user:hunter2@cache",
        "user:hunter2@cache",
        "redis:hunter2@cache",
        "unix://u:hunter2@/run/x?db=y",
        "valkey://cache?password=hunter2",
        "valkey://cache?db=1&auth_token=hunter2",
        "embedded:hunter2@x",
    ],
)
def test_no_error_shows_a_password(url: str) -> None:
    with pytest.raises(ScrubjayError) as caught:
        parse_cache_url(url)
    shown: BaseException | None = caught.value
    while shown is not None and not shown.__suppress_context__:
        assert "hunter2" not in f"{shown} {shown!r}"
        shown = shown.__cause__ or shown.__context__
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in redact(url)


def test_what_is_shown_of_a_good_one() -> None:
    url = parse_cache_url("valkeys://user:hunter2@[::1]:7000/2")
    assert str(url) == "valkeys://[::1]:7000/2"
    assert "hunter2" not in repr(url)
    assert redact("valkey://u:hunter2@cache:6379/0") == "valkey://***@cache:6379/0"
    assert redact("valkey://[::1]:6379/0") == "valkey://[::1]:6379/0"
    assert [str(parse_cache_url(text)) for text in ("none:", "unix:///run/x")] == ["none:", "unix:///run/x"]


secrets = st.text(min_size=1).filter(lambda text: "\x00" not in text)


@given(username=secrets, password=secrets)
def test_any_credentials_can_be_written(username: str, password: str) -> None:
    try:
        userinfo = f"{quote(username, safe='')}:{quote(password, safe='')}"
    except UnicodeEncodeError:  # a lone surrogate
        return
    url = parse_cache_url(f"valkey://{userinfo}@cache")
    assert (url.username, url.password) == (username, password)


@given(st.text())
def test_anything_is_understood_or_refused(text: str) -> None:
    for url in (text, f"valkey://{text}", f"unix://{text}"):
        with contextlib.suppress(ConfigurationError):
            parse_cache_url(url)
        assert redact(url).isprintable()
