"""A server whose disk forgets what was not synced, when it is killed."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from scrubjay.testing._process import Nest, start_on_port
from scrubjay.testing.servers import _VALKEY_PROGRAMS, Flavour, ValkeyServer

_SOURCE = Path(__file__).with_name("shim.c")
_SUFFIX = ".synced"
_DIRECTORY = "appendonlydir"


class NoCompiler(RuntimeError):
    """There is no C compiler."""


def compiled(directory: Path) -> Path:
    """Compile the shim into a directory, and return the library.

    Raises:
        NoCompiler: There is no C compiler, or it lacks the C library's headers.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoCompiler("there is no C compiler for the preloaded shim: install gcc and libc6-dev")
    library = directory / "shim.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", library, _SOURCE, "-ldl"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise NoCompiler(f"the shim cannot be compiled (install gcc and libc6-dev): {done.stderr.strip()[-1500:]}")
    return library


@dataclass(slots=True)
class Lost:
    """What a disk has forgotten: in how many files, and how many bytes."""

    files: int = 0
    bytes: int = 0


class CrashServer(ValkeyServer):
    """A server with an append-only file, whose machine can crash.

    Args:
        library: The compiled shim.
        fsync: How the server syncs: `always`, `everysec`, or `no` for never.
        flavour: Which server.
        rewrite_bytes: From which size on the file is rewritten whenever it has grown by half.
    """

    def __init__(
        self, library: Path, fsync: str, flavour: Flavour = "valkey", *, rewrite_bytes: int = 512 * 1024
    ) -> None:
        directives = {
            "appendonly": "yes",
            "appendfsync": fsync,
            "appenddirname": _DIRECTORY,
            "auto-aof-rewrite-percentage": 50,
            "auto-aof-rewrite-min-size": rewrite_bytes,
        }
        super().__init__(flavour, extra=directives, timeout=30.0)
        self._library = library

    @property
    def files(self) -> Path:
        """Where the append-only files are."""
        return self._running().path / _DIRECTORY

    def crash(self) -> Lost:
        """Kill the server, and with it what was not synced."""
        self.kill()
        return forget(self.files)

    def _launch(self, nest: Nest) -> int:
        program = _VALKEY_PROGRAMS[self.flavour]()
        file = nest.path / "server.conf"

        def command(port: int) -> list[str | Path]:
            self._configure(file, port)
            return ["/usr/bin/env", f"LD_PRELOAD={self._library}", program, file]

        return start_on_port(nest, self._port, command, self._listens, timeout=self._timeout)


def forget(directory: Path) -> Lost:
    """Cut every file of a directory to what was synced of it."""
    lost = Lost()
    for file in directory.iterdir() if directory.exists() else ():
        if file.suffix == _SUFFIX:
            continue
        more = file.stat().st_size - synced(file)
        if more > 0:
            lost.files, lost.bytes = lost.files + 1, lost.bytes + more
            os.truncate(file, synced(file))
    return lost


def synced(file: Path) -> int:
    """Return how many bytes of a file have been synced."""
    mark = file.with_name(file.name + _SUFFIX)
    return int(mark.read_text() or 0) if mark.exists() else 0
