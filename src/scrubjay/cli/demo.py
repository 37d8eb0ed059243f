"""`scrubjay demo`: a short story on real engines, with and without a cache."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from scrubjay.app import AsyncScrubjay
from scrubjay.assembly import Window, validate_window
from scrubjay.cli import demo_story as story
from scrubjay.cli.demo_play import DemoClock, Played, Player, alices_window, as_result, words_in
from scrubjay.cli.demo_view import show_demo
from scrubjay.cli.directory import working_directory
from scrubjay.cli.options import json_option
from scrubjay.cli.report import found_by, found_text
from scrubjay.cli.shell import Failure, open_console, print_json, run
from scrubjay.core.errors import CacheUnavailable, InvalidMessage

POLL_S = 0.05
REVIVED_WITHIN_S = 20.0
"""How long to wait for the private Valkey to be started again; it takes some five seconds."""


@dataclass(frozen=True, slots=True)
class Check:
    """Something that the demonstration claims, and whether it was so."""

    name: str
    ok: bool
    detail: str


@click.command(short_help="See what it does, in a few seconds.")
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Work in DIR and leave the SQLite files there, instead of in a temporary directory.",
)
@json_option
def demo(keep: Path | None, as_json: bool) -> None:
    """Show what Scrubjay does, in a few seconds: a support conversation, a return a day later, a crash of the cache.

    It starts a private Valkey and a SQLite file in a temporary directory, plays a story with two tenants and several
    users, and plays it again without a cache. It needs nothing and touches nothing of yours.

    \b
    Examples:
      scrubjay demo
      scrubjay demo --json | jq .checks
    """
    with working_directory("demo", keep) as directory:
        report, window = run(lambda: _demo(directory))
    if as_json:
        print_json(report)
    else:
        show_demo(open_console(), report, window)
        if keep is not None:
            click.echo(f"kept {keep}", err=True)
    failed = [check["name"] for check in report["checks"] if not check["ok"]]
    if failed:
        raise Failure(f"not as claimed: {'; '.join(failed)}", "check_failed", 1)


async def _demo(directory: Path) -> tuple[dict[str, Any], Window]:
    started = time.perf_counter()
    clock = DemoClock()
    async with _open(directory / "with-cache", "embedded:", clock) as jay:
        cached = await Player(jay, clock).play()
        result = as_result(cached, jay.recorder)
        checks = _story_checks(cached)
        with _expected_outage():
            checks.append(await _kill(jay, cached))
            other_clock = DemoClock()
            async with _open(directory / "without-cache", "none:", other_clock) as plain:
                uncached = await Player(plain, other_clock).play()
                other = as_result(uncached, plain.recorder)
            checks.append(_same_windows(cached, uncached))
            checks.append(await _revived(jay))
        users = {tenant: len(await jay.tenant(tenant).users()) for tenant in (story.SHOP, story.BANK)}
        checks.append(await _forgotten(jay))
        report = {
            "users": users,
            "conversation": [message for turn in story.FIRST_DAY for message in (turn.user, turn.reply)],
            "summary": cached.summary["summary"] if cached.summary else None,
            "window": cached.window.to_openai(),
            "receipt": cached.window.receipt.to_dict(),
            "others": {owner: window.to_openai() for owner, window in cached.others.items()},
            "with_cache": result,
            "without_cache": other,
            "store_reads_absorbed": other["reads"]["misses"] - result["reads"]["misses"],
            "checks": [{"name": check.name, "ok": check.ok, "detail": check.detail} for check in checks],
            "seconds": round(time.perf_counter() - started, 3),
        }
    return report, cached.window


def _open(directory: Path, cache: str, clock: DemoClock) -> AsyncScrubjay:
    store = f"sqlite:///{quote(str(directory.resolve() / 'scrubjay.db'))}?synchronous=normal"
    return AsyncScrubjay.open(store=store, cache=cache, data_dir=directory, clock=clock)


def _story_checks(played: Played) -> list[Check]:
    window, receipt = played.window, played.window.receipt
    try:
        validate_window(window.messages)
        valid = receipt.total_tokens <= story.BUDGET
    except InvalidMessage:
        valid = False
    remembered = [*words_in(window, ("short answers with dates",)), *_recalled(played)]
    strangers = {owner: words_in(other, story.ALICES_OWN) for owner, other in played.others.items()}
    outputs = sum(message.get("role") == "tool" for message in window.messages)
    return [
        Check("the window fits its budget and is valid", valid, f"{receipt.total_tokens:,} of {story.BUDGET:,} tokens"),
        Check(
            "a day later, memory and the summary of the first session are recalled",
            len(remembered) == 2,
            f"sources: {', '.join(receipt.sources_used)}",
        ),
        Check(
            "each tool output stands beside its call, once",
            outputs == len(story.SECOND_DAY.tools) and _once(window, story.SECOND_DAY.tools[0].output["events"][0]),
            f"{outputs} in the chat; what the application fetched by itself stands as data",
        ),
        Check(
            "nobody else's window holds a word of Alice's",
            not any(strangers.values()) and words_in(window, story.ALICES_OWN) == list(story.ALICES_OWN),
            f"searched {' and '.join(strangers)} for {len(story.ALICES_OWN)} words",
        ),
    ]


def _recalled(played: Played) -> list[str]:
    shown = [message for message in played.window.messages if "session_summaries" in str(message.get("content"))]
    return ["summary"] if shown and played.summary is not None else []


def _once(window: Window, words: str) -> bool:
    return sum(str(message.get("content")).count(words) for message in window.messages) == 1


def _same_windows(cached: Played, uncached: Played) -> Check:
    same = cached.all_windows == uncached.all_windows
    count = len(cached.all_windows)
    return Check("the cache changes no prompt", same, f"{count} windows, byte for byte the same in both runs")


@contextmanager
def _expected_outage() -> Iterator[None]:
    """Keep the library from warning of an outage that is part of the demonstration: its report tells of it."""
    logger = logging.getLogger("scrubjay")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


async def _kill(jay: AsyncScrubjay, played: Played) -> Check:
    """Kill the private Valkey as a crash would, and assemble."""
    server = await _trusted(jay)
    before = found_by(jay.recorder)
    os.kill(int(server["process_id"]), signal.SIGKILL)
    started = time.perf_counter()
    window = await alices_window(jay)
    elapsed = (time.perf_counter() - started) * 1000
    found = {tier: count - before[tier] for tier, count in found_by(jay.recorder).items()}
    return Check(
        "Valkey was killed: the next window came from process memory and the store, and is the same",
        window.messages == played.window.messages and not found["l2"] and found["store"] > 0,
        f"kill -9 {server['process_id']}, then {elapsed:.1f} ms; {found_text(found)}",
    )


async def _trusted(jay: AsyncScrubjay) -> Mapping[str, Any]:
    """Wait until the cache is asked, on a machine that stands still for a moment too; return what it says of itself.

    Raises:
        CacheUnavailable: It was not within `REVIVED_WITHIN_S`.
    """
    for _ in range(round(REVIVED_WITHIN_S / POLL_S)):
        server: Mapping[str, Any] | None = (await jay.stats())["server"]
        if server is not None:
            return server
        await asyncio.sleep(POLL_S)
    raise CacheUnavailable(f"the private Valkey did not answer within {REVIVED_WITHIN_S:g} s")


async def _revived(jay: AsyncScrubjay) -> Check:
    """Wait until the cache answers again, and see that it is used."""
    server = await _trusted(jay)
    await alices_window(jay)
    before = found_by(jay.recorder)["l2"]
    await alices_window(jay)
    hits = found_by(jay.recorder)["l2"] - before
    return Check(
        "a new Valkey was started by itself and is filled again",
        hits > 0,
        f"process {server.get('process_id', '–')}: it answered {hits} things of one window",
    )


async def _forgotten(jay: AsyncScrubjay) -> Check:
    """Erase Alice and look for what is left."""
    tenant = jay.tenant(story.SHOP)
    receipt = await tenant.user(story.ALICE).forget()
    # In this order: assembling notes that the session was used.
    exported: Mapping[str, Any] = await tenant.user(story.ALICE).export()
    left = words_in(await alices_window(jay), story.ALICES_OWN)
    nothing = not left and not any(exported.values())
    rows = sum(receipt["rows"].values())
    return Check(
        "alice was forgotten: nothing is left of her", nothing, f"{rows} rows erased, cache {receipt['cache']}"
    )
