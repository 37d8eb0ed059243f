"""What a preview in a window names can be fetched whole."""

from __future__ import annotations

import re
from typing import Any

import pytest

from scrubjay import InvalidId, Scrubjay
from tests.sessions.conftest import OpenProcess, say, session_of

LONG = "".join(f"line {number}: all is well. " for number in range(600))


def call(id_: str) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [
        {"id": id_, "type": "function", "function": {"name": "look", "arguments": "{}"}}
    ]}  # fmt: skip


async def test_the_handle_in_a_preview_fetches_the_whole(open_process: OpenProcess) -> None:
    one = await open_process()
    session = session_of(one)
    await say(session, 1)
    await session.chat.append(role="user", content="look it up")
    await session.chat.append(call("c1"))
    message = await session.chat.append(role="tool", tool_call_id="c1", name="look", content=LONG)
    await session.chat.append(call("c2"))
    recorded = await session.tools.record(name="look", output=LONG, tool_call_id="c2")
    await session.chat.append(role="tool", tool_call_id="c2", content=LONG, step=recorded.step)
    await session.chat.append(role="assistant", content="all is well")
    await session.chat.append(role="user", content="thanks")
    await session.chat.append(role="assistant", content="not at all")
    await session.chat.append(role="user", content="and now?")
    window = await session.assemble()
    text = str(window.messages)
    assert LONG not in text
    handles = re.findall(r"the whole output: (\w+)\]", text)
    assert handles == [f"message_{message.seq}", f"step_{recorded.step}"]
    whole = await session.tools.get(handles[0])
    assert whole is not None
    assert (whole.step, whole.output, whole["name"], whole["tool_call_id"]) == (None, LONG, "look", "c1")
    assert whole["recorded_at"].endswith("Z")
    assert await session.tools.get(handles[1]) == await session.tools.get(recorded.step or 0)
    assert (await session.tools.get(handles[1]) or {})["output"] == LONG
    # Also when it was cut from the chat.
    await session.chat.prune(1)
    assert await session.tools.get(handles[0]) == whole
    assert await one.user.session("other").tools.get(handles[0]) is None


async def test_there_is_no_such_output(open_process: OpenProcess) -> None:
    one = await open_process()
    session = session_of(one)
    await say(session, 1)
    for handle in (3, "step_3", "message_1", "message_2", "message_99", f"message_{2**53}"):
        assert await session.tools.get(handle) is None


@pytest.mark.parametrize(
    "handle",
    ["", "3", "step", "step_", "step_-1", "step_03", "step_ 3", "step_3\n", "step_٣", "message_0", "message_1.5",
     f"message_{10**30}", f"step_{2**31}", -1, 2**31, True, 1.0, None, b"step_3"],
    ids=repr,
)  # fmt: skip
async def test_what_is_no_handle_is_refused(open_process: OpenProcess, handle: Any) -> None:
    one = await open_process()
    with pytest.raises(InvalidId, match="step"):
        await session_of(one).tools.get(handle)


def test_the_synchronous_twin_takes_handles(tmp_path: Any) -> None:
    with Scrubjay.open(store=f"sqlite:///{tmp_path}/store.db", cache="none:") as jay:
        session = jay.user("alice").session("s")
        step = session.tools.record(output=LONG).step
        found = session.tools.get(f"step_{step}")
        assert found is not None
        assert found.output == LONG
