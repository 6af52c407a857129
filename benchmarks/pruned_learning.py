"""Compare five ways to report early-stopped trials to the sampler, on a synthetic search.

    python -m benchmarks.pruned_learning
    python -m benchmarks.pruned_learning --sampler nsga2 --seeds 100
    python -m benchmarks.pruned_learning --sampler gp --seeds 8 --epochs 150 --answers pruned,capped

Nothing trains: nine blocks at four levels and a learning rate determine a student's FLOPs and a noisy
learning curve. Final accuracy and speed of learning both depend on them, so curves cross. The proposer, its
TPE and the rungs are those of the search; four trials run at a time; every epoch costs one. The result is the
hypervolume of the complete trials' front (accuracy above chance, FLOPs below the teacher's) at the end of the
budget.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import os
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import moocore
import numpy as np
import torch
from optuna.trial import TrialState

from benchmarks import RESULTS
from search.experiment.experiment import Experiment
from search.policy.extrapolation import Curves
from search.policy.moasha import Decision, MoAsha
from search.policy.proposer import Proposer
from search.policy.space import SearchSpace
from trainables.config import StudentSpec
from trainables.costs.table import Costs
from trainables.runtime.runtime import device_name

BLOCKS = tuple(f"block{i}" for i in range(9))
WIDTHS = (0.25, 0.5, 1.0)
EPOCHS, WORKERS = 9, 4
CHANCE, NOISE = 0.1, 0.01
TEACHER_FLOPS = 9000.0

Answer = Callable[[Curves, int, Sequence[float]], Sequence[float] | TrialState]


def pruned(curves: Curves, number: int, last: Sequence[float]) -> Sequence[float] | TrialState:
    """Report the trial as PRUNED: for TPE, worse than every complete trial."""
    return TrialState.PRUNED


def nothing(curves: Curves, number: int, last: Sequence[float]) -> Sequence[float] | TrialState:
    """Report the trial as FAIL, which samplers ignore."""
    return TrialState.FAIL


def partial(curves: Curves, number: int, last: Sequence[float]) -> Sequence[float] | TrialState:
    """Report the trial as complete with its last values, as Ray Tune's OptunaSearch does."""
    return last


def extrapolated(curves: Curves, number: int, last: Sequence[float]) -> Sequence[float] | TrialState:
    """Report the trial as complete, with its last values plus the median gain of complete trials."""
    return curves.expected(number, capped=False) or TrialState.PRUNED


def capped(curves: Curves, number: int, last: Sequence[float]) -> Sequence[float] | TrialState:
    """As `extrapolated`, but no better than the trials that it was stopped for."""
    return curves.expected(number) or TrialState.PRUNED


ANSWERS: dict[str, Answer] = {
    answer.__name__: answer for answer in (pruned, nothing, partial, extrapolated, capped)
}


def price(spec: StudentSpec) -> Costs:
    flops = sum(1000 * (0.15 + 0.6 * spec.widths[b]) if b in spec.widths else 1000.0 for b in BLOCKS)
    return Costs(params=int(flops), flops=int(flops), latency_ms=flops / 1e3)


class Landscape:
    """Learning curves of one seed; the importance of the blocks differs from seed to seed."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        self._seed = seed
        self._harm = [draw.lognormvariate(-4.0, 1.0) for _ in BLOCKS]
        self._best_lr = math.log(draw.uniform(0.03, 0.1))

    def accuracy(self, params: Mapping[str, Any], epoch: int) -> float:
        missing = [1.0 - params[f"level/{b}"] / len(WIDTHS) for b in BLOCKS]
        harm = sum(weight * share for weight, share in zip(self._harm, missing, strict=True))
        # Two adjacent narrow modules cost more accuracy than the sum of both.
        harm += 0.02 * sum(a * b for a, b in itertools.pairwise(missing))
        off = math.log(params["lr"]) - self._best_lr
        final = 0.95 - harm - 0.02 * off**2
        # High learning rates and many narrow modules start slowly; neither determines the final accuracy.
        rate = 1.2 * math.exp(-0.4 * off) * (1.0 - 0.5 * sum(missing) / len(BLOCKS))
        noise = random.Random(f"{self._seed} {sorted(params.items())} {epoch}").gauss(0.0, NOISE)
        shown = final - (final - CHANCE) * math.exp(-rate * epoch**0.8) + noise * (1 - epoch / (EPOCHS + 1))
        return float(shown)


def hypervolume(values: Sequence[Sequence[float]]) -> float:
    """Return the hypervolume of points (accuracy, flops) as a share of the box of chance and teacher."""
    if not values:
        return 0.0
    points = np.array([[-(a - CHANCE) / (1 - CHANCE), f / TEACHER_FLOPS] for a, f in values])
    return float(moocore.hypervolume(points, ref=[0.0, 1.0]))


def experiment(sampler: str, seed: int) -> Experiment:
    loss = {"alpha": 0.5, "tau": 4.0, "beta": 1.0, "supervision": "uniform"}
    return Experiment.model_validate(
        {
            "name": "toy",
            "seed": seed,
            "sampler": sampler,
            "objectives": ["val_accuracy", "flops"],
            "space": {"widths": list(WIDTHS), "loss": loss},
            "budget": {"trials": 10_000, "epochs": EPOCHS},
        }
    )


def search(answer: str, sampler: str, seed: int, budget: int) -> float:
    """Run one search; return its hypervolume after `budget` epochs."""
    landscape, config = Landscape(seed), experiment(sampler, seed)
    proposer = Proposer(config, SearchSpace(config, tuple(BLOCKS), flat=True), price, [])
    rungs = MoAsha(EPOCHS, 1, 3.0, 2, [1])
    proposals: list[Any] = []
    done: list[list[float]] = []
    queue: list[tuple[int, int, int]] = []  # clock, trial, epochs after this step

    def start(clock: int) -> None:
        *_, proposal = proposer.propose(seed)
        proposer.accepted(len(proposals))
        heapq.heappush(queue, (clock + 1, len(proposals), 1))
        proposals.append(proposal)

    for _ in range(WORKERS):
        start(0)
    for _ in range(budget):
        clock, number, epoch = heapq.heappop(queue)
        flops = float(proposals[number].costs.flops)
        values = [landscape.accuracy(proposals[number].params, epoch), flops]
        proposer.reported(number, epoch, values)
        if epoch == EPOCHS:
            done.append(values)
            proposer.completed(number, values, {})
            start(clock)
        elif rungs.on_result(number, epoch, [-values[0], flops]) is Decision.CONTINUE:
            heapq.heappush(queue, (clock + 1, number, epoch + 1))
        else:
            tell(proposer, number, ANSWERS[answer](proposer._curves, number, values))
            start(clock)
    return hypervolume(done)


def tell(proposer: Proposer, number: int, answer: Sequence[float] | TrialState) -> None:
    """Report the answer to the sampler, instead of the search's usual one."""
    trial = proposer._open.pop(number)
    if isinstance(answer, TrialState):
        proposer._study.tell(trial, state=answer)
    else:
        proposer._study.tell(trial, list(answer))


def compare(reached: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Return mean and spread of each answer's hypervolumes and of their paired differences from `pruned`."""
    figures = {}
    for name, volumes in reached.items():
        gains = [a - b for a, b in zip(volumes, reached["pruned"], strict=True)]
        figures[name] = {
            "mean": round(statistics.mean(volumes), 4),
            "std": round(statistics.stdev(volumes), 4),
            "over_pruned": round(statistics.mean(gains), 4),
            "over_pruned_95": round(1.96 * statistics.stdev(gains) / math.sqrt(len(gains)), 4),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--answers", default=",".join(ANSWERS))
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=360, help="budget of one search")
    options = parser.parse_args()
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        jobs = {
            answer: [
                pool.submit(search, answer, options.sampler, seed, options.epochs)
                for seed in range(options.seeds)
            ]
            for answer in options.answers.split(",")
        }
        reached = {answer: [job.result() for job in found] for answer, found in jobs.items()}
    figures = compare(reached)
    machine = device_name(torch.device("cpu"))
    command = (
        f"python -m benchmarks.pruned_learning --sampler {options.sampler} --answers {options.answers} "
        f"--seeds {options.seeds} --epochs {options.epochs}"
    )
    result = {"machine": machine, "command": command, "n": options.seeds, "figures": figures}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"pruned_learning_{options.sampler}_{options.epochs}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"machine {machine}, n {options.seeds} seeds, {options.epochs} epochs a search")
    for name, row in figures.items():
        print(
            f"pruned_{options.sampler}_{name} {row['mean']:.4f}  (std {row['std']:.4f}; over pruned, "
            f"seed by seed: {row['over_pruned']:+.4f} ± {row['over_pruned_95']:.4f})"
        )


if __name__ == "__main__":
    main()
