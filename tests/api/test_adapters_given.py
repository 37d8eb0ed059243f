"""What counts and what summarises may be given in any form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scrubjay import AsyncScrubjay
from scrubjay.core.errors import ConfigurationError, InvalidInput


async def test_functions_may_count_and_summarise(tmp_path: Path) -> None:
    def words(text: str) -> int:
        return len(text.split())

    async def headline(messages: Any, **_: Any) -> str:
        return f"{len(messages)} messages"

    jay = AsyncScrubjay.open(data_dir=tmp_path, cache="none:", tokenizer=words, summarizer=headline)
    async with jay:
        session = jay.user("alice").session("s")
        message = await session.chat.append(role="user", content="one two three")
        assert message.tokens == 3
        window = await session.assemble()
        assert window.receipt.tokenizer.endswith("words")
        assert not window.receipt.exact
        summary = await session.close()
        assert summary is not None
        assert summary.text == "1 messages"


@pytest.mark.parametrize("given", [{"tokenizer": 7}, {"summarizer": 7}, {"tokenizer": object()}])
def test_what_can_do_neither_is_refused(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises((ConfigurationError, InvalidInput)):
        AsyncScrubjay.open(data_dir=tmp_path, cache="none:", **given)
