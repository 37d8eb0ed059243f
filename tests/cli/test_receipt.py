"""`scrubjay receipt`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from scrubjay import AsyncScrubjay, Receipt

from .conftest import Run

RECEIPT = ("receipt", "s", "--user", "alice", "--tenant", "acme")


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A store with four windows of one session of acme's alice, and one of the default tenant's bob."""
    url = f"sqlite:///{tmp_path}/store.db?synchronous=off"

    async def fill() -> None:
        async with AsyncScrubjay.open(store=url, cache="none:", data_dir=tmp_path / "data") as jay:
            session = jay.tenant("acme").user("alice").session("s")
            for number in range(4):
                await session.chat.append(role="user", content=f"question {number}")
                window = await session.assemble(budget=1_000 + number)
            window.record_usage({"prompt_tokens": 50, "completion_tokens": 1})
            await jay.user("bob").session("s").chat.append(role="user", content="hello")
            await jay.user("bob").session("s").assemble()

    asyncio.run(fill())
    return url


def test_the_newest(run: Run, store: str) -> None:
    found = run(*RECEIPT, "--store", store, "--json").json
    assert found["budget"] == 1_003
    assert found["usage"]["input_tokens"] == 50
    ran = run(*RECEIPT, "--store", store)
    assert (ran.code, ran.err) == (0, "")
    receipt = Receipt.from_dict(found)
    assert ran.out == f"{receipt.id}  {receipt.at}\n{receipt}\n"
    assert run(*RECEIPT, "--store", store, "--id", "-1", "--json").json == found


def test_one_by_its_id(run: Run, store: str) -> None:
    listed = run(*RECEIPT, "--store", store, "--last", "9", "--json").json["receipts"]
    assert [each["budget"] for each in listed] == [1_003, 1_002, 1_001, 1_000]
    for place, each in enumerate(listed, 1):
        for name in (each["id"], f"-{place}"):
            assert run(*RECEIPT, "--store", store, "--id", name, "--json").json == each
    ran = run(*RECEIPT, "--store", store, "--last", "2")
    assert (ran.code, ran.err) == (0, "")
    assert [each["id"] in ran.out for each in listed] == [True, True, False, False]


def test_what_differs(run: Run, store: str) -> None:
    newest = run(*RECEIPT, "--store", store, "--json").json
    found = run(*RECEIPT, "--store", store, "--diff", "-2", newest["id"], "--json").json
    assert found["after"] == newest["id"]
    assert found["settings"]["budget"] == [1_002, 1_003]
    assert found["tokens"] > 0
    ran = run(*RECEIPT, "--store", store, "--diff", "-2", "-1")
    assert (ran.code, ran.err) == (0, "")
    for words in (f"{found['before']} → {found['after']}: +", "history", "budget: 1002 → 1003"):
        assert words in ran.out
    same = run(*RECEIPT, "--store", store, "--diff", "-1", "-1")
    assert "no section differs" in same.out


def test_the_default_tenant(run: Run, store: str) -> None:
    found = run("receipt", "s", "--user", "bob", "--store", store, "--json").json
    assert found["pruned_messages"] == 0


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("receipt", "other", "--user", "alice", "--tenant", "acme"), 3, "no receipt of session 'other'"),
        (("receipt", "s", "--user", "alice"), 3, "no receipt of session 's' of user 'alice'"),
        ((*RECEIPT, "--id", "nothing"), 3, "no receipt 'nothing'"),
        ((*RECEIPT, "--id", "-5"), 3, "the session has 4"),
        ((*RECEIPT, "--id", "-0"), 3, "no receipt '-0'"),
        ((*RECEIPT, "--diff", "-1", "gone"), 3, "no receipt 'gone'"),
        ((*RECEIPT, "--last", "2", "--id", "-1"), 2, "only one of"),
        ((*RECEIPT, "--last", "0"), 2, "--last"),
        (("receipt", "--user", "alice"), 2, "SESSION"),
        (("receipt", "s"), 2, "--user"),
        (("receipt", "a\nb", "--user", "alice"), 2, "session id"),
    ],
)
def test_errors_say_what_is_wrong(run: Run, store: str, options: Any, code: int, says: str) -> None:
    ran = run(*options, "--store", store)
    assert ran.code == code
    assert ran.out == ""
    assert says in ran.error


def test_a_store_that_is_not_there_is_not_made(run: Run, tmp_path: Path) -> None:
    ran = run(*RECEIPT, "--store", f"sqlite:///{tmp_path}/none.db")
    assert ran.code == 2
    assert "there is no store" in ran.error
    assert not (tmp_path / "none.db").exists()
