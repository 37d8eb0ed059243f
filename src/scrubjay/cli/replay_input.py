"""Conversations from JSON Lines: plain or gzip, a file or stdin, a line at a time."""

from __future__ import annotations

import gzip
import io
import os
import stat
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO

import orjson

from scrubjay.core.errors import InvalidContent, InvalidInput, TooLarge
from scrubjay.core.scope import check_id

STDIN = "-"
MAX_LINE_BYTES = 64 * 1024 * 1024
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Conversation:
    """One line of a file.

    Attributes:
        where: `file:line`, for errors.
        tenant: Its tenant; `default` if the line names none.
        user: Its user; made from file and line if the line names none.
        session: Its session; likewise.
        messages: Its messages as they stand there; they are checked when they are appended.
    """

    where: str
    tenant: str
    user: str
    session: str
    messages: list[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no conversation, and why."""

    where: str
    error: InvalidInput


class ConversationFile:
    """A file (or stdin) that is being read.

    Args:
        name: Its path; `-` for stdin.
        ordinal: Its place among the files of a replay, from 1; it goes into ids that are made up.
    """

    def __init__(self, name: str, ordinal: int) -> None:
        self.name = "<stdin>" if name == STDIN else name
        self._path = name
        self._ordinal = ordinal

    def conversations(self) -> Iterator[tuple[Conversation | BadLine, int]]:
        """Yield its conversations in order, each with the bytes read so far (compressed ones); blank lines are none.

        Raises:
            OSError: It cannot be opened or read.
            InvalidContent: It is gzip and damaged.
        """
        with self._open() as raw, ExitStack() as stack:
            stream = stack.enter_context(gzip.GzipFile(fileobj=raw)) if _is_gzip(raw) else raw
            seekable = raw.seekable()
            number = 0
            while True:
                number += 1
                where = f"{self.name}:{number}"
                try:
                    line = stream.readline(MAX_LINE_BYTES + 1)
                    whole = len(line) <= MAX_LINE_BYTES
                    if not whole:
                        _skip_line(stream, line)
                except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                    raise InvalidContent(f"{where}: the gzip data is damaged ({error})") from error
                if not line:
                    return
                text = line.removeprefix(_BOM).strip() if number == 1 else line.strip()
                if text:
                    yield self._parse(text, where, number, whole=whole), raw.tell() if seekable else 0

    def _parse(self, line: bytes, where: str, number: int, *, whole: bool) -> Conversation | BadLine:
        if not whole:
            return BadLine(where, TooLarge(f"a line is at most {MAX_LINE_BYTES:,} bytes"))
        made_up = f"file-{self._ordinal}-line-{number}"
        try:
            record = _record(line)
            return Conversation(
                where,
                _id(record, "tenant", "default"),
                _id(record, "user", made_up),
                _id(record, "session", made_up),
                record["messages"],
            )
        except InvalidInput as error:
            return BadLine(where, error)

    def _open(self) -> BinaryIO:
        if self._path != STDIN:
            return open(self._path, "rb")  # noqa: PTH123 - the path as it was given, for errors
        try:
            # A reader of our own: the interpreter could not end while a thread waits in that of `sys.stdin`.
            return open(sys.stdin.fileno(), "rb", closefd=False)
        except io.UnsupportedOperation:
            return sys.stdin.buffer  # No file: under a test runner.


def total_bytes(names: Sequence[str]) -> int | None:
    """Return the bytes of all files as they lie there; None if one has no size that is known."""
    total = 0
    for name in names:
        status = None if name == STDIN else os.stat(name)  # noqa: PTH116 - as `_open`
        if status is None or not stat.S_ISREG(status.st_mode):
            return None
        total += status.st_size
    return total


def _is_gzip(raw: BinaryIO) -> bool:
    peek = getattr(raw, "peek", None)
    return bool(peek and peek(len(_GZIP))[: len(_GZIP)] == _GZIP)


def _skip_line(stream: BinaryIO | gzip.GzipFile, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = stream.readline(MAX_LINE_BYTES)


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InvalidContent(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise InvalidContent("a line is one object with `messages`")
    messages = record.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise InvalidContent("`messages` must be a list of objects in the OpenAI message format")
    return record


def _id(record: Mapping[str, Any], name: str, default: str) -> str:
    value = record.get(name)
    if value is None:
        return default
    # Numbers are common ids in data sets; a boolean is a mistake.
    return check_id(str(value) if type(value) is int else value, f"{name} id")
