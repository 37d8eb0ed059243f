"""Erasures and invalidations whose caller goes away after the commit: they are told all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.coherence import heard
from tests.coherence.conftest import CONTEXT, Open, Point, Process

CALLS: dict[str, tuple[str, Callable[[Process], Awaitable[Any]]]] = {
    "user.forget": ("erase", lambda process: process.user.forget()),
    "tenant.forget": ("erase", lambda process: process.tenant.forget()),
    "tenant.invalidate": ("tenant_invalidate", lambda process: process.tenant.invalidate()),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("point", ["before", "after"])
async def test_it_goes_on_to_its_end(open_each: Open, name: str, point: Point) -> None:
    own, other, unseen = await open_each(), await open_each(), await open_each(cache="none:")
    await CONTEXT.write(own, 1)
    for process in (own, other):
        assert [await CONTEXT.read(process) for _ in range(2)] == [1, 1]
        await process.quiet()
    if name == "tenant.invalidate":
        # Behind the back of everybody: that is what it is for.
        await CONTEXT.write(unseen, 2)
    commit, call = CALLS[name]
    held = own.faults.hold(commit, point)
    going = asyncio.ensure_future(call(own))
    await held.reached()
    going.cancel()
    with pytest.raises(asyncio.CancelledError):
        await going
    held.open()
    await own.quiet()
    await heard(other.jay)
    wanted = 2 if name == "tenant.invalidate" else None
    for process in (own, other):
        assert [await CONTEXT.read(process) for _ in range(2)] == [wanted] * 2
