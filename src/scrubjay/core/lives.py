"""The lives of a store: what is cached under one is never believed under another."""

from __future__ import annotations

from collections.abc import Mapping


class Lives:
    """By tenant: the store's incarnation, and the tenant's epoch once the tenant has been invalidated as a whole.

    Epochs are random and compared by equality, never by order.

    Args:
        incarnation: The id of the store's life.
    """

    __slots__ = ("_incarnation", "_lives", "epochs")

    def __init__(self, incarnation: str) -> None:
        self._incarnation = incarnation
        self._lives: dict[str, str] = {}
        self.epochs: dict[str, str] = {}
        """Epochs by tenant; a tenant without one has never been invalidated."""

    def of(self, tenant: str) -> str:
        """Return the life under which a tenant's entries are written and believed now."""
        return self._lives.get(tenant, self._incarnation)

    def learn(self, epochs: Mapping[str, str]) -> list[str]:
        """Take epochs as the store has them; return the tenants whose epoch has changed."""
        changed = [tenant for tenant, epoch in epochs.items() if self.epochs.get(tenant) != epoch]
        for tenant in changed:
            self.epochs[tenant] = epochs[tenant]
            self._lives[tenant] = f"{self._incarnation}-{epochs[tenant]}"
        return changed
