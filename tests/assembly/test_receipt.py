"""What a receipt says."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest

from scrubjay.assembly import (
    AssemblyPolicy,
    LeftOut,
    NearMiss,
    Prefix,
    Receipt,
    SectionReceipt,
    Share,
    Sources,
    assemble,
    diff,
)
from scrubjay.assembly.receipt import Stamp, section
from tests.assembly.builders import WORDS, user

RECEIPT = Receipt(
    sources_used=("agent", "chat"),
    total_tokens=1_234,
    pruned_messages=14,
    older_messages=True,
    budget=4_000,
    tokenizer="o200k_base",
    exact=False,
    sections=(
        SectionReceipt("agent", 131, 1, {}),
        SectionReceipt(
            "history", 1_100, 12, {"pruned": 12, "orphan_tool_result": 2}, (NearMiss("history", "message 7", 90),), 3
        ),
        SectionReceipt("reply", 3, 0, {}),
    ),
    agent="support",
    reserve=500,
    prefix=Prefix(1_100, 900, 3, "history"),
    id="r1",
    at="2026-01-01T00:00:00.000Z",
    usage={"input_tokens": 1_240, "cached_tokens": 1_024},
)


def test_as_a_table() -> None:
    assert str(replace(RECEIPT, assembly_time_ms=0.421)).splitlines() == [
        "section  tokens  in  left out",
        "agent       131   1",
        "history   1,100  12  12 pruned, 2 orphan tool result, next: message 7 (90), 3 shown as previews",
        "reply         3",
        "total     1,234      of 4,000 (o200k_base, estimated), 500 kept for the reply",
        "pruned messages: 14; the store has older ones",
        "shared with the window before: 900 tokens (stable: 1,100; layout 3, begun anew: history)",
        "provider's usage: input_tokens 1,240, cached_tokens 1,024",
        "assembled in 0.421 ms",
    ]


def test_as_json() -> None:
    assert RECEIPT.to_json() == (
        '{"id":"r1","at":"2026-01-01T00:00:00.000Z","sources_used":["agent","chat"],"total_tokens":1234,'
        '"assembly_time_ms":0.0,"pruned_messages":14,"older_messages":true,"budget":4000,"reserve":500,'
        '"tokenizer":"o200k_base","exact":false,"agent":"support","sections":['
        '{"name":"agent","tokens":131,"items_in":1,"items_out":{}},'
        '{"name":"history","tokens":1100,"items_in":12,"items_out":{"pruned":12,"orphan_tool_result":2},'
        '"near_misses":[{"name":"message 7","tokens":90}],"shortened":3},'
        '{"name":"reply","tokens":3,"items_in":0,"items_out":{}}],'
        '"prefix":{"stable_tokens":1100,"shared_tokens":900,"layout":3,"break_reason":"history"},'
        '"usage":{"input_tokens":1240,"cached_tokens":1024}}'
    )
    assert orjson.loads(RECEIPT.to_json()) == RECEIPT.to_dict()


def test_without_a_window_before_nothing_is_known_to_be_shared() -> None:
    receipt = Receipt((), 3, 0, False, 100, "words", True, ())
    assert str(receipt).splitlines()[-2:] == [
        "shared with the window before: unknown tokens (stable: 0; layout 0)",
        "assembled in 0.000 ms",
    ]


def test_from_json() -> None:
    assert Receipt.from_dict(orjson.loads(RECEIPT.to_json())) == RECEIPT
    for name in RECEIPT.to_dict():
        less = {key: value for key, value in RECEIPT.to_dict().items() if key != name}
        with pytest.raises(KeyError, match=name):
            Receipt.from_dict(less)


def test_the_time_is_the_callers() -> None:
    window = assemble(Sources(chat=[user("hello")]), budget=100, counter=WORDS)
    assert window.receipt.assembly_time_ms == 0
    assert (window.receipt.id, window.receipt.at) == ("", "")
    timed = assemble(Sources(chat=[user("hello")]), budget=100, counter=WORDS)
    made: list[Receipt] = []
    timed.in_session(Stamp("abc", 0, 1.235), "key", made.append, lambda _: None)
    assert not made
    assert timed.receipt.assembly_time_ms == 1.235
    assert (timed.receipt.id, timed.receipt.at) == ("abc", "1970-01-01T00:00:00.000Z")
    assert replace(timed.receipt, assembly_time_ms=0.0, id="", at="") == window.receipt
    assert made == [timed.receipt]


def test_a_receipt_is_made_when_it_is_asked_for_and_once() -> None:
    window = assemble(Sources(chat=[user("hello")]), budget=100, counter=WORDS)
    assert window.receipt is window.receipt


def test_a_section_names_the_reasons_that_occurred() -> None:
    misses = [NearMiss("memory", f"k{number}", number) for number in range(20)]
    made = section("memory", 7, 2, {LeftOut.PRUNED: 0, LeftOut.ORPHAN_TOOL_RESULT: 1, LeftOut.BUDGET: 20}, misses)
    assert list(made.items_out.items()) == [("budget", 20), ("orphan_tool_result", 1)]
    assert made.misses == tuple(misses[:10])


def test_near_misses_are_what_would_come_in_next() -> None:
    facts = {f"k{number}": "word " * number for number in range(1, 9)}
    sources = Sources(memory=facts, chat=[user("old " * 9), user("hello")])
    whole = assemble(sources, budget=10_000, counter=WORDS).total_tokens
    policy = AssemblyPolicy(chat=Share(0.0, 1.0, 0))
    before = -1
    for budget in range(whole - 1, 40, -1):
        receipt = assemble(sources, budget=budget, counter=WORDS, policy=policy).receipt
        memory = [miss.name for miss in receipt.near_misses if miss.section == "memory"]
        # The longest went first, so the shortest of those that went comes in first.
        assert memory == [f"k{number}" for number in range(9 - len(memory), 9)]
        assert all(miss.tokens == int(miss.name[1:]) + 3 for miss in receipt.near_misses if miss.section == "memory")
        assert len(memory) >= before
        before = len(memory)
        history = next(one for one in receipt.sections if one.name == "history")
        if history.items_out:
            assert history.misses == (NearMiss("history", f"message {sources.chat[0].seq}", 13),)
    assert before == 8


def test_what_differs_between_two_windows() -> None:
    few = {f"k{number}": "word " * 5 for number in range(3)}
    sources = Sources(memory=few, chat=[user("hello")], state={"topic": "x"})
    one = replace(assemble(sources, budget=10_000, counter=WORDS).receipt, id="a")
    more = replace(sources, memory={**few, "k9": "word " * 40}, state={})
    two = replace(assemble(more, budget=one.total_tokens, counter=WORDS).receipt, id="b", agent="support")
    found = diff(one, two)
    assert (found.before, found.after, found.tokens) == ("a", "b", two.total_tokens - one.total_tokens)
    names = [change.name for change in found.sections]
    assert names == ["state"]
    assert found.sections[0].items_before == 1
    assert (found.sections[0].items_after, found.sections[0].tokens_after) == (0, 0)
    assert [miss.name for miss in found.dropped] == ["k9"]
    assert found.returned == ()
    assert diff(two, one).returned == found.dropped
    assert found.settings == {"budget": (10_000, one.total_tokens), "agent": (None, "support")}
    assert orjson.loads(orjson.dumps(found.to_dict())) == found.to_dict()
    same = diff(one, one)
    assert (same.tokens, same.sections, same.dropped, same.returned, same.settings) == (0, (), (), (), {})
