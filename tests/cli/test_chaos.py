"""The command `chaos`: its report, its exit code, and what it leaves behind."""

from __future__ import annotations

from pathlib import Path

import orjson

from scrubjay.testing.history import HistoryFiles, check
from tests.cli.conftest import Run

SHORT = ("--seconds", 6, "--processes", 2, "--seed", 1)


def test_a_short_run(run: Run, temporary: Path) -> None:
    ran = run("chaos", *SHORT, "--json")
    found = ran.json
    assert found["ok"] is True
    assert found["impossible"] == {"backwards": 0, "future": 0, "stale": 0, "unknown": 0}
    assert found["seed"] == 1
    assert found["processes"] == 2
    assert found["failed"] == 0
    assert found["reads"] + found["writes"] == found["operations"] > 100
    assert list(temporary.iterdir()) == []


def test_what_is_found_is_said_and_kept(run: Run, tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    ran = run("chaos", "--operations", 4_000, "--seconds", 12, "--without", "joins", "--keep", keep)
    assert ran.code == 1
    assert "impossible reads" in ran.out
    assert "stale: " in ran.out or "backwards: " in ran.out
    kept, error = ran.err.splitlines()
    (directory,) = keep.iterdir()
    assert kept == f"kept {directory}"
    assert error.startswith("error[chaos]: ")
    assert "reads were impossible" in error
    report = check(HistoryFiles(directory.glob("history-*.jsonl")), deadline=1.25, strict=True)
    assert not report.ok
    assert orjson.dumps(report.to_dict())


def test_wrong_options(run: Run) -> None:
    assert run("chaos", "--seconds", 1).code == 2
    assert run("chaos", "--processes", 1).code == 2
    assert run("chaos", "--without", "luck").code == 2
    assert run("chaos", "--topology", "ring").code == 2
    for option in (("--cache", "valkey://there"), ("--no-kills",), ("--without", "joins")):
        assert "--topology is for private servers" in run("chaos", "--topology", "cluster", *option).err
    assert "--server is for private" in run("chaos", "--cache", "valkey://there", "--server", "redis8").err
    for options in (("--without", "relay", "--no-kills"), ("--without", "replay", "--cache", "valkey://there")):
        ran = run("chaos", *options)
        assert (ran.code, ran.out) == (2, "")
        assert "killed" in ran.error
    assert run("chaos", "--store", "mysql://there").error.startswith("error[")
