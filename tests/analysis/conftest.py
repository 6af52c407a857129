"""Synthetic studies in the form that the search writes: nothing trains, everything else is real Optuna."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy as sa
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

BLOCKS = [f"layer{stage}.{index}" for stage in (1, 2, 3) for index in (0, 1, 2)]
WIDTHS = [0.125, 0.25, 0.5]
EPOCHS = 8
START = dt.datetime(2026, 3, 1, 12, 0, 0)
OBJECTIVES = [
    {"metric": "val_accuracy", "direction": "maximize"},
    {"metric": "latency_ms", "direction": "minimize"},
]


def block_costs() -> list[dict[str, Any]]:
    """Costs of the nine blocks of a ResNet-20: params grow with depth, FLOPs and latency hardly change."""
    rows = []
    for i, name in enumerate(BLOCKS):
        channels = 16 * 2 ** (i // 3)
        side = 32 // 2 ** (i // 3)
        rows.append(
            {
                "name": name,
                "in_shape": [channels, side, side],
                "out_shape": [channels, side, side],
                "params": 18 * channels * channels,
                "flops": 36 * channels * channels * side * side,
                "latency_ms": 0.6 + 0.05 * (i % 3),
            }
        )
    return rows


def teacher_attrs() -> dict[str, Any]:
    costs = block_costs()
    return {
        "arch": "cifar_resnet20",
        "hash": "0123456789abcdef",
        "val_accuracy": 0.92,
        "val_loss": 0.3,
        "test_accuracy": 0.915,
        "params": sum(c["params"] for c in costs) + 1_000,
        "flops": sum(c["flops"] for c in costs) + 1_000_000,
        "latency_ms": sum(c["latency_ms"] for c in costs) + 0.4,
    }


def study_attrs(objectives: list[dict[str, str]], name: str = "demo") -> dict[str, Any]:
    return {
        "format": 1,
        "experiment": {"name": name, "seed": 0, "budget": {"trials": 40, "epochs": EPOCHS}},
        "objectives": objectives,
        "constraints": [{"metric": "flops", "op": "<=", "limit": 7.0e7, "text": "flops <= 0.85x"}],
        "teacher": teacher_attrs(),
        "data": {
            "name": "cifar10",
            "classes": 10,
            "train": 4500,
            "val": 500,
            "image_shape": [3, 32, 32],
            "hash": "feedbeefcafe0000",
        },
        "blocks": block_costs(),
        "widths": WIDTHS,
        "versions": {"ama-search": "0.1.0", "torch": "2.15.0", "ray": "2.60.0", "optuna": "5.0.0"},
        "command": f"ama search {name}",
        "device": "2 cores",
        "started": START.isoformat(),
        "budget": {"trials": 40, "epochs": EPOCHS, "hours": None},
    }


def price(levels: list[int]) -> dict[str, float]:
    """Costs of the student with these levels: a module costs about its width's share of its block."""
    teacher = teacher_attrs()
    total: dict[str, float] = {key: float(teacher[key]) for key in ("params", "flops", "latency_ms")}
    for row, level in zip(block_costs(), levels, strict=True):
        if level < len(WIDTHS):
            for key in total:
                overhead = 0.25 if key == "latency_ms" else 0.05
                total[key] -= row[key] * (1 - overhead - 0.8 * WIDTHS[level])
    return {"params": int(total["params"]), "flops": int(total["flops"]), "latency_ms": total["latency_ms"]}


def distributions() -> dict[str, BaseDistribution]:
    return {
        **{f"level/{name}": IntDistribution(0, len(WIDTHS)) for name in BLOCKS},
        "alpha": FloatDistribution(0.0, 1.0),
        "beta": FloatDistribution(0.01, 10.0, log=True),
        "lr": FloatDistribution(0.005, 0.2, log=True),
        "supervision": CategoricalDistribution(("uniform", "adaptive")),
    }


def params_of(rng: np.random.Generator) -> dict[str, Any]:
    keep = rng.uniform(0.2, 0.9)
    levels = [len(WIDTHS) if rng.random() < keep else int(rng.integers(len(WIDTHS))) for _ in BLOCKS]
    return {
        **{f"level/{name}": level for name, level in zip(BLOCKS, levels, strict=True)},
        "alpha": float(rng.uniform(0, 1)),
        "beta": float(10 ** rng.uniform(-2, 1)),
        "lr": float(0.005 * 40 ** rng.uniform(0, 1)),
        "supervision": str(rng.choice(["uniform", "adaptive"])),
    }


def curve_of(levels: list[int], params: dict[str, Any], rng: np.random.Generator) -> dict[str, list[float]]:
    damage = sum((3 - level) * (0.004 + 0.003 * (i // 3)) for i, level in enumerate(levels))
    final = 0.925 - damage - 0.03 * abs(np.log10(params["lr"] / 0.05)) - 0.02 * (params["alpha"] - 0.6) ** 2
    final += rng.normal(0, 0.004)
    epochs = np.arange(1, EPOCHS + 1)
    accuracy = np.clip(
        final - (final - 0.3) * np.exp(-0.9 * epochs) + rng.normal(0, 0.004, EPOCHS), 0.05, 0.99
    )
    loss = 2.3 * (1 - accuracy) + 0.1
    return {
        "epoch": [int(e) for e in epochs],
        "val_accuracy": [round(float(v), 4) for v in accuracy],
        "val_loss": [round(float(v), 4) for v in loss],
        "train_loss": [round(float(v), 4) for v in loss * 0.9],
        "seconds": [round(6.0 + 0.3 * float(e), 3) for e in epochs],
    }


def trial_of(
    number: int,
    state: TrialState,
    objectives: list[dict[str, str]],
    rng: np.random.Generator,
    refused: str | None = None,
    **changes: Any,
) -> FrozenTrial:
    """One trial as the search records it; `changes` overrides single user attributes (None removes one)."""
    params = params_of(rng)
    levels = [params[f"level/{name}"] for name in BLOCKS]
    costs = price(levels)
    widths = {n: WIDTHS[k] for n, k in zip(BLOCKS, levels, strict=True) if k < len(WIDTHS)}
    curve = curve_of(levels, params, rng)
    done = {TrialState.COMPLETE: EPOCHS, TrialState.WAITING: 0}.get(state, 2)
    done = 0 if refused else done
    attrs: dict[str, Any] = {
        "config": {
            "student": {"widths": widths, "fuse": True},
            "loss": {"alpha": params["alpha"], "beta": params["beta"], "supervision": params["supervision"]},
            "optim": {"lr": params["lr"]},
            "epochs": EPOCHS,
            "seed": number,
        },
        "costs": costs,
        "replaced": [{"span": [name], "width": width} for name, width in widths.items()],
        "epochs": done,
        "seed": number,
    }
    if refused:
        attrs["refused"] = refused
    if done:
        attrs["curve"] = {key: values[:done] for key, values in curve.items()}
        attrs["metrics"] = {key: values[-1] for key, values in attrs["curve"].items()}
        attrs["seconds"] = float(sum(attrs["curve"]["seconds"]))
        attrs["ray_id"] = f"r{number:05d}"
    if state is TrialState.PRUNED and not refused:
        attrs["reason"] = "stopped at rung 2: rank 5 of 9"
    if state is TrialState.FAIL:
        attrs["reason"] = ["loss is NaN in epoch 3", "worker died <OOM & co>"][number % 2]
    attrs = {key: value for key, value in {**attrs, **changes}.items() if value is not None}
    values = None
    if state is TrialState.COMPLETE:
        found = {**costs, "val_accuracy": curve["val_accuracy"][-1], "val_loss": curve["val_loss"][-1]}
        values = [float(found[o["metric"]]) for o in objectives]
    trial = create_trial(
        state=state, params=params, distributions=distributions(), values=values, user_attrs=attrs
    )
    if state is not TrialState.WAITING:
        trial.datetime_start = START + dt.timedelta(seconds=30 * number)
    if state.is_finished():
        trial.datetime_complete = START + dt.timedelta(seconds=30 * number + 10 * done + 5)
    return trial


def states_of(complete: int, pruned: int, failed: int, running: int, waiting: int, refused: int) -> list[Any]:
    """States in the order in which a search would show them: what runs and waits comes last."""
    done = [(TrialState.COMPLETE, None)] * complete + [(TrialState.PRUNED, None)] * pruned
    done += [(TrialState.FAIL, None)] * failed
    done += [(TrialState.PRUNED, "infeasible" if i % 2 else "duplicate") for i in range(refused)]
    order = np.random.default_rng(1).permutation(len(done))
    tail = [(TrialState.RUNNING, None)] * running + [(TrialState.WAITING, None)] * waiting
    return [done[i] for i in order] + tail


def fill(
    study: optuna.Study,
    objectives: list[dict[str, str]],
    *,
    seed: int = 0,
    complete: int = 30,
    pruned: int = 8,
    failed: int = 3,
    running: int = 2,
    waiting: int = 1,
    refused: int = 4,
) -> optuna.Study:
    """Write the study's attributes and its trials."""
    for key, value in study_attrs(objectives, study.study_name).items():
        study.set_user_attr(key, value)
    rng = np.random.default_rng(seed)
    for number, (state, why) in enumerate(states_of(complete, pruned, failed, running, waiting, refused)):
        study.add_trial(trial_of(number, state, objectives, rng, why))
    return study


@pytest.fixture(scope="session")
def make_study() -> Callable[..., optuna.Study]:
    """`make_study(objectives=..., complete=30, ...)`: a study in memory."""

    def make(objectives: list[dict[str, str]] | None = None, **counts: int) -> optuna.Study:
        chosen = objectives or OBJECTIVES
        study = optuna.create_study(study_name="demo", directions=[o["direction"] for o in chosen])
        return fill(study, chosen, **counts)

    return make


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_run(name="run", ...)`: a run directory with experiment.yaml and study.db."""

    def make(name: str = "run", objectives: list[dict[str, str]] | None = None, **counts: int) -> Path:
        chosen = objectives or OBJECTIVES
        folder = tmp_path_factory.mktemp("runs") / name
        folder.mkdir()
        (folder / "experiment.yaml").write_text(yaml.safe_dump({"name": "demo", "storage": {"study": None}}))
        storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}")
        sa.event.listen(storage.engine, "connect", lambda c, _: c.execute("pragma synchronous=off"))
        storage.engine.dispose()  # a crash may lose a test's data: writing it is ten times as fast
        directions = [o["direction"] for o in chosen]
        fill(optuna.create_study(study_name="demo", storage=storage, directions=directions), chosen, **counts)
        storage.engine.dispose()
        return folder

    return make
