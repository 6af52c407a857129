"""Measure in how many epochs a trial that starts from the module library reaches its cold twin's accuracy.

    O="--root IMAGES --teacher FILE --sampled 24 --student-epochs 4 --work runs/warmstart"
    python -m benchmarks.table_record cifar $O --out runs/warmstart/table.csv.gz
    python -m benchmarks.warmstart $O

Works in the folder of the first command and needs its runs: for each of the first `--configs` points, the
cold run gives the accuracy to reach. The warm twin, with otherwise equal settings, is trained from scratch
with fewer epochs in its budget (its learning rate falls to zero at their end), to find the smallest number
that reaches it. The epoch at which the recorded warm run of full length reaches it, at a still high learning
rate, is reported beside it. Each training is a line in a file of the folder; run again, the command
continues. The cost of the library is measured last, between cold epochs of the same points.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import RESULTS
from benchmarks.curves import Scale, interval
from benchmarks.paper import command_line
from benchmarks.plans import Point
from benchmarks.table import Key, LibraryRecord, Run, Table, params_text
from benchmarks.table_record import Bench, cifar_options, cifar_plan, meta_of, prepare, recorded
from search.stages.library import make_library
from trainables.methods.base import Setup
from trainables.runtime.runtime import device_name
from trainables.training.loop import Distiller, distill

Train = Callable[[int], float]  # number of epochs to the final accuracy of a warm trial of that length


def least_epochs(target: float, epochs: int, full: float, train: Train) -> int | None:
    """Find the smallest number of epochs with which a warm trial ends at or above `target`; None if none.

    Try a third of `epochs` first; then fewer while they reach the target, or more until one does.

    Args:
        target: final accuracy of the cold twin.
        epochs: of a full trial.
        full: final accuracy of the warm twin of full length.
        train: trains a warm trial of fewer epochs.
    """
    third = max(1, epochs // 3)
    if train(third) >= target:
        least = third
        while least > 1 and train(least - 1) >= target:
            least -= 1
        return least
    for more in range(third + 1, epochs):
        if train(more) >= target:
            return more
    return epochs if full >= target else None


def reached(run: Run, target: float) -> int | None:
    """Return the first epoch at which `run` has `target`; None if never."""
    return next((i for i, accuracy in enumerate(run.val_accuracy, start=1) if accuracy >= target), None)


class Trials:
    """Warm trials of fewer epochs, each trained once and stored in a file."""

    def __init__(self, bench: Bench, file: Path) -> None:
        self.bench, self.file = bench, file
        lines = file.read_text().splitlines() if file.exists() else []
        self.done = {(row["params"], row["epochs"]): row["val_accuracy"] for row in map(json.loads, lines)}

    def final(self, point: Point, epochs: int) -> float:
        """Return the final validation accuracy of the warm trial of `point` with `epochs` epochs."""
        key = (params_text(point.params), epochs)
        if key not in self.done:
            setup, library = self.bench.setup, self.bench.libraries[point.seed]
            config = self.bench.space.to_config(point.params, point.seed)
            config = config.model_copy(update={"warm_start": "library", "epochs": epochs})
            result = distill(
                config,
                Setup.of(setup.teacher.model, setup.blocks, setup.data, setup.runtime, library.modules),
            )
            self.done[key] = result.history[-1].val_accuracy
            with self.file.open("a") as out:
                row = {"params": key[0], "epochs": epochs, "val_accuracy": self.done[key]}
                out.write(json.dumps(row) + "\n")
        return float(self.done[key])


def compare(
    bench: Bench, runs: Mapping[Key, Run], trials: Trials, points: list[Point]
) -> list[dict[str, Any]]:
    """Return for each point the final accuracy of its cold run, and the epochs of warm ones to reach it."""
    epochs = bench.setup.experiment.budget.epochs
    found = []
    for index, point in enumerate(points):
        text = params_text(point.params)
        cold, warm = runs[text, "teacher", point.seed], runs[text, "library", point.seed]
        target = cold.val_accuracy[-1]
        least = least_epochs(target, epochs, warm.val_accuracy[-1], partial(trials.final, point))
        found.append(
            {
                "params": point.params,
                "cold": target,
                "warm": warm.val_accuracy[-1],
                "assembled": warm.start_accuracy,
                "least_epochs": least,
                "reached_at": reached(warm, target),
            }
        )
        print(f"{index + 1} of {len(points)}: cold {target:.3f} after {epochs}, warm in {least}", flush=True)
    return found


def side_by_side(bench: Bench, points: Sequence[Point]) -> tuple[float, float]:
    """Measure the CPU seconds of making the library, and of a cold trial (mean over `points`).

    Half of the points run before the library and half after it, because other load on the machine changes
    CPU times.
    """
    half = len(points) // 2
    trials = [_cold_seconds(bench, point) for point in points[:half]]
    started = time.process_time()
    make_library(bench.setup, "timed", points[0].seed)
    library = time.process_time() - started
    trials += [_cold_seconds(bench, point) for point in points[half:]]
    return library, float(np.mean(trials))


def _cold_seconds(bench: Bench, point: Point) -> float:
    """Estimate the CPU seconds of a whole trial from its start and one epoch."""
    setup = bench.setup
    config = bench.space.to_config(point.params, point.seed).model_copy(update={"warm_start": "teacher"})
    started = time.process_time()
    distiller = Distiller(config, Setup.of(setup.teacher.model, setup.blocks, setup.data, setup.runtime))
    assembled = time.process_time()
    distiller.run_epoch()
    return assembled - started + config.epochs * (time.process_time() - assembled)


def figures(
    rows: list[dict[str, Any]],
    epochs: int,
    library: LibraryRecord,
    scale: Scale,
    seconds: tuple[float, float],
) -> dict[str, float]:
    """Return the figures that the command prints; an accuracy never reached counts as `epochs` + 1.

    `seconds` are those of `side_by_side`.
    """
    shares = np.array([(row["least_epochs"] or epochs + 1) / epochs for row in rows])
    along = np.array([(row["reached_at"] or epochs + 1) / epochs for row in rows])
    gain, low, high = interval([row["warm"] - row["cold"] for row in rows])
    return {
        "n": len(rows),
        "warm_epochs_share_median": round(float(np.median(shares)), 3),
        "warm_within_a_third": round(float((shares <= max(1, epochs // 3) / epochs).mean()), 3),
        "warm_epochs_share_q25": round(float(np.quantile(shares, 0.25)), 3),
        "warm_epochs_share_q75": round(float(np.quantile(shares, 0.75)), 3),
        "warm_full_length_share_median": round(float(np.median(along)), 3),
        "warm_gain_points": round(100 * gain, 2),
        "warm_gain_points_ci_low": round(100 * low, 2),
        "warm_gain_points_ci_high": round(100 * high, 2),
        "library_trials_flops": round(library.flops / scale.trial_flops, 2),
        "library_trials_seconds": round(seconds[0] / seconds[1], 2),
    }


def main() -> None:
    parser = cifar_options(
        argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    )
    parser.add_argument("--configs", type=int, default=24, help="number of points of the table")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    work = args.work or Path("runs") / "table-cifar"
    plan = cifar_plan(args)
    bench = prepare(plan, work)
    points = [p for p in plan.points(bench.space.blocks) if p.start == "library"][: args.configs]
    runs = recorded(work)
    missing = [
        p for p in points for s in ("teacher", "library") if (params_text(p.params), s, p.seed) not in runs
    ]
    if missing:
        sys.exit(
            f"error: {work} lacks {len(missing)} runs: first run `python -m benchmarks.table_record cifar`"
        )
    rows = compare(bench, runs, Trials(bench, work / "warmstart.jsonl"), points)
    table = Table(meta_of(bench, plan, ""), runs)
    epochs = table.epochs
    seconds = side_by_side(bench, points)
    lines = figures(rows, epochs, table.libraries[points[0].seed], Scale.of(table), seconds)
    conditions = {
        "command": command_line("benchmarks.warmstart"),
        "machine": device_name(bench.setup.runtime.device),
        "train_images": len(bench.setup.data.train),
        "val_images": len(bench.setup.data.val),
        "epochs": epochs,
        "library": bench.setup.experiment.library.model_dump(mode="json", exclude={"dir"}),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "warmstart-cifar.json"
    path.write_text(json.dumps({**conditions, "figures": lines, "configs": rows}, indent=1) + "\n")
    for name, value in lines.items():
        print(name, value)


if __name__ == "__main__":
    main()
