"""The figures of a comparison as a picture. Needs matplotlib, the extra `plot`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from scrubjay.assembly.simulate import Setting, Spent
from scrubjay.core.errors import InvalidContent, MissingDependency


def check_plot() -> None:
    """Raise unless pictures can be drawn; to be called before the work is done.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    try:
        found = importlib.util.find_spec("matplotlib") is not None
    except ValueError:
        found = False
    if not found:
        raise MissingDependency("--plot needs matplotlib: pip install 'scrubjay[plot]'")


def plot(path: str, spent: Mapping[str, Spent], setting: Setting) -> None:
    """Draw the cost so far and the share of input that was cached so far, over the windows, for each strategy.

    Args:
        path: Where to; its ending says the format (`.png`, `.svg`, `.pdf`).
        spent: What each strategy has done.
        setting: What they had to work with.

    Raises:
        MissingDependency: matplotlib is not installed.
        InvalidContent: matplotlib has no such format.
        OSError: The file cannot be written.
    """
    check_plot()
    # Without pyplot: that would look for a screen, and keep the figure.
    from matplotlib.figure import Figure  # noqa: PLC0415 - an optional dependency

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    costs, rates = figure.subplots(1, 2)
    for name, one in spent.items():
        costs.plot(range(1, len(one.costs) + 1), one.costs, label=name)
        rates.plot(range(1, len(one.rates) + 1), one.rates, label=name)
    rules = setting.rules
    _label(costs, "cost of input so far", "units" if rules.is_default else "USD")
    _label(rates, "input read from the provider's cache so far", "share")
    rates.set_ylim(0, 1)
    figure.suptitle(f"{rules.model}, rules and prices of {rules.as_of}; budget {setting.budget:,} tokens (simulated)")
    try:
        figure.savefig(path, dpi=120)
    except ValueError as error:
        raise InvalidContent(f"--plot {path}: {error}") from None


def _label(axes: Any, title: str, unit: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("windows")
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3)
    axes.legend()
