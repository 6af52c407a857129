"""Make the paper's table: what students gain from the teacher's weights, logits and activation maps.

    python -m benchmarks.paper --root IMAGES --teacher FILE --tune        # learning rates, no test data
    python -m benchmarks.paper --root IMAGES --teacher FILE               # the table
    python -m benchmarks.paper --root IMAGES --teacher FILE --shard 0/2   # and 1/2, at the same time
    python -m benchmarks.paper --root IMAGES --teacher FILE --table methods   # every term and method

IMAGES has train/<class>/ and test/<class>/; FILE holds the weights of the preset's teacher (a cifar_resnet20;
`-o teacher.arch=...` for another). Each finished training is a line in a file of the work folder; run again,
the command continues. The last shard to finish writes <table>-<name>.json, .md and .png into --out.
`--teacher-saw 4500` says that the teacher was trained on the first 4,500 files of each class: the others are
then the validation images. Trainings use one thread, bf16 and channels_last on a CPU, and the fastest
settings on a GPU.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import RESULTS
from benchmarks.method_arms import ALL_ARMS, METHOD_ARMS
from benchmarks.paper_arms import ARMS, SIZES, TUNING_SEED, Job, jobs
from benchmarks.paper_data import table_data
from benchmarks.paper_report import write_table
from search.experiment.experiment import Experiment
from search.experiment.load import load_experiment
from search.stages.costs import get_costs
from search.stages.library import get_library
from search.stages.prepare import Prepared
from search.stages.teacher import get_teacher, teacher_blocks
from trainables.config import OptimConfig, StudentSpec
from trainables.config_base import hash_json
from trainables.finished.model_files import MANIFEST
from trainables.finished.retrain import retrain_one
from trainables.library.library import Library
from trainables.methods.base import Setup
from trainables.runtime.runtime import device_name, resolve
from trainables.training.loop import distill

ON_CPU = ("device=cpu", "precision=bf16", "layout=channels_last", "threads=1")
LEARNING_RATES = (0.02, 0.05, 0.1, 0.2)
VAL_IMAGES = 2_000
TABLES = {"paper": tuple(ARMS), "methods": ("scratch", "finetune", "logits", *METHOD_ARMS, "library")}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """The experiment of the table: students, arms, seeds and settings."""

    experiment: Experiment
    sizes: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: int
    epochs: int
    saw: int | None
    work: Path

    @property
    def optim(self) -> OptimConfig:
        """Return the optimiser settings that all arms share."""
        searched = self.experiment.space.optim.model_dump(exclude={"lr"})
        return OptimConfig.model_validate(searched)


@dataclass(frozen=True)
class Bench:
    """The objects that all trainings share."""

    plan: Plan
    setup: Prepared
    specs: dict[str, StudentSpec]
    library: Library | None
    folder: Path  # for this data, teacher and number of epochs alone


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock, so that one shard makes the shared files and the others read them."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def prepare(plan: Plan) -> Bench:
    """Make data, teacher, cost table and library, or read them from the work folder."""
    with _locked(plan.work):
        experiment = plan.experiment
        runtime = resolve(experiment.runtime)
        data = table_data(experiment.data, plan.saw, VAL_IMAGES)
        teacher = get_teacher(experiment, data, runtime)
        blocks = teacher_blocks(experiment, teacher.model, data.image_shape)
        specs = {name: SIZES[name].spec(blocks) for name in plan.sizes}
        # The cost table and the library need no other widths than the paper's table.
        widths = tuple(sorted({width for spec in specs.values() for width in spec.widths.values()}))
        space = experiment.space.model_copy(update={"widths": widths, "fuse": True})
        parts = [data.hash, teacher.record.hash, plan.epochs, plan.optim.model_dump(mode="json")]
        folder = plan.work / hash_json([*parts, experiment.library.model_dump(mode="json", exclude={"dir"})])
        update: dict[str, Any] = {
            "space": space,
            "run": experiment.run.model_copy(update={"dir": str(folder / "-".join(map(str, widths)))}),
            "library": experiment.library.model_copy(update={"dir": str(folder / "library")}),
        }
        experiment = experiment.model_copy(update=update)
        costs = get_costs(experiment, teacher, blocks, data.image_shape, runtime)
        setup = Prepared(experiment, folder, runtime, data, teacher, blocks, costs)
        library = get_library(setup) if "library" in plan.arms else None
    return Bench(plan, setup, specs, library, folder)


def tune(bench: Bench, part: int, parts: int, say: Say) -> None:
    """Train every arm at the first size with all learning rates; test data is not read.

    While an arm's best rate is the lowest or the highest tried, try half or twice that rate, too.
    """
    setup, size = bench.setup, bench.plan.sizes[0]
    modules = bench.library.modules if bench.library else None
    for arm in bench.plan.arms[part::parts]:
        job = Job(size, arm, TUNING_SEED)
        while lr := untried(_scores(bench, arm)):
            config = job.config(ALL_ARMS[arm], bench.specs[size], bench.plan.optim, bench.plan.epochs, lr)
            trained = distill(
                config, Setup.of(setup.teacher.model, setup.blocks, setup.data, setup.runtime, modules)
            )
            row = {"size": size, "arm": arm, "lr": lr, "val_accuracy": trained.history[-1].val_accuracy}
            _append(bench.folder / f"tune-{part}of{parts}.jsonl", row)
            say(f"{arm} at learning rate {lr:g}: validation accuracy {row['val_accuracy']:.4f}")


def _scores(bench: Bench, arm: str) -> dict[float, float]:
    """Return the validation accuracy by learning rate, for the rates tried at the first size so far."""
    tried = (bench.plan.sizes[0], arm)
    return {r["lr"]: r["val_accuracy"] for r in rows(bench.folder, "tune") if (r["size"], r["arm"]) == tried}


def untried(scores: Mapping[float, float]) -> float | None:
    """Return the learning rate to try next; None if the best lies between two others."""
    for lr in LEARNING_RATES:
        if lr not in scores:
            return lr
    best = max(scores, key=lambda lr: scores[lr])
    if best == max(scores):
        return 2 * best
    return best / 2 if best == min(scores) else None


def learning_rates(bench: Bench) -> dict[str, tuple[float, bool]]:
    """Return by arm the best tuned rate and True, or the arm's default and False if tuning is incomplete."""
    found = {}
    for arm in bench.plan.arms:
        scores = _scores(bench, arm)
        tuned = untried(scores) is None
        found[arm] = (max(scores, key=lambda lr: scores[lr]), True) if tuned else (ALL_ARMS[arm].lr, False)
    return found


def train(bench: Bench, job: Job, lr: float) -> dict[str, Any]:
    """Train and test one model; return its row of the record."""
    setup, plan = bench.setup, bench.plan
    config = job.config(ALL_ARMS[job.arm], bench.specs[job.size], plan.optim, plan.epochs, lr)
    place = bench.folder / "models" / job.key / f"lr-{lr:g}"
    result = retrain_one(
        config,
        setup.teacher,
        setup.blocks,
        setup.data,
        setup.runtime,
        place,
        bench.library.modules if bench.library else None,
        kind=job.arm,
        data_config=plan.experiment.data,
    )
    history = json.loads((place / MANIFEST).read_text())["history"]
    images = len(setup.data.train)
    return {
        "size": job.size,
        "arm": job.arm,
        "seed": job.seed,
        "lr": lr,
        "test_accuracy": result.test_accuracy,
        "test_loss": result.test_loss,
        "val_accuracy": [epoch["val_accuracy"] for epoch in history],
        "val_loss": [epoch["val_loss"] for epoch in history],
        # Training time without validation.
        "seconds": [images / epoch["images_per_second"] for epoch in history],
        "flops": result.flops,
        "params": result.params,
    }


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Read the rows that all shards have written; leave out an incomplete last line."""
    found = []
    for file in sorted(folder.glob(f"{kind}-*.jsonl")):
        found += [
            json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")
        ]
    return found


def _append(file: Path, row: dict[str, Any]) -> None:
    if file.exists() and not (text := file.read_text()).endswith("\n"):
        file.write_text(text[: text.rfind("\n") + 1])
    with file.open("a") as out:
        out.write(json.dumps(row) + "\n")


def record(bench: Bench, part: int, parts: int, say: Say) -> list[dict[str, Any]]:
    """Train this shard's models; return this plan's rows of all shards so far."""
    plan, rates = bench.plan, learning_rates(bench)
    wanted = list(jobs(plan.sizes, plan.arms, plan.seeds))

    def found() -> dict[str, dict[str, Any]]:
        known = {(r["size"], r["arm"], r["seed"], r["lr"]): r for r in rows(bench.folder, "rows")}
        keys = {job.key: (job.size, job.arm, job.seed, rates[job.arm][0]) for job in wanted}
        return {name: known[key] for name, key in keys.items() if key in known}

    done = found()
    for job in wanted[part::parts]:
        if job.key not in done:
            row = train(bench, job, rates[job.arm][0])
            _append(bench.folder / f"rows-{part}of{parts}.jsonl", row)
            say(f"{job.key}: test accuracy {row['test_accuracy']:.4f}, {sum(row['seconds']):.0f} s")
    done = found()
    return [done[job.key] for job in wanted if job.key in done]


def command_line(module: str) -> str:
    """Return the command as typed, with placeholders for this machine's folders and files."""
    hidden = {"--root": "IMAGES", "--teacher": "FILE", "--work": None, "--shard": None, "--out": None}
    words = iter(sys.argv[1:])
    command = ["python", "-m", module]
    for word in words:
        if word in hidden:
            next(words, None)
            command += [word, str(hidden[word])] if hidden[word] else []
        else:
            command.append(word)
    return shlex.join(command)


def conditions(bench: Bench) -> dict[str, Any]:
    """Return the conditions of the measurement, without paths of this machine."""
    plan, setup = bench.plan, bench.setup
    teacher = setup.teacher.record
    return {
        "command": command_line("benchmarks.paper"),
        "teacher": {
            **{key: getattr(teacher, key) for key in ("arch", "hash", "val_accuracy", "val_loss")},
            **{key: getattr(teacher, key) for key in ("test_accuracy", "test_loss")},
            **setup.costs.teacher.as_dict(),
        },
        "data_hash": setup.data.hash,
        "train_images": len(setup.data.train),
        "val_images": len(setup.data.val),
        "test_images": len(setup.data.test or ()),
        "teacher_saw": plan.saw,
        "epochs": plan.epochs,
        "seeds": plan.seeds,
        "optim": plan.optim.model_dump(mode="json", exclude={"lr"}),
        "learning_rates": {
            arm: {"lr": lr, "tuned": tuned} for arm, (lr, tuned) in learning_rates(bench).items()
        },
        "grid": list(LEARNING_RATES),
        "tuned_at": plan.sizes[0],
        "students": {
            name: {**setup.costs.price(spec).as_dict(), "widths": dict(spec.widths)}
            for name, spec in bench.specs.items()
        },
        "library_seconds": bench.library.seconds if bench.library else None,
        "device": device_name(setup.runtime.device),
        "precision": setup.runtime.precision,
        "channels_last": setup.runtime.channels_last,
        "threads": setup.runtime.threads,
        "torch": torch.__version__,
    }


def read_plan(args: argparse.Namespace) -> Plan:
    """Make the plan from the experiment file and the command line."""
    overrides = [] if torch.cuda.is_available() else [f"runtime.{setting}" for setting in ON_CPU]
    if args.root is not None:
        overrides += ["data.name=imagefolder", f"data.root={args.root}"]
    if args.teacher is not None:
        overrides.append(f"teacher.checkpoint={args.teacher}")
    if args.train_limit is not None:
        overrides.append(f"data.train_limit={args.train_limit}")
    experiment = load_experiment("paper", [*overrides, *args.override], args.work)
    return Plan(
        experiment=experiment,
        sizes=tuple(args.sizes),
        arms=tuple(args.arms or TABLES[args.table]),
        seeds=args.seeds,
        epochs=args.epochs or experiment.budget.epochs,
        saw=args.teacher_saw,
        work=args.work,
    )


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--root", help="folder with train/<class>/, test/<class>/; default: the preset's data")
    found.add_argument("--teacher", help="weights of the teacher; default: train the preset's")
    found.add_argument("--teacher-saw", type=int, metavar="N", help="files of each class used to train it")
    found.add_argument("--train-limit", type=int, metavar="N", help="training images; default: all")
    found.add_argument("--epochs", type=int, help="epochs of every training; default: the preset's")
    found.add_argument("--seeds", type=int, default=5)
    found.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    found.add_argument("--arms", nargs="+", choices=ALL_ARMS, help="default: all of the table")
    found.add_argument("--table", choices=TABLES, default="paper")
    found.add_argument("--tune", action="store_true", help="find the arms' learning rates, and stop")
    found.add_argument("--shard", default="0/1", help="this process's part of the work, e.g. 0/2")
    found.add_argument("--name", default="cpu", help="name in the result files, <table>-<name>")
    found.add_argument("--work", type=Path, default=Path("runs") / "paper", help="folder of finished rows")
    found.add_argument("--out", type=Path, default=RESULTS)
    found.add_argument("-o", "--override", action="append", default=[], metavar="KEY=VALUE")
    return found


def main() -> None:
    args = parser().parse_args()
    part, parts = map(int, args.shard.split("/"))

    def say(text: str) -> None:
        print(f"shard {args.shard}: {text}", flush=True)

    plan = read_plan(args)
    bench = prepare(plan)
    if args.tune:
        tune(bench, part, parts, say)
        for arm, (lr, tuned) in learning_rates(bench).items():
            say(f"{arm}: learning rate {lr:g}{'' if tuned else ' (not tuned yet)'}")
        return
    found = record(bench, part, parts, say)
    total = len(plan.sizes) * len(plan.arms) * plan.seeds
    if len(found) < total:
        say(f"{len(found)} of {total} trainings are done; the last shard to finish writes the table")
        return
    text, figures = write_table(found, conditions(bench), args.out, f"{args.table}-{args.name}")
    print(text)
    for name, value in figures.items():
        print(name, value)


if __name__ == "__main__":
    main()
