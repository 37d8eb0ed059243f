"""Assembly: raw sources become one prompt that fits a token budget. Pure: no I/O and no clock."""

from scrubjay.assembly.blocks import LeftOut, validate_window
from scrubjay.assembly.budget import Shares
from scrubjay.assembly.receipt import Receipt, SectionReceipt
from scrubjay.assembly.sources import Sources
from scrubjay.assembly.tokens import message_tokens, window_tokens
from scrubjay.assembly.window import Window, assemble

__all__ = [
    "LeftOut",
    "Receipt",
    "SectionReceipt",
    "Shares",
    "Sources",
    "Window",
    "assemble",
    "message_tokens",
    "validate_window",
    "window_tokens",
]
