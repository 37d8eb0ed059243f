"""`scrubjay replay` on small files."""

from __future__ import annotations

import gzip
import os
import signal
import sqlite3
import subprocess
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest

from scrubjay.cli import replay_input
from scrubjay.testing.servers import PostgresServer, ValkeyServer
from tests.aging import CacheView
from tests.deployments import Deployment
from tests.waiting import wait_until

from .conftest import Ran, Run, assistant, call, command, lines, tool, user

TWO = [
    {
        "tenant": "acme",
        "user": "alice",
        "session": "s1",
        "messages": [
            {"role": "system", "content": "Be brief."},
            user("Where is my order?"),
            assistant(None, tool_calls=[call("c1", "find_order", '{"id": 7}'), call("c2", "now")]),
            tool("c1", '{"status": "sent"}'),
            tool("c2", "noon, more or less"),
            assistant("It is on its way."),
            assistant("Anything else?"),
            user("No, thank you."),
        ],
    },
    {"tenant": "globex", "user": "alice", "session": "s1", "messages": [assistant("Hello!"), user("Hi")]},
]


@pytest.fixture
def two(tmp_path: Path) -> Path:
    file = tmp_path / "two.jsonl"
    file.write_bytes(lines(TWO))
    return file


def exported(run: Run, store: object, tenant: str, user_id: str) -> Any:
    ran = run("export", "--tenant", tenant, "--user", user_id, "--store", store, "--cache", "none:")
    assert ran.code == 0, ran.err
    return orjson.loads(ran.out)


def test_counts_and_windows(run: Run, two: Path, temporary: Path) -> None:
    report = run("replay", two, "--json").json
    expected = {
        "conversations": 2,
        "messages": 10,
        "users": 2,
        "tenants": 2,
        "tool_outputs": 2,
        "summaries": report["summaries"],
        # Before each reply that the application would have asked a model for: not before "Anything else?".
        "windows": 3,
        "budget_too_small": 0,
        "invalid_windows": 0,
        "bad_lines": 0,
        "bad_messages": 0,
        "concurrency": 1,
    }
    assert {name: report[name] for name in expected} == expected
    assert report["store"]["messages"] == 10
    assert report["store"]["tool_outputs"] == 2
    assert 0 < report["hit_rate"] < 1
    assert report["hit_rate"] == report["reads"]["hits"] / sum(report["reads"].values())
    assert set(report["latencies"]) == {"l2", "store", "write"}
    for tier in report["latencies"].values():
        assert set(tier) == {"count", "mean_ms", "p50_ms", "p99_ms"}
    assert report["calls"]["append"]["count"] == 10
    assert report["calls"]["assemble"]["count"] == 3
    assert report["calls"]["close"]["count"] == 2
    assert report["messages_per_s"] > 0
    assert report["mean_window_tokens"] > 0
    assert list(temporary.iterdir()) == []


def test_what_is_stored_is_what_was_in_the_file(run: Run, two: Path, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/kept.db"
    assert run("replay", two, "--store", store, "--json").json["messages"] == 10
    for conversation in TWO:
        found = exported(run, store, str(conversation["tenant"]), "alice")
        assert [message["body"] for message in found["messages"]] == conversation["messages"]
    found = exported(run, store, "acme", "alice")
    outputs = [(row["step"], row["body"]) for row in found["tool_outputs"]]
    assert [(body["name"], body["arguments"], body["output"], body["tool_call_id"]) for _, body in outputs] == [
        ("find_order", {"id": 7}, {"status": "sent"}, "c1"),
        ("now", {}, "noon, more or less", "c2"),
    ]


def test_as_text(run: Run, two: Path) -> None:
    ran = run("replay", two)
    assert (ran.code, ran.err) == (0, "")
    for words in ("conversations", "read from Valkey", "hit rate", "messages/s", "assemble"):
        assert words in ran.out


def test_gzip_is_known_by_its_first_bytes(run: Run, tmp_path: Path) -> None:
    packed = tmp_path / "not-named-so.txt"
    # Two members, as `cat a.gz b.gz` makes them.
    packed.write_bytes(gzip.compress(lines(TWO[:1])) + gzip.compress(lines(TWO[1:])))
    plain = tmp_path / "plain.gz"
    plain.write_bytes(lines(TWO))
    report = run("replay", packed, plain, "--json").json
    assert (report["conversations"], report["messages"]) == (4, 20)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_stdin(process: Run, pack: Any) -> None:
    assert process("replay", "-", "--json", stdin=pack(lines(TWO))).json["messages"] == 10


def test_stdin_of_a_test_runner(run: Run) -> None:
    assert run("replay", "-", "--json", stdin=lines(TWO)).json["messages"] == 10


@pytest.mark.parametrize("content", [b"", b"\n\n", gzip.compress(b"", mtime=0)])
def test_an_empty_file_is_no_error(run: Run, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "empty.jsonl"
    file.write_bytes(content)
    report = run("replay", file, "--json").json
    assert (report["conversations"], report["messages"], report["hit_rate"]) == (0, 0, None)
    assert run("replay", file).code == 0


def test_a_byte_order_mark_blank_lines_and_crlf_are_fine(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "windows.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + lines(TWO).replace(b"\n", b"\r\n\r\n"))
    assert run("replay", file, "--json").json["messages"] == 10


def test_limit_stops_early(run: Run, tmp_path: Path, two: Path) -> None:
    file = tmp_path / "more.jsonl"
    file.write_bytes(lines([*TWO, b"this is never read"]))
    assert run("replay", file, "--limit", 2, "--json").json["conversations"] == 2
    assert run("replay", two, two, "--limit", 3, "--json").json["conversations"] == 3


def test_ids_that_are_missing_are_made_from_the_place(run: Run, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/kept.db"
    file = tmp_path / "bare.jsonl"
    file.write_bytes(lines([{"messages": [user("one")]}, b"", {"messages": [user("three")], "user": 5}]))
    report = run("replay", file, file, "--store", store, "--json").json
    assert (report["conversations"], report["users"], report["tenants"]) == (4, 3, 1)
    assert exported(run, store, "default", "file-1-line-1")["messages"][0]["session_id"] == "file-1-line-1"
    of_five = exported(run, store, "default", "5")["messages"]
    assert [row["session_id"] for row in of_five] == ["file-1-line-3", "file-2-line-3"]


def test_a_session_that_comes_again_goes_on(run: Run, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/kept.db"
    name = {"tenant": "t", "user": "u", "session": "s"}
    parts = [
        {**name, "messages": [user("one"), assistant(None, tool_calls=[call("c1", "find")])]},
        {**name, "messages": [tool("c1", "found"), assistant("two")]},
    ]
    file = tmp_path / "parts.jsonl"
    file.write_bytes(lines(parts))
    report = run("replay", file, "--store", store, "--json").json
    assert (report["conversations"], report["messages"], report["tool_outputs"]) == (2, 4, 1)
    found = exported(run, store, "t", "u")
    assert [row["seq"] for row in found["messages"]] == [1, 2, 3, 4]
    assert [row["body"]["name"] for row in found["tool_outputs"]] == ["tool"]
    assert len(found["sessions"]) == 1


BAD_LINES = {
    "no JSON": b"{not json",
    "no object": b"[1, 2]",
    "no messages": b'{"user": "u"}',
    "messages that are no list": b'{"messages": {}}',
    "messages that are no objects": b'{"messages": ["hi"]}',
    "an id that is none": b'{"messages": [], "user": true}',
    "an empty id": b'{"messages": [], "session": ""}',
    "an id with a control character": rb'{"messages": [], "tenant": "a\u0000b"}',
    "no UTF-8": b'{"messages": [], "user": "\xff"}',
}
BAD_MESSAGES = {
    "an unknown role": {"role": "robot", "content": "x"},
    "a role that is no text": {"role": ["user"], "content": "x"},
    "no role": {"content": "x"},
    "a result without its call": tool("nobody-asked", "x"),
    "a result without an id": {"role": "tool", "content": "x"},
    "content that is no content": {"role": "user", "content": 5},
    "calls that are no calls": assistant(None, tool_calls=["x"]),
    "a tool without a name": assistant(None, tool_calls=[{"id": "c", "function": {}}]),
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_ends_the_replay_and_is_named(run: Run, tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(lines([TWO[0], line, TWO[1]]))
    ran = run("replay", file, "--json")
    assert ran.code == 2
    assert ran.out == ""
    assert f"{file}:2: " in ran.error
    report = run("replay", file, "--skip-bad", "--json").json
    assert (report["conversations"], report["messages"], report["bad_lines"]) == (2, 10, 1)


@pytest.mark.parametrize("message", BAD_MESSAGES.values(), ids=BAD_MESSAGES)
@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_bad_message_ends_the_replay_and_is_named(
    run: Run, tmp_path: Path, message: dict[str, Any], concurrency: int
) -> None:
    file = tmp_path / "bad.jsonl"
    bad = {"tenant": "t", "user": "u", "session": "s", "messages": [user("hi"), message, assistant("ho")]}
    file.write_bytes(lines([TWO[0], bad, TWO[1]]))
    ran = run("replay", file, "--json", "--concurrency", concurrency)
    assert ran.code == 2
    assert f"{file}:2: message 2: " in ran.error
    report = run("replay", file, "--skip-bad", "--json", "--concurrency", concurrency).json
    assert (report["conversations"], report["messages"], report["bad_messages"]) == (3, 12, 1)


def test_a_tool_whose_name_cannot_be_one_is_a_bad_message(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(lines([{"messages": [assistant(None, tool_calls=[call("c", "x" * 300)]), tool("c", "out")]}]))
    assert "message 2" in run("replay", file, "--json").error
    report = run("replay", file, "--skip-bad", "--json").json
    assert (report["messages"], report["bad_messages"], report["tool_outputs"]) == (2, 1, 0)


def test_a_line_over_the_limit(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_input, "MAX_LINE_BYTES", 2_000)
    file = tmp_path / "long.jsonl"
    file.write_bytes(lines([TWO[1], {"messages": [user("x" * 5_000)]}, TWO[1]]))
    assert f"{file}:2: " in run("replay", file).error
    report = run("replay", file, "--skip-bad", "--json").json
    assert (report["conversations"], report["bad_lines"]) == (2, 1)


def test_damaged_gzip(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "cut.jsonl.gz"
    whole = gzip.compress(lines(TWO * 50))
    file.write_bytes(whole[: len(whole) // 2])
    ran = run("replay", file)
    assert ran.code == 2
    assert "gzip data is damaged" in ran.error


def test_files_that_cannot_be_read(run: Run, tmp_path: Path, two: Path) -> None:
    for file in (tmp_path / "nowhere.jsonl", tmp_path):
        ran = run("replay", two, file)
        assert ran.code == 2
        assert str(file) in ran.error


def test_budget_history_and_agent(run: Run, two: Path) -> None:
    small = run("replay", two, "--budget", 5, "--json").json
    assert (small["windows"], small["budget_too_small"], small["messages"]) == (0, 3, 10)
    assert small["mean_window_tokens"] is None
    whole = run("replay", two, "--json").json
    without = run("replay", two, "--agent-less", "--json").json
    assert without["mean_window_tokens"] < whole["mean_window_tokens"]
    assert without["store"]["agents"] == 0
    assert whole["store"]["agents"] == 2
    short = run("replay", two, "--history", 1, "--json").json
    assert short["pruned"]["windows"] > 0


@pytest.mark.parametrize("options", [("--budget", -1), ("--limit", 0), ("--concurrency", 0), ("--history", -1)])
def test_options_out_of_range(run: Run, two: Path, options: tuple[str, int]) -> None:
    ran = run("replay", two, *options)
    assert ran.code == 2
    assert options[0] in ran.error


def test_concurrency_keeps_the_order_of_each_session(run: Run, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/kept.db?synchronous=off"
    records = [
        {"tenant": "t", "user": f"u{n % 7}", "session": f"s{n % 14}", "messages": [user(f"{n}a"), assistant(f"{n}b")]}
        for n in range(140)
    ]
    file = tmp_path / "many.jsonl"
    file.write_bytes(lines(records))
    report = run("replay", file, "--concurrency", 5, "--store", store, "--json").json
    assert (report["conversations"], report["messages"], report["users"]) == (140, 280, 7)
    found = exported(run, store, "t", "u3")
    for session in ("s3", "s10"):
        said = [row["body"]["content"] for row in found["messages"] if row["session_id"] == session]
        first = int(session[1:])
        assert said == [f"{n}{part}" for n in range(first, 140, 14) for part in "ab"]


def test_keep_and_data_dir(run: Run, two: Path, tmp_path: Path, temporary: Path) -> None:
    ran = run("replay", two, "--keep", "--json")
    (kept,) = temporary.iterdir()
    assert ran.err == f"kept {kept}\n"
    assert (kept / "scrubjay.db").is_file()
    place = tmp_path / "mine %20 #1"
    run("replay", two, "--data-dir", place, "--json")
    assert run("replay", two, "--data-dir", place, "--json").json["store"]["messages"] == 20
    assert (place / "scrubjay.db").is_file()


def test_the_settings_of_the_outside_are_not_touched(
    run: Run, two: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SCRUBJAY_STORE", f"sqlite:///{tmp_path}/mine.db")
    monkeypatch.setenv("SCRUBJAY_CACHE", "valkey://127.0.0.1:1")
    ran = run("replay", two, "--json")
    assert ran.json["hit_rate"] > 0
    assert ran.err == ""
    assert not (tmp_path / "mine.db").exists()


def test_without_a_cache(run: Run, two: Path) -> None:
    report = run("replay", two, "--cache", "none:", "--json").json
    assert report["hit_rate"] == 0.0
    assert report["cache"] is None
    assert run("replay", two, "--cache", "none:").code == 0


def test_a_cache_that_is_not_there_is_told_and_not_needed(run: Run, two: Path) -> None:
    ran = run("replay", two, "--cache", "valkey://127.0.0.1:1", "--json")
    assert ran.json["messages"] == 10
    (line,) = ran.err.splitlines()
    assert line.startswith("warning: the cache cannot be reached")


def test_a_cache_of_others_and_a_temporary_store(run: Run, two: Path, cache_server: Deployment) -> None:
    assert run("replay", two, "--cache", cache_server.url, "--json").json["hit_rate"] > 0
    view = CacheView(cache_server, "sj1-replay-")
    left = view.names()
    assert all(view.client.ttl(key) > 0 for key in left)
    assert not [key for key in left if ":chat:" in key]
    view.evict()
    view.close()


def test_real_servers(
    run: Run, two: Path, postgres: PostgresServer, valkey9: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRUBJAY_PREFIX", f"t{uuid4().hex[:8]}")
    monkeypatch.setenv("SCRUBJAY_STORE", postgres.create_database(f"t{uuid4().hex}"))
    monkeypatch.setenv("SCRUBJAY_CACHE", valkey9.url)
    store = os.environ["SCRUBJAY_STORE"]
    assert "scrubjay migrate" in run("replay", two, "--store", store).error
    assert run("migrate", "--json").json["before"] is None
    report = run("replay", two, "--store", store, "--cache", valkey9.url, "--json").json
    assert (report["messages"], report["store"]["messages"]) == (10, 10)
    assert run("stats", "--tenant", "acme", "--json").json["users"] == 1
    assert run("forget", "--tenant", "acme", "--yes", "--json").json["rows"]["messages"] == 8
    assert run("stats", "--json").json["store"]["messages"] == 2


def replayed(temporary: Path) -> bool:
    """Whether a replay has written messages to its temporary store."""
    for file in temporary.glob("*/scrubjay.db"):
        with suppress(sqlite3.OperationalError), closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as store:
            return bool(store.execute("SELECT 1 FROM messages").fetchone())
    return False


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("source", ["file", "stdin"])
def test_it_stops_at_once_and_cleans_up(
    tmp_path: Path, temporary: Path, number: signal.Signals, code: int, source: str
) -> None:
    file = tmp_path / "endless.jsonl"
    file.write_bytes(lines(TWO * 20_000))
    name = file if source == "file" else "-"
    with subprocess.Popen(
        command("replay", name), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        # More than is read ahead: the rest of standard input is waited for.
        process.stdin.write(lines(TWO * 50))
        process.stdin.flush()
        wait_until(lambda: replayed(temporary), "something is replayed", patience_s=30)
        process.send_signal(number)
        ran = Ran(process.wait(20), process.stdout.read().decode(), process.stderr.read().decode())
    assert ran.code == code
    assert ran.out == ""
    assert "stopped" in ran.error
    assert list(temporary.iterdir()) == []
