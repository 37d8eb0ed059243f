"""How far a warm-up has come, in a small file: one that was stopped, or killed, goes on from there."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import orjson

from scrubjay.cli.directory import write_private

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Place:
    """How far it has come.

    Attributes:
        users: How many users are done.
        last: The id of the last of them; None before the first one.
    """

    users: int = 0
    last: str | None = None


class State:
    """The file of one warm-up, named after what is warmed.

    Args:
        directory: Where it is kept.
        what: What is warmed: with anything else it does not go on.
    """

    def __init__(self, directory: Path, what: Mapping[str, Any]) -> None:
        self._what = orjson.loads(orjson.dumps(dict(what), option=orjson.OPT_SORT_KEYS))
        digest = hashlib.blake2b(orjson.dumps(self._what, option=orjson.OPT_SORT_KEYS), digest_size=8).hexdigest()
        self.path = directory / f"warm-{digest}.json"
        self._writes = True

    def read(self) -> Place | None:
        """Return how far it has come; None if nothing is noted."""
        try:
            found = orjson.loads(self.path.read_bytes())
        except (OSError, ValueError):
            return None
        if not isinstance(found, dict) or found.get("version") != _VERSION or found.get("what") != self._what:
            return None
        users, last = found.get("users"), found.get("last")
        if type(users) is not int or users < 0 or not isinstance(last, str | None):
            return None
        return Place(users, last)

    def write(self, place: Place) -> None:
        """Note how far it has come; where that cannot be done, it is said once."""
        if not self._writes:
            return
        raw = orjson.dumps(
            {"version": _VERSION, "what": self._what, "users": place.users, "last": place.last},
            option=orjson.OPT_APPEND_NEWLINE,
        )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_private(self.path, raw)
        except OSError as error:
            self._writes = False
            click.echo(f"warning: how far it is cannot be noted: {self.path}: {error.strerror or error}", err=True)

    def remove(self) -> None:
        """Forget it: everybody is done."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
