"""Draw the figures of the report; each function takes a table of `analysis.report.tables`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from analysis.metrics import describe, show, time_unit
from analysis.pareto import Objective, front_mask, minimised
from analysis.report.style import (
    BLUE,
    GREEN,
    GREY,
    GRID,
    INK,
    MUTED,
    PAPER,
    RED,
    label_axis,
    new_figure,
    place_labels,
    text_on,
    width_colours,
)

SMALL = 12  # maximum number of blocks for which map cells show numbers
_CLOUD = 400  # minimum number of points to draw dots as a bitmap inside the SVG
_ROLES: dict[str, dict[str, Any]] = {
    "stopped early": {"marker": "x", "s": 12, "color": GREY, "alpha": 0.6, "linewidths": 0.8, "zorder": 1},
    "dominated": {"marker": "o", "s": 14, "color": GREY, "alpha": 0.7, "linewidths": 0, "zorder": 2},
    "outside the limits": {
        "marker": "o",
        "s": 14,
        "facecolors": "none",
        "edgecolors": GREY,
        "linewidths": 0.8,
        "zorder": 2,
    },
    "front": {"marker": "o", "s": 34, "color": BLUE, "edgecolors": PAPER, "linewidths": 0.8, "zorder": 4},
    "baseline finetune": {"marker": "v", "s": 34, "color": RED, "linewidths": 0, "zorder": 5},
    "baseline scratch": {"marker": "s", "s": 26, "color": RED, "linewidths": 0, "zorder": 5},
    "retrained": {
        "marker": "D",
        "s": 34,
        "color": GREEN,
        "edgecolors": PAPER,
        "linewidths": 0.8,
        "zorder": 5,
    },
    "teacher": {"marker": "*", "s": 150, "color": RED, "edgecolors": PAPER, "linewidths": 0.8, "zorder": 5},
}
_RETRAINED = ("retrained", "baseline finetune", "baseline scratch")


def draw_scatter(points: pd.DataFrame, x: str, y: str, objectives: Sequence[Objective]) -> Figure:
    """Draw trials and teacher by two metrics, from `tables.points`.

    If both are objectives, a line shows the attained front in these two. Outliers are outside of the view,
    and a note gives their number.
    """
    figure, (axes,) = new_figure(3.7)
    shown = points[points[x].notna() & points[y].notna()]
    for role, look in _ROLES.items():
        rows = shown[shown["role"] == role]
        if len(rows):
            cloud = len(rows) > _CLOUD
            axes.scatter(rows[x], rows[y], label=f"{role} ({len(rows)})", rasterized=cloud, **look)
    pair = [o for metric in (x, y) for o in objectives if o.metric == metric]
    front = shown[shown["role"] == "front"]
    if len(pair) == 2 and len(front):
        _staircase(axes, front, pair)
    if y == "val_accuracy":
        _error_bars(axes, shown, x)
    label_axis(axes, "x", x)
    label_axis(axes, "y", y)
    _note_outside(axes, shown, x, y)
    picked = shown[shown["picked"]]
    axes.scatter(
        picked[x], picked[y], marker="o", s=90, facecolors="none", edgecolors=GREEN, linewidths=2, zorder=6
    )
    handles, names = _without_count(axes)
    columns = 4 if len(names) <= 4 else 3
    figure.legend(handles, names, loc="outside upper left", ncols=columns, columnspacing=1, handletextpad=0.3)
    labels = [(row[x], row[y], f"pick {row['number']}", GREEN) for _, row in picked.iterrows()]
    avoid = shown if len(shown) < _CLOUD else pd.concat([front, picked])
    place_labels(axes, labels, list(zip(avoid[x], avoid[y], strict=True)))
    return figure


def _error_bars(axes: Axes, shown: pd.DataFrame, x: str) -> None:
    """Draw the known 95 % intervals of the accuracies of the front and of retrained models."""
    colours = {"front": BLUE, "retrained": GREEN, **dict.fromkeys(_RETRAINED[1:], RED)}
    for role, colour in colours.items():
        rows = shown[(shown["role"] == role) & shown["val_accuracy_low"].notna()]
        axes.vlines(
            rows[x], rows["val_accuracy_low"], rows["val_accuracy_high"], color=colour, lw=0.9, alpha=0.6
        )


def _without_count(axes: Axes) -> tuple[list[Any], list[str]]:
    """Return the legend entries, teacher first; only trials have counts."""
    handles, labels = axes.get_legend_handles_labels()
    single = ("teacher", *_RETRAINED)
    names = [label.rpartition(" (")[0] if label.startswith(single) else label for label in labels]
    return handles[::-1], names[::-1]


def _staircase(axes: Axes, front: pd.DataFrame, pair: list[Objective]) -> None:
    """Draw the attainment line of the front in these two objectives."""
    points = minimised(front[[o.metric for o in pair]].to_numpy(), pair)
    kept = front[front_mask(points)].sort_values(pair[0].metric)
    steps: Literal["pre", "post"] = "post" if pair[0].direction == "minimize" else "pre"
    axes.step(kept[pair[0].metric], kept[pair[1].metric], where=steps, color=BLUE, lw=1.2, zorder=3)


def _note_outside(axes: Axes, shown: pd.DataFrame, x: str, y: str) -> None:
    """Zoom to what matters: front, teacher and the bulk of the finished; say how many are out of view."""
    main = shown[shown["role"].isin(["front", "teacher", "retrained"])]
    done = shown[shown["role"].isin(["dominated", "outside the limits"])]
    limits = {}
    for which, metric in (("x", x), ("y", y)):
        values = pd.concat([main[metric], done[metric].quantile([0.05, 0.95]) if len(done) else None])
        if len(shown[shown["role"] != "teacher"]) and len(main) < 2:
            values = shown[metric]
        low, high = float(values.min()), float(values.max())
        pad = 0.07 * (high - low) or 0.05 * abs(high) or 1.0
        limits[metric] = (low - pad, high + pad)
        getattr(axes, f"set_{which}lim")(*limits[metric])
    outside = sum(
        not (limits[x][0] <= a <= limits[x][1] and limits[y][0] <= b <= limits[y][1])
        for a, b in zip(shown[x], shown[y], strict=True)
    )
    if outside:
        axes.set_title(f"{outside} of {len(shown)} points lie outside", loc="right", fontsize=8, color=MUTED)


def draw_history(history: pd.DataFrame) -> Figure:
    """Draw hypervolume over ended trials, wall time and trained epochs, from `tables.history`."""
    figure, panels = new_figure(5.2, rows=3, sharey=True)
    unit, scale = time_unit(float(history["hours"].max()))
    history = history.assign(hours=history["hours"] * scale)
    names = {"trials": "trials ended", "hours": f"{unit} since the first trial", "epochs": "epochs trained"}
    steps = history["hypervolume"].diff().ne(0)  # the line is level between steps
    steps.iloc[-1] = True
    history = history[steps]
    for axes, (column, label) in zip(panels, names.items(), strict=True):
        start = pd.DataFrame({column: [0.0], "hypervolume": [0.0]})
        line = pd.concat([start, history[[column, "hypervolume"]]], ignore_index=True)
        axes.step(line[column], line["hypervolume"], where="post", color=BLUE, lw=1.6)
        axes.fill_between(line[column], line["hypervolume"], step="post", color=BLUE, alpha=0.12, lw=0)
        axes.set(xlabel=label, ylabel="hypervolume", xlim=(0, None), ylim=(0, None))
    return figure


def draw_importance(table: pd.DataFrame, limit: int = 15) -> Figure:
    """Draw bars of the most important parameters for one objective, from `tables.importance`."""
    top = table.head(limit).iloc[::-1]
    figure, (axes,) = new_figure(0.9 + 0.21 * len(top))
    bars = axes.barh(top["parameter"], 100 * top["importance"], color=BLUE, height=0.7)
    axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8, color=INK)
    axes.set_xlabel("share of the variance explained (%)")
    axes.margins(x=0.1, y=0.02)
    axes.grid(axis="y", visible=False)
    return figure


def draw_block_map(cells: pd.DataFrame, names: dict[int, str], widths: Sequence[float]) -> Figure:
    """Draw students (rows, labelled by `names`) by blocks, coloured by width, from `tables.block_map`."""
    blocks = list(dict.fromkeys(cells["block"]))
    ranks = sorted(set(cells["rank"]))
    figure, (axes,) = new_figure(1.3 + 0.26 * len(ranks))
    colours, small = width_colours(widths), len(blocks) > SMALL
    place = {block: i for i, block in enumerate(blocks)}
    row_of = {rank: i for i, rank in enumerate(ranks)}
    joined: dict[tuple[int, int], list[int]] = {}
    for rank, block, width, span in zip(
        cells["rank"], cells["block"], cells["width"], cells["span"], strict=True
    ):
        x, y, kept = place[block], row_of[rank], np.isnan(width)
        colour = GRID if kept else colours.get(width, GREY)
        axes.add_patch(Rectangle((x - 0.46, y - 0.42), 0.92, 0.84, facecolor=colour, lw=0))
        if kept:
            axes.plot(x, y, ".", color=MUTED, ms=2.5)
            continue
        joined.setdefault((y, span), []).append(x)
        if not small:
            axes.text(x, y, f"{width:g}", ha="center", va="center", fontsize=8, color=text_on(colour))
    for (y, _), xs in joined.items():
        if len(xs) > 1:
            axes.plot([min(xs) - 0.4, max(xs) + 0.4], [y + 0.36] * 2, color=INK, lw=1.6)
    block_axes(axes, cells, names)
    entries = [Patch(color=colour, label=f"width {width:g}") for width, colour in colours.items()]
    entries.append(Patch(color=GRID, label="kept"))
    figure.legend(handles=entries, loc="outside upper left", ncols=4, columnspacing=1, handlelength=1)
    return figure


def block_axes(axes: Axes, cells: pd.DataFrame, names: dict[int, str]) -> None:
    """Label axes with blocks as columns and students as rows, as in `draw_block_map`."""
    blocks, ranks = list(dict.fromkeys(cells["block"])), sorted(set(cells["rank"]))
    small = len(blocks) > SMALL
    axes.set(xlim=(-0.6, len(blocks) - 0.4), ylim=(len(ranks) - 0.4, -0.6))
    axes.set_xticks(
        range(len(blocks)), blocks, rotation=90 if small else 45, ha="center" if small else "right"
    )
    axes.set_yticks(range(len(ranks)), [names.get(_number(cells, rank), "") for rank in ranks])
    axes.tick_params(length=0, labelsize=7.5 if small else 8.5)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _number(cells: pd.DataFrame, rank: int) -> int:
    return int(cells.loc[cells["rank"] == rank, "number"].iloc[0])


def draw_curves(curves: pd.DataFrame, teacher: float | None) -> Figure:
    """Draw validation accuracy by epoch, from `tables.curves`: the front in colour, the others grey."""
    figure, (axes,) = new_figure(3.5)
    looks: dict[str, dict[str, Any]] = {
        "stopped early": {"color": GREY, "lw": 0.6, "alpha": 0.4, "ls": (0, (3, 2))},
        "failed": {"color": RED, "lw": 0.8, "alpha": 0.6, "ls": (0, (1, 1))},
        "dominated": {"color": GREY, "lw": 0.7, "alpha": 0.5},
        "running": {"color": GREEN, "lw": 1.2},
        "front": {"color": BLUE, "lw": 1.4, "alpha": 0.85},
    }
    for role, look in looks.items():
        lines = [line for _, line in curves[curves["role"] == role].groupby("number")]
        for i, line in enumerate(lines):
            label = f"{role} ({len(lines)})" if i == 0 else None
            axes.plot(line["epoch"], line["val_accuracy"], label=label, rasterized=len(lines) > 100, **look)
            if len(line) == 1 or role in ("stopped early", "failed"):
                axes.plot(line["epoch"].iloc[-1:], line["val_accuracy"].iloc[-1:], ".", ms=3, **look)
    if teacher is not None:
        axes.axhline(teacher, color=RED, lw=1.2, ls="--", label="teacher")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    label_axis(axes, "y", "val_accuracy")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper left", ncols=3, columnspacing=1)
    return figure


def draw_effects(effects: pd.DataFrame, costs: Sequence[str]) -> Figure:
    """Draw the change of accuracy and of `costs` by block and width, from `importance.block_effects`."""
    blocks = list(dict.fromkeys(effects["block"]))
    figure, panels = new_figure(1.2 + 0.24 * len(blocks), columns=1 + len(costs), sharey=True)
    rows = effects[effects["width"].notna()]
    colours = width_colours(sorted(set(rows["width"])))
    units: dict[str, tuple[float, str]] = {"val_accuracy": (100, "accuracy\n(points)")}
    units |= {cost: (1, describe(cost).axis_label.replace(" (", "\n(")) for cost in costs}
    for axes, (metric, (scale, label)) in zip(panels, units.items(), strict=True):
        for width, part in rows.groupby("width"):
            y = [blocks.index(block) for block in part["block"]]
            axes.scatter(
                scale * part[f"{metric}_effect"],
                y,
                s=30,
                color=colours[float(width)],  # type: ignore[arg-type]
                edgecolors=MUTED,
                linewidths=0.5,
                label=f"width {width:g}",
                zorder=3,
            )
        axes.axvline(0, color=MUTED, lw=0.8)
        if describe(metric).count:
            label_axis(axes, "x", metric)
        axes.set_xlabel(f"change of {label}")
        axes.locator_params(axis="x", nbins=4 if len(costs) == 1 else 3)
    panels[0].set_yticks(range(len(blocks)), blocks)
    panels[0].set_ylim(len(blocks) - 0.4, -0.6)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=4, columnspacing=1)
    return figure


def draw_settings(table: pd.DataFrame, log: set[str], labels: Mapping[str, str]) -> Figure:
    """Draw accuracy against every searched parameter except levels, from `tables.settings`.

    Args:
        log: names of the parameters on a logarithmic scale.
        labels: labels of the parameters.
    """
    names = [name for name in table.columns if name not in ("number", "on_front", "val_accuracy")]
    rows = (len(names) + 1) // 2
    figure, panels = new_figure(0.5 + 1.75 * rows, rows=rows, columns=2, sharey=True)
    for axes in panels[len(names) :]:
        axes.remove()
    for i, name in enumerate(names):
        axes, column = panels[i], table[name]
        continuous = pd.api.types.is_float_dtype(column)
        position = column if continuous else _jittered(column)
        for front, colour, size in ((False, GREY, 9), (True, BLUE, 20)):
            use = table["on_front"] == front
            axes.scatter(
                position[use],
                table.loc[use, "val_accuracy"],
                s=size,
                color=colour,
                alpha=1.0 if front else 0.5,
                linewidths=0,
                rasterized=int(use.sum()) > _CLOUD,
                label="front" if front else "dominated",
            )
        if not continuous:
            kinds = sorted(column.dropna().astype(str).unique())
            axes.set_xticks(range(len(kinds)), kinds)
            axes.set_xlim(-0.5, len(kinds) - 0.5)
        elif name in log:
            axes.set_xscale("log")
            # Use a few round ticks: matplotlib's minor tick labels overlap in a narrow panel.
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=5))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(labels.get(name, name))
        label_axis(axes, "y", "val_accuracy")
        axes.set_ylabel("accuracy (%)" if i % 2 == 0 else "")
    low, high = float(table["val_accuracy"].quantile(0.02)), float(table["val_accuracy"].max())
    panels[0].set_ylim(low - 0.02, high + 0.01)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def _jittered(column: pd.Series) -> pd.Series:
    """Return positions of a categorical column, with jitter so that points do not hide each other."""
    kinds = {kind: i for i, kind in enumerate(sorted(column.dropna().astype(str).unique()))}
    shift = np.random.default_rng(0).uniform(-0.25, 0.25, len(column))
    return column.astype(str).map(kinds).astype("float64") + shift


def row_names(front: pd.DataFrame, metrics: Sequence[str]) -> dict[int, str]:
    """Return the labels of the front's students: "12: 91.34 %, 3.2 ms"."""
    return {
        int(row["number"]): f"{row['number']}: " + ", ".join(show(m, row[m]) for m in metrics[:2])
        for _, row in front.iterrows()
    }
