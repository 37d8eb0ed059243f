"""Who is to be warmed, as a file says it: a user a line."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import BinaryIO

import orjson

from scrubjay.cli.read_ahead import read_ahead
from scrubjay.cli.shell import Failure
from scrubjay.core.errors import InvalidInput
from scrubjay.core.scope import user_scope

STDIN = "-"
MAX_LINE_BYTES = 8_192
_BLOCK = 500
_AHEAD = 4
_BOM = b"\xef\xbb\xbf"


class UserFile:
    """A file of users, or stdin: ids, or JSON objects with `user` and, where it is another one, `tenant`.

    Args:
        name: Its path; `-` for stdin.
        tenant: The tenant of users for whom none is named.
        skip: How many users to pass over.
    """

    def __init__(self, name: str, tenant: str, skip: int = 0) -> None:
        self._name = name
        self._tenant = tenant
        self._skip = skip

    def check(self) -> None:
        """Raise `Failure` unless it can be read."""
        try:
            if self._name != STDIN:
                Path(self._name).open("rb").close()
        except OSError as error:
            raise Failure(f"{self._name}: {error.strerror or error}", "input", 2) from None

    def total(self) -> int | None:
        """Return how many users there are, without those that are passed over; None where that is not to be known."""
        if self._name == STDIN or not stat.S_ISREG(os.stat(self._name).st_mode):  # noqa: PTH116 - the path as given
            return None
        with Path(self._name).open("rb") as file:
            return max(0, sum(1 for line in file if line.strip()) - self._skip)

    async def users(self) -> AsyncIterator[tuple[str, str]]:
        """Yield tenants and users, in the order of the file.

        Raises:
            InvalidInput: A line names no user; the message says which.
        """
        async with aclosing(read_ahead(self._blocks, _AHEAD)) as blocks:
            async for block in blocks:
                for user in block:
                    yield user

    def _blocks(self) -> Iterator[list[tuple[str, str]]]:
        """Yield users, some at a time: from a pipe as they come."""
        block: list[tuple[str, str]] = []
        with ExitStack() as stack:
            file = sys.stdin.buffer if self._name == STDIN else stack.enter_context(Path(self._name).open("rb"))
            for user in self._read(file):
                block.append(user)
                if len(block) == _BLOCK:
                    yield block
                    block = []
        yield block

    def _read(self, file: BinaryIO) -> Iterator[tuple[str, str]]:
        left = self._skip
        for number, line in enumerate(_lines(file), 1):
            raw = line.removeprefix(_BOM) if number == 1 else line
            raw = raw.rstrip(b"\r\n")
            if not raw.strip():
                continue
            try:
                scope = user_scope(*self._parsed(raw))
            except (InvalidInput, UnicodeDecodeError) as error:
                why = error.message if isinstance(error, InvalidInput) else "it is not UTF-8"
                raise InvalidInput(f"{self._name}:{number}: {why}") from error
            if left:
                left -= 1
            else:
                yield scope.tenant, scope.user

    def _parsed(self, raw: bytes) -> tuple[object, object]:
        if len(raw) > MAX_LINE_BYTES:
            raise InvalidInput("the line is too long to name a user")
        if raw.startswith(b"{"):
            try:
                found = orjson.loads(raw)
            except ValueError:
                # An id may look as it likes.
                return self._tenant, raw.decode()
            if isinstance(found, dict) and "user" in found:
                return found.get("tenant", self._tenant), found["user"]
        return self._tenant, raw.decode()


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield lines, none of them much longer than one may be."""
    while line := file.readline(MAX_LINE_BYTES + 2):
        yield line
        if not line.endswith(b"\n") and len(line) > MAX_LINE_BYTES:
            return
