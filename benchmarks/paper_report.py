"""Write the paper's table as JSON, Markdown and a plot, from one row per training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.intervals import paired, summarise
from analysis.metrics import show
from analysis.report.style import BLUE, DPI, GREEN, GREY, INK, RC, RED, new_figure
from benchmarks.method_arms import ALL_ARMS, METHOD_STEPS
from benchmarks.paper_arms import STEPS

Row = Mapping[str, Any]
METRICS = ("test_accuracy", "test_loss", "epochs", "seconds", "epoch_seconds")
LOOKS = {
    "scratch": (GREY, "-"),
    "hinton": (GREY, "--"),
    "finetune": (RED, "-"),
    "logits": (RED, "--"),
    "ama-uniform": (BLUE, "--"),
    "ama-adaptive": (BLUE, "-"),
    "library": (GREEN, "-"),
}
HEAD = (
    "| trained | n | test accuracy | against scratch | p | test loss | against scratch | p "
    "| epochs to scratch's accuracy | seconds to it | seconds an epoch |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
)


def reached(row: Row, target: float) -> tuple[int, float] | None:
    """Return epochs and training seconds until `row` has `target` validation accuracy; None if never."""
    for index, accuracy in enumerate(row["val_accuracy"]):
        if accuracy >= target:
            return index + 1, float(sum(row["seconds"][: index + 1]))
    return None


def measured(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return, for each arm at one size, all metrics by seed and how many seeds reached scratch's accuracy.

    `epochs` and `seconds` are counted up to the final validation accuracy of the same seed's scratch student.
    If it is never reached they are the whole training's, a lower bound. Without scratch they are left out.
    """
    by_arm: dict[str, dict[int, Row]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], {})[row["seed"]] = row
    targets = {seed: row["val_accuracy"][-1] for seed, row in by_arm.get("scratch", {}).items()}
    found = {}
    for arm, seeds in by_arm.items():
        until = {seed: reached(row, targets[seed]) for seed, row in seeds.items() if seed in targets}
        whole = {seed: (len(r["val_accuracy"]), float(sum(r["seconds"]))) for seed, r in seeds.items()}
        values = {
            "test_accuracy": {seed: float(row["test_accuracy"]) for seed, row in seeds.items()},
            "test_loss": {seed: float(row["test_loss"]) for seed, row in seeds.items()},
            "epochs": {seed: float((u or whole[seed])[0]) for seed, u in until.items()},
            "seconds": {seed: float((u or whole[seed])[1]) for seed, u in until.items()},
            "epoch_seconds": {seed: median(row["seconds"]) for seed, row in seeds.items()},
        }
        missed = sum(u is None for u in until.values())
        found[arm] = {"values": values, "reached": len(until) - missed, "compared": len(until)}
    return found


def statistics_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Return by size the summaries of all arms, paired differences from scratch, and what each step adds."""
    found: dict[str, Any] = {}
    for size in dict.fromkeys(row["size"] for row in rows):
        arms = measured([row for row in rows if row["size"] == size])
        base = arms.get("scratch", {}).get("values")
        entry: dict[str, Any] = {"arms": {}, "steps": []}
        for arm in (name for name in ALL_ARMS if name in arms):
            values = arms[arm]["values"]
            entry["arms"][arm] = {
                "reached": arms[arm]["reached"],
                "compared": arms[arm]["compared"],
                **{m: asdict(summarise(list(values[m].values()))) for m in METRICS if values[m]},
                "against_scratch": {m: _difference(values[m], base[m]) for m in METRICS} if base else {},
            }
        for arm, other, what in (*STEPS, *METHOD_STEPS):
            if arm in arms and other in arms:
                pairs = {
                    m: _difference(arms[arm]["values"][m], arms[other]["values"][m]) for m in METRICS[:2]
                }
                entry["steps"].append({"arm": arm, "over": other, "what": what, **pairs})
        found[size] = entry
    return found


def _difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[str, Any] | None:
    """Return the paired difference, absolute and in percent of the other's mean."""
    pair = paired(ours, theirs)
    if pair is None:
        return None
    base = summarise([value for seed, value in theirs.items() if seed in ours]).mean
    return {**asdict(pair), "percent": 100 * pair.difference / base if base else math.nan}


def figures_of(found: Mapping[str, Any]) -> dict[str, float | str]:
    """Return the figures of the claims by name."""
    lines: dict[str, float | str] = {}
    for size, entry in found.items():
        for arm, row in entry["arms"].items():
            name = f"paper_{size}_{arm}".replace("-", "_")
            lines[f"{name}_accuracy"] = round(row["test_accuracy"]["mean"], 5)
            lines[f"{name}_loss"] = round(row["test_loss"]["mean"], 5)
            against = row["against_scratch"]
            if arm == "scratch" or not against:
                continue
            accuracy, loss = against["test_accuracy"], against["test_loss"]
            share = row["epochs"]["mean"] / entry["arms"]["scratch"]["epochs"]["mean"]
            lines[f"{name}_points_over_scratch"] = round(100 * accuracy["difference"], 3)
            lines[f"{name}_points_p"] = _p(accuracy["p"])
            lines[f"{name}_loss_percent"] = round(loss["percent"], 2)
            lines[f"{name}_loss_p"] = _p(loss["p"])
            lines[f"{name}_epochs_share"] = round(share, 3)
        for step in entry["steps"]:
            name = f"paper_{size}_{step['arm']}_over_{step['over']}".replace("-", "_")
            lines[f"{name}_points"] = round(100 * step["test_accuracy"]["difference"], 3)
            lines[f"{name}_p"] = _p(step["test_accuracy"]["p"])
    return lines


def _p(value: float | None) -> float | str:
    return "-" if value is None else float(f"{value:.3g}")


def markdown(found: Mapping[str, Any], conditions: Mapping[str, Any]) -> str:
    """Format the table and the explanation of its numbers."""
    teacher, c = conditions["teacher"], conditions
    lines = [
        f"# The paper's table: students of {teacher['arch']}",
        "",
        f"`{c['command']}`: {c['train_images']:,} training images, {c['epochs']} epochs, {c['seeds']} seeds; "
        f"{c['device']}, {c['precision']}, {c['threads']} thread(s). Test images ({c['test_images']:,}) were "
        "read once a finished model. Teacher: test accuracy "
        f"{show('test_accuracy', teacher['test_accuracy'])}, test loss {teacher['test_loss']:.4f}.",
        "",
        "Mean ± standard deviation over seeds; differences are paired by seed, with the 95 % interval and "
        "the p-value of the paired t-test. Epochs and seconds of training until the validation accuracy "
        f"({c['val_images']:,} images) equals the final one of the same seed's scratch student; `(k of n)`: "
        "k seeds reached it, the others count with all epochs.",
        "",
        *_caveats(conditions),
    ]
    for size, entry in found.items():
        student = conditions["students"][size]
        share = student["flops"] / teacher["flops"]
        lines += [
            "",
            f"## {size}: {share:.2f} of the teacher's FLOPs ({show('flops', student['flops'])})",
            "",
        ]
        lines += [*HEAD, *(_line(arm, row) for arm, row in entry["arms"].items())]
        lines += ["", "What each step adds, in points of test accuracy and in test loss:", ""]
        lines += ["| step | accuracy | p | loss | p |", "|---|---|---|---|---|"]
        lines += [_step(step) for step in entry["steps"]]
    return "\n".join(lines) + "\n"


def _caveats(conditions: Mapping[str, Any]) -> list[str]:
    rates = conditions["learning_rates"]
    tuned = all(rate["tuned"] for rate in rates.values())
    how = (
        f"of {', '.join(map(str, conditions['grid']))}, and beyond while the best was at an end, the best by "
        f"validation accuracy of another seed, at size {conditions['tuned_at']}"
        if tuned
        else "the benchmark's defaults, not tuned"
    )
    lines = [f"Learning rates ({how}): " + ", ".join(f"{arm} {r['lr']:g}" for arm, r in rates.items()) + "."]
    if conditions["library_seconds"] is not None:
        lines.append(
            f"The library took {conditions['library_seconds']:.0f} s, once for all students and seeds; the "
            "rows do not count it."
        )
    if conditions["teacher_saw"] is None:
        lines.append(
            "If the teacher was trained on validation images, epochs and seconds favour students that start "
            "from its weights."
        )
    return [" ".join(lines)]


def _line(arm: str, row: Mapping[str, Any]) -> str:
    cells = [ALL_ARMS[arm].title, str(row["test_accuracy"]["n"])]
    for metric, scale, digits in (("test_accuracy", 100, 2), ("test_loss", 1, 4)):
        cells.append(_mean(row[metric], scale, digits) + (" %" if metric == "test_accuracy" else ""))
        against = row["against_scratch"].get(metric) if arm != "scratch" else None
        change = "" if against is None or metric == "test_accuracy" else f" ({against['percent']:+.1f} %)"
        cells += [_change(against, scale, digits) + change, _shown_p(against)]
    missed = row["reached"] < row["compared"]
    tail = f" ({row['reached']} of {row['compared']})" if missed else ""
    cells += [
        _mean(row[m], 1, digits) + tail if m in row else "–" for m, digits in (("epochs", 1), ("seconds", 0))
    ]
    cells.append(_mean(row["epoch_seconds"], 1, 1) if "epoch_seconds" in row else "–")
    return f"| {' | '.join(cells)} |"


def _step(step: Mapping[str, Any]) -> str:
    accuracy, loss = step["test_accuracy"], step["test_loss"]
    cells = [f"{step['what']} ({step['arm']} over {step['over']})"]
    cells += [_change(accuracy, 100, 2), _shown_p(accuracy), _change(loss, 1, 4), _shown_p(loss)]
    return f"| {' | '.join(cells)} |"


def _mean(summary: Mapping[str, Any], scale: float, digits: int) -> str:
    spread = "" if summary["std"] is None else f" ± {scale * summary['std']:.{digits}f}"
    return f"{scale * summary['mean']:.{digits}f}{spread}"


def _change(pair: Mapping[str, Any] | None, scale: float, digits: int) -> str:
    if pair is None:
        return "–"
    interval = (
        ""
        if pair["low"] is None
        else f" [{scale * pair['low']:+.{digits}f}, {scale * pair['high']:+.{digits}f}]"
    )
    return f"{scale * pair['difference']:+.{digits}f}{interval}"


def _shown_p(pair: Mapping[str, Any] | None) -> str:
    return "–" if pair is None or pair["p"] is None else f"{pair['p']:.2g}"


def curves(rows: Sequence[Row], size: str) -> dict[str, dict[str, np.ndarray]]:
    """Return by arm the mean and standard deviation over seeds of the validation accuracy of each epoch."""
    found = {}
    for arm in (name for name in LOOKS if any(r["arm"] == name and r["size"] == size for r in rows)):
        values = np.array([r["val_accuracy"] for r in rows if r["arm"] == arm and r["size"] == size])
        spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
        found[arm] = {"mean": values.mean(axis=0), "std": spread}
    return found


def plot(rows: Sequence[Row], path: Path) -> None:
    """Plot validation accuracy by epoch, one panel per size."""
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    with rc_context(RC):
        figure, panels = new_figure(0.7 + 2.9 * len(sizes), len(sizes), 1, sharex=True)
        for panel, size in zip(panels, sizes, strict=True):
            for arm, curve in curves(rows, size).items():
                colour, line = LOOKS[arm]
                epochs = np.arange(1, len(curve["mean"]) + 1)
                panel.plot(epochs, curve["mean"], color=colour, ls=line, lw=1.5, label=arm)
                low, high = curve["mean"] - curve["std"], curve["mean"] + curve["std"]
                panel.fill_between(epochs, low, high, color=colour, alpha=0.12, lw=0)
            panel.set_title(f"student: {size}", loc="left", color=INK)
            panel.set_ylabel("validation accuracy (%)")
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}"))
        panels[-1].set_xlabel("epochs")
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=4, columnspacing=1)
        figure.savefig(path, dpi=DPI)


def write_table(
    rows: Sequence[Row], conditions: Mapping[str, Any], out: Path, stem: str
) -> tuple[str, dict[str, float | str]]:
    """Write `<stem>.json`, `.md` and `.png` into `out`; return the Markdown text and the figures."""
    found = statistics_of(rows)
    lines, text = figures_of(found), markdown(found, conditions)
    out.mkdir(parents=True, exist_ok=True)
    record = {**conditions, "figures": lines, "sizes": found, "rows": list(rows)}
    (out / f"{stem}.json").write_text(json.dumps(_rounded(record), indent=1) + "\n")
    (out / f"{stem}.md").write_text(text)
    plot(rows, out / f"{stem}.png")
    return text, lines


def _rounded(value: Any) -> Any:
    """Round to six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
