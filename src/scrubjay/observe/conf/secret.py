"""The passwords of a deployment."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Final, Self

from scrubjay.core.errors import ConfigurationError

MIN_PASSWORD: Final = 16
"""The fewest characters of a password that is given: the servers hash it once, and can be asked very often."""
_MAX_PASSWORD: Final = 512


@dataclass(frozen=True, slots=True)
class Secrets:
    """A password for each user. No `repr` shows them.

    Attributes:
        app: Of the application.
        admin: Of whoever runs the servers.
        monitor: Of what watches them.
        replication: Of replicas at their primary.
        sentinel: Of Sentinels, at the servers and at each other.
    """

    app: str = field(repr=False)
    admin: str = field(repr=False)
    monitor: str = field(repr=False)
    replication: str = field(repr=False)
    sentinel: str = field(repr=False)

    @classmethod
    def new(cls, app: str | None = None) -> Self:
        """Return new random passwords; the application's may be given.

        Raises:
            ConfigurationError: The one that is given is too short, or cannot stand in a file.
        """
        if app is not None and not (MIN_PASSWORD <= len(app) <= _MAX_PASSWORD and app.isprintable()):
            raise ConfigurationError(
                f"the password must be {MIN_PASSWORD} to {_MAX_PASSWORD} characters that can be printed"
            )
        made = [secrets.token_urlsafe(32) for _ in range(5)]
        return cls(made[0] if app is None else app, *made[1:])

    def all(self) -> tuple[str, ...]:
        """Return all of them."""
        return self.app, self.admin, self.monitor, self.replication, self.sentinel


def digest(password: str) -> str:
    """Return a password as an ACL file may hold it: it cannot be logged in with."""
    return hashlib.sha256(password.encode()).hexdigest()
