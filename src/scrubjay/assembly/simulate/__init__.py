"""What strategies of assembly cost at a provider, whose prompt cache is simulated. Pure."""

from scrubjay.assembly.simulate.cache import Charge, PromptCache, Segment
from scrubjay.assembly.simulate.compare import STRATEGIES, Comparison, Setting, Spent, said_by

__all__ = ["STRATEGIES", "Charge", "Comparison", "PromptCache", "Segment", "Setting", "Spent", "said_by"]
