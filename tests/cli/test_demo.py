"""`scrubjay demo`."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from scrubjay.assembly import validate_window
from scrubjay.cli import demo_story as story

from .conftest import Run, command

ESCAPE = "\x1b["


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    import orjson

    done = subprocess.run(command("demo", "--json"), capture_output=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    (line,) = done.stdout.splitlines()
    return orjson.loads(line)


def test_everything_that_it_claims_is_so(report: dict[str, Any]) -> None:
    assert [check["name"] for check in report["checks"] if not check["ok"]] == []
    assert len(report["checks"]) == 8


def test_the_window_holds_all_sources_within_the_budget(report: dict[str, Any]) -> None:
    receipt = report["receipt"]
    assert receipt["sources_used"] == ["agent", "profile", "memory", "summary", "chat", "tools", "state"]
    assert receipt["total_tokens"] <= receipt["budget"] == story.BUDGET
    assert receipt["total_tokens"] == sum(section["tokens"] for section in receipt["sections"])
    validate_window(report["window"])
    assert report["window"][-1] == {"role": "user", "content": story.LAST_QUESTION}
    text = str(report["window"])
    assert all(word in text for word in story.ALICES_OWN)
    assert report["summary"].partition("\n")[0] in text


def test_nobody_else_sees_a_word_of_hers(report: dict[str, Any]) -> None:
    assert set(report["others"]) == {f"{story.SHOP}/{story.BOB}", f"{story.BANK}/{story.ALICE}"}
    for window in report["others"].values():
        validate_window(window)
        assert not [word for word in story.ALICES_OWN if word in str(window)]


def test_both_runs_are_measured(report: dict[str, Any]) -> None:
    cached, uncached = report["with_cache"], report["without_cache"]
    assert cached["hit_rate"] > 0.8
    assert uncached["hit_rate"] == 0.0
    assert sum(cached["reads"].values()) == sum(uncached["reads"].values())
    assert report["store_reads_absorbed"] == uncached["reads"]["misses"] - cached["reads"]["misses"] > 500
    for run in (cached, uncached):
        latencies = run["latencies"]
        assert latencies["write"]["count"] == cached["latencies"]["write"]["count"]
        assert run["assemble"]["count"] == run["windows"] == cached["windows"]
        for tier in latencies.values():
            assert tier["count"] == 0 or 0 < tier["p50_ms"] <= tier["p99_ms"]
    for run in (cached, uncached):
        found = run["found"]
        assert (found["l1"] + found["l2"], found["store"]) == (run["reads"]["hits"], run["reads"]["misses"])
    assert min(cached["found"].values()) > 0, "each tier answered something"
    assert (uncached["found"]["l1"], uncached["found"]["l2"]) == (0, 0)
    assert uncached["latencies"]["l2"]["count"] == 0
    assert cached["latencies"]["l2"]["count"] > cached["latencies"]["store"]["count"] > 0


def test_piped_it_is_plain_and_leaves_nothing(process: Run, temporary: Path) -> None:
    ran = process("demo")
    assert (ran.code, ran.err) == (0, "")
    assert ESCAPE not in ran.out
    for line in ran.out.splitlines():
        assert len(line) <= 100
        assert line == line.rstrip()
    for words in (
        "Tuesday",
        "Receipt",
        "hit rate",
        "in process memory",
        "with Valkey",
        "without a cache",
        story.LAST_QUESTION,
    ):
        assert words in ran.out
    assert ran.out.count("✓") == 8
    assert list(temporary.iterdir()) == []


def test_a_terminal_gets_colors_in_its_width() -> None:
    out = _in_terminal(command("demo"), columns=90)
    assert ESCAPE in out
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out)
    assert "Tuesday" in plain
    assert max(len(line.rstrip()) for line in plain.splitlines()) <= 90


def test_an_output_that_cannot_hold_every_character_gets_replacements(process: Run) -> None:
    ran = process("demo", env={"PYTHONIOENCODING": "ascii"})
    assert ran.code == 0
    assert ran.out.isascii()
    assert "ok the window fits" in ran.out


def test_keep_leaves_the_files_there_and_a_second_run_tells_the_same_story(run: Run, tmp_path: Path) -> None:
    keep = tmp_path / "kept" / "here"
    first = run("demo", "--keep", keep, "--json").json
    second = run("demo", "--keep", keep, "--json").json
    assert first["window"] == second["window"]
    assert len(list(keep.rglob("scrubjay.db"))) == 4


def test_it_does_not_touch_what_the_settings_name(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCRUBJAY_STORE", f"sqlite:///{tmp_path}/mine.db")
    monkeypatch.setenv("SCRUBJAY_CACHE", "valkey://127.0.0.1:1")
    monkeypatch.setenv("SCRUBJAY_DATA_DIR", str(tmp_path / "mine"))
    assert run("demo", "--json").json["with_cache"]["hit_rate"] > 0.8
    assert not (tmp_path / "mine.db").exists()
    assert not (tmp_path / "mine").exists()


def _in_terminal(line: list[str], columns: int) -> str:
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "40"}
    with subprocess.Popen(line, stdin=follower, stdout=follower, stderr=follower, env=environment) as process:
        os.close(follower)
        chunks: list[bytes] = []
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            if not select.select([leader], [], [], 1.0)[0]:
                continue
            try:
                chunk = os.read(leader, 65536)
            except OSError:  # Linux: the other side is closed.
                break
            if not chunk:
                break
            chunks.append(chunk)
        assert process.wait(10) == 0
    os.close(leader)
    return b"".join(chunks).decode()
