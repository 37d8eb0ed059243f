"""What is known of the user, as named lines: to pin it, and to tell later what has changed. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from operator import is_
from typing import Final, NamedTuple

import orjson

from scrubjay.assembly.fit import Fitting, digest_of
from scrubjay.assembly.layout import Layout
from scrubjay.assembly.render import Draft, user_draft
from scrubjay.assembly.sources import Sources
from scrubjay.core.records import ContextRecord, Fields

Update = tuple[str, str]
"""The name of something that is known of the user, and its line."""
_PROFILE: Final = "profile "


class Known(NamedTuple):
    """What is known of the user.

    Attributes:
        draft: The section to be pinned.
        lines: All lines by name: of facts by key, of records by type and id.
        digests: Their digests.
        fittings: The section as it is made to fit, by what counts and the tokens around a message: a few texts more,
            which the size of what process memory holds does not count.
    """

    draft: Draft
    lines: Mapping[str, str]
    digests: Mapping[str, str]
    fittings: dict[tuple[str, int], Fitting]


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
    return tuple(zip(_record_names(kept), user_draft(kept, {}).listings[0].lines, strict=True))


def kind_of(name: str) -> str | None:
    """Return the context type that something is of, by its name; None for a fact."""
    return str(orjson.loads(name[len(_PROFILE) :])[0]) if name.startswith(_PROFILE) else None


def _made(sources: Sources) -> Known:
    profile = sources.profile
    if sources.sensitive:
        profile = {kind: records for kind, records in profile.items() if kind not in sources.sensitive}
    draft = user_draft(profile, sources.memory)
    records, facts = draft.listings
    lines = dict(zip(_record_names(profile), records.lines, strict=True))
    lines |= {f"memory {name}": line for name, line in zip(facts.names, facts.lines, strict=True)}
    known = Known(draft, lines, {name: digest_of(line) for name, line in lines.items()}, {})
    _keep(sources, known, None, _NO_CHANGE)
    return known


def _record_names(profile: Mapping[str, Sequence[ContextRecord]]) -> list[str]:
    """Return names of records in the order of their section. One that took another's place has another name."""
    return [
        _PROFILE + orjson.dumps([kind, record.get("id")]).decode()
        for kind in sorted(profile)
        for record in profile[kind]
    ]


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
    sensitive = sources.sensitive
    if not sensitive:
        return (sensitive, *chain.from_iterable(sources.profile.items()))
    # Nothing of what is sensitive is kept, and nothing here is made of it.
    return (sensitive, *chain.from_iterable([pair for pair in sources.profile.items() if pair[0] not in sensitive]))
