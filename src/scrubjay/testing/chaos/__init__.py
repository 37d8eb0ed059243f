"""Chaos: real processes read and write while servers are killed and networks fail, and every read is judged.

`Plan` says what is to happen, `conduct` lets it happen, and the `Outcome` says what was found. The command is
`scrubjay chaos`; docs/chaos.md explains it.
"""

from __future__ import annotations

from scrubjay.testing.chaos.director import conduct
from scrubjay.testing.chaos.guards import GUARDS
from scrubjay.testing.chaos.plan import Plan
from scrubjay.testing.chaos.report import Outcome

__all__ = ["GUARDS", "Outcome", "Plan", "conduct"]
