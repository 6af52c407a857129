"""Write the comparison of several runs as figures, CSV tables and Markdown."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.compare.compare import TARGET, Comparison, describe_reference
from analysis.metrics import describe, show
from analysis.pareto import Objective, front_mask, minimised
from analysis.report.style import (
    BLUE,
    DPI,
    GREEN,
    INK,
    RC,
    RED,
    label_axis,
    new_figure,
    standalone_svg,
    svg_text,
)
from analysis.report.texts import pipe_table

# Eight colours after Okabe and Ito, which colour-blind people can distinguish.
COLOURS = (BLUE, RED, GREEN, "#cc79a7", "#e69f00", "#56b4e9", INK, "#8c6d31")
FIGURES = ("fronts", "hypervolume")
TABLES = ("runs", "groups", "differences", "fronts", "history", "curves")


def write_comparison(found: Comparison, out: str | Path) -> list[Path]:
    """Write `compare.md`, every figure as PNG and SVG and every table as CSV.

    Args:
        found: result of `compare_runs`.
        out: the folder; created if it does not exist.

    Returns:
        The written files, `compare.md` first.

    Example:
        files = write_comparison(compare_runs(["runs/digits", "runs/other"]), "compared")
        print([file.name for file in files])
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    written = [out / "compare.md"]
    with matplotlib.rc_context(RC):
        for name, figure in zip(FIGURES, (draw_fronts(found), draw_hypervolume(found)), strict=True):
            figure.savefig(out / f"{name}.png", dpi=DPI)
            (out / f"{name}.svg").write_text(standalone_svg(svg_text(figure)), encoding="utf-8")
            written += [out / f"{name}.png", out / f"{name}.svg"]
    for name in TABLES:
        # The figure of the fronts and their table have the same name; the table holds the figure's numbers.
        path = out / f"{name}.csv"
        getattr(found, name).to_csv(path, index=False)
        written.append(path)
    written[0].write_text(markdown(found), encoding="utf-8")
    return written


def group_table(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return headers and cells of the table of groups."""
    headers = ["group", "n", "hypervolume", "at equal compute", "epochs", "hours", "epochs to target"]
    rows = []
    for _, row in found.groups.iterrows():
        cells = [_text(row, name, digits) for name, digits in (("hypervolume", 4), ("at_common", 4))]
        cells += [_text(row, "epochs", 0), _text(row, "train_hours", 2), _text(row, "epochs_to_target", 0)]
        rows.append([str(row["group"]), str(row["n"]), *cells])
    return headers, rows


def run_table(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return headers and cells of the table of runs."""
    headers = [
        "run",
        "group",
        "seed",
        "hypervolume",
        "at equal compute",
        "front",
        "trials",
        "epochs",
        "hours",
    ]
    rows = [
        [
            *(str(row[name]) for name in ("run", "group", "seed")),
            f"{row['hypervolume']:.4f}",
            f"{row['at_common']:.4f}",
            *(str(row[name]) for name in ("front", "trials", "epochs")),
            f"{row['train_hours']:.2f}",
        ]
        for _, row in found.runs.iterrows()
    ]
    return headers, rows


def explanation(found: Comparison) -> list[str]:
    """Explain the numbers in the tables, and add the remarks on the comparison."""
    lines = [
        "Hypervolume: the share of the box from the ideal to "
        f"{describe_reference(found)} that the front dominates; higher is better.",
        f"Equal compute: after {found.common_epochs:,} trained epochs, which every run reached. Target: "
        f"{found.target:.4f}, {100 * TARGET:.0f} % of the smallest final hypervolume.",
    ]
    if (found.groups["n"] > 1).any():
        lines.append("Mean with its 95 % interval (Student's t) over the runs of a group.")
    return [*lines, *found.notes]


def differences(found: Comparison) -> list[str]:
    """Describe the difference of each group from the first, one line each."""
    lines = []
    for _, row in found.differences.iterrows():
        sure = "one run per group: no interval"
        if not math.isnan(row["p"]):
            sure = (
                f"95 % interval {row['low']:+.4f} to {row['high']:+.4f}, p = {row['p']:.2g} (Welch's t-test)"
            )
        lines.append(f"{row['group']} against {row['against']}: {row['difference']:+.4f} ({sure})")
    return lines


def _text(row: pd.Series, name: str, digits: int) -> str:
    if math.isnan(row[name]):
        return "–"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    interval = "" if math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{row[name]:.{digits}f}{interval}"


def markdown(found: Comparison) -> str:
    """Write the complete comparison as Markdown."""
    lines = ["# Comparison of runs", "", *pipe_table(*group_table(found)), ""]
    lines += [f"- {text}" for text in [*differences(found), *explanation(found)]]
    lines += ["", "![Fronts](fronts.png)", "", "![Hypervolume over compute](hypervolume.png)"]
    lines += ["", "## Runs", "", *pipe_table(*run_table(found)), "", "## Fronts", ""]
    headers = ["run", "trial", *(describe(m).label for m in found.objectives)]
    rows = [
        [str(row["run"]), str(row["number"]), *(show(m, row[m]) for m in found.objectives)]
        for _, row in found.fronts.iterrows()
    ]
    lines += [*pipe_table(headers, rows), "", f"All numbers: {', '.join(f'{name}.csv' for name in TABLES)}."]
    return "\n".join(lines) + "\n"


def _colours(found: Comparison) -> dict[str, str]:
    return {group: COLOURS[i % len(COLOURS)] for i, group in enumerate(found.groups["group"])}


def draw_fronts(found: Comparison) -> Figure:
    """Draw every run's front, first against second objective, with one colour per group."""
    figure, (axes,) = new_figure(3.9)
    y, x = found.objectives[:2]
    if describe(x).kind == "quality":
        x, y = y, x
    for group, colour in _colours(found).items():
        part = found.fronts[found.fronts["group"] == group]
        for index, (_, front) in enumerate(part.groupby("run", sort=False)):
            _front_line(axes, front, x, y, colour, group if index == 0 else "")
    label_axis(axes, "x", x)
    label_axis(axes, "y", y)
    _legend(figure, axes, found)
    return figure


def _front_line(axes: Axes, front: pd.DataFrame, x: str, y: str, colour: str, label: str) -> None:
    pair = [Objective(metric, describe(metric).direction) for metric in (x, y)]
    kept = front[front_mask(minimised(front[[x, y]].to_numpy(dtype=float), pair))].sort_values(x)
    steps: Literal["pre", "post"] = "post" if pair[0].direction == "minimize" else "pre"
    axes.step(kept[x], kept[y], where=steps, color=colour, lw=1.1, alpha=0.8)
    axes.scatter(front[x], front[y], color=colour, s=22, label=label or None, zorder=3, linewidths=0)


def draw_hypervolume(found: Comparison) -> Figure:
    """Draw hypervolume over trained epochs: thin lines for runs, mean with interval for groups."""
    figure, (axes,) = new_figure(3.7)
    for group, colour in _colours(found).items():
        curve = found.curves[found.curves["group"] == group]
        several = len(curve) > 0 and int(curve["n"].iloc[0]) > 1
        for index, (_, run) in enumerate(found.history[found.history["group"] == group].groupby("run")):
            label = None if several or index else group
            thin = {"lw": 0.7, "alpha": 0.5} if several else {"lw": 1.6}
            axes.step(run["epochs"], run["hypervolume"], where="post", color=colour, label=label, **thin)
        if several:
            axes.plot(curve["epochs"], curve["mean"], color=colour, lw=1.8, label=f"{group} (mean)")
            axes.fill_between(
                curve["epochs"], curve["low"].clip(lower=0), curve["high"], color=colour, alpha=0.15, lw=0
            )
    axes.set(xlabel="epochs trained, all trials", ylabel="hypervolume", xlim=(0, None), ylim=(0, None))
    _legend(figure, axes, found)
    return figure


def _legend(figure: Figure, axes: Axes, found: Comparison) -> None:
    handles, labels = axes.get_legend_handles_labels()
    longest = max(len(group) for group in found.groups["group"])
    if handles:
        figure.legend(handles, labels, loc="outside upper left", ncols=max(1, min(4, 60 // (longest + 6))))
