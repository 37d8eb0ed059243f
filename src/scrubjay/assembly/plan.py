"""Where a window's parts begin and end: by the session's layout as long as that fits, else by a new one. Pure.

Between two planned breaks everything before the tail is as it was, and only grows. A break comes when it must: the
history has passed a mark, something pinned was deleted or has become sensitive; or when it costs nothing: there was no
window before, or the provider has forgotten it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from scrubjay.assembly.allocate import Demand, allocate
from scrubjay.assembly.blocks import Group
from scrubjay.assembly.fit import Fitted, Fitting
from scrubjay.assembly.layout import Break, Layout, pin
from scrubjay.assembly.policy import MAX_MESSAGES, History
from scrubjay.assembly.render import Draft, summaries_draft, tail_draft
from scrubjay.assembly.scene import Scene
from scrubjay.assembly.sources import Sources
from scrubjay.assembly.user import Change, Update, change_since, kind_of, known_of, sensitive_lines
from scrubjay.core.policy import SECOND
from scrubjay.core.records import Fields

_COLD = frozenset({Break.FIRST, Break.EXPIRED, Break.TOKENIZER})
"""Breaks at which no provider has anything of the prompt: then the history is filled to its marks."""


class Moment(NamedTuple):
    """When a window is assembled.

    Attributes:
        now_ms: The time, in milliseconds since the Unix epoch.
        before_ms: When the session's window before was; None if that is not known.
        ttl_s: How long the provider keeps a prompt, in seconds.
        breaks: How many layouts the session has had, should it have none now.
    """

    now_ms: int = 0
    before_ms: int | None = None
    ttl_s: float = 300.0
    breaks: int = 0


class Plan(NamedTuple):
    """What stands in a window.

    Attributes:
        layout: The layout that it follows.
        reason: Why that is a new one; None if it is not.
        older: The groups of pinned messages that are older than the history.
        history: The groups before the last user message, oldest first, pinned ones among them.
        history_tokens: What the history takes, without pinned messages.
        shortened: How many tool outputs of the history are previews.
        tail: The tail.
    """

    layout: Layout
    reason: Break | None
    older: list[Group]
    history: list[Group]
    history_tokens: int
    shortened: int
    tail: Fitted


def plan(scene: Scene, layout: Layout | None, moment: Moment, tokenizer: str) -> Plan:
    """Lay a window out.

    Args:
        scene: What there is.
        layout: The session's layout; None if it has none.
        moment: When.
        tokenizer: The name of what counts.
    """
    reason: Break | None = Break.FIRST
    if layout is not None:
        # Another provider may count more or less around a message: the text stays, and so does the cache.
        layout = layout.around(scene.overhead.message)
        change = change_since(layout, scene.sources)
        reason = _reason(scene, layout, change, moment, tokenizer)
        if reason is None:
            found = _follow(scene, layout, change.updates)
            if found is not None:
                return found
            reason = Break.PRUNED if _is_pruned(scene.sources, layout) else Break.HISTORY
    assert reason is not None
    return _begin_anew(scene, layout, moment, reason, tokenizer)


# --- going on as before ----------------------------------------------------------------------------------------------


def _reason(scene: Scene, layout: Layout, change: Change, moment: Moment, tokenizer: str) -> Break | None:
    """Return why the layout must or may go."""
    sources = scene.sources
    if layout.tokenizer != tokenizer:
        return Break.TOKENIZER
    if change.gone:
        return _why_gone(sources, change.gone)
    if (scene.pinned or layout.pins) and _pins(scene, layout.from_seq) != layout.pins:
        return Break.PINNED
    newer = change.updates or sources.rolling_through > layout.rolling_through
    # A layout was made for a call, whose reply may not have been appended yet.
    if newer and moment.now_ms - max(moment.before_ms or 0, layout.at_ms) >= moment.ttl_s * SECOND:
        return Break.EXPIRED
    if not (layout.user.whole and layout.summaries.whole) and _has_room(scene, layout):
        return Break.ROOM
    return None


def _is_pruned(sources: Sources, layout: Layout) -> bool:
    """Return whether what the history began with is there no more: all that is there was read.

    Whoever deleted it has made room, and what is left need not be cut. Where not all was read, the history has grown
    beyond what is read of it, and would begin anew at each call if it were not cut.
    """
    return layout.from_seq < sources.read_from and not sources.messages_before


def _why_gone(sources: Sources, gone: tuple[str, ...]) -> Break:
    kinds = {kind_of(name) for name in gone}
    if not kinds.isdisjoint(sources.sensitive):
        return Break.SENSITIVE
    # Where there is a newer record the old one may have been deleted, or not: nobody can tell from here.
    replaced = all(kind is not None and sources.profile.get(kind) for kind in kinds)
    return Break.REPLACED if replaced else Break.DELETED


def _has_room(scene: Scene, layout: Layout) -> bool:
    """Return whether everything that was left out of the pinned sections would fit now, and nothing else had to go."""
    policy, spare = scene.policy, scene.spare
    # What a cut has freed is for the history to grow again: filled with something else, it would soon be cut once more.
    needed = max(scene.cost_of(_from(scene.history, layout.from_seq)), layout.history_room)
    for part, share in ((_user, policy.memory), (_summaries, policy.summaries)):
        need = part(scene).need
        needed += need
        # What a ceiling keeps out does not come in, however much room there is.
        if need > share.ceiling_of(spare) or needed > spare:
            return False
    return needed + _tail(scene, sensitive_lines(scene.sources), "").need <= spare


def _follow(scene: Scene, layout: Layout, updates: tuple[Update, ...]) -> Plan | None:
    """Lay a window out as the one before; None if the history has passed a mark."""
    sources = scene.sources
    if layout.from_seq < sources.read_from:
        return None
    history = _from(scene.history, layout.from_seq)
    if _over_marks(scene, history) or (history and _turn_is_cut(scene)):
        return None
    history, shortened = scene.previewed(history, layout.preview_before)
    tokens = scene.cost_of(history)
    rest = scene.spare - layout.user.tokens - layout.summaries.tokens
    rolling = sources.rolling if sources.rolling_through > layout.rolling_through else ""
    lines = (*sensitive_lines(sources), *updates) if sources.sensitive else updates
    whole = _tail(scene, lines, rolling)
    room = rest - tokens
    if room < whole.need:
        # Where both cannot be whole, the tail is cut to its floor before the history is.
        room = max(room, min(_tail_floor(scene, layout, tokens, whole.need), rest))
    tail = whole.fit(min(room, scene.policy.tail.ceiling_of(scene.spare)), scene.query())
    if tokens > rest - tail.tokens or tokens > _token_mark(scene):
        return None
    return Plan(layout, None, *_with_pinned(scene, history, layout.from_seq), tokens, shortened, tail)


def _tail_floor(scene: Scene, layout: Layout, history: int, need: int) -> int:
    """Return what the tail is sure of: its floor, or less where there is not enough for the floors of all."""
    policy = scene.policy
    rooms = allocate(
        scene.spare,
        [
            Demand(history, policy.chat),
            Demand(layout.user.tokens, policy.memory),
            Demand(layout.summaries.tokens, policy.summaries),
            Demand(need, policy.tail),
        ],
    )
    return min(rooms[3], policy.tail.floor_of(scene.spare))


# --- beginning anew --------------------------------------------------------------------------------------------------


def _begin_anew(scene: Scene, old: Layout | None, moment: Moment, reason: Break, tokenizer: str) -> Plan:
    policy, sources = scene.policy, scene.sources
    user, summaries = _user(scene), _summaries(scene)
    tail = _tail(scene, sensitive_lines(sources), "")
    preview_before = max(_last_turn(scene), old.preview_before if old else 0)
    least = max(old.from_seq if old else 0, sources.read_from)
    if _turn_is_cut(scene):
        least = _behind_history(scene, least)
    candidates = _from(scene.history, least)
    short, _ = scene.previewed(candidates, preview_before)
    rooms = allocate(
        scene.spare,
        [
            Demand(scene.cost_of(short), policy.chat),
            Demand(user.need, policy.memory),
            Demand(summaries.need, policy.summaries),
            Demand(tail.need, policy.tail),
        ],
    )
    from_seq = _beginning(scene, short, least, min(rooms[0], _token_mark(scene)), reason)
    layout = Layout(
        number=(old.number if old else moment.breaks) + 1,
        reason=reason,
        at_ms=moment.now_ms,
        from_seq=from_seq,
        preview_before=preview_before,
        pins=_pins(scene, from_seq),
        user=pin(user.fit(rooms[1]), known_of(sources).digests),
        summaries=pin(summaries.fit(rooms[2]), {}),
        rolling_through=sources.rolling_through,
        tokenizer=tokenizer,
        overhead=scene.overhead.message,
        history_room=rooms[0],
    )
    history, shortened = scene.previewed(_from(candidates, from_seq), preview_before)
    tokens = scene.cost_of(history)
    rest = scene.spare - layout.user.tokens - layout.summaries.tokens - tokens
    fitted = tail.fit(min(rest, policy.tail.ceiling_of(scene.spare)), scene.query())
    return Plan(layout, reason, *_with_pinned(scene, history, from_seq), tokens, shortened, fitted)


def _beginning(scene: Scene, candidates: list[Group], least: int, room: int, reason: Break) -> int:
    """Return the sequence number with which the history is to begin.

    Args:
        scene: What there is.
        candidates: The groups that it may hold, in order.
        least: The sequence number before which it cannot begin.
        room: What it may take, in tokens.
        reason: Why it begins anew.
    """
    history = scene.policy.history
    messages, age_ms = _message_room(scene), _age_mark(history)
    cold = reason in _COLD
    if (
        (cold or reason is not Break.HISTORY)
        and scene.size_of(candidates) <= messages
        and scene.cost_of(candidates) <= room
        and _young_enough(scene, candidates, age_ms)
    ):
        return least
    if not cold:
        room, messages = history.low(room), history.low(messages)
        age_ms = None if age_ms is None else history.low(age_ms)
    oldest_ms = None if age_ms is None else _newest_ms(scene) - age_ms
    start = turn_start = None
    # Groups stand in the order of their ends, and a cut is by their beginnings.
    for group in sorted(candidates, key=lambda group: -group.seq):
        room -= scene.group_cost(group)
        messages -= len(group.messages)
        if room < 0 or messages < 0 or (oldest_ms is not None and group.messages[0].created_at_ms < oldest_ms):
            break
        start = group.seq
        if group.messages[0]["role"] == "user":
            turn_start = start
    if turn_start is not None or start is not None:
        return turn_start or start or least
    return _behind_history(scene, least)


def _young_enough(scene: Scene, groups: Sequence[Group], age_ms: int | None) -> bool:
    """Return whether groups are within the mark for age."""
    if age_ms is None or not groups:
        return True
    # The first need not be the oldest: groups stand in the order of their ends.
    oldest_ms = min([group.messages[0].created_at_ms for group in groups])
    return _newest_ms(scene) - oldest_ms <= age_ms


# --- marks -----------------------------------------------------------------------------------------------------------


def _over_marks(scene: Scene, history: Sequence[Group]) -> bool:
    age_ms = _age_mark(scene.policy.history)
    return scene.size_of(history) > _message_room(scene) or not _young_enough(scene, history, age_ms)


def _token_mark(scene: Scene) -> int:
    """Return the most tokens that a history may take."""
    marks = scene.policy.history
    ceiling = scene.policy.chat.ceiling_of(scene.spare)
    return ceiling if marks.tokens is None else min(ceiling, marks.tokens)


def _message_room(scene: Scene) -> int:
    """Return how many messages the current turn leaves to the history."""
    marks, chat = scene.policy.history, scene.chat
    if marks.messages is None:
        return MAX_MESSAGES
    turn = scene.size_of(chat.turn) + (len(chat.anchor.messages) if chat.anchor else 0)
    return max(0, marks.messages - turn)


def _age_mark(marks: History) -> int | None:
    return None if marks.age_s is None else int(marks.age_s * SECOND)


def _turn_is_cut(scene: Scene) -> bool:
    """Return whether not all of the current turn found room.

    What is older than a message that found no room has none either: a chat is shown without holes in its past.
    """
    return len(scene.turn) < len(scene.chat.turn)


def _behind_history(scene: Scene, least: int) -> int:
    """Return a sequence number, at least `least`, with which a history begins that shows nothing yet."""
    anchor = scene.chat.anchor
    # A late result makes a last group whose call is older than the history.
    behind = max([group.seq for group in scene.history], default=-1) + 1
    return max(least, behind, anchor.seq if anchor else 0)


def _newest_ms(scene: Scene) -> int:
    """Return when the newest message was written. Ages are reckoned from it, so that time alone changes no window."""
    chat = scene.chat
    newest = chat.turn[-1] if chat.turn else chat.anchor
    return newest.messages[-1].created_at_ms if newest else 0


def _last_turn(scene: Scene) -> int:
    """Return the sequence number with which the last turn before the current one begins."""
    users = [group.seq for group in scene.history if group.messages[0]["role"] == "user"]
    anchor = scene.chat.anchor
    return max(users, default=anchor.seq if anchor else 0)


# --- parts -----------------------------------------------------------------------------------------------------------


def _from(groups: list[Group], seq: int) -> list[Group]:
    return [group for group in groups if group.seq >= seq] if seq else groups


def _pins(scene: Scene, from_seq: int) -> tuple[int, ...]:
    return tuple(group.seq for group in scene.pinned if group.seq < from_seq)


def _with_pinned(scene: Scene, history: list[Group], from_seq: int) -> tuple[list[Group], list[Group]]:
    """Return the pinned groups that are older than the history, and the history with the others in their places."""
    if not scene.pinned:
        return [], history
    later = [group for group in scene.pinned if group.seq >= from_seq]
    older = [group for group in scene.pinned if group.seq < from_seq]
    return older, sorted([*history, *later], key=lambda group: group.end)


def _user(scene: Scene) -> Fitting:
    known = known_of(scene.sources)
    of = (scene.count_name, scene.overhead.message)
    made = known.fittings.get(of)
    if made is None:
        made = known.fittings[of] = _fitting(scene, known.draft)
    return made


def _summaries(scene: Scene) -> Fitting:
    return _fitting(scene, summaries_draft(scene.sources.summaries, scene.sources.rolling))


def _tail(scene: Scene, updates: tuple[Update, ...], rolling: str) -> Fitting:
    sources, chat = scene.sources, scene.chat
    if sources.tools or any(sources.profile.get(kind) for kind in sources.sensitive):
        anchor = (chat.anchor,) if chat.anchor else ()
        shown = [message for group in (*chat.history, *anchor, *chat.turn) for message in group.messages]
        return _fitting(scene, tail_draft(sources.tools, shown, sources.state, updates, rolling))
    state = sources.state
    of = (updates, rolling, scene.count_name, scene.overhead.message)
    try:
        made_of, made = state.derived  # type: ignore[attr-defined]
        if made_of == of:
            return made  # type: ignore[no-any-return]
    except AttributeError:
        pass
    made = _fitting(scene, tail_draft((), (), state, updates, rolling))
    if isinstance(state, Fields):
        # Kept beside the state that it was made from: mostly it is the same at the next call. Only the last one, for
        # what it shows besides may have been deleted since.
        state.derived = (of, made)
    return made


def _fitting(scene: Scene, draft: Draft) -> Fitting:
    return Fitting(draft, scene.count, scene.overhead.message)
