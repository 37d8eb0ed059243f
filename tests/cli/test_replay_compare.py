"""`scrubjay replay --compare`: strategies of assembly at a simulated provider."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from scrubjay.cli.replay_questions import evidence_of, read_questions, times_of
from scrubjay.core.errors import InvalidContent

from .conftest import Run, assistant, call, lines, tool, user

SMALL = ("--static-tokens", 600, "--history-tokens", 600, "--memory-tokens", 50, "--provider", "claude-opus-5")


def chat(turns: int, **more: Any) -> dict[str, Any]:
    """Return a conversation; each message has an id, and the question of a turn is two minutes after its answer."""
    messages = []
    for turn in range(turns):
        stamp = f"2026-03-01T{turn // 30:02}:{turn % 30 * 2:02}:00Z"
        messages.append(user(f"question {turn}: where is the parcel? " * 3, id=f"q{turn}", timestamp=stamp))
        messages.append(assistant(f"answer {turn}: it is on its way. " * 3, id=f"a{turn}", timestamp=stamp))
    return {"user": "alice", "messages": messages, **more}


WITH_TOOLS = {
    "user": "bob",
    "messages": [
        {"role": "system", "content": "Be brief."},
        user("Where is my order?"),
        assistant(None, tool_calls=[call("c1", "find_order", '{"id": 7}')]),
        tool("c1", '{"status": "sent"}'),
        assistant("It is on its way."),
    ],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "chats.jsonl"
    made.write_bytes(lines([chat(40), WITH_TOOLS]))
    return made


def test_a_report(run: Run, file: Path, temporary: Path) -> None:
    report = run("replay", file, "--compare", *SMALL, "--json").json
    assert report["conversations"] == 2
    assert report["messages"] == 85
    assert report["provider"] == "anthropic"
    assert report["unit"] == "USD"
    assert report["budget"] >= 600 + 600 + 50
    assert (report["bad_lines"], report["bad_messages"], report["gap_s"]) == (0, 0, 0)
    strategies = report["strategies"]
    assert list(strategies) == ["sliding", "sliding-tail", "blocks"]
    for one in strategies.values():
        assert one["windows"] == 42
        assert (one["invalid_windows"], one["budget_too_small"], one["questions"]) == (0, 0, 0)
        assert one["evidence_kept"] is None
        assert one["input_tokens"] >= one["cached_tokens"] + one["written_tokens"]
        assert one["prefix_hit_rate"] == one["cached_tokens"] / one["input_tokens"]
        assert one["mean_window_tokens"] <= one["largest_window_tokens"] <= report["budget"]
    assert strategies["sliding"]["cost_vs_sliding"] == 1
    assert strategies["blocks"]["cost_vs_sliding"] < 1
    assert strategies["blocks"]["cuts"] < strategies["sliding"]["cuts"]
    # No server, no store.
    assert list(temporary.iterdir()) == []


def test_as_text(run: Run, file: Path) -> None:
    ran = run("replay", file, "--compare", *SMALL)
    assert (ran.code, ran.err) == (0, "")
    for words in ("strategy", "sliding-tail", "blocks", "100.0%", "$", "claude-opus-5", "nothing expires"):
        assert words in ran.out
    assert "evidence" not in ran.out


def test_the_same_again(run: Run, file: Path) -> None:
    one, other = (run("replay", file, "--compare", *SMALL, "--json").json for _ in range(2))
    assert one == other


def test_of_an_unknown_provider_costs_are_units(run: Run, file: Path) -> None:
    ran = run("replay", file, "--compare", "--provider", "who-knows")
    assert "nothing is known of 'who-knows'" in ran.out
    assert "$" not in ran.out


def test_gaps(run: Run, file: Path) -> None:
    def cached(*options: object) -> list[int]:
        report = run("replay", file, "--compare", *SMALL, "--limit", 1, *options, "--json").json
        return [one["cached_tokens"] for one in report["strategies"].values()]

    always = cached()
    assert cached("--gap-s", 299) == always
    assert cached("--gap-s", 300) == [0, 0, 0]
    # Two minutes apart, as the messages say.
    assert cached("--real-gaps") == always


def test_history_bounds_messages(run: Run, file: Path) -> None:
    report = run("replay", file, "--compare", *SMALL, "--json").json
    fewer = run("replay", file, "--compare", *SMALL, "--history", 4, "--json").json
    for name, one in fewer["strategies"].items():
        assert one["mean_window_tokens"] < report["strategies"][name]["mean_window_tokens"]


def test_summaries(run: Run, file: Path) -> None:
    report = run("replay", file, "--compare", *SMALL, "--json").json
    more = run("replay", file, "--compare", *SMALL, "--summaries", "--json").json
    assert more["strategies"]["sliding"] == report["strategies"]["sliding"]
    assert more["strategies"]["blocks"]["input_tokens"] != report["strategies"]["blocks"]["input_tokens"]


def test_questions(run: Run, file: Path, tmp_path: Path) -> None:
    asked = tmp_path / "questions.jsonl.gz"
    questions = [
        {"user": "alice", "evidence": ["a39"]},
        {"user": "alice", "evidence": ["q0"]},
        {"user": "alice", "evidence": ["q39", "a0"]},
        {"user": "alice", "evidence": ["nowhere"]},
        {"user": "alice", "evidence": []},
        {"user": "nobody", "evidence": ["q0"]},
    ]
    asked.write_bytes(gzip.compress(lines(questions)))
    report = run("replay", file, "--compare", *SMALL, "--questions", asked, "--json").json
    for one in report["strategies"].values():
        assert one["questions"] == 3
        assert one["evidence_kept"] == 1 / 3
    assert "evidence kept" in run("replay", file, "--compare", *SMALL, "--questions", asked).out


def test_a_budget_that_is_too_small(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    file.write_bytes(lines([{"messages": [user("word " * 500), assistant("yes")]}]))
    options = ("--static-tokens", 0, "--memory-tokens", 0, "--history-tokens", 100)
    ran = run("replay", file, "--compare", *options)
    assert ran.code == 0
    assert ran.out.count("the budget is too small") == 3


def test_bad_lines_and_messages(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    good = chat(2)
    file.write_bytes(b"{nonsense\n" + lines([{**good, "messages": [*good["messages"], {"role": "king"}]}]))
    ran = run("replay", file, "--compare")
    assert ran.code == 2
    assert f"{file}:1" in ran.error
    report = run("replay", file, "--compare", "--skip-bad", "--json").json
    assert (report["bad_lines"], report["bad_messages"], report["messages"]) == (1, 1, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--compare", "--budget", 100], "--budget"),
        (["--compare", "--store", "sqlite:///x"], "--store"),
        (["--compare", "--concurrency", 2], "--concurrency"),
        (["--compare", "--gap-s", 5, "--real-gaps"], "--real-gaps"),
        (["--provider", "openai"], "--compare"),
        (["--plot", "x.png"], "--compare"),
    ],
)
def test_options_that_have_no_meaning_together(run: Run, file: Path, options: list[object], words: str) -> None:
    ran = run("replay", file, *options)
    assert ran.code == 2
    assert ran.error.startswith("error[usage]")
    assert words in ran.error


def test_without_the_library_there_is_no_picture(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    ran = run("replay", file, "--compare", "--plot", "out.png")
    assert ran.code == 2
    assert ran.error.startswith("error[missing_dependency]")
    assert "scrubjay[plot]" in ran.error
    assert not Path("out.png").exists()


def test_a_picture(run: Run, file: Path) -> None:
    assert run("replay", file, "--compare", *SMALL, "--plot", "out.png").code == 0
    assert Path("out.png").read_bytes().startswith(b"\x89PNG")
    assert run("replay", file, "--compare", *SMALL, "--plot", "out.xyz").error.startswith("error[invalid_content]")


# --- questions and times ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [b"nonsense", b"[]", b'{"user": "a"}', b'{"user": "a", "evidence": [1]}'])
def test_what_is_no_question_is_told_with_its_place(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_bytes(b"\n" + line)
    with pytest.raises(InvalidContent, match=r"questions\.jsonl:2"):
        read_questions(str(file))
    file.write_bytes(gzip.compress(line)[:-9])
    with pytest.raises(InvalidContent, match="damaged"):
        read_questions(str(file))


def test_evidence_without_text_is_none() -> None:
    messages = [user("here", id="a"), assistant(None, id="b"), user("no id")]
    assert evidence_of([["a"], ["b"], ["a", "b"], ["c"], []], messages) == [["here"]]


def test_times() -> None:
    def times(*messages: dict[str, Any]) -> list[int] | None:
        return times_of(messages)

    noon = 1_772_366_400_000
    assert times({}, {}) is None
    assert times() is None
    assert times({}, {"timestamp": "2026-03-01T12:00:00Z"}, {}) == [noon] * 3
    assert times({"created_at": noon / 1_000}, {"created_at": noon / 1_000 + 1.5}) == [noon, noon + 1_500]
    assert times({"session_time": "12:00 pm on 1 March, 2026"}, {"session_time": "soon"}) == [noon, noon]
    assert times({"timestamp": "2026-03-01T13:00:00+01:00"}, {"timestamp": "2026-02-01T12:00:00"}) == [noon, noon]
    assert times({"timestamp": True}) is None


# --- development data ------------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.timeout(300)
def test_a_long_conversation(run: Run, data_folder: Path) -> None:
    options = ("--limit", 1, "--questions", data_folder / "questions" / "long.jsonl.gz", "--json")
    report = run("replay", data_folder / "conversations" / "long.jsonl.gz", "--compare", *options).json
    assert report["messages"] == 419
    for one in report["strategies"].values():
        assert (one["windows"], one["invalid_windows"], one["budget_too_small"]) == (205, 0, 0)
        assert one["questions"] > 150
        assert 0 < one["evidence_kept"] < 1
    assert report["strategies"]["blocks"]["cost_vs_sliding"] < 0.5
