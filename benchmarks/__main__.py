"""All benchmarks, one area after the other, each in a process of its own.

python -m benchmarks [--quick] [--json] [--rounds N] [--loop uvloop|asyncio]
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, Final

from rich.console import Console

from benchmarks.harness import metrics_table, parse_options

AREAS: Final = ("memory", "assembly", "cache", "writes", "capture", "warming")
"""What `benchmarks.context` measures is a part of the cache."""


def run(area: str, arguments: list[str]) -> dict[str, Any]:
    """Run one area; return what it printed last."""
    command = [sys.executable, "-m", f"benchmarks.{area}", *(each for each in arguments if each != "--json"), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Run all areas and print a summary."""
    arguments = sys.argv[1:]
    options = parse_options(__doc__ or "", arguments)
    console = Console(width=120 if not sys.stdout.isatty() else None)
    results = []
    for area in AREAS:
        results.append(run(area, arguments))
        if not options.json:
            console.print(metrics_table(area, results[-1]["metrics"]))
    if options.json:
        metrics = {f"{each['area']}.{name}": value for each in results for name, value in each["metrics"].items()}
        versions = results[-1]["versions"]
        print(json.dumps({"area": "all", "metrics": metrics, "rounds": options.rounds, "versions": versions}))


if __name__ == "__main__":
    main()
