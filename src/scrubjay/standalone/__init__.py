"""The building blocks alone: a context cache, and cache-aside over a store of the application's own."""

from scrubjay.standalone.cache import ContextCache
from scrubjay.standalone.hook import Hook
from scrubjay.standalone.store import CachedContextStore, ContextStore

__all__ = ["CachedContextStore", "ContextCache", "ContextStore", "Hook"]
