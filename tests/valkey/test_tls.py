"""TLS to one server, to Sentinels and to a cluster: what is trusted, what is not, and what is said about it.

Of the servers of the tests only Debian's Redis 7 is built with TLS. Whole topologies that speak nothing else, and lose
a primary, are in `tests/cli/test_conf.py`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import redis
from tests.waiting import wait_until

from scrubjay import AsyncScrubjay, CacheMisconfigured, ContextCache, Scrubjay
from scrubjay.testing.servers import ValkeyServer

pytestmark = pytest.mark.system

CURVE = ("ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-sha256")
TOPOLOGIES = ["single", "sentinel", "cluster"]


class Certificates:
    """Authorities, and what they have signed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for authority in ("authority", "stranger"):
            self._run("req", "-x509", "-newkey", *CURVE, "-subj", f"/CN={authority}", "-days", "30",
                      "-addext", "keyUsage=critical,keyCertSign", *self._out(authority))  # fmt: skip
        here, elsewhere = "IP:127.0.0.1,DNS:localhost", "DNS:elsewhere.example"
        for name, by, what, days in [
            ("good", "authority", here, 30),
            ("expired", "authority", here, -1),
            ("elsewhere", "authority", elsewhere, 30),
            ("unknown", "stranger", here, 30),
        ]:
            self._sign(name, by, what, days)

    def file(self, name: str) -> str:
        """Return the path of a file."""
        return str(self.directory / name)

    def directives(self, name: str) -> dict[str, str]:
        """Return what a server is told that shows a certificate."""
        return {
            "tls-cert-file": self.file(f"{name}.crt"),
            "tls-key-file": self.file(f"{name}.key"),
            "tls-ca-cert-file": self.file("authority.crt"),
        }

    def _sign(self, name: str, by: str, what: str, days: int) -> None:
        request, extensions = self.file(f"{name}.csr"), self.file(f"{name}.ext")
        key, certificate = self.file(f"{name}.key"), self.file(f"{name}.crt")
        Path(extensions).write_text(f"basicConstraints=CA:FALSE\nsubjectAltName={what}\n")
        self._run("req", "-newkey", *CURVE, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        self._run("x509", "-req", "-in", request, "-CA", self.file(f"{by}.crt"), "-CAkey", self.file(f"{by}.key"),
                  "-CAcreateserial", "-days", days, "-extfile", extensions, "-out", certificate)  # fmt: skip

    def _out(self, name: str) -> list[str]:
        return ["-keyout", self.file(f"{name}.key"), "-out", self.file(f"{name}.crt")]

    @staticmethod
    def _run(*words: object) -> None:
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


class SecureServer(ValkeyServer):
    """A Redis 7 that speaks TLS only."""

    def _configure(self, file: Path, port: int) -> None:
        self._directives |= {"port": 0, "tls-port": port}
        super()._configure(file, port)


class SecureSentinel(SecureServer):
    """A Sentinel that speaks TLS only."""

    _arguments = ("--sentinel",)
    _listening = "Sentinel ID is"


class Place:
    """The least that each topology can be, all of it with TLS: one server, one Sentinel and its primary, one node."""

    def __init__(self, topology: str, certificates: Certificates, stack: ExitStack, clients: str = "no") -> None:
        self.topology, self.certificates = topology, certificates
        common = {**certificates.directives("good"), "tls-auth-clients": clients, "tls-replication": "yes"}
        extra = {**common, "cluster-enabled": "yes", "tls-cluster": "yes"} if topology == "cluster" else common
        self.server = self.asked = stack.enter_context(SecureServer("redis7", extra=extra))
        self.common = common
        self.stack = stack
        if topology == "cluster":
            self.admin("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
            wait_until(lambda: self.admin("CLUSTER INFO")["cluster_state"] == "ok", "the cluster is whole")
        if topology == "sentinel":
            self.asked = self.sentinel("good")

    def sentinel(self, certificate: str) -> SecureServer:
        """Start a Sentinel that shows a certificate."""
        watched = {"sentinel": f"monitor main 127.0.0.1 {self.server.port} 1"}
        extra = {**self.common, **self.certificates.directives(certificate), **watched}
        return self.stack.enter_context(SecureSentinel("redis7", extra=extra))

    def admin(self, *command: object) -> Any:
        """Ask the server that holds data."""
        with redis.Redis(
            port=self.server.port, ssl=True, ssl_cert_reqs="none", ssl_ca_certs=self.certificates.file("authority.crt"),
            ssl_certfile=self.certificates.file("good.crt"), ssl_keyfile=self.certificates.file("good.key"),
        ) as client:  # fmt: skip
            return client.execute_command(*command)

    def show(self, certificate: str) -> None:
        """Let the server that holds data show another certificate."""
        found = self.certificates.directives(certificate)
        self.admin("CONFIG", "SET", *(word for pair in found.items() for word in pair))

    def url(self, *, host: str = "127.0.0.1", scheme: str = "valkeys", **options: str) -> str:
        """Return a URL of it, with files of certificates as options."""
        given = urlencode({name: self.certificates.file(file) for name, file in options.items()})
        kind = "" if self.topology == "single" else f"+{self.topology}"
        path = "/main" if self.topology == "sentinel" else ""
        return f"{scheme}{kind}://{host}:{self.asked.port}{path}?{given}"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module", params=TOPOLOGIES)
def place(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[Place]:
    """Asks clients for no certificate."""
    with ExitStack() as stack:
        yield Place(request.param, certificates, stack)


@pytest.fixture(scope="module", params=TOPOLOGIES)
def strict(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[Place]:
    """Asks clients for a certificate."""
    with ExitStack() as stack:
        yield Place(request.param, certificates, stack, clients="yes")


AUTHORITY = {"ssl_ca_certs": "authority.crt"}
SHOWN = {"ssl_certfile": "good.crt", "ssl_keyfile": "good.key"}


def settings(tmp_path: Path, url: str, required: str = "configured") -> dict[str, Any]:
    return {
        "store": f"sqlite:///{tmp_path}/x.db", "cache": url, "tokenizer": "heuristic", "cache_timeout": 5.0,
        "cache_required": required,
    }  # fmt: skip


async def used(tmp_path: Path, url: str) -> None:
    """Fail unless a cache is in use there, by a Scrubjay and alone."""
    async with AsyncScrubjay.open(**settings(tmp_path, url, "yes"), local_memory=0) as jay:
        alice = jay.user("alice")
        await alice.contexts.set("profile", {"plan": "pro"})
        for _ in range(2):
            assert await alice.contexts.latest("profile") == {"plan": "pro"}
        assert sum(jay._open.counters.hits.values())
    async with ContextCache(url, timeout=5.0) as cache:
        await cache.check()
        assert await cache.set("alice", "profile", [1])
        assert await cache.get("alice", "profile") == [1]


async def refused(tmp_path: Path, url: str, *texts: str) -> None:
    """Fail unless opening says in one line what is wrong, and unless the store answers where that is allowed."""
    for required in ("configured", "yes"):
        with pytest.raises(CacheMisconfigured) as caught:
            await AsyncScrubjay.open(**settings(tmp_path, url, required)).__aenter__()
        message = str(caught.value)
        assert "\n" not in message
        for text in texts:
            assert text in message
    async with AsyncScrubjay.open(**settings(tmp_path, url, "no")) as jay:
        await jay.user("alice").memory.set("a", 1)
        assert await jay.user("alice").memory.get("a") == 1
    async with ContextCache(url, timeout=0.25) as cache:
        with pytest.raises(CacheMisconfigured, match=texts[0]):
            await cache.check()
        assert await cache.get("alice", "profile") is None


async def test_who_is_trusted_is_used(place: Place, tmp_path: Path) -> None:
    await used(tmp_path, place.url(**AUTHORITY))
    await used(tmp_path, place.url(**AUTHORITY, **SHOWN))


async def test_a_client_shows_its_certificate(strict: Place, tmp_path: Path) -> None:
    await used(tmp_path, strict.url(**AUTHORITY, **SHOWN))


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ({}, "certificate required"),
        ({"ssl_certfile": "unknown.crt", "ssl_keyfile": "unknown.key"}, "unknown ca"),
        ({"ssl_certfile": "expired.crt", "ssl_keyfile": "expired.key"}, "expired"),
    ],
    ids=["none", "unknown", "expired"],
)
async def test_a_client_whose_certificate_is_not_accepted(
    strict: Place, tmp_path: Path, shown: dict[str, str], said: str
) -> None:
    url = strict.url(**AUTHORITY, **shown)
    await refused(tmp_path, url, "does not accept this client's certificate", said, "ssl_certfile=FILE")


BAD = {
    "unknown": ("unable to get local issuer certificate", "ssl_ca_certs=FILE"),
    "expired": ("certificate has expired", "it has to be renewed"),
    "elsewhere": ("certificate is not valid for '127.0.0.1'", "make one for this address"),
}


@pytest.mark.parametrize("certificate", BAD)
async def test_a_server_whose_certificate_is_not_trusted(place: Place, tmp_path: Path, certificate: str) -> None:
    place.show(certificate)
    try:
        await refused(tmp_path, place.url(**AUTHORITY), "its certificate is not trusted", *BAD[certificate])
    finally:
        place.show("good")
    await used(tmp_path, place.url(**AUTHORITY))


@pytest.mark.parametrize("certificate", BAD)
async def test_a_sentinel_whose_certificate_is_not_trusted(
    certificates: Certificates, tmp_path: Path, certificate: str
) -> None:
    with ExitStack() as stack:
        place = Place("sentinel", certificates, stack)
        place.asked = place.sentinel(certificate)
        await refused(tmp_path, place.url(**AUTHORITY), "its certificate is not trusted", *BAD[certificate])


async def test_a_name_is_checked_unless_it_is_said_not_to_be(place: Place, tmp_path: Path) -> None:
    place.show("elsewhere")
    try:
        await used(tmp_path, f"{place.url(**AUTHORITY)}&ssl_check_hostname=false")
    finally:
        place.show("good")


def test_the_synchronous_twin_says_the_same(place: Place, tmp_path: Path) -> None:
    place.show("expired")
    try:
        with pytest.raises(CacheMisconfigured, match="it has to be renewed"):
            Scrubjay.open(**settings(tmp_path, place.url(**AUTHORITY))).__enter__()
    finally:
        place.show("good")
    with Scrubjay.open(**settings(tmp_path, place.url(**AUTHORITY), "yes")) as jay:
        assert jay.health()["cache"]["ok"]


async def test_authorities_of_the_system_do_not_know_it(place: Place, tmp_path: Path) -> None:
    await refused(tmp_path, place.url(), "its certificate is not trusted", "name its authority")
