"""Subcommands of `ama` that take an experiment: quickstart, teacher, profile, library, search."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analysis.metrics import duration, show
from search.cli.console import answers, stages
from search.cli.live_search import run_search
from search.cli.options import Address, ExperimentArg, Json, Out, Overrides, app, emit, example
from search.cli.tables import profile_tables

if TYPE_CHECKING:  # keep `ama --help` fast: it loads neither torch nor Ray
    from search.experiment.experiment import Experiment


def load(experiment: str, overrides: list[str] | None, out: str | None) -> Experiment:
    """Load an experiment and make its paths absolute, so that its run works from any directory."""
    from search.experiment.load import load_experiment

    loaded = load_experiment(experiment, overrides or [], out)
    paths = {"data": ("root", "cache"), "teacher": ("checkpoint",), "library": ("dir",)}
    changed = {}
    for section, keys in paths.items():
        config = getattr(loaded, section)
        given = {key: getattr(config, key) for key in keys if getattr(config, key) is not None}
        here = {key: str(Path(path).expanduser().absolute()) for key, path in given.items()}
        changed[section] = config.model_copy(update=here)
    return loaded.model_copy(update=changed)


@app.command(epilog=example("ama quickstart --out runs/first"))
def quickstart(
    out: Annotated[
        str | None,
        typer.Option(
            "--out", metavar="DIR", help="run directory; default: runs/quickstart, or -2, -3, … if taken"
        ),
    ] = None,
) -> None:
    """Run the whole pipeline on the embedded digits: teacher, costs, search, report, pick, retrain."""
    from search.cli.quickstart import run

    run(out)


@app.command(epilog=example("ama teacher cifar10-resnet20 -o data.root=data -o data.download=true"))
def teacher(
    experiment: ExperimentArg, override: Overrides = None, out: Out = None, as_json: Json = False
) -> None:
    """Train the teacher, or evaluate the one given (teacher.checkpoint)."""
    from analysis.runs.object_store import join
    from search.run_dir.files import TEACHER_FILE
    from search.run_dir.folder import at, working_folder
    from search.stages.prepare import read_data
    from search.stages.teacher import get_teacher
    from trainables.runtime.runtime import resolve

    loaded = load(experiment, override, out)
    with working_folder(loaded.run.dir) as folder, stages() as progress:
        data = read_data(loaded, test=True, progress=progress)
        record = get_teacher(at(loaded, folder), data, resolve(loaded.runtime), progress).record
    if as_json:
        emit(asdict(record))
        return
    test, val = (show("test_accuracy", accuracy) for accuracy in (record.test_accuracy, record.val_accuracy))
    place = loaded.teacher.checkpoint or join(loaded.run.dir, TEACHER_FILE)
    answers.print(
        f"teacher {record.arch}: test accuracy {test}, validation accuracy {val}\n{place}", soft_wrap=True
    )


@app.command(epilog=example("ama profile digits --json"))
def profile(
    experiment: ExperimentArg, override: Overrides = None, out: Out = None, as_json: Json = False
) -> None:
    """Show the teacher's blocks and the cost table of all blocks and AMA modules."""
    from search.run_dir.folder import at, working_folder
    from search.stages.prepare import profile as measure
    from search.stages.prepare import read_data

    loaded = load(experiment, override, out)
    with working_folder(loaded.run.dir) as folder, stages() as progress:
        data = read_data(loaded, progress=progress)
        record, _, table = measure(at(loaded, folder), data, progress)
    if as_json:
        emit(table.to_profile())
        return
    for drawn in profile_tables(table.to_profile()):
        answers.print(drawn)
    answers.print(f"Latency of a batch of {table.batch_size} on {table.device}, threads: {table.threads}.")
    if record is None:
        answers.print("No teacher is trained yet: profiled with random weights, which cost the same.")


@app.command(epilog=example("ama library digits"))
def library(
    experiment: ExperimentArg, override: Overrides = None, out: Out = None, as_json: Json = False
) -> None:
    """Distil every candidate AMA module once; searches with `warm_start: library` start from them."""
    from search.run_dir.folder import at, working_folder
    from search.stages.library import get_library, library_folder
    from search.stages.prepare import prepare

    loaded = load(experiment, override, out)
    with working_folder(loaded.run.dir) as run, stages() as progress:
        setup = prepare(at(loaded, run), progress=progress)
        made = get_library(setup, progress)
    folder = library_folder(setup)
    if as_json:
        figures = {"errors": dict(made.errors), "solo_loss": dict(made.solo_loss)}
        emit({"folder": str(folder), "key": made.key, "seconds": made.seconds, **figures})
        return
    answers.print(
        f"{len(made.modules)} modules, distilled in {duration(made.seconds)}\n{folder}", soft_wrap=True
    )


@app.command(epilog=example("ama search cifar10-resnet20 --trials 100 -o resources.concurrent=4"))
def search(
    experiment: ExperimentArg,
    trials: Annotated[int | None, typer.Option("--trials", metavar="N", help="budget.trials")] = None,
    address: Address = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in the run directory")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and start nothing")] = False,
    profile_trial: Annotated[
        bool, typer.Option("--profile-trial", help="write a torch.profiler trace of a trial's second epoch")
    ] = False,
    override: Overrides = None,
    out: Out = None,
) -> None:
    """Search students on Ray with Optuna; the run directory holds the study and the checkpoints."""
    overrides = [*(override or []), *([f"budget.trials={trials}"] if trials is not None else [])]
    loaded = load(experiment, overrides, out)
    if dry_run:
        from search.run.dry_run import plan

        with stages() as progress:
            text = plan(loaded, address=address, progress=progress)
        print(text)
        return
    run_search(loaded, address=address, resume=resume, profile_trial=profile_trial)
