"""Servers started from what `scrubjay conf` has written, as it was written."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import redis
from click.testing import CliRunner
from redis.backoff import NoBackoff
from redis.retry import Retry

from scrubjay.cli.main import cli
from scrubjay.core.errors import Unavailable
from scrubjay.testing._process import Account, Nest, free_port, start_on_port
from scrubjay.testing.servers import _VALKEY_PROGRAMS, Flavour

START_S = 60.0
SENTINEL_STEP = 20
"""How far above the servers' ports those of Sentinels begin."""


@dataclass
class Deployment:
    """A directory of files, and the servers that were started from it."""

    directory: Path
    flavour: Flavour
    port: int
    logs: list[Callable[[], str]] = field(default_factory=list)
    tls: bool = False
    """Whether its clients here speak TLS."""

    @property
    def cache(self) -> str:
        """The URL that the application is given."""
        return environment(self.directory / "secrets.env")["SCRUBJAY_CACHE"]

    def login(self, user: str) -> tuple[str, str]:
        """Return name and password of a user."""
        operator = environment(self.directory / "operator.env")
        match user:
            case "app":
                url = urlsplit(self.cache)
            case "monitor":
                url = urlsplit(operator["SCRUBJAY_MONITOR_CACHE"])
            case _:
                return operator["SCRUBJAY_ADMIN_USER"], operator["SCRUBJAY_ADMIN_PASSWORD"]
        # Not `url.port`: there may be several.
        name, _, rest = url.netloc.partition(":")
        return name, unquote(rest.rpartition("@")[0])

    def client(self, user: str | None, port: int | None = None) -> redis.Redis:
        """Return a client that has logged in as a user, or as nobody; it is to be closed."""
        name, password = (None, None) if user is None else self.login(user)
        # With certificates of its own, as the application has.
        tls = self.directory / "tls"
        secured = {"ssl": True, "ssl_ca_certs": tls / "ca.crt", "ssl_certfile": tls / "client.crt",
                   "ssl_keyfile": tls / "client.key"} if self.tls else {}  # fmt: skip
        # Without another try: what is refused is refused, and each one would wait for seconds.
        return redis.Redis(
            port=port or self.port, username=name, password=password, socket_timeout=30, decode_responses=True,
            driver_info=None, protocol=2, retry=Retry(NoBackoff(), 0), **secured,
        )  # fmt: skip

    def denied(self, port: int | None = None) -> list[dict[str, object]]:
        """Return what the server has refused."""
        with self.client("admin", port) as admin:
            return list(admin.acl_log())


def environment(file: Path) -> dict[str, str]:
    """Return what a file of variables says."""
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return {name: value.strip("'") for name, _, value in (line.partition("=") for line in lines)}


def write(topology: str, out: Path, *options: object) -> None:
    """Run the command."""
    words = ["conf", topology, "--out", out, "--force", *options]
    result = CliRunner().invoke(cli, [str(word) for word in words], prog_name="scrubjay")
    assert result.exit_code == 0, result.output


def family(flavour: Flavour) -> str:
    """Return what the option `--flavour` calls a server."""
    return "valkey" if flavour == "valkey" else "redis"


@contextmanager
def served(
    topology: str,
    flavour: Flavour,
    *options: object,
    only: str | None = None,
    prepare: Callable[[Path], None] | None = None,
) -> Iterator[Deployment]:
    """Write files and start one server from one of them, on a free port.

    Args:
        topology: Which.
        flavour: Which server.
        options: More options of the command.
        only: The name of the file, without its end; None for the first one.
        prepare: Called with the directory before the server starts.
    """
    nest = Nest("scrubjay-conf-", Account(), signal.SIGTERM)
    out = nest.path / "a conf"
    name = only or {"single": family(flavour), "sentinel": "primary", "cluster": "node-1"}[topology]
    sentinel = name.startswith("sentinel")
    number = int(name.rpartition("-")[2]) if name[-1].isdigit() else 0
    place = number if name.startswith("replica") else max(number - 1, 0)
    if "--hosts" in options:
        place = 0
    program = _VALKEY_PROGRAMS[flavour]()

    def command(port: int) -> list[str | Path]:
        # The first port such that this server's own is the free one.
        first = port - place
        ports = ["--port", first]
        if topology == "sentinel":
            ports = ["--port", first + SENTINEL_STEP if sentinel else first]
            ports += ["--sentinel-port", first if sentinel else first + SENTINEL_STEP]
        write(topology, out, "--flavour", family(flavour), *ports, *options)
        if prepare is not None:
            prepare(out)
        return [program, out / f"{name}.conf", *(["--sentinel"] if sentinel else [])]

    try:
        port = start_on_port(nest, None, command, lambda _, log: is_ready(log), timeout=START_S)
        yield Deployment(out, flavour, port, [lambda: nest.log])
    finally:
        nest.kill()
        nest.close(timeout=START_S)


@contextmanager
def deployed(
    topology: str, flavour: Flavour, out: Path, *options: object
) -> Iterator[tuple[Deployment, dict[str, Nest]]]:
    """Write files and start every server from them, on ports that are free one after the other."""
    program = _VALKEY_PROGRAMS[flavour]()
    for attempt in range(10):
        with ExitStack() as stack:
            first = _free_ports(2 * SENTINEL_STEP)
            ports = ["--port", first]
            if topology == "sentinel":
                ports += ["--sentinel-port", first + SENTINEL_STEP]
            write(topology, out, "--flavour", family(flavour), *ports, *options)
            if "--tls" in options:
                certify(out)
            nests = {}
            try:
                for file in sorted(out.glob("*.conf")):
                    argv = [program, file, *(["--sentinel"] if file.name.startswith("sentinel") else [])]
                    nest = nests[file.stem] = Nest("scrubjay-conf-", Account(), signal.SIGTERM)
                    stack.callback(nest.close, timeout=START_S)
                    stack.callback(nest.kill)
                    start_on_port(nest, first, lambda _, argv=argv: argv, lambda _, log: is_ready(log), timeout=START_S)
            except Unavailable:
                if attempt == 9:
                    raise
                continue  # Somebody took a port.
            logs = [lambda nest=nest: nest.log for nest in nests.values()]
            yield Deployment(out, flavour, first, logs, tls="--tls" in options), nests
            return


def certify(out: Path) -> None:
    """Make certificates as the notes beside the files say, unless there are some."""
    (commands,) = re.findall(r"## Certificates.*?```sh\n(.*?)```", (out / "NEXT.md").read_text(), re.DOTALL)
    assert str(out / "tls") in commands
    if not (out / "tls" / "server.crt").exists():
        subprocess.run(["sh", "-euc", commands], check=True, capture_output=True)


def is_ready(log: str) -> bool:
    """Return whether a server or a Sentinel says that it runs."""
    return "Ready to accept connections" in log or "+monitor" in log


def _free_ports(count: int) -> int:
    """Return the first of some ports, all of them free."""
    while True:
        first = free_port()
        with suppress(OSError), ExitStack() as stack:
            for port in range(first, first + count):
                probe = stack.enter_context(socket.socket())
                probe.bind(("127.0.0.1", port))
            return first
