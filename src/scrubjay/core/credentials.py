"""Credentials that change while the process runs: tokens of managed services, passwords that are rotated."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a connection to the cache server logs in with.

    Attributes:
        password: The password, or the token.
        username: The ACL user; None for the default one.
        valid_s: For how many seconds they are good from now on; None for good. Before these have passed new ones are
            asked for, and connections log in with them.
    """

    password: str = field(repr=False)
    username: str | None = None
    valid_s: float | None = None


CredentialProvider = Callable[[], Credentials | Awaitable[Credentials]]
"""Gives the credentials of the moment. It is asked for each connection; a plain function runs in a thread."""
