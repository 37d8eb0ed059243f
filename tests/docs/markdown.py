"""Markdown as the tests read it: fenced blocks and tables.

The convention of the docs, for what runs:

- ```` ```python ```` blocks of a file run in order in one namespace, as they would in `python -m asyncio`.
- A ```` ```text ```` block behind one is what it prints.
- A ```` ```console ```` block holds commands, each behind `$ `, and what they print; `…` stands for any lines.
- A ```` ```sql ```` block runs as the owner of the database.
- ```` ```toml ```` is read as `scrubjay.toml`.
- Other blocks, and blocks behind a comment `<!-- not run: why -->`, do not run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: .+ -->\s*$")
_CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the file on which its text begins."""

    language: str
    text: str
    line: int


def blocks(path: Path) -> list[Block]:
    """Return the blocks of a file that run, and the output blocks behind them."""
    text = path.read_text()
    return [
        Block(found[1], found[2], text.count("\n", 0, found.start()) + 2)
        for found in _FENCE.finditer(text)
        if not _NOT_RUN.search(text[: found.start()])
    ]


def tables(path: Path) -> dict[str, list[list[str]]]:
    """Return the rows of a file's tables by the heading above them, without header rows; cells without markup edges."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in _FENCE.sub("", path.read_text()).splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("|"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
            found.setdefault(heading, []).append(cells)
    return {heading: _body(rows) for heading, rows in found.items()}


def _body(rows: list[list[str]]) -> list[list[str]]:
    """Return the rows without rules and without the header rows above them."""
    ruled = [_ruled(row) for row in rows]
    return [row for row, rule, below in zip(rows, ruled, [*ruled[1:], False], strict=True) if not (rule or below)]


def _ruled(row: list[str]) -> bool:
    return all(re.fullmatch(r":?-+:?", cell) for cell in row)


def codes(cell: str) -> list[str]:
    """Return what stands in backquotes."""
    return _CODE.findall(cell)
