"""Write the comparison of search policies as a Markdown table and a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.ticker import NullFormatter, ScalarFormatter

from analysis.report.style import BLUE, DPI, GREEN, GREY, INK, RC, RED, new_figure
from benchmarks.curves import Floats

LABELS = {
    "ours": "ours",
    "stock": "Ray OptunaSearch (TPE)",
    "stock_asha": "Ray OptunaSearch + ASHA",
    "nsga2": "NSGA-II (Optuna)",
    "random": "random",
    "random_asha": "random + ASHA",
    "syne_moasha": "Syne Tune MOASHA",
    "ours_no_first": "ours, no first proposals",
    "ours_no_stopping": "ours, no early stopping",
    "ours_cold": "ours, no library",
    "ours_random": "ours, random proposals",
    "ours_stopped_pruned": "ours, stopped trials told as pruned",
    "ours_stopped_values": "ours, stopped trials told as complete",
    "ours_stopped_nothing": "ours, stopped trials not told",
    "stock_library": "Ray OptunaSearch, warm starts",
}
STYLES = {
    "ours": (INK, "-", 2.0),
    "stock": (RED, "-", 1.4),
    "stock_asha": (RED, "--", 1.4),
    "nsga2": (GREEN, "-", 1.2),
    "random": (GREY, "-", 1.2),
    "random_asha": (GREY, "--", 1.2),
    "syne_moasha": (BLUE, "-", 1.2),
}
HEAD = (
    "| contender | compute to 95 % HV | to 99 % | wall time to 95 % | to 99 % | final HV | trials | full |",
    "|---|---|---|---|---|---|---|---|",
)


def markdown(found: Mapping[str, Any], conditions: Mapping[str, Any]) -> str:
    """Format the table and the explanation of its numbers."""
    seeds = conditions["seeds"]
    lines = [
        f"# Search policies on `{conditions['table']}`",
        "",
        f"`{conditions['command']}`: n = {seeds} seeds, {conditions['recorded_seeds']} recorded seeds of "
        f"each run, {conditions['workers']} workers, budget {conditions['budget_trials']:g} full cold trials "
        "of mean cost. Mean and 95 % bootstrap interval over seeds. Compute in full cold trials, wall time "
        "in virtual seconds; library included for those that use it. HV as a share of the table's best. "
        "`(k of n)`: k seeds reached it; the others count with the whole budget.",
        "",
        *HEAD,
    ]
    for name, row in found.items():
        cells = [LABELS.get(name, name)]
        cells += [
            _cell(row[f"{axis}_to_{share}"], seeds)
            for axis in ("compute", "clock")
            for share in ("0.95", "0.99")
        ]
        mean, low, high = row["final"]
        cells += [f"{mean:.4f} [{low:.4f}, {high:.4f}]", f"{row['trials']:.0f}", f"{row['complete']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(until: Mapping[str, Any], seeds: int) -> str:
    mean, low, high = until["mean"]
    missed = "" if until["reached"] == seeds else f" ({until['reached']} of {seeds})"
    return f"{mean:.3g} [{low:.3g}, {high:.3g}]{missed}"


def plot(
    found: Mapping[str, Any], budgets: Mapping[str, Floats], conditions: Mapping[str, Any], path: Path
) -> None:
    """Plot the mean hypervolume with its interval against compute and against wall time."""
    with rc_context(RC):
        figure, axes = new_figure(6.4, 2, 1)
        titles = {
            "compute": "compute, in full cold trials",
            "clock": f"virtual seconds on {conditions['workers']} workers",
        }
        # A surrogate's best is that of a thousand random points: a search may find better ones.
        top = max([1.0, *(max(found[name][f"{axis}_curve"]["high"]) for name in found for axis in titles)])
        for panel, (axis, title) in zip(axes, titles.items(), strict=True):
            for name, (colour, line, width) in STYLES.items():
                if name in found:
                    curve = found[name][f"{axis}_curve"]
                    panel.plot(
                        budgets[axis], curve["mean"], color=colour, ls=line, lw=width, label=LABELS[name]
                    )
                    panel.fill_between(
                        budgets[axis], curve["low"], curve["high"], color=colour, alpha=0.12, lw=0
                    )
            panel.axhline(0.95, color=GREY, lw=0.8, ls=":")
            panel.set_ylim(0.4, top + 0.005)
            panel.set_xscale("log")
            panel.set_xlim(budgets[axis][-1] / 60, budgets[axis][-1])
            panel.xaxis.set_major_formatter(ScalarFormatter())
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.set_xlabel(title)
            panel.set_ylabel("hypervolume, of the table's best")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
        figure.savefig(path, dpi=DPI)
