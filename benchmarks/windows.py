"""What windows cost at a provider, and what they keep, over recorded conversations: counted and simulated, not timed.

`SCRUBJAY_TEST_DATA` names the folder of the conversations; without it there is none of this. The quick form plays one
conversation, and leaves out the check of all windows.

- Hit rate and cost: the long conversations, an agent's prompt of 3,000 tokens, 8,000 for the chat, 700 of memories that
  are others at each turn; against the newest messages that fit, with the memories in the system prompt.
- Evidence: the questions about the long conversations that can be answered, with the corrections of the audit. It is
  kept if all messages that hold the answer stand word for word in the window at the conversation's end.
- Validity: every window of every conversation, at several budgets, as the chat's format and Anthropic's demand it.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from benchmarks.harness import Bench
from scrubjay.assembly import AssemblyPolicy, History, validate_window
from scrubjay.assembly.formats.anthropic import validate_anthropic
from scrubjay.assembly.providers import rules_for
from scrubjay.assembly.simulate import Blocks, Comparison, Kit, Moment, Setting, calls, read_chat
from scrubjay.cli.replay_questions import evidence_of, times_of
from scrubjay.core.errors import BudgetTooSmall, InvalidMessage
from scrubjay.core.ports import Tokenizer
from scrubjay.core.records import Message
from scrubjay.models.extractive import ExtractiveSummarizer
from scrubjay.models.tokenizers import tokenizer_for

VARIABLE: Final = "SCRUBJAY_TEST_DATA"
LONG: Final = "conversations/long.jsonl.gz"
WITH_TOOLS: Final = frozenset({"airline-tools", "service-calls"})
BUDGETS: Final = (1_000, 4_000, 8_000, 32_000)
RECALL_BUDGET: Final = 4_000
SUMMARY_TOKENS: Final = 300
UNANSWERABLE: Final = 5
RIVALS: Final = ("sliding", "blocks")

Record = Mapping[str, Any]


async def measure(bench: Bench) -> None:
    """Take all measurements, if the conversations are there."""
    named = os.environ.get(VARIABLE)
    folder = Path(named) if named else None
    if folder is None or not (folder / LONG).exists():
        bench.say(f"without the conversations ({VARIABLE} names their folder) there are no hit rates of prompts")
        return
    counter = tokenizer_for("o200k_base")
    conversations = list(_lines(folder / LONG))[: 1 if bench.options.quick else None]
    _costs(bench, counter, conversations)
    await _recall(bench, counter, conversations, _questions(folder))
    if not bench.options.quick:
        _validity(bench, counter, folder)


# --- cost ------------------------------------------------------------------------------------------------------------


def _costs(bench: Bench, counter: Tokenizer, conversations: Sequence[Record]) -> None:
    for suffix, provider, real_gaps in (
        ("", "anthropic", False),
        ("_real_gaps", "anthropic", True),
        # A model that caches shorter prompts: the rival's system prompt, too.
        ("_opus_5", "claude-opus-5", False),
        ("_openai", "openai", False),
    ):
        bench.say(f"prompts of {len(conversations)} long conversations at {provider}{suffix}")
        comparison = Comparison(Setting(rules_for(provider), counter), strategies=RIVALS)
        for each in conversations:
            messages = each["messages"]
            comparison.play(messages, times_of(messages) if real_gaps else None)
        spent = comparison.spent
        bench.metric(f"prefix_hit_rate{suffix}", spent["blocks"].hit_rate or 0.0)
        bench.metric(f"cost_vs_sliding{suffix}", spent["blocks"].cost / spent["sliding"].cost)


# --- evidence --------------------------------------------------------------------------------------------------------


async def _recall(
    bench: Bench, counter: Tokenizer, conversations: Sequence[Record], questions: Mapping[str, list[list[str]]]
) -> None:
    """Measure at a small budget; `blocks` has its rolling summary, as in a session."""
    bench.say(f"evidence in windows of {RECALL_BUDGET:,} tokens")
    summarizer = ExtractiveSummarizer(counter)

    def summarise(messages: Sequence[Message], previous: str) -> str:
        return asyncio.run(summarizer.summarize(messages, max_tokens=SUMMARY_TOKENS, previous=previous or None))

    for suffix, summaries in (("", summarise), ("_without_summary", None)):
        setting = Setting(rules_for("default"), counter, 0, RECALL_BUDGET, 0)
        comparison = Comparison(setting, summaries, RIVALS[1:] if suffix else RIVALS)
        for each in conversations:
            messages = each["messages"]
            evidence = evidence_of(questions.get(each["user"], ()), messages)
            # In a thread, where a summary can have an event loop of its own.
            await asyncio.to_thread(comparison.play, messages, None, evidence)
        for name, spent in comparison.spent.items():
            of = "" if name == "blocks" else f"_{name}"
            bench.metric(f"evidence_recall_at_4k{of}{suffix}", spent.evidence_kept or 0.0)


def _questions(folder: Path) -> dict[str, list[list[str]]]:
    """Return the evidence of each question that can be answered, by user, as the audit has corrected it."""
    audit = orjson.loads((folder / "questions" / "long-audit.json").read_bytes())
    corrected: dict[str, list[str]] = {each["question_id"]: each["correct_evidence"] for each in audit}
    lines = {each["user"]: at for at, each in enumerate(_lines(folder / LONG))}
    found: dict[str, list[list[str]]] = {}
    for each in _lines(folder / "questions" / "long.jsonl.gz"):
        if each["category"] == UNANSWERABLE:
            continue
        question = f"locomo_{lines[each['user']]}_qa{each['number']}"
        evidence: list[str] = corrected[question] if question in corrected else each["evidence"]
        # Some name several messages in one string.
        ids = [id_ for one in evidence for id_ in re.split(r"[;,\s]+", one) if id_]
        if ids:
            found.setdefault(each["user"], []).append(ids)
    return found


# --- validity --------------------------------------------------------------------------------------------------------


def _validity(bench: Bench, counter: Tokenizer, folder: Path) -> None:
    windows = invalid = too_small = 0
    for file in sorted((folder / "conversations").glob("*.jsonl.gz")):
        name = file.name.removesuffix(".jsonl.gz")
        bench.say(f"every window of {name}")
        # Where chats have tools, also with so few messages read that groups of calls are cut in the middle.
        marks = (None, 20) if name in WITH_TOOLS else (None,)
        for each in _lines(file):
            chat = read_chat(each["messages"], counter)
            for budget in BUDGETS:
                for mark in marks:
                    found = _checked(chat, counter, AssemblyPolicy(budget=budget, history=History(messages=mark)))
                    windows, invalid, too_small = windows + found[0], invalid + found[1], too_small + found[2]
    bench.metric("assembly_unorphaned_windows", windows)
    bench.metric("assembly_unorphaned_invalid", invalid)
    bench.metric("assembly_unorphaned_too_small", too_small)


def _checked(chat: list[Message], counter: Tokenizer, policy: AssemblyPolicy) -> tuple[int, int, int]:
    """Return how many windows there were, how many of them were not valid, and how often there could be none."""
    windows = invalid = too_small = 0
    kit = Kit(counter, rules_for("anthropic"))
    blocks = Blocks(kit, "", policy, policy.history.messages or 200)
    for at, _ in calls(chat):
        try:
            prompt = blocks.prompt(Moment(chat[:at], "", 0))
        except BudgetTooSmall:
            too_small += 1
            continue
        windows += 1
        window = prompt.window
        assert window is not None
        try:
            validate_window(window.messages)
            validate_anthropic(window.to_anthropic())
            invalid += not prompt.tokens == window.total_tokens <= policy.budget
        except InvalidMessage:
            invalid += 1
    return windows, invalid, too_small


def _lines(file: Path) -> Iterator[Record]:
    with gzip.open(file) as lines:
        yield from map(orjson.loads, lines)
