"""The surrogate of a sampled table: what it predicts, and what it says of its own error."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.contenders import Policy, contenders
from benchmarks.curves import Scale
from benchmarks.plans import STARTS, random_points
from benchmarks.simulator import simulate
from benchmarks.surrogate import Surrogate, errors, features, held_out
from benchmarks.table import Run, Table

EPOCHS = 3
EXPERIMENT = {
    "name": "sampled",
    "objectives": ["val_accuracy", "flops"],
    "space": {
        "widths": [0.5, 1.0],
        "fuse": "search",
        "loss": {"alpha": 0.5, "tau": 4.0, "beta": [0.1, 1.0], "supervision": ["uniform", "adaptive"]},
        "optim": {"lr": [0.01, 0.2]},
    },
    "budget": {"epochs": EPOCHS, "grace_epochs": 1, "reduction_factor": 2.0},
}


@pytest.fixture(scope="module")
def surrogate(table: Table) -> Surrogate:
    return Surrogate.of(table)


@pytest.fixture(scope="module")
def table(empty_table: Callable[..., Table]) -> Table:
    """30 points: dearer students are better, and the best learning rate is 0.05."""
    empty, runs = empty_table(EXPERIMENT, (0,), 5e8), []
    for params in random_points(empty.space, 30):
        price = empty.price(empty.space.to_config(params, 0).student)
        final = (
            0.3 + 0.5 * price.flops / empty.costs.teacher.flops - 0.05 * abs(math.log(params["lr"] / 0.05))
        )
        for start in STARTS:
            accuracy = [final - 0.2 * 3.0 ** -(e + STARTS.index(start)) for e in range(EPOCHS)]
            loss = [2 - 1.5 * a for a in accuracy]
            seconds = 1e-6 * price.flops
            runs.append(
                Run(params, start, 0, price.params, price.flops, 0.1, 0.2, seconds, (*accuracy,), (*loss,))
            )
    return Table(empty.meta, {run.key: run for run in runs})


def test_held_out_errors_are_far_below_the_spread(table: Table) -> None:
    assert table.sampled
    for guesses, wanted in held_out(table, folds=3).values():
        found = errors(guesses, wanted)
        assert found["n"] == 30
        assert found["rmse_points"] < 0.4 * found["spread_points"]
        assert found["r2"] > 0.8 and found["spearman"] > 0.9


def test_errors_in_closed_form() -> None:
    wanted = np.array([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]])  # logits of the one accuracy, log losses
    assert errors(wanted, wanted)["rmse_points"] == 0.0
    flat = np.array([[2.0, 0.0], [2.0, 0.0], [2.01, 0.0]])
    assert errors(flat, wanted)["r2"] < 0.1
    assert errors(-wanted, wanted)["spearman"] == -1.0


def test_predictions_repeat_and_carry_an_error_of_their_seed(table: Table, surrogate: Surrogate) -> None:
    (new,) = (p for i, p in enumerate(random_points(table.space, 31)) if i == 30)
    first = surrogate.run(new, "library", 0)
    assert first == surrogate.run(dict(reversed(new.items())), "library", 0)
    assert first.val_accuracy != surrogate.run(new, "library", 1).val_accuracy
    assert len(first.val_accuracy) == len(first.val_loss) == EPOCHS
    assert all(0 < a < 1 for a in first.val_accuracy) and all(v > 0 for v in first.val_loss)
    assert first.seconds == pytest.approx(1e-6 * first.flops, rel=0.01)
    price = table.price(table.space.to_config(new, 0).student)
    assert (first.params_count, first.flops) == (price.params, price.flops)


def test_features_tell_fused_students_and_starts_share_them(table: Table) -> None:
    names = table.space.blocks
    widths = {f"level/{name}": 0 for name in names}
    rest = {"beta": 0.5, "supervision": "uniform", "lr": 0.05}
    apart, joined = (features(table, {**widths, **rest, "fuse": fuse}) for fuse in (False, True))
    # Of cifar_resnet8 every block changes the shape but the first: nothing there is to fuse.
    assert apart == joined
    assert features(table, {**widths, **rest, "fuse": True, "lr": 0.1}) != joined


@pytest.mark.parametrize("name", list(contenders(Policy(), (1, 2.0))))
def test_every_policy_searches_the_surrogate(surrogate: Surrogate, name: str) -> None:
    if name == "syne_moasha":
        pytest.importorskip("syne_tune")
    scale = Scale.of(surrogate)
    assert set(scale.best) == set(surrogate.seeds) and all(0 < best < 1 for best in scale.best.values())
    make = contenders(Policy(first=2, startup=3), (1, 2.0))[name]
    replay = simulate(surrogate, make(surrogate, 0, 1), seed=1, workers=2, budget=6 * scale.trial_flops)
    assert replay.completions and not replay.exhausted
