"""The `ama` command. Each subcommand reads files, leaves files and says where they are.

`ama --help` lists the subcommands, `ama COMMAND --help` gives an example of each.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from analysis.errors import InputError as AnalysisInputError
from analysis.metrics import show
from search.console import console, front_table, live_board, stages
from trainables.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Search how to distil a teacher network into faster students.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

ExperimentArg = Annotated[
    str, typer.Argument(metavar="EXPERIMENT", help="a YAML file, or a preset's name such as digits")
]
RunArg = Annotated[str, typer.Argument(metavar="RUN", help="a run directory")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("-o", "--override", metavar="KEY=VALUE", help="override a key, e.g. -o budget.trials=50"),
]
Out = Annotated[str | None, typer.Option("--out", metavar="DIR", help="the run directory (run.dir)")]
Json = Annotated[bool, typer.Option("--json", help="print the answer as JSON on standard output")]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="A", help="of a Ray cluster, `auto` for this machine's; none: start one"
    ),
]


def main() -> None:
    """Entry point of the command: the user's mistakes are one message and exit code 2, no traceback."""
    try:
        app()
    except (InputError, AnalysisInputError) as fault:
        console.print(f"[bold red]error:[/] {escape(str(fault))}", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("interrupted")
        sys.exit(130)


def _emit(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _example(text: str) -> str:
    return f"Example: [bold]{text}[/]"


@app.command(epilog=_example("ama quickstart --out runs/first"))
def quickstart(
    out: Annotated[
        str, typer.Option("--out", metavar="DIR", help="where to put the run")
    ] = "runs/quickstart",
) -> None:
    """Everything below on the embedded digits: teacher, costs, search, report, pick, retrain."""
    from search.quickstart import run

    run(out)


@app.command(epilog=_example("ama teacher cifar10-resnet20 -o data.root=data -o data.download=true"))
def teacher(
    experiment: ExperimentArg, override: Overrides = None, out: Out = None, as_json: Json = False
) -> None:
    """Train the teacher, or evaluate the one given (teacher.checkpoint)."""
    from search.experiment import load_experiment
    from search.pipeline import get_teacher
    from trainables.data import load_data
    from trainables.runtime import resolve

    loaded = load_experiment(experiment, override or [], out)
    with stages() as progress:
        data = load_data(loaded.data, test=True, progress=progress)
        record = get_teacher(loaded, data, resolve(loaded.runtime), progress).record
    if as_json:
        _emit(asdict(record))
        return
    console.print(
        f"teacher {record.arch}: test accuracy {record.test_accuracy:.4f}, validation accuracy "
        f"{record.val_accuracy:.4f}, source {record.source}, hash {record.hash}"
    )


@app.command(epilog=_example("ama profile digits --json"))
def profile(
    experiment: ExperimentArg, override: Overrides = None, out: Out = None, as_json: Json = False
) -> None:
    """Show the teacher's blocks and the cost table: what every block and every AMA module costs."""
    from search.experiment import load_experiment
    from search.pipeline import profile as measure
    from trainables.data import load_data

    loaded = load_experiment(experiment, override or [], out)
    with stages() as progress:
        data = load_data(loaded.data, progress=progress)
        _, _, table = measure(loaded, data, progress)
    if as_json:
        _emit(table.to_profile())
        return
    _print_profile(table.to_profile())


def _print_profile(costs: dict[str, Any]) -> None:
    for title, name, rows in (("blocks", "name", costs["blocks"]), ("AMA modules", "span", costs["modules"])):
        table = Table(title=title, title_justify="left")
        for column in (name, "width", "shape", "params", "flops", "latency"):
            if not (name == "name" and column == "width") and not (name == "span" and column == "shape"):
                table.add_column(column, justify="left" if column in (name, "shape") else "right")
        for row in rows:
            figures = [show(m, row[m]) for m in ("params", "flops", "latency_ms")]
            if name == "name":
                shape = "×".join(map(str, row["in_shape"])) + " → " + "×".join(map(str, row["out_shape"]))
                table.add_row(row["name"], shape, *figures)
            else:
                table.add_row(" + ".join(row["span"]), f"{row['width']:g}", *figures)
        console.print(table)
    whole = ", ".join(f"{m} {show(m, costs['teacher'][m])}" for m in ("params", "flops", "latency_ms"))
    console.print(f"teacher: {whole} (latency of a batch of {costs['batch_size']} on {costs['device']})")


@app.command(epilog=_example("ama search cifar10-resnet20 --trials 100 -o resources.concurrent=4"))
def search(
    experiment: ExperimentArg,
    trials: Annotated[int | None, typer.Option("--trials", metavar="N", help="budget.trials")] = None,
    address: Address = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in the run directory")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be done; start nothing")] = False,
    override: Overrides = None,
    out: Out = None,
) -> None:
    """Search students on Ray with Optuna; the run directory holds the study and the checkpoints."""
    from search.experiment import load_experiment

    overrides = [*(override or []), *([f"budget.trials={trials}"] if trials is not None else [])]
    loaded = load_experiment(experiment, overrides, out)
    if dry_run:
        from search.plan import plan

        with stages() as progress:
            text = plan(loaded, address=address, progress=progress)
        print(text)
        return
    run_search(loaded, address=address, resume=resume)


def run_search(experiment: Any, *, address: str | None = None, resume: bool = False) -> None:
    """Search with a live view; exits with 1 where the search failed as a whole."""
    from search import runner

    objectives: list[tuple[str, str]] = [(o.metric, o.direction) for o in experiment.objectives]
    boards: list[Any] = []
    with stages() as progress, live_board(objectives) as watch:

        def keep(board: Any) -> None:
            boards[:] = [board]
            watch(board)

        outcome = runner.search(
            experiment,
            address=address,
            resume=resume,
            command=shlex.join(["ama", *sys.argv[1:]]),
            progress=progress,
            watch=keep,
        )
    if boards:
        counts = boards[0].counts()
        console.print(front_table(boards[0].values, objectives))
        console.print(
            f"{counts['COMPLETE']} trials complete, {counts['PRUNED']} stopped early, {counts['FAIL']} "
            f"failed, {boards[0].refused} proposals refused before training"
        )
    console.print(f"search over: {escape(outcome.reason)}\nrun: {outcome.run_dir}", soft_wrap=True)
    if outcome.failed:
        raise typer.Exit(1)


@app.command(epilog=_example("ama status runs/digits --json"))
def status(run: RunArg, as_json: Json = False) -> None:
    """Count a run's trials by state and show its front; works while the search runs."""
    from analysis.report import status as read_status

    from analysis.trials import Run

    opened = Run.open(run)
    answer = read_status(opened)
    if as_json:
        _emit(answer)
        return
    counts = ", ".join(f"{n} {state.lower()}" for state, n in answer["trials"].items())
    console.print(f"trials: {counts}; hypervolume {answer['hypervolume']:.4f}")
    objectives = [(o.metric, o.direction) for o in opened.objectives]
    values = {row["number"]: [row["values"][m] for m, _ in objectives] for row in answer["front"]}
    console.print(front_table(values, objectives))


@app.command(epilog=_example("ama report runs/digits"))
def report(
    run: RunArg,
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help="default: RUN/report")] = None,
) -> None:
    """Write pictures (PNG, SVG), their numbers (CSV), one HTML page and a Markdown summary."""
    from analysis.report import write_report

    from analysis.trials import Run

    with console.status("drawing"):
        written = write_report(Run.open(run), Path(out) if out else Path(run) / "report")
    console.print(f"report: {written.html}", soft_wrap=True)


@app.command(epilog=_example("ama pick runs/digits --max flops=0.5x --out pick.yaml"))
def pick(
    run: RunArg,
    most: Annotated[
        list[str] | None,
        typer.Option("--max", metavar="K=V", help="upper limit, e.g. flops=0.5x, params=100k"),
    ] = None,
    least: Annotated[
        list[str] | None, typer.Option("--min", metavar="K=V", help="lower limit, e.g. val_accuracy=0.9")
    ] = None,
    knee: Annotated[bool, typer.Option("--knee", help="the knee of the front")] = False,
    top: Annotated[int | None, typer.Option("--top", metavar="N", help="N well-spread points")] = None,
    out: Annotated[str | None, typer.Option("--out", metavar="FILE", help="default: RUN/pick.yaml")] = None,
    as_json: Json = False,
) -> None:
    """Choose configs worth retraining from the front, and write them to pick.yaml."""
    from analysis.pick import pick as choose
    from analysis.pick import write_pick
    from analysis.trials import Run

    opened = Run.open(run)
    picks = choose(opened, max=most, min=least, knee=knee, top=top)
    path = Path(out) if out else Path(run) / "pick.yaml"
    write_pick(path, picks, opened)
    if as_json:
        _emit([asdict(p) for p in picks])
        return
    for chosen in picks:
        figures = ", ".join(f"{m} {show(m, v)}" for m, v in chosen.values.items())
        console.print(f"trial {chosen.number}: {figures}\n  {escape(chosen.reason)}", soft_wrap=True)
    console.print(f"pick: {path}", soft_wrap=True)


@app.command(epilog=_example("ama retrain runs/digits/pick.yaml --seeds 3 --baselines"))
def retrain(
    picked: Annotated[str, typer.Argument(metavar="PICK", help="a file that `ama pick` wrote")],
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="trainings of each pick")] = 3,
    epochs: Annotated[
        int | None, typer.Option("--epochs", metavar="N", min=1, help="default: three times the search's")
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option("--baselines", help="also from scratch, and from the teacher with cross-entropy only"),
    ] = False,
    address: Address = None,
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help="default: RUN/retrained")] = None,
    as_json: Json = False,
) -> None:
    """Train picks from the teacher with full budget and several seeds; test data is read once a model."""
    from search.retraining import retrain_picks

    with stages() as progress:
        done = retrain_picks(
            Path(picked),
            seeds=seeds,
            epochs=epochs,
            with_baselines=baselines,
            address=address,
            out=Path(out) if out else None,
            progress=progress,
        )
    if as_json:
        _emit(done.as_dict())
        return
    console.print(done.table())
    console.print(f"models and table: {done.folder}", soft_wrap=True)


@app.command(epilog=_example("ama evaluate runs/digits/retrained/trial-12/distilled/seed-0"))
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="a folder with model.safetensors and model.json")
    ],
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DIR", help="an image folder; default: the data of its training"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a retrained model on test data."""
    from search.models import evaluate_model

    with stages() as progress:
        answer = evaluate_model(Path(model), data, progress)
    if as_json:
        _emit(answer)
        return
    console.print(f"test accuracy {answer['accuracy']:.4f}, test loss {answer['loss']:.4f}, n {answer['n']}")


@app.command(epilog=_example("ama export runs/digits/retrained/trial-12/distilled/seed-0 --format onnx"))
def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="a folder with model.safetensors and model.json")
    ],
    format: Annotated[str, typer.Option("--format", metavar="pt2|onnx", help="what to write")] = "pt2",
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="default: beside the model")
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a retrained model, check that it computes the same, and time it."""
    from search.models import export_retrained

    with console.status("exporting"):
        answer = export_retrained(Path(model), format, Path(out) if out else None)
    if as_json:
        _emit(answer)
        return
    console.print(
        f"{answer['path']}: {answer['bytes']:,} bytes, largest difference {answer['max_abs_difference']:.2g}",
        soft_wrap=True,
    )
    print(answer["snippet"])


@app.command(epilog=_example("ama schema > experiment-keys.md"))
def schema() -> None:
    """Print every key of the experiment file with its type, default and meaning."""
    from search.experiment import schema_markdown

    print(schema_markdown())


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
