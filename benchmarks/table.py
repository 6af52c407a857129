"""A table of recorded runs: one CSV file, gzipped, whose first line is its metadata as a JSON comment.

table = Table.load(Path("benchmarks/tables/digits.csv.gz"))
table.run(params, start="library", seed=0).val_accuracy
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from optuna.distributions import FloatDistribution

from benchmarks.plans import STARTS, Params
from search.experiment.experiment import Experiment
from search.policy.space import SearchSpace
from trainables.blocks.blocks import Block
from trainables.config import StudentSpec
from trainables.costs.table import Costs, CostTable

FORMAT = 1
CURVES = ("val_accuracy", "val_loss")
# Images for re-estimating batch-norm statistics when a warm student is built (`trainables.student.start`).
RECALIBRATION = 3 * 512

Key = tuple[str, str, int]  # params as JSON, start, seed


def params_text(params: Mapping[str, Any]) -> str:
    """Return params as canonical text."""
    return json.dumps(dict(params), sort_keys=True)


def recorded_space(experiment: Experiment, blocks: Sequence[Block]) -> SearchSpace:
    """Return the space with the parameter names of version 0.1, which the recorded tables use."""
    return replace(SearchSpace.from_experiment(experiment, blocks), flat=True)


@dataclass(frozen=True)
class Run:
    """A recorded distillation.

    Attributes:
        params: the point of the space.
        start: teacher (cold) or library (warm).
        seed: of training, and of the library of a warm start.
        params_count: of the student; likewise `flops`.
        start_accuracy: on validation images before training.
        start_seconds: CPU seconds of building the student.
        seconds: median CPU seconds of an epoch.
        val_accuracy: after each epoch; likewise `val_loss`.
    """

    params: Params
    start: str
    seed: int
    params_count: int
    flops: int
    start_accuracy: float
    start_seconds: float
    seconds: float
    val_accuracy: tuple[float, ...]
    val_loss: tuple[float, ...]

    @property
    def key(self) -> Key:
        """The unique key of the run in its table."""
        return params_text(self.params), self.start, self.seed


@dataclass(frozen=True)
class LibraryRecord:
    """Costs and solo losses of the module library of one seed.

    Attributes:
        seconds: CPU seconds of building it.
        flops: FLOPs of building it.
        solo_loss: by span key, as `Library.solo_loss`.
    """

    seconds: float
    flops: float
    solo_loss: dict[str, float]


@dataclass(frozen=True)
class Table:
    """Recorded runs and their metadata.

    Attributes:
        meta: `command`, `experiment`, `classes`, `train` and `val` images, `teacher`, `costs`, `libraries` by
            seed, versions and machine.
        runs: by key.
    """

    meta: dict[str, Any]
    runs: dict[Key, Run]

    @classmethod
    def load(cls, path: Path) -> Table:
        """Read what `save` wrote."""
        first, _, rest = gzip.decompress(path.read_bytes()).decode().partition("\n")
        meta = json.loads(first.removeprefix("# "))
        assert meta["format"] == FORMAT, f"{path}: expected a table of format {FORMAT}, got {meta['format']}"
        runs = [_from_row(row) for row in csv.DictReader(io.StringIO(rest))]
        return cls(meta, {run.key: run for run in runs})

    def save(self, path: Path) -> None:
        """Write the table; equal tables give equal bytes."""
        text = io.StringIO()
        text.write(f"# {json.dumps({'format': FORMAT, **self.meta})}\n")
        rows = [to_row(run) for run in self.runs.values()]
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.getvalue().encode(), 9, mtime=0))

    @cached_property
    def experiment(self) -> Experiment:
        """The experiment whose space the table covers."""
        return Experiment.model_validate({**self.meta["experiment"], "run": {"dir": "runs/table"}})

    @cached_property
    def space(self) -> SearchSpace:
        """The search space of the runs."""
        return recorded_space(self.experiment, self.costs.structure)

    @cached_property
    def costs(self) -> CostTable:
        """The costs of all students; do not use its latencies, which were measured on a busy machine."""
        return CostTable.model_validate(self.meta["costs"])

    @cached_property
    def libraries(self) -> dict[int, LibraryRecord]:
        """The module libraries, by seed."""
        return {int(seed): LibraryRecord(**values) for seed, values in self.meta["libraries"].items()}

    @property
    def epochs(self) -> int:
        """Epochs of every run."""
        return self.experiment.budget.epochs

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the runs."""
        return tuple(sorted({run.seed for run in self.runs.values()}))

    @property
    def sampled(self) -> bool:
        """True if the runs cover some points of the space, not all."""
        return any(isinstance(d, FloatDistribution) for d in self.space.distributions.values())

    def reference(self, seed: int) -> Iterable[Run]:
        """Return the runs whose front is the reference for hypervolume."""
        return [run for run in self.runs.values() if run.seed == seed]

    def run(self, params: Mapping[str, Any], start: str, seed: int) -> Run:
        """Return the recorded run of a point; a student without modules has the same run for both starts."""
        text = params_text(params)
        return self.runs.get((text, start, seed)) or self.runs[text, STARTS[0], seed]

    def price(self, spec: StudentSpec) -> Costs:
        """Return the cost of any student, as `CostTable.price`."""
        return self.costs.price(spec)

    def epoch_flops(self, run: Run) -> float:
        """Return the FLOPs of an epoch: student forward and backward, teacher forward, validation."""
        train, val = self.meta["train"], self.meta["val"]
        return float(train * (3 * run.flops + self.costs.teacher.flops) + val * run.flops)

    def start_flops(self, run: Run) -> float:
        """Return the FLOPs of building the student: for a warm one, re-estimating batch-norm statistics."""
        images = min(RECALIBRATION, self.meta["train"]) if run.start == "library" else 0
        return float(images * run.flops)


def to_row(run: Run) -> dict[str, Any]:
    """Convert a run to a flat row of texts and numbers."""
    row = {
        "params": params_text(run.params),
        "start": run.start,
        "seed": run.seed,
        "student_params": run.params_count,
        "flops": run.flops,
        "start_accuracy": f"{run.start_accuracy:.5f}",
        "start_seconds": f"{run.start_seconds:.4f}",
        "seconds": f"{run.seconds:.4f}",
    }
    return row | {name: _text(getattr(run, name)) for name in CURVES}


def _text(curve: Iterable[float]) -> str:
    return " ".join(f"{value:.5f}" for value in curve)


def _from_row(row: Mapping[str, str]) -> Run:
    curves: list[Sequence[float]] = [tuple(map(float, row[name].split())) for name in CURVES]
    return Run(
        params=json.loads(row["params"]),
        start=row["start"],
        seed=int(row["seed"]),
        params_count=int(row["student_params"]),
        flops=int(row["flops"]),
        start_accuracy=float(row["start_accuracy"]),
        start_seconds=float(row["start_seconds"]),
        seconds=float(row["seconds"]),
        val_accuracy=tuple(curves[0]),
        val_loss=tuple(curves[1]),
    )


def rows_to_runs(text: str) -> list[Run]:
    """Parse the runs of a CSV text; leave out an incomplete last line."""
    whole = text[: text.rfind("\n") + 1]
    return [_from_row(row) for row in csv.DictReader(io.StringIO(whole))]
