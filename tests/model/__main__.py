"""Prints how many states each model has: `python -m tests.model [--full]`."""

from __future__ import annotations

import argparse

from tests.model.search import search
from tests.model.test_protocol import FULL, SMALL


def main() -> None:
    parser = argparse.ArgumentParser(description="Go through all states of the protocol's models.")
    parser.add_argument("--full", action="store_true", help="the larger models, too")
    models = SMALL | FULL if parser.parse_args().full else SMALL
    print("| model | states |\n|---|---|")
    for name, size in models.items():
        result = search(size, named=False, most=20_000_000)
        print(f"| {name} | {result.states:,} |" if result.broken is None else f"{name}:\n{result}", flush=True)


if __name__ == "__main__":
    main()
