"""Record a table: run real distillations once and store their learning curves, to replay searches on.

    python -m benchmarks.table_record digits --out benchmarks/tables/digits.csv.gz
    python -m benchmarks.table_record cifar --root IMAGES --teacher FILE --out benchmarks/tables/cifar.csv.gz

`digits` takes about half an hour on one core, `cifar` hours. A row is stored as soon as its run ends; run
again, the command continues. `--shard 0/2` and `--shard 1/2` share the work between two processes; the last
one to finish writes the table.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper_data import table_data
from benchmarks.plans import CIFAR, SAMPLED, Plan, Point, cifar, digits
from benchmarks.table import Key, Run, Table, params_text, recorded_space, rows_to_runs, to_row
from search.experiment.experiment import Experiment
from search.policy.space import SearchSpace
from search.stages.library import make_library
from search.stages.prepare import Prepared
from search.stages.teacher import get_teacher, teacher_blocks
from trainables.costs.measure import measure_costs
from trainables.costs.table import CostTable
from trainables.data.load import load_data
from trainables.library.build import SOLO_IMAGES, sampled_students
from trainables.library.library import Library
from trainables.methods.base import Setup
from trainables.network.evaluate import evaluate
from trainables.runtime.runtime import device_name, resolve
from trainables.training.loop import Distiller

COST_SECONDS = 2.0  # short, because the table's latencies are not used


@dataclass(frozen=True)
class Bench:
    """The objects that all runs share."""

    setup: Prepared
    libraries: dict[int, Library]
    library_seconds: dict[int, float]  # CPU

    @property
    def space(self) -> SearchSpace:
        """The search space of the points."""
        return recorded_space(self.setup.experiment, self.setup.blocks)


def prepare(plan: Plan, work: Path) -> Bench:
    """Make data, teacher, cost table and libraries, or read them from `work`."""
    experiment = Experiment.model_validate({**plan.experiment, "run": {"dir": str(work)}})
    runtime = resolve(experiment.runtime)
    torch.set_num_threads(runtime.threads)
    if plan.val_images is None:
        data = load_data(experiment.data)
    else:
        data = replace(table_data(experiment.data, plan.saw, plan.val_images), test=None)
    work.mkdir(parents=True, exist_ok=True)
    with (work / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one shard makes the files, the others read them
        teacher = get_teacher(experiment, data, runtime)
        blocks = teacher_blocks(experiment, teacher.model, data.image_shape)
        space = experiment.space
        costs_file = work / "costs.json"
        if not costs_file.exists():
            table = measure_costs(
                teacher.model,
                blocks,
                space.widths,
                space.fuse is not False,
                data.image_shape,
                runtime,
                seconds=COST_SECONDS,
            )
            table.save(costs_file)
        costs = CostTable.model_validate_json(costs_file.read_text())
        setup = Prepared(experiment, work, runtime, data, teacher, blocks, costs)
        libraries, seconds = {}, {}
        for seed in plan.seeds:
            libraries[seed], seconds[seed] = _library(setup, seed)
    return Bench(setup, libraries, seconds)


def _library(setup: Prepared, seed: int) -> tuple[Library, float]:
    folder = setup.run_dir / "libraries" / f"seed{seed}"
    clock = folder.with_suffix(".seconds")
    if not folder.exists():
        started = time.process_time()
        library = make_library(setup, folder.name, seed)
        clock.parent.mkdir(parents=True, exist_ok=True)
        clock.write_text(f"{time.process_time() - started:.4f}")
        library.save(folder.parent)
    return Library.load(folder), float(clock.read_text())


def library_flops(setup: Prepared, seed: int) -> float:
    """Return the FLOPs of building the library; a backward pass counts as two forward passes, as for trials.

    In the first phase, a batch takes the teacher's forward and every module's forward and backward. In the
    second, it takes the teacher's forward and the forward and backward of the students that this seed
    samples. Scoring counts as one teacher forward for each module, plus three.
    """
    costs, experiment, train = setup.costs, setup.experiment, len(setup.data.train)
    config, space = experiment.library, experiment.space
    teacher = costs.teacher.flops
    modules = sum(module.flops for module in costs.modules.values())
    alone = config.epochs * train * (teacher + 3 * modules)
    steps = math.ceil(config.student_epochs * setup.data.steps_per_epoch(config.batch_size))
    drawn = sampled_students(setup.blocks, sorted(space.widths), space.fuse is not False, seed)
    sampled = statistics.fmean(costs.price(spec).flops for spec in islice(drawn, steps)) if steps else 0.0
    together = config.student_epochs * train * (teacher + 3 * sampled)
    scoring = min(SOLO_IMAGES, len(setup.data.val)) * (len(costs.modules) + 3) * teacher
    return float(alone + together + scoring)


def record(bench: Bench, point: Point) -> Run:
    """Train a point to its last epoch and return the run."""
    setup = bench.setup
    runtime = setup.runtime
    config = bench.space.to_config(point.params, point.seed).model_copy(update={"warm_start": point.start})
    started = time.process_time()
    modules = bench.libraries[point.seed].modules
    distiller = Distiller(config, Setup.of(setup.teacher.model, setup.blocks, setup.data, runtime, modules))
    assembled = time.process_time() - started
    before = evaluate(distiller.student, setup.data.eval_batches("val", runtime), runtime)
    seconds = []
    while not distiller.finished:
        started = time.process_time()
        distiller.run_epoch()
        seconds.append(time.process_time() - started)
    price = setup.costs.price(config.student)
    return Run(
        params=point.params,
        start=point.start,
        seed=point.seed,
        params_count=price.params,
        flops=price.flops,
        start_accuracy=before.accuracy,
        start_seconds=assembled,
        seconds=statistics.median(seconds),
        val_accuracy=tuple(metrics.val_accuracy for metrics in distiller.history),
        val_loss=tuple(metrics.val_loss for metrics in distiller.history),
    )


def recorded(work: Path) -> dict[Key, Run]:
    """Read the runs that all shards have finished."""
    runs = [run for file in sorted(work.glob("rows-*.csv")) for run in rows_to_runs(file.read_text())]
    return {run.key: run for run in runs}


def record_all(bench: Bench, points: Iterable[Point], file: Path, say: Callable[[str], None]) -> None:
    """Record the points that are not in `file`'s folder yet; append each row as soon as it is done."""
    done = recorded(file.parent)
    left = [p for p in points if (params_text(p.params), p.start, p.seed) not in done]
    if file.exists() and not (text := file.read_text()).endswith("\n"):
        file.write_text(text[: text.rfind("\n") + 1])  # remove an incomplete last row
    started = time.monotonic()
    for index, point in enumerate(left):
        row = to_row(record(bench, point))
        fresh = not file.exists() or file.stat().st_size == 0
        with file.open("a") as out:
            writer = csv.DictWriter(out, list(row), lineterminator="\n")
            if fresh:
                writer.writeheader()
            writer.writerow(row)
        if index % 20 == 0:
            minutes = (time.monotonic() - started) / 60
            say(f"{index + 1} of {len(left)} runs, {minutes:.1f} min")


def finish(bench: Bench, plan: Plan, points: list[Point], out: Path, command: str) -> bool:
    """Write the table if all its runs are recorded; return whether it was written."""
    runs = recorded(bench.setup.run_dir)
    keys = [(params_text(p.params), p.start, p.seed) for p in points]
    if not all(key in runs for key in keys):
        return False
    Table(meta_of(bench, plan, command), {key: runs[key] for key in keys}).save(out)
    return True


def meta_of(bench: Bench, plan: Plan, command: str) -> dict[str, Any]:
    """Return the metadata of the table."""
    setup = bench.setup
    teacher = setup.teacher.record
    experiment = {k: v for k, v in plan.experiment.items() if k != "data"}
    # Leave out the paths of images and teacher.
    experiment["data"] = {k: v for k, v in plan.experiment["data"].items() if k != "root"}
    experiment["teacher"] = {k: v for k, v in plan.experiment["teacher"].items() if k != "checkpoint"}
    return {
        "command": command,
        "experiment": experiment,
        "classes": setup.data.num_classes,
        "train": len(setup.data.train),
        "val": len(setup.data.val),
        "data_hash": setup.data.hash,
        "teacher": {
            "arch": teacher.arch,
            "hash": teacher.hash,
            "val_accuracy": teacher.val_accuracy,
            "val_loss": teacher.val_loss,
        },
        "costs": setup.costs.model_dump(mode="json"),
        "libraries": {
            str(seed): {
                "seconds": bench.library_seconds[seed],
                "flops": library_flops(setup, seed),
                "solo_loss": dict(library.solo_loss),
            }
            for seed, library in bench.libraries.items()
        },
        "device": device_name(setup.runtime.device),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def cifar_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the options of the CIFAR table."""
    parser.add_argument("--work", type=Path, help="teacher, libraries and rows so far; default: runs/table-…")
    parser.add_argument("--root", help="cifar: folder with train/<class>/ and test/<class>/")
    parser.add_argument("--teacher", help="cifar: weights of a cifar_resnet20")
    parser.add_argument(
        "--teacher-saw", type=int, help="cifar: files of each class that the teacher was trained on"
    )
    parser.add_argument("--train-limit", type=int, default=2_500, help="cifar: training images")
    parser.add_argument("--epochs", type=int, default=6, help="cifar: epochs of a run")
    parser.add_argument("--sampled", type=int, default=SAMPLED, help="cifar: number of points of the space")
    parser.add_argument(
        "--student-epochs",
        type=float,
        default=CIFAR["library"]["student_epochs"],
        help="cifar: of the library's sampled students",
    )
    return parser


def cifar_plan(args: argparse.Namespace) -> Plan:
    """Make the plan of the CIFAR table from the options.

    Raises:
        SystemExit: `--root` or `--teacher` is missing.
    """
    if args.root is None or args.teacher is None:
        sys.exit("error: cifar needs --root and --teacher")
    sizes = args.train_limit, args.sampled, args.epochs, args.teacher_saw, args.student_epochs
    return cifar(args.root, args.teacher, *sizes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("space", choices=["digits", "cifar"])
    parser.add_argument("--out", type=Path, required=True, help="the table, .csv.gz")
    parser.add_argument("--shard", default="0/1", help="this process's part of the runs, e.g. 0/2")
    cifar_options(parser)
    args = parser.parse_args()
    part, parts = map(int, args.shard.split("/"))
    if args.space == "digits":
        plan, command = digits(), f"python -m benchmarks.table_record digits --out {args.out}"
    else:
        plan = cifar_plan(args)
        command = (
            f"python -m benchmarks.table_record cifar --root IMAGES --teacher FILE --out {args.out} "
            f"--train-limit {args.train_limit} --epochs {args.epochs} --sampled {args.sampled} "
            f"--student-epochs {args.student_epochs:g}"
            + (f" --teacher-saw {args.teacher_saw}" if args.teacher_saw else "")
        )
    work = args.work or Path("runs") / f"table-{args.space}"
    bench = prepare(plan, work)
    points = plan.points([block.name for block in bench.setup.blocks])

    def say(text: str) -> None:
        print(f"shard {args.shard}: {text}", flush=True)

    say(f"{len(points)} runs in all")
    record_all(bench, points[part::parts], work / f"rows-{part}of{parts}.csv", say)
    if finish(bench, plan, points, args.out, command):
        size = args.out.stat().st_size
        say(f"wrote {args.out}")
        print("table_runs", len(points))
        print("table_kilobytes", round(size / 1000, 1))


if __name__ == "__main__":
    main()
