"""Write the report of a run: `write_report("runs/digits", "runs/digits/report")`.

It consists of a self-contained HTML page, a Markdown summary, and every figure as PNG and SVG with its
numbers as CSV. It can be written while the search runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import optuna
import pandas as pd

from analysis.metrics import show, show_time
from analysis.picks.pick import Pick
from analysis.picks.pick_file import read_pick
from analysis.report import html, loss_parts, tables, texts
from analysis.report.catalogue import Plot, save_plots
from analysis.report.retrained import NOTE
from analysis.report.style import themed_svg
from analysis.runs.failures import failures, leading_reason, notices
from analysis.runs.load import load
from analysis.runs.run import Run
from analysis.runs.status import status


@dataclass(frozen=True)
class Report:
    """The paths of a written report.

    Example:
        report = write_report("runs/digits", "runs/digits/report")
        print(report.index, len(report.figures), len(report.tables))
    """

    out: Path
    index: Path
    summary: Path
    figures: tuple[Path, ...]
    tables: tuple[Path, ...]


def write_report(
    run: str | Path | optuna.Study | Run, out: str | Path, picks: Sequence[Pick] | None = None
) -> Report:
    """Write the report of `run` into the folder `out`; replace an earlier report.

    Args:
        run: run directory, storage URL, Optuna study, or an open Run.
        out: the folder; created if it does not exist.
        picks: picks to mark in figures and tables; default: those of the run's `pick.yaml`, if any.

    Returns:
        The paths of page, summary, figures and tables.

    Raises:
        InputError: there is no such run, its study has no trials, or a pick or retraining file is invalid.

    Example:
        report = write_report("runs/digits", "report", pick("runs/digits", top=2))
        print(report.summary.read_text()[:300])
    """
    opened, out = load(run), Path(out)
    if picks is None:
        written = opened.path / "pick.yaml" if opened.path else None
        picks = read_pick(written).picks if written and written.is_file() else ()
    out.mkdir(parents=True, exist_ok=True)
    plots = save_plots(opened, out, [p.number for p in picks])
    table = opened.trials
    frames: dict[str, pd.DataFrame] = {
        "trials": table,
        "front": tables.front(opened),
        "states": tables.states(opened),
        "losses": tables.losses(opened),
        "failures": failures(opened),
        "retrained": tables.retrained(opened),
        "methods": tables.methods(opened),
        "mixes": loss_parts.mixes(opened),
        "teacher": pd.DataFrame([opened.teacher | tables.teacher_tests(opened)]),
    }
    facts, suggestions = status(opened), texts.suggest(opened)
    frames["facts"] = pd.DataFrame(
        [*texts.headline(opened, facts), *texts.describe(opened)], columns=["what", "value"]
    )
    frames["suggestions"] = texts.suggestion_table(opened, suggestions)
    for name, frame in frames.items():
        frame.to_csv(out / f"{name}.csv", index=False)
    index, summary = out / "index.html", out / "summary.md"
    body = "\n".join(_sections(opened, facts, frames, plots, picks, suggestions))
    index.write_text(html.page(f"{opened.name}: search report", body), encoding="utf-8")
    summary.write_text(texts.markdown(opened, facts, frames, plots, suggestions), encoding="utf-8")
    drawn = [out / f"{p.slug}{suffix}" for p in plots if p.svg for suffix in (".png", ".svg")]
    numbers = [out / f"{name}.csv" for name in [*frames, *(p.slug for p in plots)]]
    return Report(out, index, summary, tuple(drawn), tuple(numbers))


def _notices(run: Run) -> str:
    """Build the lines that come before everything else: why all trials failed, and the rows left out."""
    lines = [html.paragraph(f"{texts.capital(line)}.", "notice") for line in notices(run)]
    return "".join(lines)


def _sections(
    run: Run,
    facts: dict[str, Any],
    frames: dict[str, pd.DataFrame],
    plots: Sequence[Plot],
    picks: Sequence[Pick],
    suggestions: Sequence[texts.Suggestion],
) -> list[str]:
    def figures(name: str) -> str:
        drawn = [
            html.figure(
                themed_svg(p.svg, p.slug, escape(p.title)) if p.svg else "", p.title, p.note, f"{p.slug}.csv"
            )
            for p in plots
            if p.section == name
        ]
        return f'<div class="figures">{"".join(drawn)}</div>' if drawn else ""

    unfinished = "" if facts["front"] else f"{texts.capital(run.why_no_front())}."
    if leading_reason(run):  # nothing to draw: the reason, the counts and the settings
        return [
            _header(run, facts, frames),
            _notices(run),
            _failures(frames["failures"]),
            html.section("progress", "Progress", _states(frames["states"])),
            _experiment(run),
        ]
    return [
        _header(run, facts, frames),
        _notices(run),
        html.tiles(texts.headline(run, facts)),
        html.section(
            "front",
            "The front",
            html.paragraph(unfinished) if unfinished else "",
            figures("front"),
            _front_table(run, frames["front"], picks),
        ),
        html.section("next", "What next", *_next_steps(run, suggestions)),
        _retrained(run, frames["retrained"]),
        _methods(run, frames["methods"]),
        html.section(
            "progress",
            "Progress",
            _states(frames["states"]),
            html.noted(f"{texts.losses_line(frames['losses'])} Numbers: ", "states.csv", "losses.csv"),
            figures("progress"),
        ),
        html.section("loss", "Parts of the loss", figures("loss"), _mixes(frames["mixes"])),
        html.section("matters", "Importance", figures("matters")),
        html.section("costs", "Accuracy against the other costs", figures("costs")),
        _failures(frames["failures"]),
        _experiment(run),
    ]


def _experiment(run: Run) -> str:
    note = html.noted("These, and the numbers at the top: ", "facts.csv", "trials.csv")
    return html.section("searched", "Experiment", html.facts(texts.describe(run)), note)


def _header(run: Run, facts: dict[str, Any], frames: dict[str, pd.DataFrame]) -> str:
    failed = bool(leading_reason(run))
    word = "failed" if failed else "ended" if facts["ended"] else "not ended"
    badge = f'<span class="badge{"" if word == "ended" else " open"}">{word}</span>'
    names = {"front": "Front", "next": "What next", "retrained": "Retrained", "methods": "Methods"}
    names |= {"progress": "Progress", "loss": "Loss"}
    names |= {"matters": "Importance", "costs": "Costs", "failures": "Failures"}
    names |= {"searched": "Experiment"}
    absent = {name for name in ("retrained", "methods", "failures") if frames[name].empty}
    absent |= {"front", "next", "retrained", "methods", "loss", "matters", "costs"} if failed else set()
    links = " ".join(f'<a href="#{key}">{name}</a>' for key, name in names.items() if key not in absent)
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    teacher = f"Students of {run.teacher.get('arch', 'the teacher')} on {run.data.get('name', 'its data')}"
    return (
        f"<header><h1>{escape(run.name)} {badge}</h1>"
        f'<p class="muted">{escape(teacher)}. Report of {escape(made)}.</p><nav>{links}</nav></header>'
    )


def _front_table(run: Run, front: pd.DataFrame, picks: Sequence[Pick]) -> str:
    headers, rows = texts.front_rows(run)
    chosen = {str(p.number) for p in picks}
    marks = ["teacher" if r[0] == "teacher" else "picked" if r[0] in chosen else "" for r in rows]
    note = (
        "Accuracy and loss on validation data, for one seed each; the interval follows from the number of "
        "images. Latency as predicted, and as measured on the whole student. Test accuracy over the seeds of "
        "retrained students. The picks are green. "
        f"{texts.latency_line(front)}All: "
    )
    words = f"<h3>Students of the front</h3>{html.noted(note, 'front.csv', 'teacher.csv')}"
    return words + html.table(headers, rows, marks)


def _next_steps(run: Run, suggestions: Sequence[texts.Suggestion]) -> list[str]:
    if not suggestions:
        return [html.paragraph(f"Nothing to pick: {run.why_no_front()}.")]
    parts = []
    for s in suggestions:
        values = ", ".join(show(m, s.pick.values.get(m)) for m in run.metrics)
        parts.append(f"<h3>{escape(s.title)}: trial {s.pick.number} ({escape(values)})</h3>")
        parts += [html.paragraph(f"Why: {s.pick.reason}.", "note muted"), html.code(texts.commands(run, s))]
    return [*parts, html.noted("Numbers: ", "suggestions.csv")]


def _methods(run: Run, methods: pd.DataFrame) -> str:
    if methods.empty:
        return ""
    headers, rows = texts.method_rows(run, methods)
    note = html.noted(
        "Objectives of the fully trained trials of each method, whose students and settings differ as well; "
        "seconds over all trained trials. All: ",
        "methods.csv",
    )
    return html.section("methods", "Results by method", note, html.table(headers, rows))


def _mixes(mixes: pd.DataFrame) -> str:
    if mixes.empty:
        return ""
    headers, rows = loss_parts.mix_rows(mixes, texts.MAX_ROWS)
    note = html.noted("For students of the front, after the last epoch. All: ", "mixes.csv")
    return f"<h3>Learned targets</h3>{note}{html.table(headers, rows, text=(0, 1, 2))}"


def _states(states: pd.DataFrame) -> str:
    words = {"COMPLETE": "fully trained", "PRUNED": "stopped early", "FAIL": "failed", "RUNNING": "running"}
    words |= {"WAITING": "waiting", "refused": "refused before training"}
    rows = [
        [words[r["state"]], str(r["trials"]), str(r["epochs"]), show_time(r["train_hours"])]
        for _, r in states.iterrows()
    ]
    return html.table(["trials", "number", "epochs", "training"], rows)


def _failures(failures: pd.DataFrame) -> str:
    if failures.empty:
        return ""
    rows = [
        [r["reason"], str(r["trials"]), show_time(r["train_hours"]), _shorten(r["numbers"])]
        for _, r in failures.iterrows()
    ]
    headers = ["reason", "trials", "training lost", "which"]
    table = html.table(headers, rows, text=(0, 3))
    return html.section("failures", "Failures", table, html.noted("Numbers: ", "failures.csv"))


def _shorten(numbers: str, limit: int = 40) -> str:
    return numbers if len(numbers) <= limit else numbers[:limit].rpartition(",")[0] + ", …"


def _retrained(run: Run, retrained: pd.DataFrame) -> str:
    if retrained.empty:
        return ""
    headers, rows = texts.retrained_rows(run, retrained)
    note = html.noted(f"{NOTE} All: ", "retrained.csv", "teacher.csv")
    marks = ["teacher", *[""] * (len(rows) - 1)]
    return html.section("retrained", "Retrained", note, html.table(headers, rows, marks, text=(0, 1)))
