"""The layout of a session's windows: what their stable beginning is, until the next planned break.

A provider's cache hits as long as a prompt begins with the same bytes. So what stands at the beginning is pinned: the
text of the user's section and of the summaries, and where the history begins. It is the same for all processes, for it
is kept with the session.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, NamedTuple

import orjson

from scrubjay.assembly.fit import Fitted, digest_of, system_message
from scrubjay.assembly.receipt import NearMiss, SectionReceipt
from scrubjay.core.frozen import FrozenDict

_FORM: Final = 1
"""The form in which a layout is written; another one is not read, and the session begins anew."""


class Break(StrEnum):
    """Why a window begins anew."""

    FIRST = "first"
    HISTORY = "history"
    PRUNED = "pruned"
    EXPIRED = "expired"
    DELETED = "deleted"
    REPLACED = "replaced"
    SENSITIVE = "sensitive"
    ROOM = "room"
    PINNED = "pinned"
    TOKENIZER = "tokenizer"


class Pinned(NamedTuple):
    """A section as it was when it was pinned.

    Attributes:
        text: Its text; empty for no message.
        tokens: Its tokens, with the message's overhead.
        sections: What became of each of its sources.
        digests: A digest of each thing that it was made from, by name; also of those that found no room.
        whole: Whether everything found room.
        digest: A digest of the text.
        wire: The message that says it, as a provider takes it; none without a text.
    """

    text: str
    tokens: int
    sections: tuple[SectionReceipt, ...]
    digests: Mapping[str, str]
    whole: bool
    digest: str
    wire: tuple[FrozenDict[str, Any], ...]

    @classmethod
    def of(
        cls, text: str, tokens: int, sections: tuple[SectionReceipt, ...], digests: Mapping[str, str], *, whole: bool
    ) -> Pinned:
        """Return a section with that text."""
        return cls(text, tokens, sections, digests, whole, digest_of(text), system_message(text))


NOTHING: Final = Pinned.of("", 0, (), FrozenDict(), whole=True)


@dataclass(frozen=True, slots=True)
class Layout:
    """What the windows of a session begin with.

    Attributes:
        number: How many planned breaks there have been.
        reason: Why this one was.
        at_ms: When, in milliseconds since the Unix epoch.
        from_seq: The sequence number with which the history begins.
        preview_before: Long tool outputs before this sequence number are shown as previews.
        pins: The sequence numbers of the pinned messages before it, which stand in front of the history.
        user: The section of profile, preferences and facts.
        summaries: The section of summaries.
        rolling_through: The sequence number through which the pinned summary covers this session.
        tokenizer: What counted.
        overhead: The tokens around each message that were counted with it.
        history_room: What the history was given, in tokens. It is cut to less, and grows up to that again.
    """

    number: int
    reason: Break
    at_ms: int
    from_seq: int
    preview_before: int
    pins: tuple[int, ...]
    user: Pinned
    summaries: Pinned
    rolling_through: int
    tokenizer: str
    overhead: int
    history_room: int

    def around(self, overhead: int) -> Layout:
        """Return it with what its sections take where so many tokens are around each message."""
        more = overhead - self.overhead
        if not more:
            return self
        user, summaries = _around(self.user, more), _around(self.summaries, more)
        return replace(self, user=user, summaries=summaries, overhead=overhead)

    def encode(self) -> bytes:
        """Return it as JSON; `decode` is the inverse."""
        return orjson.dumps(
            {
                "form": _FORM,
                "number": self.number,
                "reason": self.reason,
                "at": self.at_ms,
                "from": self.from_seq,
                "preview": self.preview_before,
                "pins": self.pins,
                "user": _encoded(self.user),
                "summaries": _encoded(self.summaries),
                "through": self.rolling_through,
                "tokenizer": self.tokenizer,
                "overhead": self.overhead,
                "room": self.history_room,
            }
        )


def decode(found: Any) -> Layout | None:
    """Return a layout from decoded JSON; None if it is of another form: then the session begins anew."""
    try:
        if found["form"] != _FORM:
            return None
        return Layout(
            number=int(found["number"]),
            reason=Break(found["reason"]),
            at_ms=int(found["at"]),
            from_seq=int(found["from"]),
            preview_before=int(found["preview"]),
            pins=tuple(int(seq) for seq in found["pins"]),
            user=_decoded(found["user"]),
            summaries=_decoded(found["summaries"]),
            rolling_through=int(found["through"]),
            tokenizer=str(found["tokenizer"]),
            overhead=int(found["overhead"]),
            history_room=int(found["room"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def pin(fitted: Fitted, digests: Mapping[str, str]) -> Pinned:
    """Return a section as it is pinned."""
    return Pinned(fitted.text, fitted.tokens, fitted.sections, digests, fitted.whole, fitted.digest, fitted.wire)


def _around(pinned: Pinned, more: int) -> Pinned:
    """Return a section with more tokens around its message; the first source that is shown has them."""
    if not pinned.text:
        return pinned
    first = next(at for at, one in enumerate(pinned.sections) if one.items_in)
    sections = [
        one._replace(tokens=one.tokens + more) if at == first else one for at, one in enumerate(pinned.sections)
    ]
    return pinned._replace(tokens=pinned.tokens + more, sections=tuple(sections))


def _encoded(pinned: Pinned) -> dict[str, Any]:
    return {
        "text": pinned.text,
        "tokens": pinned.tokens,
        "sections": [
            [one.name, one.tokens, one.items_in, dict(one.items_out), [[miss.name, miss.tokens] for miss in one.misses]]
            for one in pinned.sections
        ],
        "digests": dict(pinned.digests),
        "whole": pinned.whole,
    }


def _decoded(found: Mapping[str, Any]) -> Pinned:
    sections = tuple(
        SectionReceipt(
            name, tokens, items_in, FrozenDict(out), tuple(NearMiss(name, miss, cost) for miss, cost in misses)
        )
        for name, tokens, items_in, out, misses in found["sections"]
    )
    text, digests = found["text"], found["digests"]
    if not isinstance(text, str) or not isinstance(digests, dict):
        raise TypeError("not a pinned section")
    return Pinned.of(text, int(found["tokens"]), sections, FrozenDict(digests), whole=bool(found["whole"]))
