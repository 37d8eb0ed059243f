"""The lives of a store: what is cached under one is never believed under another."""

from __future__ import annotations

from collections.abc import Mapping

from scrubjay.core.codec import WIRE_VERSION


class Lives:
    """By tenant: the store's incarnation, and the tenant's epoch once the tenant has been invalidated as a whole.

    Epochs are random and compared by equality, never by order.

    Args:
        incarnation: The id of the store's life.
    """

    __slots__ = ("_incarnation", "_lives", "_prefix", "_prefixes", "_taken", "epochs", "moment")

    def __init__(self, incarnation: str) -> None:
        self._incarnation = incarnation
        self._lives: dict[str, str] = {}
        self._prefix = _prefix(incarnation)
        self._prefixes: dict[str, bytes] = {}
        self.epochs: dict[str, str] = {}
        """Epochs by tenant; a tenant without one has never been invalidated."""
        self.moment = 0
        """How many epochs have been taken. Whoever asks for epochs notes it first, and gives it to `learn`."""
        self._taken: dict[str, int] = {}

    def of(self, tenant: str) -> str:
        """Return the life under which a tenant's entries are written and believed now."""
        return self._lives.get(tenant, self._incarnation)

    def prefix(self, tenant: str) -> bytes:
        """Return what the headers of a tenant's entries begin with, as far as the generation."""
        return self._prefixes.get(tenant, self._prefix)

    def learn(self, epochs: Mapping[str, str], since: int | None = None) -> list[str]:
        """Take epochs as the store has them; return the tenants whose epoch has changed.

        Args:
            epochs: The epochs by tenant.
            since: The `moment` before the store was asked: an epoch that was taken later may be newer than the answer,
                and stays. None for what is known to be new.
        """
        changed = [tenant for tenant in self._differing(epochs) if since is None or not self._later(tenant, since)]
        for tenant in changed:
            self.moment += 1
            self._taken[tenant] = self.moment
            self.epochs[tenant] = epochs[tenant]
            life = self._lives[tenant] = f"{self._incarnation}-{epochs[tenant]}"
            self._prefixes[tenant] = _prefix(life)
        return changed

    def doubtful(self, epochs: Mapping[str, str], since: int) -> bool:
        """Return whether an answer differs from an epoch that was taken after a moment: then it is asked for again."""
        return any(self._later(tenant, since) for tenant in self._differing(epochs))

    def _differing(self, epochs: Mapping[str, str]) -> list[str]:
        return [tenant for tenant, epoch in epochs.items() if self.epochs.get(tenant) != epoch]

    def _later(self, tenant: str, moment: int) -> bool:
        return self._taken.get(tenant, 0) > moment


def _prefix(life: str) -> bytes:
    return f"{WIRE_VERSION};{life};".encode()
