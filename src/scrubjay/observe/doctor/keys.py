"""Checks of what stands in a server, by a sample of its keys. No key is named: names hold ids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from scrubjay.core.facts import BIG_BYTES, FOREIGN, INTERNAL, KeySample, ServerFacts
from scrubjay.core.keys import Kind
from scrubjay.core.policy import MIB, Policies
from scrubjay.core.words import counted, word
from scrubjay.observe.doctor.findings import Elsewhere, Facts, Found, Severity, Unasked, rule
from scrubjay.observe.doctor.types import policy_line

HUGE_BYTES: Final = MIB
"""Above this a value holds everybody up, in bytes."""
MANY_FOREIGN: Final = 0.1
"""From which part of the keys on others' matter."""
MOST_KINDS: Final = 50
"""The most kinds that one check tells of: types are named by the application."""
LASTING: Final = frozenset(str(kind) for kind in Kind if kind is not Kind.CONTEXT and not Policies().ttl_ms(kind))
"""The kinds that have no time to live, by design."""
_LIMITS: Final = {
    "chat": "limits.hot_bytes and limits.hot_messages: how much of a chat is cached",
    "tool": "limits.tool_output_bytes; or give the tool's output a summary",
    "tools": "limits.hot_tools and limits.tool_preview_bytes",
    "state": "limits.field_bytes and limits.state_fields",
    "memory": "limits.field_bytes and limits.memory_fields",
}


@rule("keys.big", "node", "no value is so large that all others wait for it")
def big(node: ServerFacts, _: Facts) -> Iterable[Found]:
    """Find large values."""
    sample = _sample(node)
    if sample.keys and sample.unsized == sample.keys:
        raise Unasked(node.refused.get("memory|usage", "no key's memory was told"))
    for kind, found in sorted(sample.kinds.items())[:MOST_KINDS]:
        if found.biggest <= BIG_BYTES:
            continue
        yield Found(
            Severity.WARNING if found.biggest > HUGE_BYTES else Severity.ADVICE,
            f"{found.over:,} of {counted(sample.keys, 'sampled key')} ({kind}) {word(found.over, 'takes', 'take')} "
            f"more than {BIG_BYTES // 1024} KiB, the largest {found.biggest / MIB:,.1f} MiB: all others wait while one "
            "is read or freed",
            (
                _limit(kind),
                "valkey-cli --memkeys (redis-cli) lists the largest by name",
            ),
            {"kind": kind, "over": found.over, "biggest_bytes": found.biggest, "sampled": sample.keys},
        )


@rule("keys.no_ttl", "node", "what should expire has a time to live")
def no_ttl(node: ServerFacts, _: Facts) -> Iterable[Found]:
    """Find keys of ours that will never expire, and should."""
    sample = _sample(node)
    if sample.keys and sample.undated == sample.keys:
        raise Unasked(node.refused.get("pttl", "no key's time to live was told"))
    for kind, found in sorted(sample.kinds.items())[:MOST_KINDS]:
        if not found.lasting or kind in LASTING or kind in {FOREIGN, INTERNAL}:
            continue
        yield Found(
            Severity.WARNING,
            f"{found.lasting:,} of {counted(found.keys, 'sampled key')} ({kind}) {word(found.lasting, 'has', 'have')} "
            "no time to live: something other than the library writes without one, or takes it away (PERSIST), and "
            "such a key stays until it is evicted",
            (
                "find out what else writes under the prefix, and take its right away",
                "then `tenant.invalidate()` (or UNLINK) and let them be filled anew",
            ),
            {"kind": kind, "without_ttl": found.lasting, "sampled": found.keys},
        )


@rule("keys.foreign", "node", "the server is not shared with much else")
def foreign(node: ServerFacts, _: Facts) -> Iterable[Found]:
    """Find others' keys."""
    sample = _sample(node)
    others = sample.kinds.get(FOREIGN)
    if others is None or not sample.keys or others.keys < MANY_FOREIGN * sample.keys:
        return
    share = others.keys / sample.keys
    yield Found(
        Severity.ADVICE,
        f"{share:.0%} of the keys are not the library's: they take its memory, and eviction takes whichever was used "
        "least, theirs or ours",
        (
            "give the cache a server of its own (`scrubjay conf single`); or, if theirs must stay: volatile-lru and "
            "times to live for what may go",
        ),
        {"share": round(share, 3), "sampled": sample.keys, "without_ttl": others.lasting, "bytes": others.bytes},
    )


def _sample(node: ServerFacts) -> KeySample:
    if not node.primary:
        raise Elsewhere
    if node.sample is None:
        raise Unasked(node.refused.get("scan", "no keys were sampled (--sample 0)"))
    return node.sample


def _limit(kind: str) -> str:
    name, _, type_ = kind.partition(".")
    if type_:
        return f"{policy_line(kind, 'max_cached_bytes', BIG_BYTES)}: what is larger is read from the store"
    text = _LIMITS.get(name)
    return f"in Scrubjay: {text}" if text else "find out who writes it, and keep it elsewhere"
