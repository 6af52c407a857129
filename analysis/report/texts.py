"""Texts and text tables of the report, shared by the HTML page and the Markdown summary."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.errors import InputError
from analysis.metrics import decimals, show, show_time
from analysis.metrics import describe as metric_of
from analysis.picks.pick import Pick, pick
from analysis.report import tables
from analysis.report.catalogue import Plot
from analysis.report.retrained import HEAD, cells, teacher_row
from analysis.runs.failures import notices
from analysis.runs.object_store import join
from analysis.runs.parameters import REPLACED, student_of
from analysis.runs.run import Run

MAX_ROWS = 100
BUSY = 0.25  # relative excess of measured over predicted latency that suggests a busy device


@dataclass(frozen=True)
class Suggestion:
    """A suggested pick, with the command that makes it."""

    pick: Pick
    title: str
    command: str


def suggest(run: Run) -> list[Suggestion]:
    """Suggest picks: the knee, and the best at half the teacher's cost; none without a front."""
    place = shlex.quote(run.place or run.label)
    half = next((m for m in run.metrics if m in run.costs), None)
    asked: list[tuple[str, str, dict[str, Any]]] = [("The knee of the front", "--knee", {"knee": True})]
    if half:
        title = f"The best at half the teacher's {metric_of(half).label}"
        asked.append((title, f"--max {half}=0.5x", {"max": {half: "0.5x"}}))
    found: list[Suggestion] = []
    for title, option, arguments in asked:
        try:
            (chosen,) = pick(run, **arguments)
        except InputError:  # no trial has finished, or none is within the limit
            continue
        if chosen.number not in [s.pick.number for s in found]:
            found.append(Suggestion(chosen, title, f"ama pick {place} {option}"))
    return found


def commands(run: Run, suggestion: Suggestion) -> str:
    """Return the commands that pick and retrain `suggestion`."""
    target = shlex.quote(join(run.place, "pick.yaml") if run.place else "pick.yaml")
    models = shlex.quote(join(run.place, "retrained") if run.place else "retrained")
    best = f"{models}/trial-{suggestion.pick.number}/student/seed-{int(run.experiment.get('seed') or 0) + 1}"
    return (
        f"{suggestion.command} --out {target}\nama retrain {target} --seeds 3 --baselines\n"
        f"ama export {best} --format onnx"
    )


def suggestion_table(run: Run, suggestions: Sequence[Suggestion]) -> pd.DataFrame:
    """Return the suggested picks as a table: title, number, metrics, reason and commands."""
    rows = [
        {"title": s.title, "number": s.pick.number, **s.pick.values, "reason": s.pick.reason,
         "commands": commands(run, s)}
        for s in suggestions
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=None if rows else ["title", "number", "reason", "commands"])


def headline(run: Run, facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the key numbers of the run, as names and texts; `facts` is its status."""
    trials, front = facts["trials"], facts["front"]
    first = run.metrics[0]
    best = front[0]["values"].get(first) if front else None
    return [
        ("trials fully trained", str(trials["COMPLETE"])),
        ("students on the front", str(len(front))),
        ("hypervolume", f"{facts['hypervolume']:.3f}"),
        (f"best {metric_of(first).label}", show(first, best)),
        (f"teacher's {metric_of(first).label}", show(first, run.teacher.get(first))),
        ("training, all trials", show_time(facts["seconds"] / 3600)),
    ]


def describe(run: Run) -> list[tuple[str, str]]:
    """Describe the experiment as names and texts: objectives, limits, teacher, data, space, budget, …"""
    teacher, data, attrs = run.teacher, run.data, run.attrs
    costs = ", ".join(f"{metric_of(m).label} {show(m, teacher.get(m))}" for m in run.costs)
    images = f"{data.get('train')} training and {data.get('val')} validation images"
    shape = "×".join(map(str, data.get("image_shape") or []))
    budget = {key: value for key, value in (attrs.get("budget") or {}).items() if value is not None}
    widths = ", ".join(f"{width:g}" for width in run.widths)
    other = [run.labels[name] for name in run.parameters if not name.startswith("level/")]
    return [
        ("Command", str(attrs.get("command", ""))),
        ("Run", run.label),
        ("Objectives", ", ".join(f"{o.direction} {metric_of(o.metric).label}" for o in run.objectives)),
        ("Limits", ", ".join(str(c.get("text", "")) for c in run.constraints)),
        ("Teacher", f"{teacher.get('arch')}: {show('val_accuracy', teacher.get('val_accuracy'))}, {costs}"),
        ("Teacher's hash", str(teacher.get("hash", ""))),
        (
            "Data",
            f"{data.get('name')}: {images}, {data.get('classes')} classes, {shape} (hash {data.get('hash')})",
        ),
        ("Space", f"{len(run.blocks)} blocks, each kept or replaced at width {widths}"),
        ("Students", ", ".join(dict.fromkeys(map(student_of, run.rows)))),
        ("Method" if len(run.methods) == 1 else "Methods", ", ".join(run.methods.values())),
        ("Also searched", ", ".join(other)),
        ("Budget", ", ".join(f"{key} {value}" for key, value in budget.items())),
        ("Device", str(attrs.get("device", ""))),
        ("Started", str(attrs.get("started", ""))),
        ("Ended", str(attrs.get("ended") or "not yet")),
        ("Versions", ", ".join(f"{k} {v}" for k, v in (attrs.get("versions") or {}).items())),
    ]


def front_rows(run: Run, limit: int = MAX_ROWS) -> tuple[list[str], list[list[str]]]:
    """Return headers and cells of the front's table, teacher first; costs predicted, measured and relative.

    Accuracies have the 95 % interval that follows from the number of validation images.
    """
    share = next((m for m in run.metrics if m in run.costs), run.costs[0])
    headers = [
        *("trial", "accuracy [95 %]", "loss", "latency", "measured", "FLOPs", "params"),
        *(metric.label for metric in run.own_metrics.values()),
        f"{metric_of(share).label} / teacher's",
        *("replaced", "test accuracy"),
    ]
    columns = ["val_loss", "latency_ms", "measured_latency_ms", "flops", "params", *run.own_metrics]
    teacher = run.teacher
    teacher |= {"measured_latency_ms": teacher.get("latency_ms"), **tables.teacher_tests(run)}
    known = [show(m, teacher.get(m)) for m in ("val_accuracy", *columns)]
    rows = [["teacher", *known, "100 %", "–", show("test_accuracy", teacher.get("test_accuracy"))]]
    for _, row in tables.front(run).head(limit).iterrows():
        part = row[f"{share}_share"]
        rows.append(
            [
                str(row["number"]),
                _with_interval(row),
                *(show(m, row[m]) for m in columns),
                f"{100 * part:.1f} %" if part == part else "–",
                _replaced(run, row),
                _retested(row),
            ]
        )
    return headers, rows


def _replaced(run: Run, row: pd.Series) -> str:
    """Format the number of replaced blocks, or the architecture of a separate student."""
    student = student_of(run.trial(int(row["number"])))
    if student != REPLACED:
        return student
    return f"{row['replaced']:.0f} of {len(run.blocks)}" if pd.notna(row["replaced"]) else "–"


def _with_interval(row: pd.Series) -> str:
    accuracy = show("val_accuracy", row["val_accuracy"])
    low, high = row["val_accuracy_low"], row["val_accuracy_high"]
    return accuracy if pd.isna(low) else f"{accuracy} [{100 * low:.1f}, {100 * high:.1f}]"


def _retested(row: pd.Series) -> str:
    """Format the test accuracy of the retrained student: mean ± deviation over its seeds."""
    if pd.isna(row["retrained_test_accuracy"]):
        return "–"
    spread = row["retrained_test_accuracy_std"]
    tail = "" if pd.isna(spread) else f" ± {100 * spread:.2f}"
    return f"{100 * row['retrained_test_accuracy']:.2f}{tail} % (n = {row['retrained_n']:.0f})"


def method_rows(run: Run, methods: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return headers and cells of the results by method, from `tables.methods`."""
    headers = ["method", "trials", "fully trained", "on the front"]
    for metric in run.metrics:
        label = metric_of(metric).label
        headers += [f"best {label}", "mean ± sd"]
    rows = []
    for _, row in methods.iterrows():
        cells = [str(row["method"]), *(f"{row[n]:.0f}" for n in ("trials", "complete", "front"))]
        for metric in run.metrics:
            cells += [show(metric, row[f"{metric}_best"]), _mean(row, metric)]
        rows.append([*cells, show_seconds(row["seconds_per_epoch"])])
    return [*headers, "s / epoch"], rows


def _mean(row: pd.Series, metric: str) -> str:
    """Format mean ± standard deviation of a metric over the trials of a method."""
    mean, spread = row[f"{metric}_mean"], row[f"{metric}_std"]
    if pd.isna(spread):
        return show(metric, mean)
    if metric_of(metric).share:
        return f"{100 * mean:.2f} ± {100 * spread:.2f} %"
    return f"{show(metric, mean)} ± {show(metric, spread)}"


def show_seconds(value: float) -> str:
    """Format seconds with three significant digits; "–" for NaN."""
    return "–" if pd.isna(value) else f"{value:.{decimals(value)}f}"


def latency_line(front: pd.DataFrame) -> str:
    """Explain latencies measured far above their predictions; empty if there are none."""
    error = front["latency_error"].median()
    if not error > BUSY:
        return ""
    return (
        f"The median latency measured after the search is {100 * error:.0f} % above the prediction; other "
        "work may have used the device. "
    )


def losses_line(losses: pd.DataFrame) -> str:
    """Summarise the training lost to failures in one sentence."""
    hours, share = float(losses["train_hours"].sum()), float(losses["share"].sum())
    by = {row["what"]: int(row["trials"]) for _, row in losses.iterrows()}
    if not any(by.values()):
        return "No training was lost to failures."
    if not hours:
        return f"{by['failed']} trials failed before their first epoch was done."
    return (
        f"Lost to failures: at most {show_time(hours)} of training, {100 * share:.1f} % of the total. "
        f"{by['failed']} trials failed, {by['epochs trained again']} repeated epochs after a damaged "
        f"checkpoint, {by['broken off']} were interrupted within an epoch and continued from a checkpoint."
    )


def retrained_rows(run: Run, retrained: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return headers and cells of the retrained students' table, teacher first."""
    rows: list[dict[str, Any]] = [{str(k): v for k, v in row.items()} for row in retrained.to_dict("records")]
    return list(HEAD), [cells(row) for row in (teacher_row(run.teacher | tables.teacher_tests(run)), *rows)]


def markdown(
    run: Run,
    facts: Mapping[str, Any],
    frames: dict[str, pd.DataFrame],
    plots: Sequence[Plot],
    suggestions: Sequence[Suggestion],
) -> str:
    """Write the Markdown summary."""
    lines = [f"# {_cell(run.name)}", ""]
    lines += [line for notice in notices(run) for line in (f"**{_cell(capital(notice))}.**", "")]
    if not facts["front"]:
        lines += [f"**{capital(run.why_no_front())}.**", ""]
    lines += [f"- {name}: {value}" for name, value in headline(run, facts)]
    lines += ["", "## Front", "", *pipe_table(*front_rows(run)), ""]
    lines += [f"![{p.title}]({p.slug}.png)" for p in plots if p.svg and p.section == "front"]
    if not frames["methods"].empty:
        lines += ["", "## Results by method", "", *pipe_table(*method_rows(run, frames["methods"]))]
    if drawn := [f"![{p.title}]({p.slug}.png)" for p in plots if p.svg and p.section == "loss"]:
        lines += ["", "## Parts of the loss", "", *drawn]
    if not frames["retrained"].empty:
        lines += ["", "## Retrained (test data)", "", *pipe_table(*retrained_rows(run, frames["retrained"]))]
    if suggestions:
        lines += ["", "## Next steps"]
    for s in suggestions:
        lines += [
            "",
            f"{s.title}: trial {s.pick.number}. {s.pick.reason}.",
            "",
            "```",
            commands(run, s),
            "```",
        ]
    lines += ["", "## Experiment", ""]
    lines += [f"- {name}: {_cell(value)}" for name, value in describe(run) if value]
    return "\n".join(lines) + "\n"


def pipe_table(headers: list[str], rows: list[list[str]]) -> list[str]:
    """Format a table as lines of Markdown, numbers right-aligned."""
    lines = [headers, ["---"] + ["---:"] * (len(headers) - 1), *rows]
    return ["| " + " | ".join(_cell(value) for value in line) + " |" for line in lines]


def capital(text: str) -> str:
    """Return `text` with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
