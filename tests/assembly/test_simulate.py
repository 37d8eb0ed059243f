"""A provider's prompt cache, simulated; and what strategies cost with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.assembly import AssemblyPolicy, History, validate_window, window_tokens
from scrubjay.assembly.providers import Lifetime, ProviderRules, rules_for
from scrubjay.assembly.simulate import (
    STRATEGIES,
    Blocks,
    Charge,
    Comparison,
    Kit,
    Moment,
    Prompt,
    PromptCache,
    Segment,
    Setting,
    Sliding,
    Spent,
    calls,
    filler,
    read_chat,
    said_by,
)
from scrubjay.core.errors import BudgetTooSmall, ConfigurationError, InvalidInput, InvalidMessage
from scrubjay.core.records import Message
from tests.assembly.builders import WORDS, chats

ANTHROPIC = replace(rules_for("anthropic"), min_cacheable_tokens=0)
PREFIX = replace(rules_for("openai"), min_cacheable_tokens=0, step_tokens=1)


def prompt(text: str, tokens: int = 1, blocks: int = 1) -> list[Segment]:
    """Return a prompt with a segment for each letter."""
    return [Segment(letter, tokens, blocks) for letter in text]


Request = tuple[list[Segment], list[int], float]


@st.composite
def rules(draw: st.DrawFn, matching: str) -> ProviderRules:
    return replace(
        rules_for("anthropic" if matching == "breakpoint" else "openai"),
        min_cacheable_tokens=draw(st.sampled_from([0, 1, 5, 12])),
        step_tokens=draw(st.sampled_from([1, 1, 4])),
        breakpoints=draw(st.integers(0, 4)),
        look_back_blocks=draw(st.sampled_from([0, 1, 3, 6])),
        automatic=draw(st.booleans()),
        ttl_s=draw(st.sampled_from([1, 10, 300])),
    )


@st.composite
def requests(draw: st.DrawFn) -> list[Request]:
    """Return requests of few letters, so that many begin alike."""
    found: list[Request] = []
    at_s = 0.0
    for _ in range(draw(st.integers(1, 8))):
        at_s += draw(st.sampled_from([0.0, 0.5, 1.0, 9.0, 10.0, 400.0]))
        letters = draw(st.text("ab", max_size=8))
        # What a segment takes follows from what it holds.
        segments = [Segment((letter, at), 1 + at % 3, 1 + at % 2) for at, letter in enumerate(letters)]
        last = len(segments) - 1
        marks = draw(st.lists(st.integers(0, last), max_size=6)) if segments else []
        found.append((segments, marks, at_s))
    return found


def common(one: Sequence[Segment], other: Sequence[Segment]) -> int:
    """Return how many segments two prompts begin with alike."""
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


def tokens(segments: Sequence[Segment]) -> int:
    return sum(segment.tokens for segment in segments)


@given(st.sampled_from(["prefix", "breakpoint"]).flatmap(rules), requests())
def test_every_token_is_charged_once(rules: ProviderRules, made: list[Request]) -> None:
    cache = PromptCache(rules)
    for segments, marks, at_s in made:
        charge = cache.request(segments, marks, at_s)
        assert min(charge) >= 0
        assert charge.tokens == tokens(segments)
        for part in (charge.read, charge.read + charge.written):
            assert part == 0 or part > rules.min_cacheable_tokens - rules.step_tokens
            assert part % rules.step_tokens == 0


@given(rules("prefix"), requests())
def test_a_cache_of_prefixes_has_the_longest_that_is_alive(rules: ProviderRules, made: list[Request]) -> None:
    cache = PromptCache(rules)
    for at, (segments, marks, at_s) in enumerate(made):
        earlier = [
            tokens(segments[: common(segments, other)])
            for other, _, then_s in made[:at]
            if at_s - then_s < rules.ttl_s and tokens(other) >= rules.min_cacheable_tokens
        ]
        read = rules.cacheable_tokens(max(earlier, default=0))
        written = max(0, rules.cacheable_tokens(tokens(segments)) - read)
        assert cache.request(segments, marks, at_s) == Charge(read, written, tokens(segments) - read - written)


@given(rules("breakpoint"), requests())
def test_a_cache_of_breakpoints_has_what_was_written(rules: ProviderRules, made: list[Request]) -> None:
    """Against the rules written down as plainly as can be: entries are whole prefixes, and all are searched."""
    cache = PromptCache(rules)
    entries: dict[tuple[Segment, ...], float] = {}
    for segments, marks, at_s in made:
        places = sorted(set(marks))
        if len(places) > rules.breakpoints:
            last = places[-(rules.breakpoints - 1) :] if rules.breakpoints > 1 else []
            places = [places[0], *last] if rules.breakpoints else []
        if rules.automatic and segments:
            places = sorted({*places, len(segments) - 1})
        alive = {entry for entry, used_s in entries.items() if at_s - used_s < rules.ttl_s}
        found: list[int] = []
        for place in places:
            near = [
                length
                for length in range(place + 1, 0, -1)
                if not rules.look_back_blocks
                or length == place + 1
                or sum(each.blocks for each in segments[length : place + 1]) < rules.look_back_blocks
            ]
            found += [length for length in near if tuple(segments[:length]) in alive]
        hit = max(found, default=0)
        read = rules.cacheable_tokens(tokens(segments[:hit]))
        kept = read
        for length in {hit, *(place + 1 for place in places)}:
            entry = tuple(segments[:length])
            if length <= hit:
                entries |= {entry: at_s} if entry in alive else {}
            elif cacheable := rules.cacheable_tokens(tokens(entry)):
                entries[entry] = at_s
                kept = max(kept, cacheable)
        assert cache.request(segments, marks, at_s) == Charge(read, kept - read, tokens(segments) - kept)


def test_a_breakpoint_looks_back_over_twenty_blocks_its_own_among_them() -> None:
    for added, read in ((19, 1), (20, 0)):
        cache = PromptCache(ANTHROPIC)
        cache.request(prompt("a"), [0])
        longer = prompt("a" + "b" * added)
        assert cache.request(longer, [len(longer) - 1]).read == read


def test_blocks_are_counted_and_not_messages() -> None:
    cache = PromptCache(ANTHROPIC)
    cache.request(prompt("a"), [0])
    assert cache.request([*prompt("a"), Segment("calls", 5, 20)], [1]).read == 0


def test_reading_keeps_an_entry_alive() -> None:
    for matching in (ANTHROPIC, PREFIX):
        cache = PromptCache(matching)
        reads = [cache.request(prompt("ab"), [1], at_s).read for at_s in (0.0, 299.0, 598.0, 898.0)]
        assert reads == [0, 2, 2, 0]


def test_a_longer_lifetime_can_be_asked_for() -> None:
    cache = PromptCache(ANTHROPIC, "1h")
    assert [cache.request(prompt("ab"), [1], at_s).read for at_s in (0.0, 3599.0, 7199.0)] == [0, 2, 0]
    with pytest.raises(ConfigurationError):
        PromptCache(PREFIX, "1h")


def test_nothing_is_written_without_a_breakpoint() -> None:
    cache = PromptCache(ANTHROPIC)
    assert cache.request(prompt("ab")) == Charge(0, 0, 2)
    assert cache.request(prompt("ab"), [1]) == Charge(0, 2, 0)


def test_a_provider_may_set_a_breakpoint_of_its_own() -> None:
    sol = replace(rules_for("gpt-5.6-sol"), min_cacheable_tokens=0)
    cache = PromptCache(sol)
    assert cache.request(prompt("ab")) == Charge(0, 2, 0)
    assert cache.request(prompt("ab" + "c" * 50)) == Charge(2, 50, 0)


def test_a_prompt_that_is_too_short_is_not_kept() -> None:
    for matching in (ANTHROPIC, PREFIX):
        cache = PromptCache(replace(matching, min_cacheable_tokens=3))
        assert cache.request(prompt("ab"), [1]) == Charge(0, 0, 2)
        assert cache.request(prompt("abc"), [1, 2]) == Charge(0, 3, 0)
        assert cache.request(prompt("abc"), [1, 2]) == Charge(3, 0, 0)


def test_an_empty_prompt_costs_nothing() -> None:
    assert PromptCache(ANTHROPIC).request([]) == Charge(0, 0, 0)


@pytest.mark.parametrize("mark", [-1, 2])
def test_a_mark_must_be_a_segment(mark: int) -> None:
    with pytest.raises(InvalidInput):
        PromptCache(ANTHROPIC).request(prompt("ab"), [mark])


# --- prompts ---------------------------------------------------------------------------------------------------------


def some_kit(provider: str = "openai") -> Kit:
    return Kit(WORDS, rules_for(provider))


@given(chats(WORDS), st.sampled_from([20, 60, 200, 1_000]), st.sampled_from([None, 0, 1, 3]), st.booleans())
def test_sliding_prompts_are_valid_and_fit(chat: list[Message], budget: int, most: int | None, tail: bool) -> None:
    kit = some_kit()
    strategy = Sliding(kit, "be brief", budget, most, tail=tail)
    try:
        made = strategy.prompt(Moment(chat, "some memories", 0))
    except BudgetTooSmall:
        # The newest group with all that must stand beside it is too much, in tokens or in messages.
        larger = Sliding(kit, "be brief", 100_000, None, tail=tail).prompt(Moment(chat, "some memories", 0))
        assert larger.tokens > budget or most is not None
        return
    validate_window(made.messages)
    assert made.tokens == window_tokens(made.messages, WORDS, kit.rules.overhead) <= budget
    assert made.tokens == tokens(made.segments) + kit.rules.overhead.reply
    for marks in made.markings:
        PromptCache(ANTHROPIC).request(made.segments, marks)
    systems = [at for at, message in enumerate(made.messages) if "some memories" in said_by(message)]
    assert len(systems) == 1
    if not tail:
        assert systems == [0]


@given(chats(WORDS), st.sampled_from([20, 60, 200, 1_000]), st.sampled_from([3, 200]))
def test_blocks_are_windows(chat: list[Message], budget: int, read: int) -> None:
    kit = some_kit("anthropic")
    blocks = Blocks(kit, "be brief", AssemblyPolicy(budget=budget, history=History(messages=None)), read)
    for at in range(len(chat) + 1):
        try:
            made = blocks.prompt(Moment(chat[:at], "some memories", at))
        except BudgetTooSmall:
            continue
        validate_window(made.messages)
        assert made.window is not None
        assert made.tokens == made.window.total_tokens <= budget
        assert made.markings == (made.window.marks,)


def test_sliding_cuts_one_message_at_a_time() -> None:
    chat = read_chat(conversation(2), WORDS)
    room = sum(WORDS.count(said_by(message)) + 4 for message in chat[-3:])
    made = Sliding(some_kit(), "", room + 3, None, tail=True).prompt(Moment(chat, "", 0))
    assert [said_by(message) for message in made.messages] == [said_by(message) for message in chat[-3:]]


@given(st.sampled_from([0, 1, 10, 700]), st.integers(0, 50))
def test_filler_is_as_long_as_asked_for_and_of_its_own(length: int, seed: int) -> None:
    text = filler(length, seed, WORDS)
    assert WORDS.count(text) == length
    assert text == filler(length, seed, WORDS)
    if length == 700:
        assert text[:100] != filler(length, seed + 1, WORDS)[:100]


# --- comparing -------------------------------------------------------------------------------------------------------


def conversation(turns: int) -> list[dict[str, Any]]:
    """Return a conversation with a tool call in each third turn."""
    messages: list[dict[str, Any]] = []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"question {turn} " + "word " * 30})
        if turn % 3 == 2:
            call = {"id": f"c{turn}", "type": "function", "function": {"name": "look", "arguments": "{}"}}
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
            messages.append({"role": "tool", "tool_call_id": f"c{turn}", "content": "found " * 20})
        messages.append({"role": "assistant", "content": f"answer {turn} " + "word " * 30})
    return messages


def compared(provider: str = "claude-opus-5", turns: int = 120, **changes: Any) -> dict[str, Spent]:
    setting = Setting(rules_for(provider), WORDS, 2_500, 3_000, 100, **changes)
    comparison = Comparison(setting)
    comparison.play(conversation(turns))
    return comparison.spent


@pytest.mark.parametrize("provider", ["claude-opus-5", "openai", "gemini-2.5-flash", "gpt-5.6-sol"])
def test_blocks_cost_least(provider: str) -> None:
    spent = compared(provider)
    assert set(spent) == set(STRATEGIES)
    for one in spent.values():
        # One for each turn, and one more for each tool call.
        assert (one.windows, one.invalid, one.too_small) == (160, 0, 0)
        assert len(one.costs) == len(one.rates) == 160
        assert one.costs == sorted(one.costs)
        assert one.costs[-1] == one.cost
        assert one.largest <= 5_700
    assert spent["blocks"].cost < min(spent["sliding-tail"].cost, spent["sliding"].cost)
    assert (spent["blocks"].hit_rate or 0) > 0.8
    assert spent["blocks"].breaks < 10 < spent["sliding"].breaks


def test_without_a_cache_the_cost_is_that_of_all_tokens() -> None:
    for one in compared("default").values():
        assert one.cost == pytest.approx(one.tokens / 1_000_000)


def test_gaps_that_are_longer_than_the_lifetime_leave_nothing() -> None:
    for one in compared(gap_s=299.0, turns=20).values():
        assert one.read > 0
    # What is written within a turn, while its tools are called, is still read.
    spent = compared(gap_s=300.0, turns=20)["blocks"]
    assert 0 < (spent.hit_rate or 0) < 0.3


def test_times_of_messages_win() -> None:
    messages = conversation(2)
    setting = Setting(rules_for("claude-opus-5"), WORDS, 1_500, 3_000, 100)
    for gap_s, cached in ((299, True), (300, False)):
        comparison = Comparison(setting)
        comparison.play(messages, [0, 0, gap_s * 1_000, gap_s * 1_000])
        assert (comparison.spent["blocks"].read > 0) == cached


def test_memories_change_with_the_turn_and_not_with_a_tool_call() -> None:
    shown: list[str] = []

    def watch(name: str, made: Prompt) -> None:
        shown.extend(said_by(each) for each in made.messages if "Memories" in said_by(each))

    setting = Setting(rules_for("openai"), WORDS, 0, 3_000, 100)
    Comparison(setting, None, ("sliding",), watch).play(conversation(3))
    assert len(shown) == 4
    assert len(set(shown)) == 3
    assert shown[2] == shown[3]


def test_what_is_cut_is_summarised_once_and_in_order() -> None:
    seen: list[list[int]] = []

    def summarise(messages: Sequence[Message], previous: str) -> str:
        seen.append([message.seq for message in messages])
        return f"{previous} summary-{len(seen)}".strip()

    windows: list[str] = []
    setting = Setting(rules_for("claude-opus-5"), WORDS, 0, 1_000, 0)
    comparison = Comparison(
        setting, summarise, ("blocks",), lambda _, made: windows.append(" ".join(map(said_by, made.messages)))
    )
    comparison.play(conversation(60))
    assert len(seen) > 1
    assert [seq for part in seen for seq in part] == list(range(1, seen[-1][-1] + 1))
    assert "summary-1" not in windows[0]
    assert f"summary-{len(seen)}" in windows[-1]


def test_evidence_is_looked_for_in_the_last_window() -> None:
    comparison = Comparison(Setting(rules_for("openai"), WORDS, 0, 500, 0))
    messages = conversation(60)
    texts = [each["content"] for each in messages]
    comparison.play(messages, None, [[texts[0]], [texts[-1]], [texts[0], texts[-1]]])
    for one in comparison.spent.values():
        assert (one.asked, one.kept, one.evidence_kept) == (3, 1, 1 / 3)


def test_a_budget_that_is_too_small_is_counted() -> None:
    comparison = Comparison(Setting(rules_for("openai"), WORDS, 0, 10, 0))
    comparison.play(conversation(3), None, [["question"]])
    for one in comparison.spent.values():
        assert (one.windows, one.too_small, one.hit_rate, one.evidence_kept) == (0, 4, None, 0)


def test_a_bad_message_is_told_or_raised() -> None:
    bad: list[int] = []
    messages = [{"role": "user", "content": "hello"}, {"role": "king"}, {"role": "assistant", "content": "hi"}]
    comparison = Comparison(Setting(rules_for("openai"), WORDS, 0, 500, 0))
    comparison.play(messages, bad=lambda at, _: bad.append(at))
    assert bad == [1]
    assert comparison.spent["blocks"].windows == 1
    with pytest.raises(InvalidMessage):
        comparison.play(messages)


def test_a_model_is_called_before_each_reply() -> None:
    chat = read_chat([*conversation(3), {"role": "assistant", "content": "and more"}], WORDS)
    assert list(calls(chat)) == [(1, 1), (3, 2), (5, 3), (7, 3)]


def test_what_the_rules_say_is_what_is_charged() -> None:
    dear = replace(ANTHROPIC, lifetimes=(Lifetime("1h", 3_600, 2.0),), ttl_s=300)
    cheap, long = (Comparison(Setting(dear, WORDS, 0, 500, 0, ttl=ttl), None, ("blocks",)) for ttl in (None, "1h"))
    for comparison in (cheap, long):
        comparison.play(conversation(2))
    one, other = cheap.spent["blocks"], long.spent["blocks"]
    assert (one.read, one.written) == (other.read, other.written)
    assert other.cost - one.cost == pytest.approx(one.written * (2.0 - 1.25) * dear.input_price / 1e6)
