"""How much more memory a server needs that evicts."""

from __future__ import annotations

from typing import Final

from scrubjay.core.policy import MIB, MINUTE

USUAL_TTL_MS: Final = 30 * MINUTE
"""How long an entry would have lived on, where the server does not say."""
MOST: Final = 10
"""Never more than so many times what there is: beyond that the estimate means nothing."""


def more_bytes(evicted_per_s: float, used: float, keys: float, left_ms: float, limit: float) -> int:
    """Return how many bytes more would have kept what is evicted until it expires, in whole MiB.

    An entry of mean size that is evicted would have stayed for the mean time that entries have left to live, so at a
    steady pace `evicted_per_s x left` of them would stand there besides (Little's law: the number present is the rate
    of arrival times the stay).

    Args:
        evicted_per_s: Evictions per second.
        used: The memory of all entries, in bytes.
        keys: How many there are.
        left_ms: The mean time that they have left to live, in milliseconds; 0 if the server does not say.
        limit: The memory that it may use, in bytes.

    Returns:
        At least a tenth of the limit, at most `MOST` times it.
    """
    entry = used / keys if keys > 0 else 0.0
    wanted = evicted_per_s * entry * (left_ms or USUAL_TTL_MS) / 1000
    bounded = min(max(wanted, limit / 10, MIB), max(MOST * limit, MIB))
    return round(-(-bounded // MIB)) * MIB
