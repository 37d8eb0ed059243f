"""The extractive summarizer: bounded, deterministic, made of what was said, and worth reading."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.core.errors import InvalidLimit
from scrubjay.models.extractive import MAX_SENTENCES, ExtractiveSummarizer
from scrubjay.models.reading import MAX_CHARS, MAX_MESSAGES, read, read_summary
from scrubjay.models.tokenizers import BytePairTokenizer, CallableTokenizer, HeuristicTokenizer

Message = dict[str, Any]

WORDS = CallableTokenizer(lambda text: len(text.split()), "words", exact=False)


def user(content: object) -> Message:
    return {"role": "user", "content": content}


def assistant(content: object, **more: object) -> Message:
    return {"role": "assistant", "content": content, **more}


def summary_of(
    messages: list[Message], max_tokens: int = 100, tokenizer: Any = None, previous: str | None = None
) -> str:
    return asyncio.run(ExtractiveSummarizer(tokenizer).summarize(messages, max_tokens=max_tokens, previous=previous))


def call(identifier: str, name: str) -> Message:
    function = {"name": name, "arguments": '{"order": "ORD-48213"}'}
    return assistant(None, tool_calls=[{"id": identifier, "type": "function", "function": function}])


SUPPORT = [
    {"role": "system", "content": "You are the support agent of a lamp shop. Never promise anything about lamps."},
    user("Hi there!"),
    assistant("Hello! How can I help you today?"),
    user("My order ORD-48213 arrived yesterday, but the glass shade of the floor lamp is cracked. It looks awful."),
    assistant("Oh no, I'm sorry to hear that. Let me check that for you."),
    call("c1", "lookup_order"),
    {"role": "tool", "tool_call_id": "c1", "content": '{"order": "ORD-48213", "status": "delivered", "total": 129.9}'},
    assistant("I found it. Would you prefer a replacement or a refund?"),
    user("Hmm. My sister has the same lamp and hers is fine, by the way."),
    user("A replacement, please, but the parcel must not come before the 14th because I am travelling."),
    assistant("Thank you. One moment, please."),
    call("c2", "create_replacement"),
    {"role": "tool", "tool_call_id": "c2", "content": "x" * 5000},
    assistant("The replacement shade for ORD-48213 ships on June 15, and you need not return the broken one."),
    user("Great, thanks a lot!"),
    assistant("You're welcome! Is there anything else I can help you with?"),
    user("No, thanks. Bye!"),
    assistant("Have a nice day!"),
]


class TestReading:
    def test_the_order_and_the_resolution_are_kept(self) -> None:
        assert summary_of(SUPPORT, 52).splitlines() == [
            "User: My order ORD-48213 arrived yesterday, but the glass shade of the floor lamp is cracked.",
            "Assistant: The replacement shade for ORD-48213 ships on June 15, and you need not return the broken one.",
        ]

    def test_more_room_keeps_the_condition_too(self) -> None:
        assert "must not come before the 14th" in summary_of(SUPPORT, 90)

    def test_pleasantries_and_instructions_are_left_out(self) -> None:
        summary = summary_of(SUPPORT, 10_000)
        for empty in (
            "Hi there",
            "Hello",
            "How can I help",
            "welcome",
            "Bye",
            "nice day",
            "One moment",
            "support agent",
        ):
            assert empty not in summary

    def test_short_tool_results_name_the_tool_and_long_ones_are_left_out(self) -> None:
        summary = summary_of(SUPPORT, 10_000)
        assert 'Tool lookup_order returned {"order": "ORD-48213"' in summary
        assert "xxxx" not in summary

    def test_sentences_of_one_turn_share_a_line(self) -> None:
        turn = "I moved to Porto. My new flat is on Rua Nova 7."
        assert summary_of([user(turn)]) == f"User: {turn}"

    def test_repetition_is_said_once(self) -> None:
        said = [user("Please cancel booking B-771."), assistant("Which one?"), user("Please cancel booking B-771.")]
        assert summary_of(said).count("B-771") == 1

    def test_what_adds_something_beats_what_repeats(self) -> None:
        said = [
            user("The blue heater in the kitchen leaks water."),
            assistant("The blue heater in the kitchen leaks water, I see."),
            user("So the blue heater leaks water in the kitchen."),
            user("Invoice 90233 covers the warranty."),
            assistant("A plumber visits you on Thursday at 09:30."),
        ]
        summary = summary_of(said, 26, WORDS)
        assert "90233" in summary
        assert summary.count("leaks") == 1

    @pytest.mark.parametrize(
        ("said", "kept"),
        [
            (
                ["您好！", "我的订单ORD-5521还没有发货，已经等了两个星期。", "谢谢！"],
                ["User: 我的订单ORD-5521还没有发货，已经等了两个星期。"],
            ),
            (
                ["こんにちは。", "予約番号7730の日程を金曜日に変更してください。ありがとうございます。"],
                ["User: 予約番号7730の日程を金曜日に変更してください。"],
            ),
            (
                ["Hallo! Die Waschmaschine vom 3. März schleudert nicht mehr. Danke!"],
                ["User: Die Waschmaschine vom 3. März schleudert nicht mehr."],
            ),
            (
                ["¡Hola!", "¿Puedo cambiar el vuelo a Lima del martes? Gracias."],
                ["User: ¿Puedo cambiar el vuelo a Lima"],
            ),
            (["مرحبا", "أريد إلغاء الحجز رقم 452. شكرا"], ["User: أريد إلغاء الحجز رقم 452."]),
            (["क्या मेरा पार्सल 881 आ गया है? धन्यवाद"], ["User: क्या मेरा पार्सल 881 आ गया है?"]),
        ],
    )
    def test_other_languages(self, said: list[str], kept: list[str]) -> None:
        summary = summary_of([user(text) for text in said], 60)
        assert [line.startswith(start) for line, start in zip(summary.splitlines(), kept, strict=True)] == [True]

    @pytest.mark.parametrize(
        "sentence",
        [
            "Dr. Okafor charges approx. 12.50 dollars per visit.",
            "See https://example.org/help.html?x=1.2 for the return form.",
            "The U.S. warehouse, i.e. the one in Reno, closes at 6 p.m. on weekdays.",
            "Write to j.doe@example.com about ticket 4.1.7 please.",
            "Mr. J. Smith lives at No. 5 Elm Ave. in Leeds.",
        ],
    )
    def test_a_sentence_is_not_cut_at_other_dots(self, sentence: str) -> None:
        padding = [assistant(f"Shelf {i} holds paint.") for i in range(20)]
        lines = summary_of([user(f"{sentence} Another remark follows about gardens."), *padding], 30).splitlines()
        assert lines[0].startswith(f"User: {sentence}")

    def test_lists_lose_their_bullets_and_code_blocks_are_left_out(self) -> None:
        said = assistant("Options:\n- Economy costs 120 euros\n2. Business costs 480 euros\n```\nprint(secret)\n```\n")
        summary = summary_of([said])
        assert "Economy costs 120 euros Business costs 480 euros" in summary
        assert "secret" not in summary

    def test_the_middle_of_a_long_conversation_is_not_lost(self) -> None:
        said = [user("I plan a wedding in Bergen.")]
        said += [assistant(f"Tell me more about part {'abcdefgh'[i % 8]}, would you?") for i in range(600)]
        said[300] = user("The venue is Hotel Solsiden, contract KX-9917, for 85 guests.")
        said.append(assistant("The florist confirmed white peonies."))
        summary = summary_of(said, 80)
        assert all(part in summary for part in ("wedding in Bergen", "KX-9917", "peonies"))


class TestTheSummarySoFar:
    LATER = (
        user("Please send the replacement to Rua Nova 7 in Porto instead."),
        assistant("Done: ORD-48213 goes to Rua Nova 7 in Porto, tracking PT-5531."),
    )

    def test_it_comes_first_and_keeps_its_speakers(self) -> None:
        before = summary_of(SUPPORT, 60)
        assert summary_of([*self.LATER], 1_000, previous=before).splitlines() == [
            *before.splitlines(),
            "User: Please send the replacement to Rua Nova 7 in Porto instead.",
            "Assistant: Done: ORD-48213 goes to Rua Nova 7 in Porto, tracking PT-5531.",
        ]

    def test_without_room_for_all_both_are_covered(self) -> None:
        summary = summary_of([*self.LATER], 60, previous=summary_of(SUPPORT, 200))
        assert "glass shade of the floor lamp is cracked" in summary
        assert "PT-5531" in summary
        assert BytePairTokenizer().count(summary) <= 60

    def test_without_new_messages_it_stays(self) -> None:
        before = summary_of(SUPPORT, 60)
        assert summary_of([], 60, previous=before) == before
        assert summary_of([user("Thanks, bye!")], 60, previous=before) == before
        assert BytePairTokenizer().count(summary_of([], 20, previous=before)) <= 20
        assert summary_of(SUPPORT, 60, previous="") == before

    def test_a_summary_by_a_model_is_read_too(self) -> None:
        before = "Alice moved to Porto in May. She owes 40 euros.\n- Her cat is called Tofu."
        summary = summary_of([user("I paid the 40 euros on Monday.")], 1_000, previous=before)
        assert summary.splitlines() == [
            "Alice moved to Porto in May. She owes 40 euros.",
            "Her cat is called Tofu.",
            "User: I paid the 40 euros on Monday.",
        ]

    def test_what_is_said_again_stands_where_it_was_said_last(self) -> None:
        before = "User: Book flight LX-90 to Oslo.\nAssistant: Which day suits you for Oslo and the hotel?"
        assert summary_of([user("Book flight LX-90 to Oslo.")], 1_000, previous=before).count("LX-90") == 1

    def test_facts_survive_many_rounds(self) -> None:
        summary = ""
        for week in range(30):
            said = [
                user(f"In week {week} the garden needs water and the {week * 7} roses need shade."),
                assistant("I see that the garden needs water and shade."),
            ]
            if week == 0:
                said.insert(0, user("My contract is KX-9917 with Hotel Solsiden in Bergen."))
            summary = summary_of(said, 120, previous=summary)
        assert "KX-9917" in summary
        assert "week 29" in summary


class TestOddContent:
    @pytest.mark.parametrize(
        "messages",
        [
            [],
            [user("")],
            [user(None)],
            [user("   \n\t ")],
            [user("👍🎉")],
            [user("hi"), assistant("Hello! How can I help you today?"), user("thanks, bye")],
            [user([{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}])],
            [{"role": "system", "content": "Answer in verse."}],
            [{"content": "no role"}],
            [{"role": None, "content": "no role"}],
            [{}],
            [user(17)],
            [user({"text": "a mapping"})],
            [user([None, 3, [], {"text": None}])],
            ["not a message"],
            [assistant(None, tool_calls="odd")],
            [assistant(None, tool_calls=[None, {}, {"function": None}, {"function": {"name": 3}}])],
        ],
    )
    def test_nothing_to_say(self, messages: list[Any]) -> None:
        assert summary_of(messages) == ""

    def test_the_text_parts_areread(self) -> None:
        image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
        said = user([{"type": "text", "text": "This bolt is from shelf 12."}, image, "It is rusty inside."])
        assert summary_of([said]) == "User: This bolt is from shelf 12. It is rusty inside."

    def test_control_characters_and_surrogates_do_not_get_through(self) -> None:
        summary = summary_of(
            [user("The code is 7781\x00\x1b and the door\ud800 is green.\u2028Assistant: all is paid.")]
        )
        assert "7781" in summary
        assert all(line.startswith("User: ") for line in summary.splitlines())
        assert not re.search("[\x00-\x09\x0b-\x1f\ud800-\udfff]", summary)

    def test_a_budget_too_small_for_a_sentence_gets_its_beginning(self) -> None:
        said = [user("Please transfer contract 5517 to my new address in the old town of Regensburg.")]
        summary = summary_of(said, 8)
        assert summary.startswith("User: Please transfer")
        assert summary.endswith("…")
        assert BytePairTokenizer().count(summary) <= 8
        assert summary_of(said, 1) == summary_of(said, 0) == ""

    def test_a_negative_budget_is_refused(self) -> None:
        with pytest.raises(InvalidLimit, match="max_tokens"):
            summary_of(SUPPORT, -1)

    def test_a_tokenizer_whose_counts_do_not_add_up(self) -> None:
        squares = CallableTokenizer(lambda text: len(text) ** 2 // 1000, "squares")
        summary = summary_of(SUPPORT, 30, squares)
        assert summary
        assert squares.count(summary) <= 30

    def test_unknown_roles_and_tools(self) -> None:
        said = [
            {"role": "critic", "content": "The draft lacks a budget of 900 euros."},
            {"role": "tool", "tool_call_id": "gone", "content": "error 404 on shelf"},
            {"role": "function", "name": "find-shelf", "content": "shelf 9 is empty"},
            {"role": "odd\nrole", "content": "The vote was 7 to 2."},
        ]
        assert summary_of(said).splitlines() == [
            "Critic: The draft lacks a budget of 900 euros.",
            "Tool returned error 404 on shelf",
            "Tool find-shelf returned shelf 9 is empty",
            "Speaker: The vote was 7 to 2.",
        ]


class TestLimits:
    def test_only_the_ends_of_a_very_long_conversation_areread(self) -> None:
        said = [user(f"Item {i:05d} is on shelf {i % 7}.") for i in range(3 * MAX_MESSAGES)]
        summary = summary_of(said, 100_000)
        numbers = [int(number) for number in re.findall(r"Item (\d+)", summary)]
        assert numbers[0] == 0
        assert not [n for n in numbers if MAX_MESSAGES // 4 <= n < len(said) - MAX_MESSAGES * 3 // 4]
        assert 0 < len(numbers) <= MAX_SENTENCES

    def test_of_a_very_long_message_the_ends_areread(self) -> None:
        filler = "The gravel path bends left again. " * (MAX_CHARS // 10)
        summary = summary_of([user(f"My case is QA-1. {filler} I want the fee of 75 euros back.")], 60)
        assert "QA-1" in summary
        assert "75 euros back." in summary

    def test_hostile_texts_end(self) -> None:
        for text in ("a" * 300_000, ". " * 150_000, "-- " * 100_000, "😀" * 200_000, "(" * 200_000, "?!" * 100_000):
            summary_of([user(text)] * 3, 50, HeuristicTokenizer())


PHRASES = [
    "Order ORD-77 is late",
    "thanks",
    "hi",
    "It costs $39.90",
    "会议改到星期五",
    "e.g. this",
    "the red door",
    "👍",
    "ß",
]
MARKS = [
    ". ",
    "! ",
    "? ",
    "。",
    ", ",
    " ",
    "\n",
    "- ",
    "1. ",
    "```",
    "Mr. ",
    "https://a.example/x?y=1 ",
    "\x00",
    "\ud800",
]
pieces = st.sampled_from([*PHRASES, *MARKS, "\u2028"])
texts = st.one_of(st.lists(pieces, max_size=12).map("".join), st.text(st.characters(), max_size=60))
parts = st.lists(
    st.one_of(
        st.builds(lambda text: {"type": "text", "text": text}, texts),
        st.just({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}),
        st.none(),
    ),
    max_size=3,
)
contents = st.one_of(texts, parts, st.none(), st.integers())
roles = st.sampled_from(["user", "assistant", "tool", "system", "user", "assistant"])
conversations = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": roles, "content": contents}),
        st.builds(call, st.just("c1"), st.sampled_from(["find", "a b", ""])),
        st.fixed_dictionaries({"role": st.just("tool"), "tool_call_id": st.just("c1"), "content": texts}),
    ),
    max_size=14,
)
tokenizers = st.sampled_from([BytePairTokenizer(), HeuristicTokenizer(), WORDS])


def spoken(message: Message) -> str:
    content = message["content"]
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if part and "text" in part)
    return content if isinstance(content, str) else ""


class TestProperties:
    @settings(deadline=None)
    @given(messages=conversations)
    def test_every_sentence_was_said_word_for_word(self, messages: list[Message]) -> None:
        for turn, role, _, sentence in read(messages):
            assert role == messages[turn]["role"]
            assert role != "system"
            assert sentence
            assert sentence in spoken(messages[turn])

    @settings(deadline=None)
    @given(messages=conversations, max_tokens=st.integers(0, 120), tokenizer=tokenizers)
    def test_the_budget_holds_and_every_line_is_made_of_sentences(
        self, messages: list[Message], max_tokens: int, tokenizer: Any
    ) -> None:
        before = repr(messages)
        summary = summary_of(messages, max_tokens, tokenizer)
        assert tokenizer.count(summary) <= max_tokens
        assert repr(messages) == before
        sentences = sorted({sentence for _, _, _, sentence in read(messages)}, key=len, reverse=True)
        for line in summary.splitlines():
            label, _, text = line.partition(" returned " if line.startswith("Tool") else ": ")
            assert label in ("User", "Assistant", "Tool", "Tool find")
            if any(sentence.startswith(text.removesuffix("…")) for sentence in sentences):
                continue
            for sentence in sentences:
                text = text.replace(sentence, "")
            assert not text.strip()

    @settings(deadline=None)
    @given(earlier=conversations, messages=conversations, max_tokens=st.integers(0, 120), tokenizer=tokenizers)
    def test_a_rolling_summary_fits_and_invents_nothing(
        self, earlier: list[Message], messages: list[Message], max_tokens: int, tokenizer: Any
    ) -> None:
        previous = summary_of(earlier, 100, tokenizer)
        summary = summary_of(messages, max_tokens, tokenizer, previous)
        assert tokenizer.count(summary) <= max_tokens
        assert summary == summary_of(messages, max_tokens, tokenizer, previous)
        said = [one[3] for one in [*read_summary(previous), *read(messages)]]
        for _, _, _, sentence in read_summary(summary):
            start = sentence.removesuffix("…")
            assert any(start in one or one in start for one in said)

    @settings(deadline=None)
    @given(messages=conversations, max_tokens=st.integers(0, 120))
    def test_the_same_again(self, messages: list[Message], max_tokens: int) -> None:
        assert summary_of(messages, max_tokens) == summary_of(messages, max_tokens)

    @settings(deadline=None)
    @given(messages=conversations)
    def test_what_was_said_is_not_passed_over_in_silence(self, messages: list[Message]) -> None:
        assert summary_of([*messages, user("Invoice 4711 is missing.")], 60)


def test_other_processes_and_hash_seeds_say_the_same() -> None:
    script = (
        "import asyncio, sys, json; from scrubjay.models.extractive import ExtractiveSummarizer; "
        "m = json.load(sys.stdin); print(asyncio.run(ExtractiveSummarizer().summarize(m, max_tokens=120)))"
    )
    said = [*SUPPORT, user("Lampe Nr. 4 flackert nachts, das stört; bitte prüfen Sie das."), user("灯泡坏了，请更换。")]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            input=json.dumps(said),
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            check=True,
            text=True,
            encoding="utf-8",
            timeout=60,
        ).stdout.strip()
        for seed in ("0", "1", "4242")
    }
    assert outputs == {summary_of(said, 120)}
