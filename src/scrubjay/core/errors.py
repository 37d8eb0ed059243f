"""Every error that Scrubjay raises.

The tree::

    ScrubjayError
    ├── InvalidInput                 the caller's argument is wrong; nothing was stored
    │   ├── InvalidId                an identity or a name that cannot be one
    │   ├── InvalidContent           content that is not JSON, or not of the form its kind asks for
    │   │   └── InvalidMessage       a chat message that no provider would take
    │   │       └── ToolResultWithoutCall
    │   ├── TooLarge                 over a size limit
    │   └── InvalidLimit             a negative or oversized limit, budget or TTL
    ├── BudgetTooSmall               the fixed sections alone exceed the token budget
    ├── NotFound                     an update or delete of something that is not there
    ├── VersionConflict              `expected_version` is not the stored version
    ├── ConfigurationError           a setting, URL or file that cannot work
    │   ├── InvalidUrl
    │   ├── MissingDependency        an optional package is not installed
    │   └── SchemaMismatch           the store's schema is not the one this version needs
    ├── Unavailable                  a server did not answer; nothing is known about the data
    │   ├── StoreUnavailable         the system of record cannot be reached
    │   │   ├── StoreCorrupt         the SQLite file is damaged or is no database
    │   │   └── StoreRefused         the database does not take what it was given
    │   ├── LoaderTimeout            a loader of a computed context took too long
    │   ├── JournalUnavailable       acknowledged messages are in a journal that cannot be reached
    │   └── CacheUnavailable         Valkey cannot be reached (never leaves a read or write API)
    │       └── CacheMisconfigured   Valkey answers, and can be no cache until something is changed
    │           └── CacheAuthFailed  Valkey wants a password, or refuses the one given
    └── Closed                       the object was used after it was closed

Each class has a stable `code` for logs, HTTP and exit codes. Foreign errors are mapped to these once, at the seam where
they enter, and kept as `__cause__`.
"""

from __future__ import annotations

from typing import ClassVar


class ScrubjayError(Exception):
    """The base of every error that Scrubjay raises."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip().splitlines()[0])

    @property
    def message(self) -> str:
        """What is wrong and what to do about it, in one line."""
        return str(self.args[0])


class InvalidInput(ScrubjayError, ValueError):
    """An argument is wrong; nothing was stored."""

    code = "invalid_input"
    exit_code = 2


class InvalidId(InvalidInput):
    """An identity is 1 to 256 bytes of UTF-8 without control characters."""

    code = "invalid_id"


class InvalidContent(InvalidInput):
    """The content is not JSON."""

    code = "invalid_content"


class InvalidMessage(InvalidContent):
    """The chat message is not valid."""

    code = "invalid_message"


class ToolResultWithoutCall(InvalidMessage):
    """A tool message answers a call that no earlier assistant message of the session made."""

    code = "tool_result_without_call"


class TooLarge(InvalidInput):
    """The content is over its size limit."""

    code = "too_large"


class InvalidLimit(InvalidInput):
    """A limit, budget or TTL is out of range."""

    code = "invalid_limit"


class BudgetTooSmall(ScrubjayError):
    """The fixed sections alone exceed the token budget."""

    code = "budget_too_small"
    exit_code = 2

    def __init__(self, message: str | None = None, *, budget: int = 0, needed: int = 0) -> None:
        super().__init__(message)
        self.budget = budget
        """The budget that was asked for, in tokens."""
        self.needed = needed
        """The smallest budget that holds the fixed sections, in tokens."""


class NotFound(ScrubjayError, LookupError):
    """There is nothing with this id."""

    code = "not_found"
    exit_code = 3


class VersionConflict(ScrubjayError):
    """The stored version is not the expected one; somebody else wrote meanwhile."""

    code = "version_conflict"
    exit_code = 4


class ConfigurationError(ScrubjayError):
    """A setting cannot work."""

    code = "configuration"
    exit_code = 2


class InvalidUrl(ConfigurationError):
    """The URL cannot be understood."""

    code = "invalid_url"


class MissingDependency(ConfigurationError):
    """An optional package is not installed."""

    code = "missing_dependency"


class SchemaMismatch(ConfigurationError):
    """The store's schema is not the one this version needs; run `scrubjay migrate`."""

    code = "schema_mismatch"


class Unavailable(ScrubjayError):
    """A server did not answer."""

    code = "unavailable"
    exit_code = 5


class StoreUnavailable(Unavailable):
    """The store cannot be reached."""

    code = "store_unavailable"


class StoreCorrupt(StoreUnavailable):
    """The SQLite file is damaged or is no database."""

    code = "store_corrupt"


class StoreRefused(StoreUnavailable):
    """The database does not take what it was given: the same would be refused again."""

    code = "store_refused"


class LoaderTimeout(Unavailable):
    """A loader of a computed context took too long."""

    code = "loader_timeout"


class JournalUnavailable(Unavailable):
    """Acknowledged messages or tool outputs of this session are in a journal that cannot be reached."""

    code = "journal_unavailable"


class CacheUnavailable(Unavailable):
    """Valkey cannot be reached."""

    code = "cache_unavailable"


class CacheMisconfigured(CacheUnavailable):
    """Valkey answers, and can be no cache until something is changed."""

    code = "cache_misconfigured"


class CacheAuthFailed(CacheMisconfigured):
    """Valkey wants a password, or refuses the one given."""

    code = "cache_auth_failed"


class Closed(ScrubjayError, RuntimeError):
    """The object was used after it was closed."""

    code = "closed"
