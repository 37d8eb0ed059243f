"""What strategies of assembly cost at a provider, whose prompt cache is simulated. Pure."""

from scrubjay.assembly.simulate.cache import Charge, PromptCache, Segment
from scrubjay.assembly.simulate.compare import (
    STRATEGIES,
    Comparison,
    Setting,
    Spent,
    calls,
    read_chat,
    said_by,
)
from scrubjay.assembly.simulate.filler import filler
from scrubjay.assembly.simulate.prompts import Blocks, Kit, Moment, Prompt, Sliding

__all__ = [
    "STRATEGIES",
    "Blocks",
    "Charge",
    "Comparison",
    "Kit",
    "Moment",
    "Prompt",
    "PromptCache",
    "Segment",
    "Setting",
    "Sliding",
    "Spent",
    "calls",
    "filler",
    "read_chat",
    "said_by",
]
