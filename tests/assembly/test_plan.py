"""Planned breaks, one by one: when they come, when they do not, and what they leave."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

from scrubjay.assembly import Assembled, AssemblyPolicy, History, Share, Sources, lay_out, window_tokens
from scrubjay.assembly.providers import rules_for
from scrubjay.core.records import Message
from tests.assembly.builders import TOKENIZERS, WORDS, assistant, calls, context, renumbered, result, summary, user

WHOLE = AssemblyPolicy(history=History(messages=None))


def talk(turns: int, size: int = 1) -> list[Message]:
    """Return a chat of so many turns, and a question."""
    said = [each for turn in range(turns) for each in (user(f"q{turn} " * size), assistant(f"a{turn} " * size))]
    return renumbered([*said, user("now")])


def after(made: Assembled, sources: Sources, **more: Any) -> Assembled:
    """Return the window that comes after one."""
    return lay_out(sources, **{"counter": WORDS, "policy": WHOLE, "layout": made.layout, "before": made.trace, **more})


def reason(made: Assembled) -> str | None:
    return made.window.receipt.prefix.break_reason


def first(sources: Sources, **more: Any) -> Assembled:
    made = lay_out(sources, **{"counter": WORDS, "policy": WHOLE, **more})
    assert (reason(made), made.is_new, made.layout.number) == ("first", True, 1)
    return made


def test_a_changed_fact_stands_in_the_tail_until_the_provider_has_forgotten() -> None:
    chat = talk(2)
    old = first(Sources(memory={"pet": "hamster", "a": 1}, chat=chat))
    changed = Sources(memory={"pet": "dog", "a": 1, "b": 2}, chat=chat)
    made = after(old, changed, now_ms=299_999, before_ms=0)
    assert reason(made) is None
    texts = [str(one["content"]) for one in made.window.messages]
    assert 'pet: "hamster"' in texts[0]
    assert 'b: 2\npet: "dog"' in next(text for text in texts if text.startswith("Current data"))
    updates = next(one for one in made.window.receipt.sections if one.name == "updates")
    assert updates.items_in == 2
    # Where the chat does not show a call, the layout does: it was made for one.
    assert reason(after(old, changed, now_ms=299_999)) is None
    assert reason(after(old, changed, now_ms=300_000)) == "expired"
    later = first(Sources(memory={"pet": "hamster", "a": 1}, chat=chat), now_ms=200_000)
    assert reason(after(later, changed, now_ms=300_000, before_ms=0)) is None, "its reply may not be there yet"
    made = after(old, changed, now_ms=300_000, before_ms=0)
    assert reason(made) == "expired"
    assert 'pet: "dog"' in made.window.messages[0]["content"]
    assert not any("hamster" in str(one["content"]) for one in made.window.messages)


def test_nothing_expires_for_nothing() -> None:
    sources = Sources(memory={"pet": "hamster"}, chat=talk(2))
    assert reason(after(first(sources), sources, now_ms=10**9, before_ms=0)) is None
    rolled = replace(sources, rolling="so far", rolling_through=1)
    made = after(first(sources), rolled, now_ms=0, before_ms=0)
    assert reason(made) is None
    assert "so far" in made.window.messages[-2]["content"]
    assert reason(after(first(sources), rolled, now_ms=10**9, before_ms=0)) == "expired"
    hour = replace(WHOLE, cache_ttl_s=3_600.0)
    assert reason(after(first(sources), rolled, now_ms=3_599_999, before_ms=0, policy=hour)) is None
    assert reason(after(first(sources), rolled, now_ms=3_600_000, before_ms=0, policy=hour)) == "expired"


def test_what_is_deleted_or_sensitive_goes_at_once() -> None:
    sources = Sources(memory={"pet": "hamster"}, profile={"profile": [context("secret")]}, chat=talk(2))
    old = first(sources)
    made = after(old, replace(sources, memory={}))
    assert reason(made) == "deleted"
    assert not any("hamster" in str(one["content"]) for one in made.window.messages)
    made = after(old, replace(sources, profile={}))
    assert reason(made) == "deleted"
    made = after(old, replace(sources, sensitive=frozenset({"profile"})))
    assert reason(made) == "sensitive"
    assert b"secret" not in made.layout.encode()
    assert "secret" in made.window.messages[-2]["content"]
    back = after(made, sources)
    assert reason(back) is None
    assert "secret" in back.window.messages[-2]["content"]


def test_another_tokenizer_counts_all_anew() -> None:
    sources = Sources(memory={"pet": "hamster"}, chat=talk(2))
    made = after(first(sources), sources, counter=TOKENIZERS[1])
    assert reason(made) == "tokenizer"
    assert made.window.total_tokens == window_tokens(made.window.messages, TOKENIZERS[1])


def test_another_provider_counts_otherwise_and_nothing_breaks() -> None:
    sources = Sources(memory={"pet": "hamster"}, summaries=[summary("2026-01-01", "s")], chat=talk(2))
    old = first(sources, rules=rules_for("openai"))
    anthropic = rules_for("anthropic")
    made = after(old, sources, rules=anthropic)
    assert reason(made) is None
    assert made.window.messages == old.window.messages
    assert made.window.total_tokens == window_tokens(made.window.messages, WORDS, anthropic.overhead)


def test_pinned_messages_stay_and_pinning_old_ones_breaks() -> None:
    policy = AssemblyPolicy(history=History(messages=6))
    chat = talk(6)
    old = first(Sources(chat=chat), policy=policy)
    # One of eight is left: the window is filled to the mark, not to the low-water mark, for nothing was cached.
    assert [one["content"].strip() for one in old.window.messages] == ["q4", "a4", "q5", "a5", "now"]
    second = [Message.make(dict(one), one.seq, one.id, 0, 0, "", pinned=one.seq == 2) for one in chat]
    made = after(old, Sources(chat=second), policy=policy)
    assert (reason(made), made.layout.pins) == ("pinned", (2,))
    assert [one["content"].strip() for one in made.window.messages] == ["a0", "q4", "a4", "q5", "a5", "now"]
    assert reason(after(made, Sources(chat=chat), policy=policy)) == "pinned"
    newer = [Message.make(dict(one), one.seq, one.id, 0, 0, "", pinned=one.seq == 10) for one in chat]
    assert reason(after(old, Sources(chat=newer), policy=policy)) is None


def test_over_a_mark_the_history_is_cut_to_the_low_water_mark_at_a_turn() -> None:
    policy = AssemblyPolicy(history=History(messages=9))
    made = first(Sources(chat=talk(4)), policy=policy)
    assert len(made.window.messages) == 9
    made = after(made, Sources(chat=talk(5)), policy=policy)
    assert reason(made) == "history"
    assert [one["content"].strip() for one in made.window.messages] == ["q3", "a3", "q4", "a4", "now"]
    history = next(one for one in made.window.receipt.sections if one.name == "history")
    assert (history.items_in, history.items_out) == (4, {"pruned": 6})
    for turns in (6, 7):
        made = after(made, Sources(chat=talk(turns)), policy=policy)
        assert reason(made) is None
    assert reason(after(made, Sources(chat=talk(8)), policy=policy)) == "history"


def test_what_was_dropped_comes_back_when_there_is_room_for_all_of_it() -> None:
    sources = Sources(memory={"long": "word " * 90, "short": "x"}, chat=talk(3, 20))
    whole = lay_out(sources, counter=WORDS, policy=WHOLE).window.total_tokens
    old = first(sources, policy=replace(WHOLE, budget=whole - 1))
    assert not old.layout.user.whole
    assert reason(after(old, sources, policy=replace(WHOLE, budget=whole - 1))) is None
    made = after(old, sources, policy=replace(WHOLE, budget=whole))
    assert reason(made) == "room"
    assert made.layout.user.whole


def test_what_a_ceiling_keeps_out_is_not_waited_for() -> None:
    """Room alone does not bring it in: a break for it would come at every window."""
    policy = replace(WHOLE, memory=Share(0, 60, 2))
    sources = Sources(memory={"long": "word " * 90, "short": "x"}, chat=talk(3))
    old = first(sources, policy=policy)
    assert not old.layout.user.whole
    assert reason(after(old, sources, policy=policy)) is None


def test_what_a_cut_frees_is_for_the_history_to_grow_again() -> None:
    """Filled with what was dropped, the history would soon be cut once more."""
    policy = AssemblyPolicy(budget=700, history=History(messages=9))
    memory = {f"k{number}": "word " * 20 for number in range(20)}
    made = first(Sources(memory=memory, chat=talk(4, 30)), policy=policy)
    reasons = []
    for turns in range(5, 12):
        made = after(made, Sources(memory=memory, chat=talk(turns, 30)), policy=policy)
        reasons.append(reason(made))
    assert set(reasons) == {None, "history"}
    assert all(None in pair for pair in pairwise(reasons))


def test_floors_that_are_too_many_do_not_break_every_window() -> None:
    much = Share(0.6, 1.0, 1)
    policy = AssemblyPolicy(budget=300, chat=much, memory=much, tail=much)
    state = {"long": "word " * 200, "short": "x"}
    sources = Sources(memory={f"k{n}": "word " * 9 for n in range(20)}, state=state, chat=talk(3, 20))
    made = first(sources, policy=policy)
    again = after(made, sources, policy=policy)
    assert reason(again) is None
    assert again.window.messages == made.window.messages


def test_a_turn_that_is_cut_has_no_history_before_it() -> None:
    turn = [user("q"), calls("a"), result("a", "x " * 300), calls("b"), result("b", "y")]
    sources = Sources(chat=renumbered([user("old"), assistant("older"), *turn]))
    policy = AssemblyPolicy(budget=200, preview_tokens=0)
    made = first(sources, policy=policy)
    assert [one["role"] for one in made.window.messages] == ["user", "assistant", "tool"]
    history = next(one for one in made.window.receipt.sections if one.name == "history")
    assert history.items_out == {"pruned": 2}
    # Nor does one come in between two breaks, in front of what was shown.
    roomy = AssemblyPolicy(budget=2_000, preview_tokens=0)
    more = after(made, sources, policy=roomy)
    assert reason(more) is None
    assert [one["content"] for one in more.window.messages if one["role"] == "user"] == ["q"]
    # A turn that outgrows the room while there is a history before it takes that along.
    grown = first(Sources(chat=sources.chat[:3]), policy=policy)
    cut = after(grown, sources, policy=policy)
    assert reason(cut) == "history"
    assert [one["content"] for one in cut.window.messages if one["role"] == "user"] == ["q"]


def test_a_late_result_without_a_user_does_not_bring_back_what_was_cut() -> None:
    chat = renumbered([calls("a"), assistant("x " * 100), result("a", "late")])
    made = first(Sources(chat=chat), policy=AssemblyPolicy(budget=60))
    assert [one["role"] for one in made.window.messages] == ["assistant", "tool"]
    assert made.window.total_tokens <= 60


def test_the_age_of_a_history_is_that_of_its_oldest_message() -> None:
    chat = [calls("a"), assistant("one"), result("a", "late"), user("now")]
    aged = [
        Message.make(dict(one), seq, f"m{seq}", at_ms, 0, "")
        for seq, (one, at_ms) in enumerate(zip(chat, (0, 90_000, 100_000, 110_000), strict=True), 1)
    ]
    policy = AssemblyPolicy(history=History(messages=None, age_s=60))
    made = first(Sources(chat=aged), policy=policy)
    assert [one["content"] for one in made.window.messages] == ["one", "now"]


def test_what_is_shared_is_not_more_than_it_was() -> None:
    """A turn that was cut in the one window and stands whole in the next is not the same."""
    turn = [user("q"), calls("a"), result("a", "x " * 300), calls("b"), result("b", "y"), assistant("r")]
    chat = renumbered([*turn, user("next")])
    made = first(Sources(chat=chat[:5]), policy=AssemblyPolicy(budget=200, preview_tokens=0))
    more = after(made, Sources(chat=chat), policy=AssemblyPolicy(budget=2_000, preview_tokens=0))
    assert reason(more) is None
    assert more.window.messages[1] != made.window.messages[1]
    assert more.window.receipt.prefix.shared_tokens == window_tokens([user("q")], WORDS) - 3, "the first message only"
    whole = first(Sources(chat=chat[:5]))
    more = after(whole, Sources(chat=chat))
    assert more.window.receipt.prefix.shared_tokens == whole.window.total_tokens - 3
