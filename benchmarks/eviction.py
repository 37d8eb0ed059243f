"""Eviction from the cache in the process: which policy keeps what is asked for again, and what a hit costs with it.

    python -m benchmarks.eviction [--data DIR] [--quick] [--json] [--rounds N]

Traces of keys are replayed through each policy (`benchmarks/policies.py`), from an empty cache, at 1, 5, 10 and 25 % of
their distinct keys; once with a size of 1 for each key, and once with sizes in bytes, drawn for each key from a
log-normal distribution with a median of 3 KB. MIN is Belady's optimum. Where sizes differ it is one that knows the
future and may not be the best; "bound" is a number of hits that no policy can exceed.

The data is not part of the repository: `--data`, or `SCRUBJAY_TEST_DATA`, names its folder.
"""

from __future__ import annotations

import argparse
import array
import gc
import gzip
import importlib.metadata
import json
import lzma
import os
import platform
import random
import statistics
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.policies import ONLINE, Min, Policy, bound, costs_of_hits, next_uses, replay

SHARES: Final = (1, 5, 10, 25)
"""Sizes of the cache, in percent of what all keys of the trace need."""
LEAST: Final = 8
"""A cache of fewer keys than this is not measured."""
MEDIAN_BYTES: Final = 3_000
SIGMA: Final = 1.0
SMALLEST_BYTES: Final = 64
BLOCK: Final = 512
"""Characters of a prompt that make up a block, each of which is one key."""
CAP: Final = 1_000_000
CAP_QUICK: Final = 50_000
KINDS: Final = ("unit", "bytes")
OPTIMUM: Final = {"unit": "MIN", "bytes": "bound"}


# --- traces ----------------------------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[Any]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def _chat(data: Path) -> Iterator[Hashable]:
    """Each user message reads three things of its user."""
    messages = (
        (message["timestamp"], conversation["user"])
        for conversation in _lines(data / "conversations" / "human-chat.jsonl.gz")
        for message in conversation["messages"]
        if message["role"] == "user"
    )
    for _, user in sorted(messages):
        yield from (f"{user}:profile", f"{user}:preference", f"{user}:memory")


def _tools(data: Path) -> Iterator[Hashable]:
    """Calls of tools that read."""
    for conversation in _lines(data / "conversations" / "airline-tools.jsonl.gz"):
        for message in conversation["messages"]:
            for call in message.get("tool_calls") or ():
                function = call["function"]
                if function["name"].startswith(("get_", "search_", "list_")):
                    yield function["name"], function["arguments"]


def _blocks(data: Path) -> Iterator[Hashable]:
    """Blocks of prompts, by their hash."""
    for request in _lines(data / "arrivals" / "mooncake-synthetic.jsonl.gz"):
        yield from request["hash_ids"]


def _prompts(data: Path) -> Iterator[Hashable]:
    """Blocks of prompts, each known by all that stands before it; the sessions run at the same time."""
    requests = (
        (request["timestamp"], number, request["input"])
        for number, session in enumerate(_lines(data / "traces" / "agent-prompts.jsonl.gz"))
        for request in session["requests"]
    )
    for _, _, prompt in sorted(requests):
        known: Hashable = ""
        for start in range(0, len(prompt) - BLOCK + 1, BLOCK):
            known = hash((known, prompt[start : start + BLOCK]))
            yield known


def _integers(data: Path, name: str) -> Iterator[Hashable]:
    """Big-endian integers of 4 bytes."""
    with lzma.open(data / "traces" / name) as file:
        while portion := file.read(1 << 18):
            keys = array.array("I", portion)
            if sys.byteorder == "little":
                keys.byteswap()
            yield from keys


SOURCES: Final[Mapping[str, Callable[[Path], Iterator[Hashable]]]] = {
    "human-chat": _chat,
    "airline-tools": _tools,
    "mooncake": _blocks,
    "agent-prompts": _prompts,
    "web07": lambda data: _integers(data, "web07.trace.xz"),
    "orm-night": lambda data: _integers(data, "orm-night.trace.xz"),
}


@dataclass(frozen=True, slots=True)
class Trace:
    """What is asked for, in order.

    Attributes:
        name: Its name.
        keys: The keys, numbered in the order in which they appear first.
        distinct: How many there are.
        capped: Whether more was recorded.
        bytes: The size of each key.
    """

    name: str
    keys: list[int]
    distinct: int
    capped: bool
    bytes: list[int]


def numbered(name: str, keys: Iterable[Hashable], cap: int) -> Trace:
    """Number a trace's keys, up to so many requests, and draw their sizes."""
    numbers: dict[Hashable, int] = {}
    taken = [numbers.setdefault(key, len(numbers)) for key in islice(keys, cap + 1)]
    capped = len(taken) > cap
    taken = taken[:cap]
    distinct = max(taken, default=-1) + 1
    # Sizes are drawn in the order in which keys appear first, so that of a key does not depend on the cap.
    drawn = random.Random(name)
    sizes = [max(SMALLEST_BYTES, int(MEDIAN_BYTES * drawn.lognormvariate(0.0, SIGMA))) for _ in range(distinct)]
    return Trace(name, taken, distinct, capped, sizes)


# --- hit ratios ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cell:
    """What was found for one trace and one size of the cache.

    Attributes:
        share: The size of the cache in percent.
        keys: How many keys of average size it holds.
        ratios: Hit ratios by policy, and of the optimum.
    """

    share: int
    keys: int
    ratios: Mapping[str, float]


def measure(trace: Trace, kind: str) -> list[Cell]:
    """Replay a trace through all policies at all sizes."""
    size_of = trace.bytes if kind == "bytes" else [1] * trace.distinct
    sizes = [size_of[key] for key in trace.keys]
    uses = next_uses(trace.keys)
    costs = costs_of_hits(sizes, uses) if kind == "bytes" else []
    whole, requests = sum(size_of), len(trace.keys)
    cells = []
    for share in SHARES:
        capacity = whole * share // 100
        if (held := capacity * trace.distinct // whole) < LEAST:
            continue
        hits = {policy.name: replay(policy(capacity), trace.keys, sizes) for policy in ONLINE}
        offline = Min(capacity, uses, weighted=kind == "bytes")
        hits[Min.name] = replay(offline, trace.keys, sizes)
        if kind == "bytes":
            hits["bound"] = bound(costs, requests, capacity)
        cells.append(Cell(share, held, {name: found / requests for name, found in hits.items()}))
    return cells


@dataclass(frozen=True, slots=True)
class Summary:
    """How a policy does over all traces and sizes of one kind.

    Attributes:
        mean: The mean hit ratio.
        of_optimum: The mean of its hit ratio's share of the optimum's.
        against_lru: The mean difference to LRU's hit ratio, in percentage points.
        worst: The lowest of these differences.
        best: The highest.
        least: The lowest share of the optimum.
    """

    mean: float
    of_optimum: float
    against_lru: float
    worst: float
    best: float
    least: float


def summarize(cells: Sequence[Cell], name: str, optimum: str) -> Summary:
    """Sum up what was found of a policy."""
    shares = [cell.ratios[name] / cell.ratios[optimum] for cell in cells if cell.ratios[optimum]]
    gains = [100 * (cell.ratios[name] - cell.ratios["LRU"]) for cell in cells]
    return Summary(
        mean=statistics.fmean(cell.ratios[name] for cell in cells),
        of_optimum=statistics.fmean(shares),
        against_lru=statistics.fmean(gains),
        worst=min(gains),
        best=max(gains),
        least=min(shares),
    )


# --- costs -----------------------------------------------------------------------------------------------------------

Work = Callable[[Sequence[str]], None]
"""Asks for keys, or adds them."""


class _Held:
    """What a cache holds of a key."""

    __slots__ = ("key", "mark", "value")

    def __init__(self, key: str) -> None:
        self.key = key
        self.mark = 0
        self.value = None


def _lookup(keys: Sequence[str]) -> Work:
    get = {key: _Held(key) for key in keys}.__getitem__

    def work(asked: Sequence[str]) -> None:
        for key in asked:
            get(key)

    return work


def _ordered(keys: Sequence[str]) -> Work:
    held = OrderedDict((key, _Held(key)) for key in keys)
    get, move = held.__getitem__, held.move_to_end

    def work(asked: Sequence[str]) -> None:
        for key in asked:
            get(key)
            move(key)

    return work


def _reinserted(keys: Sequence[str]) -> Work:
    held = {key: _Held(key) for key in keys}
    pop = held.pop

    def work(asked: Sequence[str]) -> None:
        for key in asked:
            held[key] = pop(key)

    return work


def _flagged(keys: Sequence[str]) -> Work:
    get = {key: _Held(key) for key in keys}.__getitem__

    def work(asked: Sequence[str]) -> None:
        for key in asked:
            get(key).mark = 1

    return work


def _counted_to_three(keys: Sequence[str]) -> Work:
    get = {key: _Held(key) for key in keys}.__getitem__

    def work(asked: Sequence[str]) -> None:
        for key in asked:
            entry = get(key)
            if entry.mark < 3:
                entry.mark += 1

    return work


def _counted_and_ordered(keys: Sequence[str]) -> Work:
    held = OrderedDict((key, _Held(key)) for key in keys)
    get, move = held.__getitem__, held.move_to_end
    counts = dict.fromkeys(keys, 0)

    def work(asked: Sequence[str]) -> None:
        for key in asked:
            get(key)
            move(key)
            counts[key] += 1

    return work


HITS: Final[Mapping[str, tuple[str, Callable[[Sequence[str]], Work]]]] = {
    "lookup": ("dict lookup alone", _lookup),
    "lru": ("LRU: OrderedDict.move_to_end", _ordered),
    "lru_reinsert": ("LRU: pop from a dict and insert", _reinserted),
    "clock": ("CLOCK, 2Q: flag", _flagged),
    "sieve": ("SIEVE: flag", _flagged),
    "s3_fifo": ("S3-FIFO: count to 3", _counted_to_three),
    "w_tinylfu": ("W-TinyLFU: move_to_end, count", _counted_and_ordered),
}


def _evict_ordered(keys: Sequence[str], _: Iterable[str]) -> Work:
    held = OrderedDict((key, _Held(key)) for key in keys)

    def work(added: Sequence[str]) -> None:
        for key in added:
            held.popitem(last=False)
            held[key] = _Held(key)

    return work


def _evict_plain(keys: Sequence[str], _: Iterable[str]) -> Work:
    held = {key: _Held(key) for key in keys}

    def work(added: Sequence[str]) -> None:
        for key in added:
            del held[next(iter(held))]
            held[key] = _Held(key)

    return work


def _marked(keys: Sequence[str], marked: Iterable[str]) -> dict[str, _Held]:
    """Return a cache that holds all keys, some of them marked."""
    held = {key: _Held(key) for key in keys}
    for key in marked:
        held[key].mark = 1
    return held


# Each of these is written out: a call more would be measured as well.


def _evict_clock(keys: Sequence[str], marked: Iterable[str]) -> Work:
    held = _marked(keys, marked)
    queue = deque(held.values())

    def work(added: Sequence[str]) -> None:
        for key in added:
            while (entry := queue.popleft()).mark:
                entry.mark = 0
                queue.append(entry)
            del held[entry.key]
            entry = held[key] = _Held(key)
            queue.append(entry)

    return work


def _evict_bounded_clock(keys: Sequence[str], marked: Iterable[str]) -> Work:
    held = _marked(keys, marked)
    queue = deque(held.values())

    def work(added: Sequence[str]) -> None:
        for key in added:
            chances = 16
            while (entry := queue.popleft()).mark and chances:
                entry.mark = 0
                queue.append(entry)
                chances -= 1
            del held[entry.key]
            entry = held[key] = _Held(key)
            queue.append(entry)

    return work


def _evict_two_queues(keys: Sequence[str], marked: Iterable[str]) -> Work:
    held = _marked(keys, marked)
    half = len(keys) // 2
    clock, first = deque(list(held.values())[:-half]), deque(list(held.values())[-half:])
    ghosts: OrderedDict[int, None] = OrderedDict()

    def work(added: Sequence[str]) -> None:
        for key in added:
            chances = 16
            while True:
                new = len(first) >= half
                entry = (first if new else clock).popleft()
                if not entry.mark or not chances:
                    break
                entry.mark = 0
                chances -= 1
                clock.append(entry)
            if new:
                ghosts[hash(entry.key)] = None
                if len(ghosts) > half:
                    ghosts.popitem(last=False)
            del held[entry.key]
            entry = held[key] = _Held(key)
            if (known := hash(key)) in ghosts:
                del ghosts[known]
                clock.append(entry)
            else:
                first.append(entry)

    return work


def _evict_sieve(keys: Sequence[str], marked: Iterable[str]) -> Work:
    held = {key: _Held(key) for key in keys}
    passed: deque[_Held] = deque()
    ahead = deque(held.values())
    for key in marked:
        held[key].mark = 1

    def work(added: Sequence[str]) -> None:
        nonlocal passed, ahead
        for key in added:
            while True:
                entry = ahead.popleft()
                marked, entry.mark = entry.mark, 0
                if marked:
                    passed.append(entry)
                if not ahead:
                    passed, ahead = ahead, passed
                if not marked:
                    break
            del held[entry.key]
            entry = held[key] = _Held(key)
            ahead.append(entry)

    return work


EVICTIONS: Final[Mapping[str, tuple[str, Callable[[Sequence[str], Iterable[str]], Work]]]] = {
    "lru": ("LRU: OrderedDict", _evict_ordered),
    "lru_reinsert": ("LRU: the first key of a dict", _evict_plain),
    "clock": ("CLOCK: dict and deque", _evict_clock),
    "clock16": ("CLOCK≤16: dict and deque", _evict_bounded_clock),
    "2q_50": ("2Q-50: dict, two deques, ghosts", _evict_two_queues),
    "sieve": ("SIEVE: dict and two deques", _evict_sieve),
}


def _ns(work: Work, keys: Sequence[str]) -> float:
    start = time.perf_counter_ns()
    work(keys)
    return (time.perf_counter_ns() - start) / len(keys)


def names(count: int, first: int = 0) -> list[str]:
    """Return keys as a cache has them."""
    return [f"acme:user-{number}:ctx:profile" for number in range(first, first + count)]


def hit_costs(rounds: int, count: int) -> dict[str, float]:
    """Measure what hits cost, in ns each, by contender.

    Where things lie in memory matters as much as what is done with them, so each round builds all anew, in another
    order, and takes the fastest of some turns; the figure is the median over the rounds.
    """
    order = random.Random(1)
    found: dict[str, list[float]] = {name: [] for name in HITS}
    for number in range(2 * rounds):
        keys = names(count, count * number)
        asked = order.choices(keys, k=20_000)
        works = {name: HITS[name][1](keys) for name in order.sample(list(HITS), len(HITS))}
        turns: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(5):
            for name, work in works.items():
                turns[name].append(_ns(work, asked))
        for name, each in turns.items():
            found[name].append(min(each))
    return {name: statistics.median(each) for name, each in found.items()}


def eviction_costs(rounds: int, count: int) -> dict[str, tuple[float, float]]:
    """Measure adding to a full cache of so many keys: ns each with half of them marked; and with all marked, one.

    As many keys are added as are held, so that every key goes once. Of each contender the fastest turn counts.
    """
    order = random.Random(2)
    keys = names(count)
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in EVICTIONS}
    for number in range(rounds):
        added = names(count, count * (number + 1))
        marked = order.sample(keys, count // 2)
        for name in order.sample(list(EVICTIONS), len(EVICTIONS)):
            make = EVICTIONS[name][1]
            found[name][0].append(_ns(make(keys, marked), added))
            work = make(keys, keys)
            found[name][1].append(_ns(work, added[:1]))
    return {name: (min(mean), min(worst)) for name, (mean, worst) in found.items()}


ORDERS: Final[Mapping[str, str]] = {
    "lru": "OrderedDict",
    "clock": "deque",
    "ghost": "a ghost: a hash in an OrderedDict",
}


def sizes_of_structures(count: int = 10_000) -> dict[str, float]:
    """Return what the order costs in memory, in bytes per key beside the plain dict that finds it; of ghosts, each."""
    keys = names(count)
    plain = sys.getsizeof(dict.fromkeys(keys))
    ordered = sys.getsizeof(OrderedDict.fromkeys(keys))
    ghosts = OrderedDict.fromkeys(map(hash, keys))
    return {
        "lru": (ordered - plain) / count,
        "clock": sys.getsizeof(deque(keys)) / count,
        "ghost": (sys.getsizeof(ghosts) + sum(map(sys.getsizeof, ghosts))) / count,
    }


# --- output ----------------------------------------------------------------------------------------------------------


def slug(name: str) -> str:
    """Return a name as it stands in metrics."""
    return name.lower().replace("≤", "").replace("-", "_")


def ratio_table(trace: Trace, kind: str, cells: Sequence[Cell]) -> Table:
    """Return the hit ratios of one trace for people."""
    capped = ", capped" if trace.capped else ""
    sizes = "sizes of 1" if kind == "unit" else "sizes in bytes"
    table = Table(
        title=f"{trace.name}, {sizes}: {len(trace.keys):,} requests{capped}, {trace.distinct:,} keys; hit ratio in %",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("size %", justify="right")
    table.add_column("keys", justify="right")
    for name in cells[0].ratios if cells else ():
        table.add_column(name, justify="right")
    for cell in cells:
        table.add_row(str(cell.share), f"{cell.keys:,}", *(f"{100 * ratio:.1f}" for ratio in cell.ratios.values()))
    return table


def summary_table(kind: str, summaries: Mapping[str, Summary]) -> Table:
    """Return how the policies do over all traces."""
    sizes = "sizes of 1" if kind == "unit" else "sizes in bytes"
    table = Table(title=f"All traces and sizes of the cache, {sizes}", title_justify="left", title_style="bold")
    table.add_column("policy")
    optimum = OPTIMUM[kind]
    for heading in ("hit ratio %", "against LRU, points", "worst", "best", f"% of {optimum}", "lowest"):
        table.add_column(heading, justify="right")
    for name, each in summaries.items():
        gains = (f"{each.against_lru:+.2f}", f"{each.worst:+.2f}", f"{each.best:+.2f}")
        table.add_row(name, f"{100 * each.mean:.2f}", *gains, f"{100 * each.of_optimum:.1f}", f"{100 * each.least:.1f}")
    return table


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.eviction", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="the folder of the traces (SCRUBJAY_TEST_DATA)")
    parser.add_argument("--quick", action="store_true", help="the beginning of each trace; ends within 50 s")
    parser.add_argument("--json", action="store_true", help="print one JSON object, on the last line")
    parser.add_argument("--rounds", type=int, help="rounds of measuring costs (9; quick: 5)")
    given = parser.parse_args(arguments)
    given.rounds = given.rounds if given.rounds is not None else 5 if given.quick else 9
    if given.rounds < 1:
        parser.error("argument --rounds: must be at least 1")
    if given.data is None and (named := os.environ.get("SCRUBJAY_TEST_DATA")):
        given.data = Path(named)
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the command line says; return the exit code."""
    options = _options(arguments)
    if options.data is None or not (options.data / "traces").is_dir():
        named = "--data or SCRUBJAY_TEST_DATA must name it" if options.data is None else "it has no traces/"
        print(f"eviction: the folder of the traces is not here: {named}", file=sys.stderr)
        return 2
    progress = Console(stderr=True)
    console = Console(width=120 if not sys.stdout.isatty() else None)
    start = time.perf_counter()

    def say(text: str) -> None:
        progress.print(
            f"[dim]{time.perf_counter() - start:5.1f} s[/dim]  eviction: {text}", highlight=False, soft_wrap=True
        )

    def show(table: Table) -> None:
        if not options.json:
            console.print(table, "")

    say("arrivals/azure-code.csv.gz has times and sizes, but names no keys: not replayed")
    metrics: dict[str, float] = {}
    # Costs first: the replays leave a large heap behind.
    _measure_costs(options, say, show, metrics)
    found: dict[str, list[Cell]] = {kind: [] for kind in KINDS}
    for name, source in SOURCES.items():
        trace = numbered(name, source(options.data), CAP_QUICK if options.quick else CAP)
        say(f"{name}: {len(trace.keys):,} requests{' (capped)' if trace.capped else ''}, {trace.distinct:,} keys")
        metrics[f"{slug(name)}_requests"] = float(len(trace.keys))
        metrics[f"{slug(name)}_keys"] = float(trace.distinct)
        for kind in KINDS:
            cells = measure(trace, kind)
            found[kind] += cells
            show(ratio_table(trace, kind, cells))
            for cell in cells:
                for policy, ratio in cell.ratios.items():
                    metrics[f"{slug(name)}_{kind}_{cell.share}_{slug(policy)}"] = round(ratio, 5)
    policies: tuple[type[Policy], ...] = (*ONLINE, Min)
    for kind in KINDS:
        summaries = {policy.name: summarize(found[kind], policy.name, OPTIMUM[kind]) for policy in policies}
        show(summary_table(kind, summaries))
        for name, each in summaries.items():
            metrics[f"all_{kind}_{slug(name)}"] = round(each.mean, 5)
            metrics[f"all_{kind}_{slug(name)}_of_optimum"] = round(each.of_optimum, 5)
            metrics[f"all_{kind}_{slug(name)}_worst_points"] = round(each.worst, 3)
    say("done")
    if options.json:
        versions = {"python": platform.python_version(), "scrubjay": importlib.metadata.version("scrubjay")}
        print(json.dumps({"area": "eviction", "metrics": metrics, "rounds": options.rounds, "versions": versions}))
    return 0


def _measure_costs(
    options: argparse.Namespace, say: Callable[[str], None], show: Callable[[Table], None], metrics: dict[str, float]
) -> None:
    say(f"costs, {options.rounds} rounds")
    gc.collect()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    for count, label in ((1_000, "1k"), (10_000, "10k")):
        hits = hit_costs(options.rounds, count)
        title = f"A hit among {count:,} keys ({python})"
        table = Table(title=title, title_justify="left", title_style="bold")
        for heading in ("hit", "ns", "beside the lookup"):
            table.add_column(heading, justify="left" if heading == "hit" else "right")
        for name, (contender, _) in HITS.items():
            table.add_row(contender, f"{hits[name]:.0f}", f"{hits[name] - hits['lookup']:+.0f}")
            metrics[f"hit_{name}_ns_{label}"] = round(hits[name], 1)
        show(table)
    for count, label in ((1_000, "1k"), (10_000, "10k"), (100_000, "100k")):
        table = Table(title=f"An addition to a full cache of {count:,} keys", title_justify="left", title_style="bold")
        for heading in ("addition", "ns, half marked", "µs, all marked"):
            table.add_column(heading, justify="left" if heading == "addition" else "right")
        rounds = options.rounds if count < 100_000 else 1 if options.quick else 5
        for name, (mean, worst) in eviction_costs(rounds, count).items():
            table.add_row(EVICTIONS[name][0], f"{mean:,.0f}", f"{worst / 1000:,.1f}")
            metrics[f"evict_{name}_ns_{label}"] = round(mean, 1)
            metrics[f"evict_{name}_all_marked_us_{label}"] = round(worst / 1000, 2)
        show(table)
    table = Table(title="What the order takes beside the dict", title_justify="left", title_style="bold")
    table.add_column("order")
    table.add_column("bytes per key", justify="right")
    for name, size in sizes_of_structures().items():
        metrics[f"order_{name}_bytes_per_key"] = round(size, 1)
        table.add_row(
            {"lru": "OrderedDict", "clock": "deque", "ghost": "a ghost: its hash in an OrderedDict"}[name],
            f"{size:.0f}",
        )
    show(table)


if __name__ == "__main__":
    sys.exit(main())
