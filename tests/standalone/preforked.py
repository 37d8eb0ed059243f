"""A program like a web server that loads the application before it forks: its cache is a global.

Arguments: the server's URL, the prefix, and whether the parent used the cache before. Prints `ok` lines.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import traceback
from collections.abc import Coroutine
from typing import NoReturn

from scrubjay import CachedContextStore, ContextCache

URL, PREFIX, USED = sys.argv[1], sys.argv[2], sys.argv[3] == "used"
CACHE = ContextCache(URL, prefix=PREFIX, timeout=5)


async def before() -> None:
    await CACHE.set("alice", "profile", ["parent"])
    assert await CACHE.get("alice", "profile") == ["parent"]
    if not USED:
        await CACHE.close()


class Sibling:
    """One child, which goes on when the other one says so."""

    def __init__(self, pipe: socket.socket) -> None:
        self.pipe = pipe

    async def says(self) -> None:
        self.pipe.sendall(b".")

    async def waits(self) -> None:
        assert await asyncio.to_thread(self.pipe.recv, 1) == b".", "the other child has failed: see above"


async def sees(expected: object) -> None:
    for _ in range(1000):
        found = await CACHE.get("alice", "profile")
        if found == expected:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{found!r} is not {expected!r}")


async def reader(sibling: Sibling) -> None:
    async with CACHE:
        assert CACHE.local_hits == 0, "its memory is its own"
        # Each process that meets a server without a mark clears it: the second one, what the first had set.
        await sibling.waits()
        assert await CACHE.set("alice", "profile", [1])
        assert await CACHE.get("alice", "profile") == [1]
        assert await CACHE.get("alice", "profile") == [1]
        assert CACHE.local_hits > 0
        await sibling.says()
        await sibling.waits()
        await sees([2])
        assert await CACHE.set("alice", "profile", [3])
        await sibling.says()
        await sibling.waits()


async def writer(sibling: Sibling) -> None:
    async with CACHE:
        await sibling.says()
        await sibling.waits()
        assert await CACHE.get("alice", "profile") == [1]
        assert await CACHE.set("alice", "profile", [2])
        assert await CACHE.get("alice", "profile") == [2]
        await sibling.says()
        await sibling.waits()
        await sees([3])
        # The lines of two processes with one id would wake each other, and take each other's heartbeats.
        assert CACHE._engine.hot._own.rpartition(":")[2] != PARENT
        assert await CachedContextStore(Rows(), CACHE).get_by_user("bob", "profile") == ["row"]
        await sibling.says()


class Rows:
    def get_by_user(self, user_id: str, context_type: str, limit: int) -> list[str]:
        return ["row"]

    def create(self, user_id: str, context_type: str, content: object) -> None:
        raise NotImplementedError


PARENT = ""


def main() -> None:
    global PARENT  # noqa: PLW0603
    PARENT = CACHE._engine.hot._own.rpartition(":")[2]
    if USED:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(before())
    ends = socket.socketpair()
    children = []
    for play, mine, others in ((reader, *ends), (writer, *reversed(ends))):
        child = os.fork()
        if not child:
            others.close()  # so that a child that fails is noticed by the other, and none waits for ever
            run(play(Sibling(mine)))
        children.append(child)
    for end in ends:
        end.close()
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0, 0], codes
    if USED:
        assert loop.run_until_complete(CACHE.get("alice", "profile")) in ([3], ["parent"])
        loop.run_until_complete(parent_hears())
        loop.run_until_complete(CACHE.close())
        loop.close()
    print("ok")


def run(play: Coroutine[None, None, None]) -> NoReturn:
    code = 1
    try:
        asyncio.run(play)
        code = 0
    finally:
        if code:
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(code)


async def parent_hears() -> None:
    """Say that the parent's connections are whole, and hear what the children said."""
    await sees([3])
    assert await CACHE.set("alice", "profile", [4])
    assert await CACHE.get("alice", "profile") == [4]


if __name__ == "__main__":
    main()
