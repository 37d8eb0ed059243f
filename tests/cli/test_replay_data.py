"""`scrubjay replay` over the development data: none skipped, and the counts match."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from .conftest import Run

pytestmark = [pytest.mark.data, pytest.mark.timeout(600)]
SMALL = ("airline-tools", "questions-and-answers", "long")
LARGE = ("human-chat", "service-calls", "orders")


def _counts(folder: Path, name: str) -> dict[str, int]:
    counts: dict[str, dict[str, int]] = orjson.loads((folder / "counts.json").read_bytes())
    return counts[f"conversations/{name}.jsonl.gz"]


def _replay(run: Run, folder: Path, name: str, *options: object) -> dict[str, object]:
    report: dict[str, object] = run("replay", folder / "conversations" / f"{name}.jsonl.gz", "--json", *options).json
    store = report["store"]
    assert isinstance(store, dict)
    assert store["messages"] == report["messages"]
    assert store["tool_outputs"] == report["tool_outputs"]
    for nothing in ("invalid_windows", "budget_too_small", "bad_lines", "bad_messages"):
        assert report[nothing] == 0
    assert isinstance(report["windows"], int)
    assert report["windows"] > 0
    return report


def test_every_file_is_replayed(data_folder: Path) -> None:
    names = {file.name.removesuffix(".jsonl.gz") for file in (data_folder / "conversations").iterdir()}
    assert names == {*SMALL, *LARGE}


@pytest.mark.parametrize("name", SMALL)
def test_whole_files(run: Run, data_folder: Path, name: str) -> None:
    counts = _counts(data_folder, name)
    report = _replay(run, data_folder, name, "--concurrency", 4)
    assert (report["conversations"], report["messages"]) == (counts["lines"], counts["messages"])


@pytest.mark.parametrize("name", LARGE)
def test_the_beginnings_of_the_largest(run: Run, data_folder: Path, name: str) -> None:
    assert _replay(run, data_folder, name, "--limit", 60, "--concurrency", 4)["conversations"] == 60


@pytest.mark.full
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("name", LARGE)
def test_the_largest(run: Run, data_folder: Path, name: str) -> None:
    counts = _counts(data_folder, name)
    report = _replay(run, data_folder, name, "--concurrency", 4)
    assert (report["conversations"], report["messages"]) == (counts["lines"], counts["messages"])
    if name == "human-chat":
        assert report["users"] == 737
