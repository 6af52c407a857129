"""Draw parts of the training loss and learned weights, from the tables of `analysis.report.loss_parts`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from analysis.report.plots import SMALL, block_axes
from analysis.report.style import GREY, GRID, INK, MUTED, PART_COLOURS, new_figure, text_on

OTHER = "all other parts"
_ALPHA = 0.8
_LEAST_FACTOR = 1.25  # the colour scale covers at least 1 / this to this


def draw_loss_parts(table: pd.DataFrame, names: Mapping[int, str]) -> Figure:
    """Draw the parts of the training loss by epoch, stacked, one panel per student.

    The table is that of `loss_parts.loss_parts`. Negative parts are stacked below zero. The line is the sum,
    the training loss. If there are more parts than colours, the smallest parts share one colour.

    Args:
        names: titles of the panels, by trial number.
    """
    parts = _drawn_parts(table)
    numbers = list(dict.fromkeys(table["number"]))
    columns = min(2, len(numbers))
    rows = -(-len(numbers) // columns)
    figure, panels = new_figure(0.7 + (1.75 if rows > 1 else 2.6) * rows, rows=rows, columns=columns)
    for axes in panels[len(numbers) :]:
        axes.remove()
    for i, number in enumerate(numbers):
        _stack(panels[i], table[table["number"] == number], parts)
        panels[i].set_title(names.get(number, str(number)), fontsize=8.5)
        panels[i].set_ylabel("training loss" if i % columns == 0 else "")
        panels[i].set_xlabel("epoch" if i + columns >= len(numbers) else "")
    patches = [Patch(color=colour, lw=0, alpha=_ALPHA, label=part) for part, colour in parts.items()]
    handles = [*patches, *panels[0].get_lines()[:1]]
    longest = max(len(str(handle.get_label())) for handle in handles)
    figure.legend(handles=handles, loc="outside upper left", ncols=max(1, min(4, 60 // (longest + 6))))
    return figure


def _drawn_parts(table: pd.DataFrame) -> dict[str, str]:
    """Return the colours by part, in stacking order; `OTHER` stands for the smallest parts."""
    parts = list(dict.fromkeys(table["part"]))
    if len(parts) > len(PART_COLOURS):
        size = table.assign(size=table["loss"].abs()).groupby("part")["size"].sum()
        largest = set(size.nlargest(len(PART_COLOURS) - 1).index)
        parts = [*(part for part in parts if part in largest), OTHER]
    return dict(zip(parts, PART_COLOURS, strict=False))


def _stack(axes: Axes, table: pd.DataFrame, parts: Mapping[str, str]) -> None:
    """Draw the parts of one student."""
    part = table["part"].where(table["part"].isin(list(parts)), OTHER)
    values = table.assign(part=part).pivot_table("loss", "epoch", "part", "sum").reindex(columns=list(parts))
    values = values.fillna(0.0)
    epochs = values.index.to_numpy(dtype=np.float64)
    # Every epoch is one step of width 1, so that a single epoch is visible too.
    edges = np.ravel(np.column_stack([epochs - 0.5, epochs + 0.5]))
    for sign in (1.0, -1.0):
        low = np.zeros(len(epochs))
        for name, colour in parts.items():
            high = low + sign * (sign * values[name].to_numpy()).clip(min=0.0)
            if (high != low).any():
                axes.fill_between(edges, low.repeat(2), high.repeat(2), color=colour, lw=0, alpha=_ALPHA)
            low = high
    total = table.groupby("epoch")["train_loss"].first().reindex(values.index).to_numpy()
    axes.plot(edges, total.repeat(2), color=INK, lw=1.1, label="training loss, their sum")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0 if not (values < 0).any(axis=None) else None, None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=6))
    axes.grid(axis="x", visible=False)


def draw_span_weights(cells: pd.DataFrame, names: dict[int, str]) -> Figure:
    """Draw students (rows) by blocks (columns), coloured by learned weight.

    The table is that of `loss_parts.span_weights`. Colours are on a logarithmic scale around 1. A span of
    several blocks is one cell.
    """
    blocks = list(dict.fromkeys(cells["block"]))
    ranks = list(dict.fromkeys(cells["rank"]))
    figure, (axes,) = new_figure(1.3 + 0.26 * len(ranks))
    place = {block: i for i, block in enumerate(blocks)}
    known = cells["weight"].dropna()
    scale = max(float(np.log(known.clip(lower=1e-6)).abs().max()), np.log(_LEAST_FACTOR))
    for rank, block in zip(*(cells.loc[cells["weight"].isna(), n] for n in ("rank", "block")), strict=True):
        x, y = place[block], ranks.index(rank)
        axes.add_patch(Rectangle((x - 0.46, y - 0.42), 0.92, 0.84, facecolor=GRID, lw=0))
        axes.plot(x, y, ".", color=MUTED, ms=2.5)
    spans = cells[cells["weight"].notna()].groupby(["rank", "span"], sort=False)
    for (rank, _), part in spans:
        xs, y, weight = [place[block] for block in part["block"]], ranks.index(rank), part["weight"].iloc[0]
        colour = _weight_colour(weight, scale)
        wide = max(xs) - min(xs) + 0.92
        corner = (min(xs) - 0.46, y - 0.42)  # with an edge: a weight of 1 is nearly white
        axes.add_patch(Rectangle(corner, wide, 0.84, facecolor=colour, edgecolor=GREY, lw=0.5))
        if len(blocks) <= SMALL:
            middle = (min(xs) + max(xs)) / 2
            axes.text(middle, y, f"{weight:.2f}", ha="center", va="center", fontsize=8, color=text_on(colour))
    block_axes(axes, cells, names)
    ends = [float(np.exp(sign * scale)) for sign in (-1, 0, 1)]
    entries = [
        Patch(facecolor=_weight_colour(w, scale), edgecolor=GREY, lw=0.5, label=f"weight {w:.2f}")
        for w in ends
    ]
    entries.append(Patch(color=GRID, label="kept"))
    figure.legend(handles=entries, loc="outside upper left", ncols=4, columnspacing=1, handlelength=1)
    return figure


def _weight_colour(weight: float, scale: float) -> str:
    """Return a colour: orange below 1, purple above, pale at 1; `scale` is the logarithm at the ends."""
    at = 0.5 + 0.5 * np.log(max(weight, 1e-6)) / scale
    return to_hex(colormaps["PuOr"](0.1 + 0.8 * at))
