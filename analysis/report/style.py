"""Style of figures: palette, a size that is legible on a phone, placement of labels.

The palette is based on Okabe and Ito's colour-blind safe colours. In figures inlined in the HTML page, CSS
variables replace the palette, so that they follow the reader's light or dark theme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.ticker import EngFormatter, FuncFormatter
from matplotlib.transforms import Bbox

from analysis.metrics import describe

INK, MUTED, GRID, PAPER = "#1f2328", "#59636e", "#d8dee4", "#ffffff"
BLUE, RED, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#8c959f"
# Colours of series in one figure; red is reserved for the teacher.
PART_COLOURS = (BLUE, "#e69f00", GREEN, "#cc79a7", "#56b4e9", "#8c6d31", GREY)
CSS_NAMES = {
    **{INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"},
    **{BLUE: "blue", RED: "red", GREEN: "green", GREY: "grey"},
}
WIDTH = 5.2  # inches; then 9 pt text is about 9 px high on a phone
DPI = 150
RC: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": PAPER,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "ama-search",
}


def new_figure(height: float, rows: int = 1, columns: int = 1, **kwargs: Any) -> tuple[Figure, list[Axes]]:
    """Create a figure of the common width; return it with its axes in reading order."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False, **kwargs).flat)


def width_colours(widths: Sequence[float]) -> dict[float, str]:
    """Return a colour for every width, from dark (narrow) to light (wide), on a colour-blind safe scale.

    The ends of the scale are not used: they are too dark for a dark page, or too light for a light one.
    """
    scale, last = colormaps["viridis"], max(len(widths) - 1, 1)
    return {width: to_hex(scale(0.32 + 0.56 * i / last)) for i, width in enumerate(sorted(widths))}


def text_on(colour: str) -> str:
    """Black or white, whichever reads on `colour`. Not part of the palette: the theme must not swap it."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "#fefefe"


def label_axis(axes: Axes, which: str, metric: str) -> None:
    """Label the "x" or "y" axis with `metric`; ticks in percent or with k, M, G."""
    axis = getattr(axes, f"{which}axis")
    known = describe(metric)
    axis.set_label_text(known.axis_label)
    if known.share:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}"))
    elif known.count:
        axis.set_major_formatter(EngFormatter())


def place_labels(
    axes: Axes, labels: Sequence[tuple[float, float, str, str]], avoid: Sequence[tuple[float, float]]
) -> None:
    """Place labels (x, y, text, colour) near their points, without overlaps and off most `avoid` points.

    Try positions around each point, nearest first. Use the first one that is free and inside the axes, else
    the one that covers least. Labels that are far from their point get a leader line.
    """
    figure: Any = axes.figure
    figure.canvas.draw()  # fix the layout, on which text extents depend
    figure.set_layout_engine("none")
    renderer = figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    dots = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in (axes.transData.transform(p) for p in avoid)]
    taken: list[Bbox] = []
    for x, y, text, colour in labels:
        best: tuple[float, Any, Bbox] | None = None
        for distance in (8, 16, 28, 44):
            for dx, dy in ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1.3), (0, -1.3), (1.3, 0), (-1.3, 0)):
                note = axes.annotate(
                    text,
                    (x, y),
                    xytext=(dx * distance, dy * distance),
                    textcoords="offset points",
                    ha=["right", "center", "left"][1 + (dx > 0) - (dx < 0)],
                    va=["top", "center", "bottom"][1 + (dy > 0) - (dy < 0)],
                    color=colour,
                    fontsize=8.5,
                    fontweight="bold",
                    arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.8} if distance > 8 else None,
                    bbox={"facecolor": PAPER, "alpha": 0.75, "lw": 0, "pad": 0.8},
                    zorder=10,
                )
                words = _text_extent(note, renderer)
                outside = not (frame.x0 <= words.x0 and words.x1 <= frame.x1 + 2 and frame.y0 <= words.y0)
                cost = 100.0 * outside + 100.0 * (words.y1 > frame.y1 + 8)
                cost += 50.0 * words.count_overlaps(taken) + words.count_overlaps(dots) + distance / 1000
                if best is None or cost < best[0]:
                    if best is not None:
                        best[1].remove()
                    best = (cost, note, words)
                else:
                    note.remove()
            if best is not None and best[0] < 1:
                break
        if best is not None:
            taken.append(best[2])


def _text_extent(note: Annotation, renderer: Any) -> Bbox:
    """Return the extent of an annotation's text, without its leader line."""
    note.update_positions(renderer)
    extent: Bbox = Text.get_window_extent(note, renderer).padded(1)
    return extent


def svg_text(figure: Figure) -> str:
    """Return the figure as the text of an SVG element with a transparent background."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, dpi=DPI, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def standalone_svg(svg: str) -> str:
    """Return the content of an SVG file with a white background."""
    head, rest = svg.split(">", 1)
    white = f'<rect width="100%" height="100%" fill="{PAPER}"/>'
    return f'<?xml version="1.0" encoding="utf-8"?>\n{head}>{white}{rest}'


def themed_svg(svg: str, slug: str, title: str) -> str:
    """Prepare `svg` for a page: scalable, palette as CSS variables, ids made unique with `slug`."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{slug}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\g<1>#{slug}-", svg)
    for colour, name in CSS_NAMES.items():
        svg = svg.replace(colour, f"var(--{name})")
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{title}">{rest}'
