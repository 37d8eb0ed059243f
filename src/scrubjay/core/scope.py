"""Identities and the scope that owns every datum."""

from __future__ import annotations

import re
from dataclasses import dataclass

from scrubjay.core.errors import InvalidId

MAX_ID_BYTES = 256
MAX_STEP = 2**31 - 1

# The control characters of Unicode (category Cc): C0, DEL and C1.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def check_id(value: object, what: str = "id") -> str:
    """Return `value` if it can be an identity or a name.

    Ids are data: any Unicode text of 1 to 256 bytes (UTF-8) without control characters. No normalisation happens, so
    two ids that differ only by normalisation are two ids.

    Args:
        value: The candidate.
        what: What it is called in the error ("user id", "context type", …).

    Raises:
        InvalidId: It is not text, is empty, too long, holds a control character or a lone surrogate.
    """
    if not isinstance(value, str):
        raise InvalidId(f"{what} must be text, not {type(value).__name__}")
    if not value:
        raise InvalidId(f"{what} is empty; give 1 to {MAX_ID_BYTES} bytes of text")
    if _CONTROL.search(value):
        raise InvalidId(f"{what} holds a control character, which ids cannot: {value[:64]!r}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidId(f"{what} is not valid Unicode (a lone surrogate): {value[:64]!r}") from None
    if size > MAX_ID_BYTES:
        raise InvalidId(f"{what} is {size} bytes long; the limit is {MAX_ID_BYTES}")
    # A str subclass could change how it compares or formats after the check.
    return value if type(value) is str else str.__str__(value)


def check_step(value: object) -> int:
    """Return `value` if it can be the number of a tool step (0 to 2³¹ - 1).

    Raises:
        InvalidId: It is not a whole number or is out of range.
    """
    if type(value) is not int or not 0 <= value <= MAX_STEP:
        raise InvalidId(f"step must be a whole number from 0 to {MAX_STEP}, not {value!r:.64}")
    return value


@dataclass(frozen=True, slots=True)
class Scope:
    """Who owns a datum: a tenant, or one user of it (`user` is empty for what the tenant shares).

    Use `tenant_scope` and `user_scope` for ids that come from outside: they check.
    """

    tenant: str
    user: str = ""

    @property
    def is_tenant(self) -> bool:
        """Whether the datum belongs to the whole tenant."""
        return not self.user

    def covers(self, other: Scope) -> bool:
        """Return whether what another scope owns is of this one: of the same user, or of the whole tenant."""
        return self == other or (self.is_tenant and self.tenant == other.tenant)


def tenant_scope(tenant: object) -> Scope:
    """Return the scope of a tenant's shared data.

    Raises:
        InvalidId: `tenant` cannot be an identity.
    """
    return Scope(check_id(tenant, "tenant id"))


def user_scope(tenant: object, user: object) -> Scope:
    """Return the scope of one user.

    Raises:
        InvalidId: One of the two cannot be an identity.
    """
    return Scope(check_id(tenant, "tenant id"), check_id(user, "user id"))
