"""What is known of the user, as named lines: to pin it, and to tell later what has changed. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from operator import is_
from typing import NamedTuple

from scrubjay.assembly.fit import digest_of
from scrubjay.assembly.layout import Layout
from scrubjay.assembly.render import Draft, Listing, user_draft
from scrubjay.assembly.sources import Sources
from scrubjay.core.records import Fields

Update = tuple[str, str]
"""The name of something that is known of the user, and its line."""


class Known(NamedTuple):
    """What is known of the user.

    Attributes:
        draft: The section to be pinned.
        lines: All lines by name; of a type with several records, together.
        digests: Their digests.
    """

    draft: Draft
    lines: Mapping[str, str]
    digests: Mapping[str, str]


class Change(NamedTuple):
    """What has become of what a layout has pinned.

    Attributes:
        updates: What was set or has changed since, in order of names.
        gone: The names of what is there no more, or must not be pinned any more.
    """

    updates: tuple[Update, ...]
    gone: tuple[str, ...]


class _Derived(NamedTuple):
    """What is kept beside facts: from which contexts it was made, and what was made."""

    made_from: tuple[object, ...]
    known: Known
    layout: Layout | None
    change: Change


_NO_CHANGE = Change((), ())


def known_of(sources: Sources) -> Known:
    """Return what may be pinned of the user: everything that is not sensitive."""
    found = _kept(sources)
    return found.known if found is not None else _made(sources)


def change_since(layout: Layout, sources: Sources) -> Change:
    """Return what has become of what a layout has pinned of the user."""
    found = _kept(sources)
    if found is not None and found.layout is layout:
        return found.change
    known = found.known if found is not None else _made(sources)
    pinned = layout.user.digests
    updates = tuple((name, known.lines[name]) for name, digest in known.digests.items() if pinned.get(name) != digest)
    change = Change(updates, tuple(name for name in pinned if name not in known.digests))
    _keep(sources, known, layout, change)
    return change


def sensitive_lines(sources: Sources) -> tuple[Update, ...]:
    """Return the lines of what must not be pinned."""
    if not sources.sensitive:
        return ()
    kept = {kind: records for kind, records in sources.profile.items() if kind in sources.sensitive}
    return tuple((f"profile {name}", line) for name, line in _lines(user_draft(kept, {}).listings[0]).items())


def _made(sources: Sources) -> Known:
    profile = sources.profile
    if sources.sensitive:
        profile = {kind: records for kind, records in profile.items() if kind not in sources.sensitive}
    draft = user_draft(profile, sources.memory)
    lines: dict[str, str] = {}
    for listing in draft.listings:
        lines |= {f"{listing.source} {name}": line for name, line in _lines(listing).items()}
    known = Known(draft, lines, {name: digest_of(line) for name, line in lines.items()})
    _keep(sources, known, None, _NO_CHANGE)
    return known


def _lines(listing: Listing) -> dict[str, str]:
    lines: dict[str, str] = {}
    for name, line in zip(listing.names, listing.lines, strict=True):
        lines[name] = f"{lines[name]}\n{line}" if name in lines else line
    return lines


# What was made is kept beside the facts that it was made from, which are shared by all who read them: it is gone when
# they are, and an erasure leaves nothing of it.


def _kept(sources: Sources) -> _Derived | None:
    try:
        found: _Derived = sources.memory.derived  # type: ignore[attr-defined]
    except AttributeError:
        return None
    now = _made_from(sources)
    if len(now) != len(found.made_from):
        return None
    # The very same objects: what is equal but another object may have been decoded from other bytes.
    return found if all(map(is_, now, found.made_from)) else None


def _keep(sources: Sources, known: Known, layout: Layout | None, change: Change) -> None:
    if isinstance(sources.memory, Fields):
        sources.memory.derived = _Derived(_made_from(sources), known, layout, change)


def _made_from(sources: Sources) -> tuple[object, ...]:
    return (sources.sensitive, *sources.profile, *sources.profile.values())
