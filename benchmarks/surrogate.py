"""A surrogate of a sampled table: learning curves predicted for every point of its space.

    python -m benchmarks.surrogate --table benchmarks/tables/cifar.csv.gz

Two Gaussian processes, one for cold and one for warm starts, map a trial's features (which blocks are
replaced, how narrow every stage is, costs, loss weights, learning rate) to the logits of its accuracies and
the logarithms of its losses, epoch by epoch. A replayed trial is the prediction plus a random error of the
size of the held-out errors, drawn once for each point and seed: policies see noise of the size of the
surrogate's error. The command prints the held-out error of 10-fold cross-validation over the points, with
both starts of a point in the same fold.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit  # type: ignore[import-untyped]
from scipy.stats import spearmanr  # type: ignore[import-untyped]
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel
from sklearn.preprocessing import StandardScaler

from benchmarks import RESULTS
from benchmarks.plans import STARTS, Params, random_points
from benchmarks.table import LibraryRecord, Run, Table, params_text
from trainables.config_base import hash_json
from trainables.costs.table import Costs
from trainables.student.spans import spans_of

Floats = NDArray[np.float64]

FOLDS = 10
SEEDS = 5  # of the errors
REFERENCE = 1_000  # random points; the hypervolume of the best ones is the unit
CLIP = 1e-3  # accuracies are clipped to this distance from 0 and 1


def features(table: Table, params: Params) -> list[float]:
    """Return the features of a point: of the whole student, its training, every stage and every block.

    A stage is the part of the blocks' names before the last dot. From a hundred runs the effect of sums over
    a stage is estimated better than that of single blocks.
    """
    config = table.space.to_config(params, 0)
    student, loss = config.student, config.loss
    spans = spans_of(table.costs.structure, student)
    replaced = {block.name: float(block.name in student.widths) for block in table.costs.structure}
    missing = {name: share * (1.0 - student.widths.get(name, 1.0)) for name, share in replaced.items()}
    price, whole = table.price(student), table.costs.teacher
    row = [price.flops / whole.flops, price.params / whole.params, float(len(spans))]
    rate = float(np.log(config.optim.lr))
    row += [rate, rate**2, loss.alpha, float(np.log(loss.tau)), float(np.log(loss.beta))]
    row.append(float(loss.supervision == "adaptive"))
    row += [sum(replaced.values()), sum(missing.values())]
    for stage in dict.fromkeys(name.rpartition(".")[0] for name in replaced):
        inside = [name for name in replaced if name.rpartition(".")[0] == stage]
        row += [sum(replaced[name] for name in inside), sum(missing[name] for name in inside)]
    return [*row, *replaced.values()]


def targets(run: Run) -> list[float]:
    """Return the targets (2 * epochs,): logits of the accuracies, then logarithms of the losses."""
    accuracy = logit(np.clip(run.val_accuracy, CLIP, 1 - CLIP))
    return [*accuracy.tolist(), *np.log(run.val_loss).tolist()]


class Model:
    """One Gaussian process over standardised features, for all targets at once."""

    def __init__(self, rows: Sequence[Sequence[float]], wanted: Sequence[Sequence[float]]) -> None:
        self._scaler = StandardScaler().fit(np.asarray(rows))
        self._mean, values = np.mean(wanted, axis=0), np.asarray(wanted)
        wide = (1e-8, 1e4)
        kernel = (
            ConstantKernel(0.1, wide) * DotProduct(1.0, "fixed")
            + ConstantKernel(1.0, wide) * RBF(6.0, (0.5, 1e3))
            + WhiteKernel(0.1, wide)
        )
        process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
        self._process = process.fit(self._scaler.transform(np.asarray(rows)), values)

    def predict(self, rows: Sequence[Sequence[float]]) -> Floats:
        """Predict targets (n, 2 * epochs) from features (n, d)."""
        found = self._process.predict(self._scaler.transform(np.asarray(rows)))
        return np.asarray(found, dtype=np.float64).reshape(len(rows), -1)


def held_out(table: Table, folds: int = FOLDS) -> dict[str, tuple[Floats, Floats]]:
    """Cross-validate; return by start the predicted and the true targets, (n, 2 * epochs) each."""
    found = {}
    for start in STARTS:
        runs = [run for run in table.runs.values() if run.start == start]
        rows, wanted = [features(table, run.params) for run in runs], [targets(run) for run in runs]
        # Folds are by the point's text: both starts of a point are left out together.
        fold = [int(hash_json([run.params])[:8], 16) % folds for run in runs]
        guesses = np.zeros_like(np.asarray(wanted))
        for part in range(folds):
            inside = [i for i in range(len(runs)) if fold[i] != part]
            outside = [i for i in range(len(runs)) if fold[i] == part]
            if outside:
                model = Model([rows[i] for i in inside], [wanted[i] for i in inside])
                guesses[outside] = model.predict([rows[i] for i in outside])
        found[start] = (guesses, np.asarray(wanted))
    return found


def errors(guesses: Floats, wanted: Floats) -> dict[str, float]:
    """Return root mean square error in points, explained variance and Spearman of the final accuracy."""
    last = wanted.shape[1] // 2 - 1
    guessed, true = expit(guesses[:, last]), expit(wanted[:, last])
    rmse = float(np.sqrt(np.mean((guessed - true) ** 2)))
    return {
        "n": len(true),
        "rmse_points": round(100 * rmse, 2),
        "spread_points": round(100 * float(true.std()), 2),
        "r2": round(1 - rmse**2 / float(true.var()), 3),
        "spearman": round(float(spearmanr(guessed, true).statistic), 3),
    }


@dataclass(frozen=True)
class Surrogate(Table):
    """A table with a run for every point of its space, predicted from the recorded ones."""

    @classmethod
    def of(cls, table: Table) -> Surrogate:
        """Make the surrogate of a table of sampled runs."""
        return cls(table.meta, table.runs)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the errors."""
        return tuple(range(SEEDS))

    @cached_property
    def libraries(self) -> dict[int, LibraryRecord]:
        """The one library that was recorded, for every seed."""
        (record,) = super().libraries.values()
        return dict.fromkeys(self.seeds, record)

    def reference(self, seed: int) -> Iterable[Run]:
        """Yield the runs of random points from both starts."""
        points = list(random_points(self.space, REFERENCE))
        for start in STARTS:
            self._predict(points, start)
        return [self._run(params, start, seed) for params in points for start in STARTS]

    def run(self, params: Mapping[str, Any], start: str, seed: int) -> Run:
        """Return the predicted run of a point, with the error of this point and seed."""
        self._predict([dict(params)], start)
        return self._run(dict(params), start, seed)

    def _predict(self, points: Sequence[Params], start: str) -> None:
        """Predict all points that are not known yet, in one batch."""
        new = [params for params in points if (params_text(params), start) not in self._known]
        if new:
            found = self._models[start][0].predict([features(self, params) for params in new])
            self._known.update({(params_text(p), start): row for p, row in zip(new, found, strict=True)})

    def _run(self, params: Params, start: str, seed: int) -> Run:
        draw = int(hash_json([params, start, seed])[:12], 16)
        # One draw for the whole curve: a run that is better than predicted is better at all epochs.
        error = np.random.default_rng(draw).standard_normal() * self._models[start][1]
        found = self._known[params_text(params), start] + error
        half = len(found) // 2
        price: Costs = self.price(self.space.to_config(params, 0).student)
        slope, base = self._seconds
        return Run(
            params=params,
            start=start,
            seed=seed,
            params_count=price.params,
            flops=price.flops,
            start_accuracy=0.0,  # not predicted
            start_seconds=self._start_seconds[start],
            seconds=float(base + slope * price.flops),
            val_accuracy=tuple(expit(found[:half]).tolist()),
            val_loss=tuple(np.exp(found[half:]).tolist()),
        )

    @cached_property
    def _known(self) -> dict[tuple[str, str], Floats]:
        """Predicted targets by the point's text and start."""
        return {}

    @cached_property
    def _models(self) -> dict[str, tuple[Model, Floats]]:
        """By start: the model of all runs, and the signed size (2 * epochs,) of its held-out errors."""
        outside, found = held_out(self), {}
        for start in STARTS:
            runs = [run for run in self.runs.values() if run.start == start]
            guesses, wanted = outside[start]
            size = np.sqrt(np.mean((guesses - wanted) ** 2, axis=0))
            size[len(size) // 2 :] *= -1.0  # a more accurate run has the lower loss
            model = Model([features(self, run.params) for run in runs], [targets(run) for run in runs])
            found[start] = (model, size)
        return found

    @cached_property
    def _seconds(self) -> tuple[float, float]:
        """Slope and intercept of the CPU seconds of an epoch against the student's FLOPs."""
        slope, base = np.polyfit(
            [run.flops for run in self.runs.values()], [run.seconds for run in self.runs.values()], 1
        )
        return float(slope), float(base)

    @cached_property
    def _start_seconds(self) -> dict[str, float]:
        runs = self.runs.values()
        return {s: float(np.median([r.start_seconds for r in runs if r.start == s])) for s in STARTS}


def load(path: Path) -> Table:
    """Load the table of a file; a sampled table is replaced by its surrogate."""
    table = Table.load(path)
    return Surrogate.of(table) if table.sampled else table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, required=True)
    args = parser.parse_args()
    found = {start: errors(*pair) for start, pair in held_out(Table.load(args.table)).items()}
    lines = {
        f"surrogate_{name}_{start}": value for start, row in found.items() for name, value in row.items()
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"surrogate-{args.table.name.partition('.')[0]}.json"
    path.write_text(json.dumps({"table": args.table.name, "folds": FOLDS, "figures": lines}, indent=1) + "\n")
    for name, value in lines.items():
        print(name, value)


if __name__ == "__main__":
    main()
