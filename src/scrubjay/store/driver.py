"""What a driver does: run a query as one transaction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

from scrubjay.core.errors import ConfigurationError
from scrubjay.core.scope import Scope
from scrubjay.store.sql import Query

T = TypeVar("T")
WRITTEN_BEHIND = (
    "this session is written behind, and its journal is not open here: open this process with the same `journal` and"
    " `writes`, or run `scrubjay flush` where these are set"
)
# Rows that a write has not committed yet are invisible to an erasure, and would stay: so an erasure waits for the
# writes of its tenant that are under way, and they for it (PostgreSQL; on SQLite one writes at a time).
LOCK = "pg_advisory_xact_lock_shared(hashtextextended(:tenant, 7260831122))"
LOCK_ALONE = "pg_advisory_xact_lock(hashtextextended(:tenant, 7260831122))"


@dataclass(frozen=True, slots=True)
class Access:
    """As whom a transaction runs.

    Attributes:
        scope: The owner whose rows it may touch; None only for a worker.
        role: `app` sees one scope; `worker` (relay, sweeper, operator's counts) sees all.
        read_only: Whether it only reads.
        whole_tenant: Whether it may touch all users of its scope's tenant.
        alone: Whether no other write of its tenant may run beside it (an erasure: what is being written must not stay).
    """

    scope: Scope | None
    role: Literal["app", "worker"] = "app"
    read_only: bool = False
    whole_tenant: bool = False
    alone: bool = False


class Driver(ABC):
    """Runs queries on one engine."""

    engine: ClassVar[Literal["postgresql", "sqlite"]]

    @abstractmethod
    async def run(self, query: Callable[[], Query[T]], access: Access) -> T:
        """Run a query as one transaction and return its result; an error rolls it back.

        Args:
            query: Makes the generator, in the thread that runs it; called again if a read is run again.
            access: As whom.

        Raises:
            StoreUnavailable: The engine does not answer in time, or refuses.
        """

    @property
    def transaction(self) -> str | None:
        """What names the transaction that `run` has written in, where that is somebody else's; otherwise None."""
        return None

    async def is_open(self, transaction: str) -> bool:  # noqa: ARG002
        """Return whether a transaction that a joined driver has named may still be committed.

        Raises:
            StoreUnavailable: The engine does not answer.
        """
        raise ConfigurationError("whether a joined transaction has ended is asked outside of it")

    async def listen(self, heard: Callable[[], None]) -> bool:  # noqa: ARG002
        """Call `heard` at once, and whenever something was captured, until that is removed; False if nobody says so.

        Raises:
            StoreUnavailable: The connection could not be made, or was lost.
        """
        return False

    @abstractmethod
    async def close(self) -> None:
        """Release all connections."""
