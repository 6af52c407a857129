"""The `ama` command. Each subcommand reads files, leaves files and says where they are.

`ama --help` lists the subcommands, `ama COMMAND --help` gives an example of each.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.markup import escape

from analysis.errors import InputError as AnalysisInputError
from analysis.metrics import show
from search import cluster_cli
from search.boards import count_words, duration, front_table, profile_tables, text_table
from search.console import answers, console, search_view, stages
from search.errors import FailedError
from trainables.errors import InputError

if TYPE_CHECKING:  # `ama --help` waits for neither torch nor Ray
    from analysis.pick import Pick
    from search.experiment import Experiment
    from search.searcher import Board

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Search how to distil a teacher network into faster students.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(cluster_cli.app, name="cluster")

ExperimentArg = Annotated[
    str, typer.Argument(metavar="EXPERIMENT", help="a YAML file, or a preset's name such as digits")
]
RunArg = Annotated[str, typer.Argument(metavar="RUN", help="a run directory, also s3://… or gs://…")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("-o", "--override", metavar="KEY=VALUE", help="override a key, e.g. -o budget.trials=50"),
]
Out = Annotated[
    str | None,
    typer.Option("--out", metavar="DIR", help="the run directory (run.dir), also s3://… or gs://…"),
]
Json = Annotated[bool, typer.Option("--json", help="print the answer as JSON on standard output")]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="A", help="a Ray cluster's, or auto for the running one; none: start one"
    ),
]


def main() -> None:
    """Entry point of the command: one message and no traceback for what people can mend.

    Exits with 2 for the user's mistakes and 1 for work that failed.
    """
    try:
        app()
    except (InputError, AnalysisInputError) as fault:
        _end(str(fault), 2)
    except FailedError as fault:
        _end(str(fault), 1)
    except (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError) as fault:
        _end(f"{fault.filename}: {fault.strerror}", 2)  # of --out and run.dir: all else is checked before


def _end(message: str, code: int) -> NoReturn:
    console.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    sys.exit(code)


def _load(experiment: str, overrides: list[str] | None, out: str | None) -> Experiment:
    """The experiment with absolute paths: its run is to be understood from any directory."""
    from search.experiment import load_experiment

    loaded = load_experiment(experiment, overrides or [], out)
    paths = {"data": ("root", "cache"), "teacher": ("checkpoint",), "library": ("dir",)}
    changed = {}
    for section, keys in paths.items():
        config = getattr(loaded, section)
        given = {key: getattr(config, key) for key in keys if getattr(config, key) is not None}
        here = {key: str(Path(path).expanduser().absolute()) for key, path in given.items()}
        changed[section] = config.model_copy(update=here)
    return loaded.model_copy(update=changed)


def _emit(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _example(text: str) -> str:
    return f"Example: [bold]{text}[/]"


@app.command(epilog=_example("ama quickstart --out runs/first"))
def quickstart(
    out: Annotated[
        str | None,
        typer.Option(
            "--out", metavar="DIR", help="where to put the run; runs/quickstart, or -2, -3 after it"
        ),
    ] = None,
) -> None:
    """Everything below on the embedded digits: teacher, costs, search, report, pick, retrain."""
    from search.quickstart import run

    run(out)


@app.command(epilog=_example("ama teacher cifar10-resnet20 -o data.root=data -o data.download=true"))
def teacher(
    experiment: ExperimentArg, override: Overrides = None, out: Out = None, as_json: Json = False
) -> None:
    """Train the teacher, or evaluate the one given (teacher.checkpoint)."""
    from analysis.remote import join
    from search.pipeline import TEACHER_FILE, get_teacher, read_data
    from search.rundir import at, working_folder
    from trainables.runtime import resolve

    loaded = _load(experiment, override, out)
    with working_folder(loaded.run.dir) as folder, stages() as progress:
        data = read_data(loaded, test=True, progress=progress)
        record = get_teacher(at(loaded, folder), data, resolve(loaded.runtime), progress).record
    if as_json:
        _emit(asdict(record))
        return
    test, val = (show("test_accuracy", accuracy) for accuracy in (record.test_accuracy, record.val_accuracy))
    place = loaded.teacher.checkpoint or join(loaded.run.dir, TEACHER_FILE)
    answers.print(
        f"teacher {record.arch}: test accuracy {test}, validation accuracy {val}\n{place}", soft_wrap=True
    )


@app.command(epilog=_example("ama profile digits --json"))
def profile(
    experiment: ExperimentArg, override: Overrides = None, out: Out = None, as_json: Json = False
) -> None:
    """Show the teacher's blocks and the cost table: what every block and every AMA module costs."""
    from search.pipeline import profile as measure
    from search.pipeline import read_data
    from search.rundir import at, working_folder

    loaded = _load(experiment, override, out)
    with working_folder(loaded.run.dir) as folder, stages() as progress:
        data = read_data(loaded, progress=progress)
        record, _, table = measure(at(loaded, folder), data, progress)
    if as_json:
        _emit(table.to_profile())
        return
    for drawn in profile_tables(table.to_profile()):
        answers.print(drawn)
    answers.print(f"Latency of a batch of {table.batch_size} on {table.device}, threads: {table.threads}.")
    if record is None:
        answers.print("No teacher is trained yet: random weights, which cost the same.")


@app.command(epilog=_example("ama library digits"))
def library(
    experiment: ExperimentArg, override: Overrides = None, out: Out = None, as_json: Json = False
) -> None:
    """Distil every candidate AMA module once; searches with `warm_start: library` start from them."""
    from search.pipeline import prepare
    from search.rundir import at, working_folder
    from search.warmstart import get_library, library_folder

    loaded = _load(experiment, override, out)
    with working_folder(loaded.run.dir) as run, stages() as progress:
        setup = prepare(at(loaded, run), progress=progress)
        made = get_library(setup, progress)
    folder = library_folder(setup)
    if as_json:
        figures = {"errors": dict(made.errors), "solo_loss": dict(made.solo_loss)}
        _emit({"folder": str(folder), "key": made.key, "seconds": made.seconds, **figures})
        return
    answers.print(
        f"{len(made.modules)} modules, distilled in {duration(made.seconds)}\n{folder}", soft_wrap=True
    )


@app.command(epilog=_example("ama search cifar10-resnet20 --trials 100 -o resources.concurrent=4"))
def search(
    experiment: ExperimentArg,
    trials: Annotated[int | None, typer.Option("--trials", metavar="N", help="budget.trials")] = None,
    address: Address = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in the run directory")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be done; start nothing")] = False,
    profile_trial: Annotated[
        bool, typer.Option("--profile-trial", help="write a torch.profiler trace of a trial's second epoch")
    ] = False,
    override: Overrides = None,
    out: Out = None,
) -> None:
    """Search students on Ray with Optuna; the run directory holds the study and the checkpoints."""
    overrides = [*(override or []), *([f"budget.trials={trials}"] if trials is not None else [])]
    loaded = _load(experiment, overrides, out)
    if dry_run:
        from search.plan import plan

        with stages() as progress:
            text = plan(loaded, address=address, progress=progress)
        print(text)
        return
    run_search(loaded, address=address, resume=resume, profile_trial=profile_trial)


def run_search(
    experiment: Experiment,
    *,
    address: str | None = None,
    resume: bool = False,
    profile_trial: bool = False,
) -> None:
    """Search with a live view; exits with 1 where the search failed as a whole."""
    from search import runner

    objectives: list[tuple[str, str]] = [(o.metric, o.direction) for o in experiment.objectives]
    boards: list[Board] = []
    with search_view(objectives) as (progress, show_board):

        def watch(board: Board) -> None:
            boards[:] = [board]
            show_board(board)

        outcome = runner.search(
            experiment,
            address=address,
            resume=resume,
            command=shlex.join(["ama", *sys.argv[1:]]),
            progress=progress,
            watch=watch,
            profile_trial=profile_trial,
        )
    for board in boards:
        answers.print(front_table(board.values, objectives))
        counts = board.counts()
        counts["WAITING"] += counts.pop("RUNNING", 0)  # nothing runs any more; --resume takes them up
        answers.print(count_words(counts, board.refused))
    answers.print(f"search over: {escape(outcome.reason)}\nrun: {outcome.run}", soft_wrap=True)
    if profile_trial:
        files = " ".join(outcome.profile)
        answers.print(
            f"profile: {escape(files) or 'none: no trial here got to its second epoch'}", soft_wrap=True
        )
    if outcome.failed:
        raise typer.Exit(1)


@app.command(epilog=_example("ama status runs/digits --json"))
def status(run: RunArg, as_json: Json = False) -> None:
    """Count a run's trials by state and show its front; works while the search runs."""
    from analysis.status import status as read_status
    from analysis.trials import Run

    opened = Run.open(run)  # of an object store it reads the experiment file alone
    answer = read_status(opened)
    if as_json:
        _emit(answer)
        return
    trials = answer["trials"]
    answers.print(f"trials: {count_words(trials, trials['refused'])}", soft_wrap=True)
    if answer["front"]:
        objectives = [(o.metric, o.direction) for o in opened.objectives]
        values = {row["number"]: [row["values"][m] for m, _ in objectives] for row in answer["front"]}
        answers.print(front_table(values, objectives))
    answers.print(f"hypervolume: {answer['hypervolume']:.4f}")


@app.command(epilog=_example("ama report runs/digits"))
def report(
    run: RunArg,
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help="default: RUN/report")] = None,
) -> None:
    """Write pictures (PNG, SVG), their numbers (CSV), one HTML page and a Markdown summary."""
    from analysis.remote import join
    from analysis.report import write_report
    from search.opened import opened
    from search.rundir import working_folder

    place = out or join(run, "report")
    with console.status("drawing"), opened(run) as (study, _), working_folder(place) as folder:
        written = write_report(study, folder.path)
    answers.print(f"report: {join(place, written.index.name)}", soft_wrap=True)


@app.command(epilog=_example("ama compare runs/tpe-0 runs/tpe-1 runs/random-0 --out runs/compared"))
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="run directories or storage URLs")],
    out: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="write pictures, CSV and Markdown there")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare fronts and hypervolumes of several runs; those that differ in the seed alone are repeats."""
    from analysis import compare_report
    from analysis.compare import compare as compare_runs

    found = compare_runs(runs)
    written = compare_report.write_comparison(found, out) if out else []
    if as_json:
        _emit(found.as_dict())
        return
    for headers, rows in (compare_report.group_table(found), compare_report.run_table(found)):
        answers.print(text_table(headers, rows))
    for line in (*compare_report.differences(found), *compare_report.explanation(found)):
        answers.print(escape(line), soft_wrap=True)
    if written:
        answers.print(f"comparison: {written[0]}", soft_wrap=True)


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
    from analysis.remote import join
    from search.opened import opened

    with opened(run) as (study, folder):
        picks = choose(study, max=most, min=least, knee=knee, top=top)
        write_pick(Path(out) if out else folder.path / "pick.yaml", picks, study)
    if as_json:
        _emit([asdict(p) for p in picks])
        return
    say_picks(picks, out or join(run, "pick.yaml"))


def say_picks(picks: list[Pick], path: str | Path) -> None:
    """What was picked, why, and where it was written."""
    for chosen in picks:
        figures = ", ".join(f"{metric} {show(metric, value)}" for metric, value in chosen.values.items())
        answers.print(f"trial {chosen.number}: {figures}\n  {escape(chosen.reason)}", soft_wrap=True)
    answers.print(f"pick: {path}", soft_wrap=True)


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
    override: Overrides = None,
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help="default: RUN/retrained")] = None,
    as_json: Json = False,
) -> None:
    """Train picks from the teacher with full budget and several seeds; test data is read once a model."""
    from search.retraining import retrain_picks

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
        _emit(done.as_dict())
        return
    answers.print(done.table())
    answers.print(f"models and table: {done.place or done.folder}", soft_wrap=True)


@app.command(epilog=_example("ama evaluate runs/digits/retrained/trial-12/student/seed-1"))
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="a folder with model.safetensors and model.json")
    ],
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DIR", help="a folder with test/<class>/* or <class>/*; default: its own data"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a retrained model on test data."""
    from search.models import evaluate_model
    from search.rundir import working_folder

    with working_folder(model) as folder, stages() as progress:
        answer = {**evaluate_model(folder.path, data, progress), "model": model}
    if as_json:
        _emit(answer)
        return
    skipped = f", {answer['skipped']} skipped" if answer["skipped"] else ""
    answers.print(
        f"test accuracy {show('test_accuracy', answer['accuracy'])}, test loss {answer['loss']:.4f}, "
        f"{answer['n']:,} images{skipped}"
    )


@app.command(epilog=_example("ama export runs/digits/retrained/trial-12/student/seed-1 --format onnx"))
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
    from analysis.remote import is_remote, join
    from search.models import export_retrained
    from search.rundir import working_folder

    with console.status("exporting"), working_folder(model) as folder:
        answer = export_retrained(folder.path, format, Path(out) if out else None)
    if is_remote(model) and out is None:
        answer["path"] = join(model, Path(answer["path"]).name)
    if as_json:
        _emit(answer)
        return
    console.print(
        f"{answer['path']}: {answer['bytes']:,} bytes, as safetensors {answer['weights_bytes']:,}; "
        "logits differ from PyTorch's by at most "
        f"{answer['max_abs_difference']:.1e} on {answer['checked_on']}; one image takes "
        f"{answer['latency_ms']:.3g} ms, in PyTorch {answer['eager_latency_ms']:.3g} ms; to use it:",
        soft_wrap=True,
    )
    print(answer["snippet"], end="")


@app.command(epilog=_example("ama schema > experiment-keys.md"))
def schema() -> None:
    """Print every key of the experiment file with its type, default and meaning."""
    from search.experiment import schema_markdown

    print(schema_markdown())


if __name__ == "__main__":
    main()
