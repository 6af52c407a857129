"""List the figures of a report with their numbers, and save them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from analysis.metrics import describe
from analysis.report import importance, loss_parts, plots, tables
from analysis.report import loss_plots as loss_draw
from analysis.report.style import DPI, RC, standalone_svg, svg_text
from analysis.runs.parameters import METHOD, REPLACED, method_of, student_of
from analysis.runs.run import Run

MAX_STUDENTS = 24
_NOT_SLUG = re.compile(r"[^\w.-]+")
BARS = (
    "Bars: 95 % intervals. For students of the front they follow from the number of validation images, for "
    "retrained ones from the seeds."
)


@dataclass(frozen=True)
class Plot:
    """One figure. If there is nothing to draw yet, `svg` is empty and `note` gives the reason."""

    slug: str
    section: str
    title: str
    note: str
    numbers: pd.DataFrame
    svg: str = ""


def save_plots(run: Run, out: Path, picks: Sequence[int] = ()) -> list[Plot]:
    """Draw every figure of `run`, and write it to `out` as <slug>.png, .svg and .csv; in page order."""
    out.mkdir(parents=True, exist_ok=True)
    saved = []
    with matplotlib.rc_context(RC):
        for plot, draw in _plots(run, picks):
            plot.numbers.to_csv(out / f"{plot.slug}.csv", index=False)
            if draw is None:
                for suffix in (".png", ".svg"):  # files of an earlier report
                    (out / f"{plot.slug}{suffix}").unlink(missing_ok=True)
                saved.append(plot)
                continue
            figure = draw()
            figure.savefig(out / f"{plot.slug}.png", dpi=DPI)
            svg = svg_text(figure)
            (out / f"{plot.slug}.svg").write_text(standalone_svg(svg), encoding="utf-8")
            saved.append(Plot(plot.slug, plot.section, plot.title, plot.note, plot.numbers, svg))
    return saved


Drawn = tuple[Plot, Callable[[], Figure] | None]


def _plots(run: Run, picks: Sequence[int]) -> Iterator[Drawn]:
    yield from _scatters(run, tables.points(run, picks))
    history = tables.history(run)
    note = "Share of the box (from the teacher's costs and chance to the ideal) that the front dominates."
    plot = Plot("hypervolume", "progress", "Hypervolume", note, history)
    yield _unless_empty(plot, lambda: plots.draw_history(history), "no trial has ended yet")
    cells = tables.block_map(run, MAX_STUDENTS)
    names = plots.row_names(run.front(), run.metrics) if len(cells) else {}
    note = "A bar below several blocks: one module replaces all of them."
    plot = Plot("block-map", "front", "Which blocks the front replaces", note, cells)
    yield _unless_empty(
        plot, lambda: plots.draw_block_map(cells, names, run.widths), "the front is still empty"
    )
    curves = tables.curves(run)
    plot = Plot("learning-curves", "progress", "Learning curves", "", curves)
    yield _unless_empty(
        plot, lambda: plots.draw_curves(curves, run.teacher.get("val_accuracy")), "no epoch has ended yet"
    )
    yield from _loss(run, picks)
    yield from _what_matters(run)


def _loss(run: Run, picks: Sequence[int]) -> Iterator[Drawn]:
    """Yield the figures of the parts of the training loss and of learned weights."""
    names = plots.row_names(run.trials, run.metrics)
    numbers = loss_parts.shown_students(run, picks)
    parts = loss_parts.loss_parts(run, numbers)
    if len(run.methods) > 1:
        methods = {n: run.methods[method_of(run.trial(n))] for n in numbers}
        titles = {n: f"{names[n]}\n{methods[n]}" for n in numbers}
    else:
        titles = names
    whose = "the picked students" if set(numbers) <= set(picks) else "students of the front"
    note = f"Weighted parts, stacked by epoch; their sum is the training loss. Shown: {whose}."
    plot = Plot("loss-parts", "loss", "Parts of the loss", note, parts)
    yield _unless_empty(plot, lambda: loss_draw.draw_loss_parts(parts, titles), loss_parts.why_no_parts(run))
    cells = loss_parts.span_weights(run, MAX_STUDENTS)
    note = (
        "Weight of each span of blocks in the feature term after the last epoch, normalised to mean 1 over a "
        "student's spans. Shown: students of the front with adaptive supervision."
    )
    plot = Plot("span-weights", "loss", "Learned weights of the spans", note, cells)
    yield _unless_empty(
        plot, lambda: loss_draw.draw_span_weights(cells, names), loss_parts.why_no_weights(run)
    )


def _scatters(run: Run, points: pd.DataFrame) -> Iterator[Drawn]:
    """Yield figures of every pair of objectives, then of accuracy against each cost that is no objective."""
    pairs = [(b, a) if describe(a).kind == "quality" else (a, b) for a, b in combinations(run.metrics, 2)]
    pairs += [(cost, "val_accuracy") for cost in run.costs if (cost, "val_accuracy") not in pairs]
    for x, y in pairs:
        front = x in run.metrics and y in run.metrics
        title = f"{describe(y).label} against {describe(x).label}"
        title = title[0].upper() + title[1:]
        columns = ["number", "role", "picked", x, y]
        note = "" if front else "Not a pair of objectives, so the front may not look like a front here."
        if y == "val_accuracy":
            columns += ["val_accuracy_low", "val_accuracy_high"]
            note += BARS if front else ""
        slug = f"{'front' if front else 'accuracy'}-{y}-{x}" if front else f"accuracy-{x}"
        plot = Plot(slug, "front" if front else "costs", title, note, points[columns])
        yield plot, partial(plots.draw_scatter, points, x, y, run.objectives)


def _what_matters(run: Run) -> Iterator[Drawn]:
    table = tables.importance(run)
    for (metric, method), part in table.groupby(["metric", "method"], sort=False):
        rows = part[part["parameter"] != ""]
        rows = rows.assign(parameter=rows["parameter"].map(run.labels))
        note = str(part["note"].iloc[0])
        slug = f"importance-{metric}" + (f"-{_NOT_SLUG.sub('-', str(method))}" if method else "")
        title = f"What matters for {describe(str(metric)).label}" + (f" with {method}" if method else "")
        plot = Plot(slug, "matters", title, note, part)
        yield _unless_empty(plot, partial(plots.draw_importance, rows), note, rows)
    complete = int((run.trials["state"] == "COMPLETE").sum())
    replaced = [trial for trial in run.rows if student_of(trial) == REPLACED]
    effects = importance.block_effects(run)
    effects = effects if complete >= importance.MIN_TRIALS else effects.iloc[:0]
    cost = next((m for m in run.metrics if m in run.costs), run.costs[0])
    costs = list(dict.fromkeys([cost, "latency_ms"]))  # the searched cost, and the latency
    note = "Change relative to keeping the block, other blocks equal (ridge regression on all levels)."
    if complete < 2 * len(effects):
        note += f" Effects on accuracy are rough: {complete} fully trained trials for {len(effects)} effects."
    few = f"needs {importance.MIN_TRIALS} fully trained trials, there are {complete}"
    if run.rows and not replaced:
        few = "all students are separate networks, without blocks of the teacher"
    plot = Plot("block-effects", "matters", "Effect of replacing each block", note, effects)
    yield _unless_empty(plot, lambda: plots.draw_effects(effects, costs), few)
    settings = tables.settings(run)
    settings = settings if complete >= importance.MIN_TRIALS else settings.iloc[:0]
    if METHOD in settings:
        settings = settings.assign(**{METHOD: settings[METHOD].map(run.methods)})
    plot = Plot("settings", "matters", "Settings of method and optimiser against accuracy", "", settings)
    empty = settings if settings.shape[1] > 3 else settings.iloc[:0]
    few = few if complete < importance.MIN_TRIALS else "only the blocks' levels were searched"
    log = tables.log_parameters(run)
    yield _unless_empty(plot, lambda: plots.draw_settings(settings, log, run.labels), few, empty)


def _unless_empty(
    plot: Plot, draw: Callable[[], Figure], reason: str, rows: pd.DataFrame | None = None
) -> Drawn:
    """Draw `plot`, or replace its note by the reason if it does not have rows."""
    if len(plot.numbers if rows is None else rows):
        return plot, draw
    return Plot(plot.slug, plot.section, plot.title, reason, plot.numbers), None
