"""Grouping of a chat: calls with their results, and what belongs to no group."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.assembly import LeftOut, validate_window
from scrubjay.assembly.blocks import group_messages, split_chat
from scrubjay.core.errors import InvalidMessage
from scrubjay.core.messages import wire_message
from scrubjay.core.records import Message
from tests.assembly.builders import WORDS, assistant, calls, chats, message, renumbered, result, user


def shape(chat: list[Message]) -> tuple[list[list[int]], list[tuple[int, str]]]:
    """Return groups and unpaired messages as indexes into `chat`."""
    groups, unpaired = group_messages(chat := renumbered(chat))
    indexes = {id(one): index for index, one in enumerate(chat)}
    shown = [[indexes[id(one)] for one in group.messages] for group in groups]
    for group, places in zip(groups, shown, strict=True):
        assert (group.seq, group.end) == (min(places) + 1, max(places) + 1)
    return shown, [(seq - 1, str(why)) for seq, why in unpaired]


def test_a_call_and_its_results_are_one_group() -> None:
    chat = [user("q"), calls("a", "b"), result("a"), result("b"), assistant("r")]
    assert shape(chat) == ([[0], [1, 2, 3], [4]], [])


def test_results_stand_in_the_order_of_the_calls() -> None:
    assert shape([calls("a", "b"), result("b"), result("a")]) == ([[0, 2, 1]], [])


def test_a_late_result_takes_its_call_to_where_it_stands() -> None:
    assert shape([calls("a"), user("still there?"), result("a"), assistant("r")]) == ([[1], [0, 2], [3]], [])


def test_a_late_result_changes_nothing_before_it() -> None:
    chat = renumbered([user("q"), calls("a", "b"), result("a"), user("?"), assistant("wait"), result("b"), user("!")])
    before = [group.messages for group in group_messages(chat[:5])[0]]
    assert [group.messages for group in group_messages(chat)[0]][: len(before)] == before


def test_two_open_calls_are_untangled() -> None:
    assert shape([calls("a"), calls("b"), result("b"), result("a")]) == ([[1, 2], [0, 3]], [])


def test_an_unanswered_call_leaves_with_its_other_results() -> None:
    groups, unpaired = shape([user("q"), calls("a", "b"), result("a"), user("?")])
    assert groups == [[0], [3]]
    assert unpaired == [(1, "unanswered_tool_call"), (2, "unanswered_tool_call")]


def test_an_unanswered_call_at_the_end_is_left_out_too() -> None:
    assert shape([user("q"), calls("a")]) == ([[0]], [(1, "unanswered_tool_call")])


def test_orphan_results_are_left_out() -> None:
    groups, unpaired = shape([result("gone"), user("q"), calls("a"), result("a"), result("a")])
    assert groups == [[1], [2, 3]]
    assert unpaired == [(0, "orphan_tool_result"), (4, "orphan_tool_result")]


def test_an_id_may_be_used_again() -> None:
    assert shape([calls("a"), result("a"), user("q"), calls("a"), result("a")]) == ([[0, 1], [2], [3, 4]], [])


def test_a_result_answers_the_nearest_open_call_with_its_id() -> None:
    assert shape([calls("a"), calls("a"), result("a")]) == ([[1, 2]], [(0, "unanswered_tool_call")])
    assert shape([calls("a"), calls("a"), result("a"), result("a")]) == ([[1, 2], [0, 3]], [])


def test_calls_of_one_message_with_the_same_id_cannot_be_paired() -> None:
    groups, unpaired = shape([calls("a", "a"), result("a"), result("a")])
    assert groups == []
    assert sorted(unpaired) == [(0, "unanswered_tool_call"), (1, "unanswered_tool_call"), (2, "orphan_tool_result")]


def test_split_at_the_last_user_message() -> None:
    chat = [message({"role": "system", "content": "s"}), user("1"), assistant("2"), user("3"), calls("a"), result("a")]
    blocks = split_chat(renumbered(chat))
    assert list(blocks.leading) == [chat[0]]
    assert [group.seq for group in blocks.history] == [2, 3]
    assert blocks.anchor is not None
    assert (blocks.anchor.seq, blocks.has_user) == (4, True)
    assert [(group.seq, group.end) for group in blocks.turn] == [(5, 6)]


def test_without_a_user_message_the_last_group_is_the_anchor() -> None:
    blocks = split_chat(renumbered([assistant("1"), calls("a"), result("a")]))
    assert blocks.anchor is not None
    assert (len(blocks.history), blocks.anchor.seq, blocks.turn, blocks.has_user) == (1, 2, [], False)


def test_nothing_and_only_system_messages() -> None:
    assert split_chat([]).anchor is None
    blocks = split_chat([message({"role": "developer", "content": "s"})])
    assert (len(blocks.leading), blocks.anchor, blocks.history, blocks.turn) == (1, None, [], [])


@given(chats(WORDS, max_size=24))
def test_every_message_is_in_one_group_or_unpaired_and_groups_are_valid(chat: list[Message]) -> None:
    groups, unpaired = group_messages(chat)
    validate_window([wire_message(one) for group in groups for one in group.messages])
    indexes = {id(one): index for index, one in enumerate(chat)}
    grouped = [indexes[id(one)] for group in groups for one in group.messages]
    assert sorted(grouped + [one.seq - 1 for one in unpaired]) == list(range(len(chat)))
    ends = [group.end for group in groups]
    assert ends == sorted(ends)
    for group in groups:  # a result is never moved in front of its call
        assert group.seq == group.messages[0].seq
        assert group.end == max(one.seq for one in group.messages)
        assert all(one.seq > group.seq for one in group.messages[1:])
    only_tool_traffic = {chat[one.seq - 1]["role"] for one in unpaired} <= {"tool", "assistant"}
    assert only_tool_traffic


@given(chats(WORDS, max_size=24), st.integers(0, 24))
def test_what_is_appended_changes_no_group_that_was_complete(chat: list[Message], length: int) -> None:
    before, _ = group_messages(chat[:length])
    assert group_messages(chat)[0][: len(before)] == before


@given(chats(WORDS, max_size=24))
def test_orphans_are_orphans(chat: list[Message]) -> None:
    """Nothing is left out that could have been paired: an orphan has fewer calls with its id before it than results."""
    for seq, reason in group_messages(chat)[1]:
        at = seq - 1
        if reason is LeftOut.ORPHAN_TOOL_RESULT:
            before = chat[: at + 1]
            call_id = chat[at]["tool_call_id"]
            made = sum(call["id"] == call_id for one in before for call in one.get("tool_calls") or ())
            assert sum(one.get("tool_call_id") == call_id for one in before) > made


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([result("a")], "does not stand behind its call"),
        ([calls("a")], "has no result"),
        ([calls("a"), user("q"), result("a")], "has no result before it"),
        ([calls("a"), result("a"), result("a")], "does not stand behind"),
        ([calls("a", "a"), result("a")], "the same id"),
        ([{"role": "robot", "content": "x"}], "unknown role"),
        ([{"role": "user"}], "neither content nor"),
        ([{**calls("a"), "role": "user"}], "only an assistant"),
    ],
)
def test_validate_window_refuses(messages: list[Message], says: str) -> None:
    with pytest.raises(InvalidMessage, match=says):
        validate_window(messages)


def test_validate_window_takes_results_in_any_order() -> None:
    validate_window([calls("a", "b"), result("b"), result("a")])
    validate_window([])
