"""Running the command line: in this process, and as users do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from scrubjay.cli.main import cli

SECRET = "s3cr3t-pa55"
CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The object that stands alone on stdout."""
        assert self.code == 0, self.err
        (line,) = self.out.splitlines()
        return orjson.loads(line)

    @property
    def error(self) -> str:
        """The one line on stderr."""
        (line,) = self.err.splitlines()
        assert line.startswith("error["), line
        return line


Run = Callable[..., Ran]


@pytest.fixture(autouse=True)
def _own_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each test in a directory of its own, without settings or terminal of the outside."""
    for name in [name for name in os.environ if name.startswith("SCRUBJAY_") and name != "SCRUBJAY_TEST_DATA"]:
        monkeypatch.delenv(name)
    for name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    work = tmp_path / "work"
    temporary = tmp_path / "tmp"
    work.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Where temporary files go."""
    return tmp_path / "tmp"


@pytest.fixture
def run() -> Run:
    """Runs a command in this process."""

    def call(*args: object, stdin: bytes | str | None = None) -> Ran:
        result = CliRunner().invoke(cli, [str(arg) for arg in args], prog_name="scrubjay", input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    return call


@pytest.fixture
def process() -> Run:
    """Runs a command in a process of its own."""

    def call(*args: object, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Ran:
        done = subprocess.run(
            command(*args), input=stdin, capture_output=True, timeout=90, check=False, env={**os.environ, **(env or {})}
        )
        return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())

    return call


def command(*args: object) -> list[str]:
    """Return a command line."""
    return [sys.executable, "-m", "scrubjay", *map(str, args)]


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The development data; tests that need it are skipped where it is not, unless it was promised."""
    promised = os.environ.get("SCRUBJAY_TEST_DATA")
    folder = Path(promised) if promised else CHECKOUT.parent / "shared" / "data"
    if not (folder / "counts.json").is_file():
        if promised:
            pytest.fail(f"SCRUBJAY_TEST_DATA names {promised}, where the development data is not")
        pytest.skip("the development data folder is not here")
    return folder


def user(text: str, **fields: Any) -> dict[str, Any]:
    """Return a user message."""
    return {"role": "user", "content": text, **fields}


def assistant(text: str | None, **fields: Any) -> dict[str, Any]:
    """Return an assistant message."""
    return {"role": "assistant", "content": text, **fields}


def call(id_: str, name: str, arguments: str = "{}") -> dict[str, Any]:
    """Return a tool call."""
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def tool(id_: str, content: str) -> dict[str, Any]:
    """Return a tool message."""
    return {"role": "tool", "tool_call_id": id_, "content": content}


def lines(records: Sequence[Mapping[str, Any] | bytes]) -> bytes:
    """Return JSON Lines."""
    return b"".join((each if isinstance(each, bytes) else orjson.dumps(each)) + b"\n" for each in records)
