"""Assembly: raw sources become one prompt that fits a token budget. Pure: no I/O and no clock."""

from scrubjay.assembly.blocks import LeftOut, validate_window
from scrubjay.assembly.layout import Layout
from scrubjay.assembly.policy import DEFAULT_POLICY, AssemblyPolicy, History, Share
from scrubjay.assembly.prefix import Trace
from scrubjay.assembly.receipt import NearMiss, Prefix, Receipt, ReceiptDiff, SectionReceipt, diff
from scrubjay.assembly.sources import Sources
from scrubjay.assembly.tokens import message_tokens, window_tokens
from scrubjay.assembly.usage import Usage
from scrubjay.assembly.window import Assembled, Window, assemble, lay_out

__all__ = [
    "DEFAULT_POLICY",
    "Assembled",
    "AssemblyPolicy",
    "History",
    "Layout",
    "LeftOut",
    "NearMiss",
    "Prefix",
    "Receipt",
    "ReceiptDiff",
    "SectionReceipt",
    "Share",
    "Sources",
    "Trace",
    "Usage",
    "Window",
    "assemble",
    "diff",
    "lay_out",
    "message_tokens",
    "validate_window",
    "window_tokens",
]
