"""Summaries of sessions: rolling, of what is cut from a chat, and the final one. Off the request path.

What is cut is summarised once and in order: a summary says through which message it covers the session, and the next
one goes on from there, or is not kept because somebody else's was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from scrubjay.assembly.layout import decode as decode_layout
from scrubjay.core.codec import to_json
from scrubjay.core.ports import Covered, Job
from scrubjay.core.records import Message
from scrubjay.core.scope import Scope
from scrubjay.memory import decode, layouts
from scrubjay.memory.services import Services

ROLLING_TOKENS: Final = 300
"""How long the rolling summary of a session may be."""
FINAL_TOKENS: Final = 200
"""How long the summary of a closed session may be."""
CHUNK: Final = 500
"""How many messages are summarised at once."""


async def run(services: Services, job: Job) -> None:
    """Do a job: summarise what was cut and is not summarised yet.

    Raises:
        StoreUnavailable: The store cannot be reached.
    """
    scope, session = job.scope, job.name
    while True:
        kept = await layouts.load(services, scope, session)
        cut = await _cut_through(services, scope, session, kept)
        messages = await _between(services, scope, session, kept.through, cut)
        if not messages:
            return
        text = await _summarised(services, messages, kept.summary, ROLLING_TOKENS)
        raw = to_json(text, "summary", max_bytes=services.policies.limits.summary_bytes)
        tokens = services.tokenizer.count(text)
        covers = covered(messages[-1])
        saved = await layouts.save_summary(services, scope, session, raw, tokens, expected=kept.through, covers=covers)
        if not saved and (await layouts.load(services, scope, session)).through == kept.through:
            # The session, or the chat, is gone.
            return


def covered(last: Message) -> Covered:
    """Return what names the last message that a summary covers."""
    return Covered(last.seq, last.id, last.created_at_ms)


async def final_text(services: Services, scope: Scope, session: str, last: int) -> str:
    """Return the summary of a session through a message, made of the rolling one and of what came after it."""
    kept = await layouts.load(services, scope, session)
    text, through = kept.summary, kept.through
    while messages := await _between(services, scope, session, through, last):
        text = await _summarised(services, messages, text, FINAL_TOKENS)
        through = messages[-1].seq
    return text


async def _cut_through(services: Services, scope: Scope, session: str, kept: layouts.Kept) -> int:
    """Return the sequence number through which messages were cut: from windows by a layout, or from the chat."""
    layout = None if kept.body is None else decode_layout(kept.body)
    info = await services.store.session_info(scope, session)
    return max(layout.from_seq if layout else 0, info["first_seq"] if info else 0) - 1


async def _between(services: Services, scope: Scope, session: str, after: int, through: int) -> Sequence[Message]:
    if after >= through:
        return ()
    return [decode.message(raw) for raw in await services.store.messages_range(scope, session, after, through, CHUNK)]


async def _summarised(services: Services, messages: Sequence[Message], previous: str, most: int) -> str:
    text = await services.summarizer.summarize(messages, max_tokens=most, previous=previous or None)
    # There may be nothing to say of these; what was said of those before them stays.
    return text or previous
