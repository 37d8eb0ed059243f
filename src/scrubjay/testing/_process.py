"""Child processes that do not outlive their parent, whatever ends it, `kill -9` included."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scrubjay.core.errors import ConfigurationError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HOST: Final = "127.0.0.1"
POLL_S: Final = 0.01

# Below the ranges that Linux and macOS take client ports from. A port of those ranges can be lost to an outgoing
# connection while the server is down, and a client that keeps trying a dead one may even end up connected to itself.
# The upper bound leaves room for a cluster bus, 10,000 ports above.
_PORTS: Final = range(10_240, 22_768)

# $1 the stop signal, $2 the directory. One line comes in per started process (its id), an empty one when it is gone.
# The loop ends when the last holder of the pipe's write end has died. `-CONT` because a stopped process would hold the
# signal back. Five seconds of grace, then SIGKILL.
_GUARD: Final = """
trap '' HUP INT TERM
while read -r line; do pid=$line; done
if [ -n "$pid" ]; then
  kill -s CONT -- "-$pid"
  kill -s "$1" -- "$pid"
  n=0
  while kill -0 "$pid" && [ $n -lt 50 ]; do n=$((n+1)); sleep 0.1; done
  kill -s KILL -- "-$pid"
fi
rm -rf -- "$2"
"""

# Standard input is the guard's pipe: the guard knows the process before the server's first instruction, so there is no
# moment at which a killed parent leaves it behind.
_LAUNCH: Final = 'echo "$$" >&0 && exec "$@" </dev/null'


@dataclass(frozen=True, slots=True)
class Account:
    """The operating system user that a server runs as; without ids, the one that runs this process."""

    uid: int | None = None
    gid: int | None = None

    @classmethod
    def unprivileged(cls) -> Account:
        """Return this process's user or, when that is root, one without rights.

        Raises:
            ConfigurationError: this is root and the password database has nobody else.
        """
        if os.geteuid() != 0:
            return cls()
        # Without an entry in the password database `initdb` refuses to run.
        users = sorted(pwd.getpwall(), key=lambda user: user.pw_name != "nobody")
        for user in users:
            if user.pw_uid != 0:
                return cls(user.pw_uid, user.pw_gid)
        raise ConfigurationError("PostgreSQL does not run as root, and this system has no other user")

    @property
    def groups(self) -> list[int] | None:
        """The supplementary groups: none for another user, unchanged for this one."""
        return None if self.uid is None else []

    def can_run(self, program: Path) -> bool:
        """Return whether this user can reach, read and execute `program` (or enter it, if it is a directory)."""
        probe = subprocess.run(  # noqa: S603 - a path as an argument, not as a command
            ["/bin/sh", "-c", 'test -r "$1" && test -x "$1"', "sh", str(program)],
            check=False,
            cwd="/",
            user=self.uid,
            group=self.gid,
            extra_groups=self.groups,
        )
        return probe.returncode == 0

    def directory(self, prefix: str) -> Path:
        """Return a new temporary directory that belongs to this user alone.

        Raises:
            ConfigurationError: no temporary directory of this system can be reached by this user.
        """
        for parent in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 - mkdtemp makes an unguessable name
            path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            if self.uid is not None and self.gid is not None:
                os.chown(path, self.uid, self.gid)
            if self.can_run(path):
                return path
            path.rmdir()
        raise ConfigurationError(f"user {self.uid} can enter no temporary directory; set TMPDIR to one it can reach")


class Nest:
    """A temporary directory and the one process that lives in it.

    A guard, a shell in a session of its own, reads a pipe whose write end only this process holds. When this process
    ends in any way without `close`, the guard reads the end of the file, stops the server and removes the directory.

    Parameters:
        prefix: the start of the directory's name.
        account: the user that owns the directory and runs the process.
        stop_signal: what asks the process to end.

    Raises:
        ConfigurationError: no usable temporary directory.
    """

    def __init__(self, prefix: str, account: Account, stop_signal: signal.Signals) -> None:
        self._account = account
        self._stop_signal = stop_signal
        self._process: subprocess.Popen[bytes] | None = None
        self.path = account.directory(prefix)
        read_end, self._pipe = os.pipe()
        name = stop_signal.name.removeprefix("SIG")
        self._guard = subprocess.Popen(  # noqa: S603 - constants and a path of ours
            ["/bin/sh", "-c", _GUARD, "sh", name, str(self.path)],
            cwd="/",
            stdin=read_end,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(read_end)

    @property
    def log(self) -> str:
        """Everything that the processes wrote, as text."""
        log = self.path / "log"
        return log.read_text(errors="replace") if log.exists() else ""

    @property
    def pid(self) -> int | None:
        """The process id, or None when nothing runs."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def spawn(self, argv: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        """Start `argv` in a session of its own; its output goes to the log.

        Raises:
            ConfigurationError: this system does not allow to run it.
        """
        assert self.pid is None, "the last process still runs"
        # Messages are searched for words, and a PostgreSQL variable of the caller would change the server.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
        with (self.path / "log").open("ab") as log:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - starting programs is its purpose
                    ["/bin/sh", "-c", _LAUNCH, "sh", *map(str, argv)],
                    cwd="/",
                    env={**environment, "LC_ALL": "C"},
                    stdin=self._pipe,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    user=self._account.uid,
                    group=self._account.gid,
                    extra_groups=self._account.groups,
                    umask=0o077,
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise ConfigurationError(f"cannot run {argv[0]} as user {self._account.uid}: {error}") from error
        return self._process

    def run(self, argv: Sequence[str | Path], *, timeout: float) -> None:
        """Run `argv` to its end, within `timeout` seconds.

        Raises:
            ConfigurationError: it failed; the message holds the end of its output.
        """
        code: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.spawn(argv).wait(timeout)
        if code is None:
            self.kill()
        self._forget()
        if code != 0:
            raise ConfigurationError(f"{Path(argv[0]).name} failed ({code}): {self.log[-2000:]}")

    def halt(self, *, timeout: float) -> None:
        """Ask the process to end; kill it after `timeout` seconds."""
        if self._process is None:
            return
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGCONT)
            self._process.send_signal(self._stop_signal)
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
        self._forget()

    def kill(self) -> None:
        """Kill the process and its children without any warning to them."""
        if self._process is None:
            return
        if self._process.poll() is None:
            # Stopped first, so that it cannot replace a child or clean up after one.
            os.killpg(self._process.pid, signal.SIGSTOP)
            for child in [*_children(self._process.pid), self._process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            self._process.wait()
        self._forget()

    def pause(self) -> None:
        """Stop the process in its tracks: it keeps its connections and answers nothing."""
        assert self._process is not None, "nothing runs"
        os.killpg(self._process.pid, signal.SIGSTOP)
        if sys.platform == "linux":
            # The signal is delivered later than it is sent; WNOWAIT leaves the exit status to `Popen`.
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a paused process go on."""
        assert self._process is not None, "nothing runs"
        os.killpg(self._process.pid, signal.SIGCONT)

    def close(self, *, timeout: float) -> None:
        """End the process, as `halt` does, then the guard, and remove the directory."""
        self.halt(timeout=timeout)
        self._guard.kill()
        self._guard.wait()
        os.close(self._pipe)
        shutil.rmtree(self.path, ignore_errors=True)

    def _forget(self) -> None:
        """Tell the guard that there is nothing left to stop: the id may soon be another process's."""
        os.write(self._pipe, b"\n")
        self._process = None


def free_port() -> int:
    """Return a loopback TCP port that nobody listens on at this moment.

    Raises:
        Unavailable: no such port was found.
    """
    for port in random.SystemRandom().sample(_PORTS, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            # As the servers do; without it, a port of which an old connection lingers would look taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return port
    raise Unavailable(f"no free port on {HOST}")


def start_on_port(
    nest: Nest,
    port: int | None,
    command: Callable[[int], Sequence[str | Path]],
    ready: Callable[[int, str], bool],
    *,
    timeout: float,
) -> int:
    """Start a server and wait until it answers.

    Parameters:
        nest: where it runs.
        port: the port it must have, or None for any free one.
        command: gives the command line for a port.
        ready: tells, from the port and what the server has logged, whether it answers.
        timeout: in seconds.

    Returns:
        The port.

    Raises:
        Unavailable: it ended, or did not answer in time; the message holds the end of its log.
        ConfigurationError: it cannot be run.
    """
    deadline = time.monotonic() + timeout
    while True:
        candidate = free_port() if port is None else port
        before = len(nest.log)
        process = nest.spawn(command(candidate))
        while process.poll() is None and time.monotonic() < deadline:
            if ready(candidate, nest.log[before:]):
                return candidate
            time.sleep(POLL_S)
        output = nest.log[before:]
        nest.kill()
        # Somebody took the port between our look and the server's.
        if "Address already in use" not in output or time.monotonic() >= deadline:
            raise Unavailable(f"the server did not start within {timeout} s: {output[-2000:]}")
        time.sleep(POLL_S)


def _children(pid: int) -> list[int]:
    """Return the process ids of the direct children of `pid`."""
    if sys.platform == "linux":  # `ps` is missing from slim containers
        stats = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                stats.append(stat.read_text(errors="replace"))
        # pid (name, which may hold anything) state parent …
        rows = [(stat.split(" ", 1)[0], stat.rpartition(")")[2].split()[1]) for stat in stats]
    else:
        command = ["/bin/ps", "-axo", "pid=,ppid="]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - a constant
        rows = [(line.split()[0], line.split()[1]) for line in listing.splitlines()]
    return [int(child) for child, parent in rows if int(parent) == pid]
