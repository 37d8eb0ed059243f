"""A window's messages as providers want them. Pure: the same messages give the same bytes."""

from scrubjay.assembly.formats.anthropic import to_anthropic, validate_anthropic
from scrubjay.assembly.formats.openai import to_openai

__all__ = ["to_anthropic", "to_openai", "validate_anthropic"]
