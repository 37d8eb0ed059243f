"""What a receipt says."""

from __future__ import annotations

import orjson

from scrubjay.assembly import Receipt, SectionReceipt, Sources, assemble
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
        SectionReceipt("history", 1_100, 12, {"budget": 12, "orphan_tool_result": 2}),
        SectionReceipt("reply", 3, 0, {}),
    ),
    agent="support",
)


def test_as_a_table() -> None:
    assert str(RECEIPT.with_time(0.4214)).splitlines() == [
        "section  tokens  in  left out",
        "agent       131   1",
        "history   1,100  12  12 budget, 2 orphan tool result",
        "reply         3",
        "total     1,234      of 4,000 (o200k_base, estimated)",
        "pruned messages: 14; the store has older ones",
        "assembled in 0.421 ms",
    ]


def test_as_json() -> None:
    assert RECEIPT.to_json() == (
        '{"sources_used":["agent","chat"],"total_tokens":1234,"assembly_time_ms":0.0,"pruned_messages":14,'
        '"older_messages":true,"budget":4000,"tokenizer":"o200k_base","exact":false,"agent":"support","sections":['
        '{"name":"agent","tokens":131,"items_in":1,"items_out":{}},'
        '{"name":"history","tokens":1100,"items_in":12,"items_out":{"budget":12,"orphan_tool_result":2}},'
        '{"name":"reply","tokens":3,"items_in":0,"items_out":{}}]}'
    )
    assert orjson.loads(RECEIPT.to_json()) == RECEIPT.to_dict()


def test_the_time_is_the_callers() -> None:
    window = assemble(Sources(chat=[user("hello")]), budget=100, counter=WORDS)
    assert window.receipt.assembly_time_ms == 0
    timed = window.with_time(1.25)
    assert timed.receipt.assembly_time_ms == 1.25
    assert timed.receipt == window.receipt.with_time(1.25)
    assert timed.messages is window.messages
