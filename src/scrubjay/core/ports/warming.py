"""The part of the store's port that warms caches: what many users have, read at once, and who is about to come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from scrubjay.core.ports.shapes import Load, Loaded
from scrubjay.core.scope import Scope


@dataclass(frozen=True, slots=True)
class NewestSession:
    """The session that a user used last.

    Attributes:
        user: The user.
        session: The session.
        messages: How many messages its chat has, at most.
    """

    user: str
    session: str
    messages: int


class WarmStore(Protocol):
    """Reads of a whole tenant, bounded by what is asked for; each is one transaction."""

    async def load_many(self, scope: Scope, loads: Sequence[Load]) -> list[Loaded]:
        """Load things of any number of users of one tenant: exactly what `load` gives for each.

        It takes one statement for each kind, for contexts one for each type, so each thing has its head's version as of
        that statement. Different limits of one kind are different statements.

        Args:
            scope: The tenant.
            loads: What; of this tenant, its shared things too. Summaries by `recent`, no single tool outputs, no
                metrics: a user has any number of these, and none is needed first.

        Raises:
            InvalidInput: A load is of another tenant, or of a kind that is not read so.
            StoreUnavailable: The store cannot be reached.
        """
        ...

    async def newest_sessions(self, scope: Scope, users: Sequence[str], since_ms: int) -> list[NewestSession]:
        """Return the session that each of some users used last, in the users' order; those without one are left out.

        Args:
            scope: The tenant.
            users: The users.
            since_ms: Since when it must have been used, in milliseconds since the Unix epoch.
        """
        ...

    async def users_since(self, scope: Scope, since_ms: int, after: str, limit: int) -> list[str]:
        """Return users who have used a session since a time, in the order of their ids.

        Args:
            scope: The tenant.
            since_ms: The time, in milliseconds since the Unix epoch.
            after: Only ids above this one; empty for all.
            limit: The most users.
        """
        ...

    async def users_seen(self, scope: Scope, hours: Sequence[int], after: str, limit: int) -> list[str]:
        """Return users who were seen in certain hours, in the order of their ids.

        Of each user and hour of the week (168, UTC) the last time counts: who was seen in the same hour of a later week
        is not found by an earlier one.

        Args:
            scope: The tenant.
            hours: The beginnings of the hours, in milliseconds since the Unix epoch.
            after: Only ids above this one; empty for all.
            limit: The most users.
        """
        ...

    async def hours_seen(self, scope: Scope, since_ms: int) -> dict[int, int]:
        """Return how many users were seen in each hour since a time; see `users_seen` for which hour counts.

        Args:
            scope: The tenant.
            since_ms: The time, in milliseconds since the Unix epoch.

        Returns:
            The users by the beginning of the hour, in milliseconds since the Unix epoch.
        """
        ...
