"""Every snippet of the README and of the docs runs, and prints what the page says it prints."""

from __future__ import annotations

import ast
import asyncio
import codeop
import contextlib
import inspect
import io
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from scrubjay.settings import Settings, load_settings
from scrubjay.testing.servers import PostgresServer, ValkeyServer
from tests.docs.markdown import ROOT, Block, blocks

PAGES = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if blocks(path)]
OWNER_URL = "postgresql://owner@db.internal/app"
APP_URL = "postgresql://app@db.internal/app"
CACHE_URL = "valkey://cache.internal:6379/0"
JOURNAL_URL = "valkey://journal.internal:6379/0"

# What differs from run to run, in the order in which it is replaced.
VARIES = [
    (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "<time>"),
    (r"\b\d{4}-\d\d-\d\d\b", "<date>"),
    (r"\b[0-9a-f]{32}\b", "<id>"),
    (r"\b\d+(\.\d+)? (ns|µs|ms|s)\b", "<duration>"),
    (r"'(\w*latency_ms|assembly_time_ms)': [\d.e-]+", r"'\1': <duration>"),
    (r" +$", ""),
]


@dataclass
class Session:
    """What the blocks of one page share."""

    directory: Path
    postgres: PostgresServer
    valkey: ValkeyServer
    journal: ValkeyServer
    namespace: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    database: str = ""

    def real(self, text: str) -> str:
        """Return a block's text with the servers of the test in place of those of the page."""
        if OWNER_URL in text and not self.database:
            self.database = self.postgres.create_database().rpartition("/")[2]
        text = text.replace(OWNER_URL, self.postgres.url(self.database or "postgres"))
        text = text.replace(APP_URL, self.postgres.url(self.database or "postgres", "app"))
        return text.replace(CACHE_URL, self.valkey.url).replace(JOURNAL_URL, self.journal.url)

    def run(self, block: Block, path: Path, runner: asyncio.Runner) -> str | None:
        """Run a block and return what it printed; None for a block that is no program."""
        match block.language:
            case "python":
                return self._python(block, path, runner)
            case "console":
                return self._console(block)
            case "sql":
                with psycopg.connect(self.postgres.url(self.database), autocommit=True) as connection:
                    connection.execute(block.text.replace("'…'", f"'{self.postgres.password}'").encode())
            case "toml":
                self._toml(block.text)
        return None

    def _python(self, block: Block, path: Path, runner: asyncio.Runner) -> str:
        # Blank lines before, so that a traceback names the line of the page.
        source = "\n" * (block.line - 1) + self.real(block.text)
        code = compile(source, str(path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)

        async def run() -> None:
            answer = eval(code, self.namespace)
            if inspect.isawaitable(answer):
                await answer

        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            runner.run(run())
        return printed.getvalue()

    def _console(self, block: Block) -> str:
        printed = []
        for line in block.text.splitlines():
            if line.startswith("$ "):
                path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
                done = subprocess.run(
                    self.real(line[2:]), shell=True, cwd=self.directory, env={**os.environ, "PATH": path},
                    capture_output=True, text=True, check=False, timeout=100,
                )  # fmt: skip
                printed += [line, done.stdout + done.stderr]
        return "".join(part if part.endswith("\n") else f"{part}\n" for part in printed if part)

    def _toml(self, text: str) -> None:
        tomllib.loads(text)
        file = self.directory / "scrubjay.toml"
        file.write_text(text)
        try:
            assert isinstance(load_settings({}), Settings)
        finally:
            file.unlink()


PROGRAMS = [
    pytest.param(block, id=f"{path.name}:{block.line}")
    for path in PAGES
    for block in blocks(path)
    if block.language == "python"
]


@pytest.mark.parametrize("block", PROGRAMS)
def test_snippets_can_be_pasted(block: Block) -> None:
    """An interactive session ends a statement at a blank line: none may stand inside one."""
    compiler = codeop.CommandCompiler()
    compiler.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    pending: list[str] = []
    for line in [*block.text.splitlines(), ""]:
        pending.append(line)
        if compiler("\n".join(pending)) is not None:
            pending.clear()
    assert pending == []


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[PostgresServer, ValkeyServer, ValkeyServer]]:
    durable = {"appendonly": "yes", "appendfsync": "always"}
    with PostgresServer() as postgres, ValkeyServer("valkey") as valkey, ValkeyServer(extra=durable) as journal:
        yield postgres, valkey, journal


def normalised(text: str) -> str:
    for pattern, word in VARIES:
        text = re.sub(pattern, word, text, flags=re.MULTILINE)
    return text.strip("\n")


def assert_printed(printed: str, expected: str, where: str) -> None:
    """Compare what was printed with what a page says; `…` on a line of its own stands for any lines."""
    pieces = [re.escape(piece.strip("\n")) for piece in re.split(r"^…$", normalised(expected), flags=re.MULTILINE)]
    if not re.fullmatch(r"\n?(?:.*\n)?".join(pieces), normalised(printed), flags=re.DOTALL):
        # For a readable difference.
        assert normalised(printed) == normalised(expected), where


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_snippets(
    path: Path,
    servers: tuple[PostgresServer, ValkeyServer, ValkeyServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("SCRUBJAY_")]:
        monkeypatch.delenv(name)
    session = Session(tmp_path, *servers)
    found = blocks(path)
    with asyncio.Runner() as runner:
        for block, after in zip(found, [*found[1:], Block("", "", 0)], strict=True):
            printed = session.run(block, path, runner)
            where = f"{path.relative_to(ROOT)}:{block.line}"
            if block.language == "python":
                assert_printed(printed or "", after.text if after.language == "text" else "", where)
            elif block.language == "console":
                assert_printed(printed or "", block.text, where)
