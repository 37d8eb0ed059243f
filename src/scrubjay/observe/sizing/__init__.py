"""Estimates of the memory that the cache servers need, and what follows from them. Nothing here does I/O."""

from __future__ import annotations

from scrubjay.observe.sizing.advice import Advice, advise, rule_of_thumb, size_text
from scrubjay.observe.sizing.demand import CONTEXTS, KINDS, Demand, Entry, Maker
from scrubjay.observe.sizing.estimate import GENERATION, Estimate, KeyFacts, TypeEstimate, estimate, facts_of
from scrubjay.observe.sizing.servers import ALLOCATORS, LAYOUTS, ServerModel

__all__ = [
    "ALLOCATORS", "CONTEXTS", "GENERATION", "KINDS", "LAYOUTS", "Advice", "Demand", "Entry", "Estimate", "KeyFacts",
    "Maker", "ServerModel", "TypeEstimate", "advise", "estimate", "facts_of", "rule_of_thumb", "size_text",
]  # fmt: skip
