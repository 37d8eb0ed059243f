"""What must hold of every window, and of every two windows of a session."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from scrubjay.assembly import Receipt, Window, diff, validate_window, window_tokens
from scrubjay.assembly.blocks import Group, split_chat
from scrubjay.assembly.formats import validate_anthropic
from scrubjay.assembly.layout import decode
from scrubjay.core.messages import WIRE_FIELDS
from tests.fuzz.session import Session, Shown, fresh, ids_of

_MARK = re.compile(r"#(\d+)# ")
_TAIL = "Current data of this session"


class Judge:
    """Judges windows.

    Args:
        types: Takes what goes to a provider: its name and the request; for the types of the SDKs.
        every: One window in so many is also made again, converted and written.
    """

    def __init__(self, *, types: Callable[[str, Any], None] | None = None, every: int = 1) -> None:
        self._types = types
        self._every = every
        self.reasons: dict[str, int] = {}

    def __call__(self, session: Session, now: Shown, before: Shown | None, own: Shown | None) -> None:
        window = now.made.window
        receipt = window.receipt
        reason = receipt.prefix.break_reason
        self.reasons[reason or "none"] = self.reasons.get(reason or "none", 0) + 1
        parts = Parts(now)
        judge_budget(now, receipt)
        judge_chat(now, parts)
        judge_marks(now, parts, receipt)
        judge_receipt(now, parts, receipt)
        judge_reason(session, now, parts, receipt)
        judge_user(session, now, parts)
        judge_prefix(now, before, parts)
        judge_shared(now, own, parts)
        if session.windows % self._every == 0:
            judge_formats(window, self._types)
            judge_again(now)
            judge_written(now, own, receipt)


class Parts:
    """A window taken apart by what is in it, not by what made it.

    Attributes:
        messages: Its messages.
        stable: How many stand before the tail (without a user message: before the last group).
        tail: The text of the tail; empty without one.
        chat: The chat in blocks.
        older: Pinned groups that stand before the history.
        history: The groups of the history, pinned ones among them.
        turn: The groups of the current turn that are shown.
    """

    def __init__(self, now: Shown) -> None:
        self.messages: Sequence[Mapping[str, Any]] = now.made.window.messages
        self.chat = split_chat(now.sources.chat)
        shown = {seq for one in self.messages if (seq := seq_of(one)) is not None}
        layout = now.made.layout

        def is_shown(group: Group) -> bool:
            # A call without a text has no mark of its own: its results do.
            present = [mark in shown for one in group.messages if (mark := seq_of(one)) is not None]
            assert all(present) or not any(present), "a group was parted"
            return all(present)

        groups = [group for group in self.chat.history if is_shown(group)]
        self.older = [group for group in groups if group.messages[0].pinned and group.seq < layout.from_seq]
        self.history = [group for group in groups if group not in self.older]
        self.turn = [group for group in self.chat.turn if is_shown(group)]
        anchor = len(self.chat.anchor.messages) if self.chat.anchor else 0
        behind = anchor + size(self.turn)
        tails = [at for at, one in enumerate(self.messages) if str(one["content"]).startswith(_TAIL)]
        assert len(tails) <= 1
        self.tail = str(self.messages[tails[0]]["content"]) if tails else ""
        self.stable = len(self.messages) - behind - len(tails)
        if tails:
            assert tails == [self.stable if self.chat.has_user else len(self.messages) - 1]
        self.lead = self.stable - size(self.history) - size(self.older)
        """How many messages stand before those of the chat's history."""


def seq_of(message: Mapping[str, Any]) -> int | None:
    """Return the sequence number that a message's text names."""
    content = message["content"]
    if isinstance(content, (list, tuple)):
        content = content[0]["text"]
    found = _MARK.match(content or "")
    return int(found[1]) if found else None


def size(groups: Sequence[Group]) -> int:
    return sum(len(group.messages) for group in groups)


def cost(now: Shown, messages: Sequence[Mapping[str, Any]]) -> int:
    """Return the tokens of messages, counted anew."""
    return window_tokens(messages, now.tokenizer, now.rules.overhead) - now.rules.overhead.reply


def judge_budget(now: Shown, receipt: Receipt) -> None:
    window = now.made.window
    validate_window(window.messages)
    total = window_tokens(window.messages, now.tokenizer, now.rules.overhead)
    assert total == receipt.total_tokens == window.total_tokens
    assert total <= now.policy.budget - now.policy.reserve
    assert (receipt.budget, receipt.reserve) == (now.policy.budget, now.policy.reserve)


def judge_chat(now: Shown, parts: Parts) -> None:
    """Everything that must be there is, in its order, and the chat has no holes."""
    chat, layout = parts.chat, now.made.layout
    pinned = [group for group in chat.history if group.messages[0].pinned]
    shown = [*parts.older, *parts.history]
    assert all(group in shown for group in pinned)
    assert parts.older == [group for group in pinned if group.seq < layout.from_seq]
    if len(parts.turn) == len(chat.turn):
        since = [group for group in chat.history if group.seq >= layout.from_seq]
        assert parts.history == since
    else:
        assert parts.turn == chat.turn[len(chat.turn) - len(parts.turn) :]
        assert all(group.messages[0].pinned for group in parts.history)
    anchor = [chat.anchor] if chat.anchor else []
    expected = [one for group in [*shown, *anchor, *parts.turn] for one in group.messages]
    found = [one for one in parts.messages[parts.lead :] if str(one["content"])[: len(_TAIL)] != _TAIL]
    assert [seq_of(one) for one in found] == [seq_of(one) for one in expected]
    assert [one["role"] for one in found] == [one["role"] for one in expected]
    lead = [one for one in parts.messages[: parts.lead] if seq_of(one) is not None]
    assert [seq_of(one) for one in lead] == [one.seq for one in chat.leading]


def judge_marks(now: Shown, parts: Parts, receipt: Receipt) -> None:
    """No mark is passed, and after a cut the history is within the low-water mark, and begins a turn if it can."""
    marks, chat = now.policy.history, parts.chat
    history = [group for group in parts.history if not group.messages[0].pinned]
    tokens = {one.name: one.tokens for one in receipt.sections}
    pinned = [one for group in chat.history if group.messages[0].pinned for one in group.messages]
    fixed = sum(tokens.get(name, 0) for name in ("agent", "system", "turn", "reply")) + cost(now, pinned)
    spare = now.policy.budget - now.policy.reserve - fixed
    token_mark = now.policy.chat.ceiling_of(spare)
    if marks.tokens is not None:
        token_mark = min(token_mark, marks.tokens)
    kept = [one for group in parts.history if group.messages[0].pinned for one in group.messages]
    taken = tokens.get("history", 0) - cost(now, kept)
    assert taken <= token_mark
    message_mark = None
    if marks.messages is not None:
        turn = size(chat.turn) + (len(chat.anchor.messages) if chat.anchor else 0)
        message_mark = max(0, marks.messages - turn)
        assert size(history) <= message_mark
    ages = [age_of(chat, group) for group in history]
    if marks.age_s is not None:
        assert max(ages, default=0) <= marks.age_s * 1000
    if receipt.prefix.break_reason == "history":
        assert taken <= marks.low(token_mark)
        assert message_mark is None or size(history) <= marks.low(message_mark)
        assert marks.age_s is None or max(ages, default=0) <= marks.low(int(marks.age_s * 1000))
    begun = now.layout.from_seq if now.layout else 0
    if now.made.is_new and now.made.layout.from_seq > max(begun, now.sources.read_from) and history:
        first = min(history, key=lambda group: group.seq)
        users = [group for group in history if group.messages[0]["role"] == "user"]
        assert not users or first.messages[0]["role"] == "user"


def age_of(chat: Any, group: Group) -> int:
    newest = chat.turn[-1] if chat.turn else chat.anchor
    age: int = newest.messages[-1].created_at_ms - group.messages[0].created_at_ms
    return age


def judge_receipt(now: Shown, parts: Parts, receipt: Receipt) -> None:
    """What the receipt says is what is there."""
    assert sum(one.tokens for one in receipt.sections) == receipt.total_tokens
    assert all(one.tokens >= 0 and one.items_in >= 0 for one in receipt.sections)
    assert all(count > 0 for one in receipt.sections for count in one.items_out.values())
    named = {one.name: one for one in receipt.sections}
    sources = now.sources
    of_chat = [named[name] for name in ("system", "pinned", "history", "turn") if name in named]
    left = sum(sum(one.items_out.values()) for one in of_chat)
    assert sum(one.items_in for one in of_chat) + left == len(sources.chat)
    assert receipt.pruned_messages == left
    expected = {"history": size(parts.history), "pinned": size(parts.older), "system": len(parts.chat.leading)}
    for name, count in expected.items():
        assert (named[name].items_in if name in named else 0) == count
    assert cost(now, parts.messages[: parts.stable]) == receipt.prefix.stable_tokens
    previews = [
        one for one in parts.messages if one["role"] == "tool" and "; the whole output: " in str(one["content"])
    ]
    assert sum(one.shortened for one in receipt.sections) == len(previews)
    given = {"tools": len(sources.tools), "state": len(sources.state)}
    if now.made.is_new:
        visible = [kind for kind in sources.profile if kind not in sources.sensitive]
        given |= {"memory": len(sources.memory), "profile": len(visible), "summary": len(sources.summaries)}
    for name, count in given.items():
        one = named.get(name)
        assert (one.items_in + sum(one.items_out.values()) if one else 0) == count
    for one in receipt.sections:
        dropped = one.items_out.get("budget", 0)
        if one.name in ("memory", "profile", "summary", "rolling", "tools", "updates", "state"):
            assert len(one.misses) == min(10, dropped)
        if one.items_out.get("pruned"):
            assert one.misses
        assert all(miss.section == one.name and miss.tokens > 0 for miss in one.misses)
    assert all(0 <= mark < len(parts.messages) for mark in now.made.window.marks)
    ends = {parts.lead + size(parts.older) - 1}
    if not parts.tail or (parts.chat.has_user and len(parts.messages) > parts.stable + 2):
        # Behind a tail only what goes on with the same turn is the same again.
        ends.add(len(parts.messages) - 1)
    assert {end for end in ends if end >= 0} <= set(now.made.window.marks)


def judge_reason(session: Session, now: Shown, parts: Parts, receipt: Receipt) -> None:
    """A break has the reason that it is given, and one that must come does come."""
    made, layout, sources = now.made, now.layout, now.sources
    reason = receipt.prefix.break_reason
    assert made.is_new == (reason is not None)
    assert made.layout.reason == reason or reason is None
    assert receipt.prefix.layout == made.layout.number == (layout.number if layout else now.breaks) + made.is_new
    assert (reason == "first") == (layout is None)
    if layout is None:
        return
    if not made.is_new:
        assert made.layout == layout.around(now.rules.overhead.message)
    known, pinned = session.visible(sources), session.pinned[layout.number]
    gone = pinned.keys() - known.keys()
    hidden = {f"profile {kind}" for kind in sources.sensitive} & gone
    ids = ids_of(sources)
    replaced = [kind for kind, id_ in session.pinned_ids[layout.number].items() if ids.get(kind, id_) != id_]
    pins = tuple(group.seq for group in parts.chat.history if group.messages[0].pinned and group.seq < layout.from_seq)
    if layout.tokenizer != now.tokenizer.name:
        assert reason == "tokenizer"
    elif gone or replaced:
        assert reason == ("sensitive" if hidden else "deleted" if gone else "replaced")
    elif pins != layout.pins:
        assert reason == "pinned"
    else:
        newer = sources.rolling_through > layout.rolling_through or pinned != known
        ttl_s = now.rules.ttl_s if now.policy.cache_ttl_s is None else now.policy.cache_ttl_s
        cold = now.now_ms - max(now.before_ms or 0, layout.at_ms) >= ttl_s * 1000
        assert reason not in ("tokenizer", "sensitive", "deleted", "replaced", "pinned")
        assert (reason == "expired") == (newer and cold)
    if reason == "room":
        assert not (layout.user.whole and layout.summaries.whole)
        assert made.layout.user.whole
        assert made.layout.summaries.whole


def judge_user(session: Session, now: Shown, parts: Parts) -> None:
    """What was deleted is gone, what is sensitive is not pinned, and what has changed is said."""
    sources, layout = now.sources, now.made.layout
    texts = [str(one["content"]) for one in parts.messages]
    shown, stable = "\n".join(texts), "\n".join(texts[: parts.stable])
    encoded = layout.encode().decode()
    known, pinned = session.visible(sources), session.pinned[layout.number]
    hidden = {f"profile {kind}" for kind in sources.sensitive if kind in sources.profile}
    wanted = said = 0
    for name, words in session.words.items():
        word = words[-1]
        if name in hidden:
            assert not any(one in stable or one in encoded for one in words), f"{name} is sensitive"
            assert f'"{name}"' not in encoded
            may = {word}
        elif name in known:
            # Until the next break the prompt begins with what was so when it was pinned.
            may = {word, pinned.get(name, word)}
        else:
            may = set()
        assert not any(one in shown for one in words if one not in may), f"{name} is no more as it was"
        assert not any(one in parts.tail for one in words[:-1])
        if name in hidden or (name in known and pinned.get(name) != word):
            wanted += 1
            said += word in parts.tail
    updates = [one for one in now.made.window.receipt.sections if one.name == "updates"]
    assert sum(one.items_in for one in updates) == said
    assert sum(one.items_in + one.items_out.get("budget", 0) for one in updates) == wanted
    if now.made.is_new:
        assert layout.user.whole == all(word in layout.user.text for word in known.values())


def alike(now: Shown, before: Shown) -> bool:
    """Return whether two windows have the same settings and the same chat, but for what was appended."""
    return (
        now.epoch == before.epoch
        and now.sources.agent == before.sources.agent
        and now.tokenizer is before.tokenizer
        and now.policy.preview_tokens == before.policy.preview_tokens
        and [one.seq for one in split_chat(now.sources.chat).leading]
        == [one.seq for one in split_chat(before.sources.chat).leading]
    )


def judge_prefix(now: Shown, before: Shown | None, parts: Parts) -> None:
    """Between planned breaks a window begins with all that stood before the tail of the window before."""
    if before is None or now.made.layout.number != before.made.layout.number or not alike(now, before):
        return
    stable = Parts(before).stable
    assert now.made.window.messages[:stable] == before.made.window.messages[:stable]


def judge_shared(now: Shown, own: Shown | None, parts: Parts) -> None:
    """The tokens that two windows share are never more than those that they do."""
    shared = now.made.window.receipt.prefix.shared_tokens
    assert (shared is None) == (own is None)
    if own is None or shared is None:
        return
    old = own.made.window.messages
    common = 0
    for one, other in zip(parts.messages, old, strict=False):
        if one != other:
            break
        common += 1
    truth = cost(now, parts.messages[:common])
    assert 0 <= shared <= truth
    whole = all(is_whole(each) for each in (now, own))
    if now.made.layout.number == own.made.layout.number and alike(now, own) and whole and now.rules == own.rules:
        assert shared == truth


def is_whole(shown: Shown) -> bool:
    """Return whether the current turn is shown as it is, and no result came after other messages."""
    turn = [one for one in shown.made.window.receipt.sections if one.name == "turn"]
    if any(one.shortened or "budget" in one.items_out for one in turn):
        return False
    calls: list[str] = []
    for one in shown.sources.chat:
        if one["role"] != "tool":
            calls = [call["id"] for call in one.get("tool_calls") or ()]
        elif one["tool_call_id"] not in calls:
            return False
    return True


def judge_formats(window: Window, types: Callable[[str, Any], None] | None) -> None:
    """Providers take it."""
    wire = window.to_openai()
    assert len(wire) == len(window.messages)
    assert all(set(one) <= set(WIRE_FIELDS) for one in wire)
    request = window.to_anthropic()
    validate_anthropic(request)
    if types is not None:
        types("openai", wire)
        types("anthropic", request)


def judge_again(now: Shown) -> None:
    """The same arguments give the same bytes, and the layout holds for the very same sources."""
    made = now.made
    for sources in (now.sources, fresh(now.sources)):
        again = now.again(sources=sources)
        assert orjson.dumps(again.window.messages) == orjson.dumps(made.window.messages)
        assert again.window.receipt.to_json() == made.window.receipt.to_json()
        assert (again.layout.encode(), again.trace) == (made.layout.encode(), made.trace)
    next_one = now.again(layout=decode(orjson.loads(made.layout.encode())), before=made.trace)
    assert next_one.window.receipt.prefix.break_reason is None
    assert next_one.window.messages == made.window.messages
    reply = now.rules.overhead.reply
    assert next_one.window.receipt.prefix.shared_tokens == made.window.total_tokens - reply


def judge_written(now: Shown, own: Shown | None, receipt: Receipt) -> None:
    """What is written is read back."""
    assert Receipt.from_dict(orjson.loads(receipt.to_json())) == receipt
    assert str(receipt)
    assert decode(orjson.loads(now.made.layout.encode())) == now.made.layout
    if own is not None:
        old = own.made.window.receipt
        found = diff(old, receipt)
        assert found.tokens == receipt.total_tokens - old.total_tokens
        assert found.tokens == sum(one.tokens_after - one.tokens_before for one in found.sections)
        orjson.dumps(found.to_dict())
