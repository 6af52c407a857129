"""Subcommands of `ama` that read a run: status, report, compare, pick, retrain, evaluate, export."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from analysis.metrics import show
from search.cli.console import answers, console, stages
from search.cli.options import Address, Json, Overrides, RunArg, app, emit, example, uncollected
from search.cli.tables import count_words, front_table, text_table

if TYPE_CHECKING:  # keep `ama --help` fast: it loads neither torch nor Ray
    from analysis.picks.pick import Pick


@app.command(epilog=example("ama status runs/digits --json"))
def status(run: RunArg, as_json: Json = False) -> None:
    """Count a run's trials by state and show its front; works while the search runs."""
    from analysis.runs.failures import notices
    from analysis.runs.run import Run
    from analysis.runs.status import status as read_status

    opened = Run.open(run)  # from an object store it reads only the experiment file
    answer = read_status(opened)
    if as_json:
        emit(answer)
        return
    for notice in notices(opened):
        console.print(f"[bold red]{escape(notice)}[/]", soft_wrap=True)
    trials = answer["trials"]
    answers.print(f"trials: {count_words(trials, trials['refused'])}", soft_wrap=True)
    if answer["front"]:
        objectives = [(o.metric, o.direction) for o in opened.objectives]
        values = {row["number"]: [row["values"][m] for m, _ in objectives] for row in answer["front"]}
        answers.print(front_table(values, objectives))
    elif trials["COMPLETE"]:
        answers.print(f"front: empty: {escape(opened.why_no_front())}", soft_wrap=True)
    answers.print(f"hypervolume: {answer['hypervolume']:.4f}")


@app.command(epilog=example("ama report runs/digits"))
def report(
    run: RunArg,
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help="default: RUN/report")] = None,
) -> None:
    """Write figures (PNG, SVG), their numbers (CSV), an HTML page and a Markdown summary."""
    from analysis.report.write import write_report
    from analysis.runs.object_store import join
    from search.run.open_run import opened
    from search.run_dir.folder import working_folder

    place = out or join(run, "report")
    with (
        console.status("drawing"),
        opened(run) as (study, _),
        uncollected(),
        working_folder(place) as folder,
    ):
        written = write_report(study, folder.path)
        drawn = {file.name for file in written.figures}
        for table in written.tables:  # remove figures of an earlier report that this one does not have
            for name in (f"{table.stem}.png", f"{table.stem}.svg"):
                if name not in drawn:
                    folder.remove(name)
    answers.print(f"report: {join(place, written.index.name)}", soft_wrap=True)


@app.command(epilog=example("ama compare runs/tpe-0 runs/tpe-1 runs/random-0 --out runs/compared"))
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="run directories or storage URLs")],
    out: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="write figures, CSV and Markdown to DIR")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare fronts and hypervolumes of several runs; runs that differ only in the seed are repeats."""
    from analysis.compare import write as compare_report
    from analysis.compare.compare import compare_runs

    found = compare_runs(runs)
    written = compare_report.write_comparison(found, out) if out else []
    if as_json:
        emit(found.as_dict())
        return
    for headers, rows in (compare_report.group_table(found), compare_report.run_table(found)):
        answers.print(text_table(headers, rows))
    for line in (*compare_report.differences(found), *compare_report.explanation(found)):
        answers.print(escape(line), soft_wrap=True)
    if written:
        answers.print(f"comparison: {written[0]}", soft_wrap=True)


@app.command(epilog=example("ama pick runs/digits --max flops=0.5x --out pick.yaml"))
def pick(
    run: RunArg,
    most: Annotated[
        list[str] | None,
        typer.Option("--max", metavar="K=V", help="upper limit, e.g. flops=0.5x, params=100k"),
    ] = None,
    least: Annotated[
        list[str] | None, typer.Option("--min", metavar="K=V", help="lower limit, e.g. val_accuracy=0.9")
    ] = None,
    knee: Annotated[bool, typer.Option("--knee", help="pick the knee of the front")] = False,
    top: Annotated[int | None, typer.Option("--top", metavar="N", help="pick N spread-out points")] = None,
    out: Annotated[str | None, typer.Option("--out", metavar="FILE", help="default: RUN/pick.yaml")] = None,
    as_json: Json = False,
) -> None:
    """Choose configs from the front to retrain, and write them to pick.yaml."""
    from analysis.picks.pick import pick as choose
    from analysis.picks.pick_file import write_pick
    from analysis.runs.object_store import join
    from search.run.open_run import opened

    with opened(run) as (study, folder), uncollected():
        picks = choose(study, max=most, min=least, knee=knee, top=top)
        write_pick(Path(out) if out else folder.path / "pick.yaml", picks, study)
    if as_json:
        emit([asdict(p) for p in picks])
        return
    say_picks(picks, out or join(run, "pick.yaml"))


def say_picks(picks: list[Pick], path: str | Path) -> None:
    """Print the picks with their reasons, and the file they were written to."""
    for chosen in picks:
        figures = ", ".join(f"{metric} {show(metric, value)}" for metric, value in chosen.values.items())
        answers.print(f"trial {chosen.number}: {figures}\n  {escape(chosen.reason)}", soft_wrap=True)
    answers.print(f"pick: {path}", soft_wrap=True)


@app.command(epilog=example("ama retrain runs/digits/pick.yaml --seeds 3 --baselines"))
def retrain(
    picked: Annotated[str, typer.Argument(metavar="PICK", help="a file written by `ama pick`")],
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="training runs per pick")] = 3,
    epochs: Annotated[
        int | None, typer.Option("--epochs", metavar="N", min=1, help="default: three times the search's")
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option("--baselines", help="also train from scratch, and from the teacher with CE only"),
    ] = False,
    address: Address = None,
    override: Overrides = None,
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help="default: RUN/retrained")] = None,
    as_json: Json = False,
) -> None:
    """Retrain picks from the teacher with full budget and several seeds; test each model once."""
    from search.run.retrain import retrain_picks

    with stages() as progress:
        done = retrain_picks(
            picked,
            seeds=seeds,
            epochs=epochs,
            with_baselines=baselines,
            address=address,
            out=out,
            overrides=override or [],
            command=shlex.join(["ama", *sys.argv[1:]]),
            progress=progress,
        )
    if as_json:
        emit(done.as_dict())
        return
    answers.print(done.table())
    answers.print(f"models and table: {done.place or done.folder}", soft_wrap=True)


@app.command(epilog=example("ama evaluate runs/digits/retrained/trial-12/student/seed-1"))
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="a folder with model.safetensors and model.json")
    ],
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DIR", help="test/<class>/* or <class>/* in it; default: the model's data"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a retrained model on test data."""
    from search.run.finished_models import evaluate_model
    from search.run_dir.folder import working_folder

    with working_folder(model) as folder, stages() as progress:
        answer = {**evaluate_model(folder.path, data, progress), "model": model}
    if as_json:
        emit(answer)
        return
    skipped = f", {answer['skipped']} skipped" if answer["skipped"] else ""
    answers.print(
        f"test accuracy {show('test_accuracy', answer['accuracy'])}, test loss {answer['loss']:.4f}, "
        f"{answer['n']:,} images{skipped}"
    )


@app.command(epilog=example("ama export runs/digits/retrained/trial-12/student/seed-1 --format onnx"))
def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="a folder with model.safetensors and model.json")
    ],
    format: Annotated[str, typer.Option("--format", metavar="pt2|onnx", help="file format")] = "pt2",
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="default: in the model's folder")
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a retrained model, compare its outputs with PyTorch's, and measure its latency."""
    from analysis.runs.object_store import is_remote, join
    from search.run.finished_models import export_retrained
    from search.run_dir.folder import working_folder

    with console.status("exporting"), working_folder(model) as folder:
        answer = export_retrained(folder.path, format, Path(out) if out else None)
    if is_remote(model) and out is None:
        answer["path"] = join(model, Path(answer["path"]).name)
    if as_json:
        emit(answer)
        return
    console.print(
        f"{answer['path']}: {answer['bytes']:,} bytes, as safetensors {answer['weights_bytes']:,}; "
        "logits differ from PyTorch's by at most "
        f"{answer['max_abs_difference']:.1e} on {answer['checked_on']}; one image takes "
        f"{answer['latency_ms']:.3g} ms, in PyTorch {answer['eager_latency_ms']:.3g} ms; to use it:",
        soft_wrap=True,
    )
    print(answer["snippet"], end="")
