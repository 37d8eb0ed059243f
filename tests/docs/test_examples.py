"""The examples run, as a newcomer would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scrubjay.testing.servers import ValkeyServer
from tests.docs.markdown import ROOT


def run(name: str, directory: Path, *arguments: str) -> list[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("SCRUBJAY_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / name), *arguments],
        cwd=directory, env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout.splitlines()


def test_each_has_a_test() -> None:
    assert sorted(path.name for path in (ROOT / "examples").glob("*.py")) == [
        "own_store.py", "quickstart.py", "web_handler.py",
    ]  # fmt: skip


def test_quickstart(tmp_path: Path) -> None:
    first = run("quickstart.py", tmp_path)
    assert first[0].endswith("from agent, profile, memory, chat, state")
    assert first[1] == "summary: User: Where is my refund for ORD-12345?"
    assert first[2].endswith("from agent, profile, memory, summary, chat")
    assert re.fullmatch(r"stored:  \d+ rows", first[3])
    assert first[4].endswith("cache cleared")
    # What it left behind changes nothing.
    assert run("quickstart.py", tmp_path) == first


def test_web_handler(tmp_path: Path) -> None:
    expected = ["16 requests, 16 messages in the longer chat", "alice: 16 messages", "bob: 16 messages"]
    assert run("web_handler.py", tmp_path) == expected


@pytest.mark.parametrize(("cached", "reads"), [(True, 3), (False, 102)])
def test_own_store(tmp_path: Path, valkey9: ValkeyServer, cached: bool, reads: int) -> None:
    assert run("own_store.py", tmp_path, *([valkey9.url] if cached else [])) == [
        "newest: [{'id': 2, 'text': 'flies on Tuesdays'}]",
        "all: [{'id': 2, 'text': 'flies on Tuesdays'}, {'id': 1, 'text': 'likes window seats'}]",
        "after a write: {'id': 3, 'text': 'moved to Oslo'}",
        "never cached: False",
        f"read from the table: {reads}",
    ]
