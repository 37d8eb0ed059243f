"""Short runs of the crash test: `make crash` is the long one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.crash.__main__ import main

pytestmark = pytest.mark.system


def _run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any], str]:
    code = main(["--json", "--sessions", "6", "--writers", "2", *arguments])
    said = capfd.readouterr()
    return code, json.loads(said.out.splitlines()[-1]), said.err


@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_nothing_acknowledged_is_lost(store: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, figures, said = _run(capfd, "--seed", "1", "--kills", "6", "--appends", "500", "--store", store)
    assert code == 0, said
    assert figures["lost"] == figures["wrong"] == 0
    assert figures["kills"] >= 6
    assert figures["acknowledged"] >= 500


def test_with_memory_there_is_loss_and_it_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    code, figures, said = _run(
        capfd, "--seed", "2", "--kills", "10", "--appends", "800", "--durability", "memory", "--fsync", "no"
    )
    assert code == 0, said
    assert figures["lost"] > 0
    assert figures["counted"]["restarts"] > 0
    assert "what it had acknowledged in memory alone may be lost" in str(figures["logged"])
