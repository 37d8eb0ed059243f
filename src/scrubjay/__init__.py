"""The context layer between an LLM application and its data."""

from scrubjay.app import AsyncScrubjay
from scrubjay.assembly import AssemblyPolicy, History, Receipt, ReceiptDiff, Share, Window
from scrubjay.assembly import diff as diff_receipts
from scrubjay.assembly.usage import Usage
from scrubjay.core.credentials import CredentialProvider, Credentials
from scrubjay.core.errors import (
    BudgetTooSmall,
    CacheAuthFailed,
    CacheMisconfigured,
    CacheUnavailable,
    Closed,
    ConfigurationError,
    InvalidContent,
    InvalidId,
    InvalidInput,
    InvalidLimit,
    InvalidMessage,
    InvalidUrl,
    JournalUnavailable,
    LoaderTimeout,
    MissingDependency,
    NotFound,
    SchemaMismatch,
    ScrubjayError,
    StoreCorrupt,
    StoreRefused,
    StoreUnavailable,
    TooLarge,
    ToolResultWithoutCall,
    Unavailable,
    VersionConflict,
)
from scrubjay.core.policy import ContextPolicy
from scrubjay.core.records import AgentConfig, ContextRecord, Message, Summary, ToolOutput
from scrubjay.standalone import CachedContextStore, ContextCache, ContextStore
from scrubjay.sync import Scrubjay

__version__ = "0.1.0"

__all__ = [
    "AgentConfig",
    "AssemblyPolicy",
    "AsyncScrubjay",
    "BudgetTooSmall",
    "CacheAuthFailed",
    "CacheMisconfigured",
    "CacheUnavailable",
    "CachedContextStore",
    "Closed",
    "ConfigurationError",
    "ContextCache",
    "ContextPolicy",
    "ContextRecord",
    "ContextStore",
    "CredentialProvider",
    "Credentials",
    "History",
    "InvalidContent",
    "InvalidId",
    "InvalidInput",
    "InvalidLimit",
    "InvalidMessage",
    "InvalidUrl",
    "JournalUnavailable",
    "LoaderTimeout",
    "Message",
    "MissingDependency",
    "NotFound",
    "Receipt",
    "ReceiptDiff",
    "SchemaMismatch",
    "Scrubjay",
    "ScrubjayError",
    "Share",
    "StoreCorrupt",
    "StoreRefused",
    "StoreUnavailable",
    "Summary",
    "TooLarge",
    "ToolOutput",
    "ToolResultWithoutCall",
    "Unavailable",
    "Usage",
    "VersionConflict",
    "Window",
    "__version__",
    "diff_receipts",
]
