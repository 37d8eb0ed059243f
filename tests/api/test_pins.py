"""Pinned messages: what stays in the window when older messages are cut."""

from __future__ import annotations

import pytest

from scrubjay import AsyncScrubjay
from scrubjay.core.errors import InvalidLimit, InvalidMessage
from scrubjay.handles import Session
from tests.api.messages import calls, result, user
from tests.conftest import OpenJay


async def lead(jay: AsyncScrubjay, session: Session) -> list[str]:
    """Return what leads the chat in a window, as two processes read it."""
    from scrubjay.memory.chat import lead_source

    found = await jay._services.aside.get(lead_source(jay._services, session._scope, session.id))
    return [f"{message['content']}{'*' if message.pinned else ''}" for message in found]


async def test_pins_are_seen_everywhere(open_jay: OpenJay) -> None:
    jay, other = await open_jay(), await open_jay()
    session, theirs = (each.user("alice").session("s") for each in (jay, other))
    await session.chat.append(role="system", content="be kind")
    first = await session.chat.append(user("a"))
    second = await session.chat.append(user("b"), pinned=True)
    assert (first.pinned, second.pinned, dict(second)) == (False, True, dict(user("b")))
    for _ in range(2):
        assert await lead(jay, session) == await lead(other, theirs) == ["be kind", "b*"]
        assert [message.pinned for message in await theirs.chat.recent()] == [False, False, True]
    assert await theirs.chat.pin(first.seq) is True
    for _ in range(2):
        assert await lead(jay, session) == await lead(other, theirs) == ["be kind", "a*", "b*"]
        assert [message.pinned for message in await session.chat.recent()] == [False, True, True]
    await session.chat.prune(0)
    assert await theirs.chat.pin(second.seq, pinned=False) is True
    assert await lead(jay, session) == await lead(other, theirs) == ["be kind", "a*"]
    assert await session.chat.pin(99) is False
    await session.chat.clear()
    assert await lead(jay, session) == await lead(other, theirs) == []


async def test_what_cannot_be_pinned(open_jay: OpenJay) -> None:
    session = (await open_jay()).user("alice").session("s")
    with pytest.raises(InvalidMessage):
        await session.chat.append(calls("c1"), pinned=True)
    made = await session.chat.append(calls("c1"))
    answered = await session.chat.append(result("c1"))
    for message in (made, answered):
        with pytest.raises(InvalidMessage):
            await session.chat.pin(message.seq)
    for seq in (0, -1, True, "1", 2**63):
        with pytest.raises(InvalidLimit):
            await session.chat.pin(seq)  # type: ignore[arg-type]
    with pytest.raises(InvalidMessage):
        await session.chat.pin(1, pinned=1)  # type: ignore[arg-type]
    with pytest.raises(InvalidMessage):
        await session.chat.append(user("a"), pinned="yes")  # type: ignore[arg-type]
    assert await session.chat.count() == 2
