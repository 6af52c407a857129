"""Measure time and memory of `ama report` and `ama pick` on a study of 10,000 trials.

    python -m benchmarks.report

Makes the study in a temporary folder (rows as in a real search, with made-up curves). Then runs `ama report`
and `ama pick` in separate processes and reads wall time, CPU time and peak memory from the operating system,
start-up included. Writes report.json into --out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy as sa
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from benchmarks import RESULTS

TRIALS = 10_000
STATES = {"COMPLETE": 0.60, "PRUNED": 0.31, "refused": 0.07, "FAIL": 0.02}
BLOCKS = [f"layer{stage}.{index}" for stage in (1, 2, 3) for index in (0, 1, 2)]
WIDTHS = [0.25, 0.5, 1.0]
EPOCHS = 12
TEACHER = {"params": 272_474, "flops": 81_626_368, "latency_ms": 9.0}
SPACE: dict[str, Any] = {
    **{f"level/{name}": IntDistribution(0, len(WIDTHS)) for name in BLOCKS},
    "alpha": FloatDistribution(0.1, 0.9),
    "tau": FloatDistribution(1.0, 8.0, log=True),
    "beta": FloatDistribution(0.1, 10.0, log=True),
    "lr": FloatDistribution(0.01, 0.2, log=True),
    "supervision": CategoricalDistribution(("uniform", "adaptive")),
}
ATTRS: dict[str, Any] = {
    "format": 1,
    "experiment": {"name": "large", "seed": 0},
    "objectives": [
        {"metric": "val_accuracy", "direction": "maximize"},
        {"metric": "latency_ms", "direction": "minimize"},
    ],
    "constraints": [],
    "teacher": {"arch": "cifar_resnet20", "hash": "0" * 16, "val_accuracy": 0.92, "val_loss": 0.3, **TEACHER},
    "data": {
        **{"name": "cifar10", "classes": 10, "train": 45_000, "val": 5_000, "image_shape": [3, 32, 32]},
        "hash": "1" * 16,
    },
    "blocks": [{"name": name, "params": 0, "flops": 0, "latency_ms": 0.0} for name in BLOCKS],
    "widths": WIDTHS,
    "versions": {},
    "command": "ama search large",
    "started": "2026-01-01T00:00:00+00:00",
    "budget": {"trials": TRIALS, "epochs": EPOCHS},
}


def trial(number: int, kind: str, rng: np.random.Generator) -> FrozenTrial:
    """Make a row: accuracy and cost fall with every replaced block, with noise."""
    levels = {f"level/{name}": int(rng.integers(0, len(WIDTHS) + 1)) for name in BLOCKS}
    params: dict[str, Any] = {
        **levels,
        "alpha": float(rng.uniform(0.1, 0.9)),
        "tau": float(rng.uniform(1.0, 8.0)),
        "beta": float(10 ** rng.uniform(-1, 1)),
        "lr": float(10 ** rng.uniform(-2, -0.7)),
        "supervision": ("uniform", "adaptive")[int(rng.integers(2))],
    }
    lost = sum(len(WIDTHS) - level for level in levels.values())
    costs = {name: value * (1 - 0.03 * lost) for name, value in TEACHER.items()}
    final = 0.92 - 0.004 * lost + float(rng.normal(0, 0.01))
    done = {"COMPLETE": EPOCHS, "refused": 0}.get(kind, 3)
    curve = [final - 0.5 * float(np.exp(-0.6 * epoch)) for epoch in range(1, done + 1)]
    widths = {n: WIDTHS[level] for n, level in zip(BLOCKS, levels.values()) if level < len(WIDTHS)}
    attrs: dict[str, Any] = {
        "config": {"student": {"widths": widths, "fuse": True}, "seed": number, "epochs": EPOCHS},
        "costs": costs,
        "replaced": [{"span": [name], "width": width} for name, width in widths.items()],
        "epochs": done,
        "seed": number,
        "seconds": 6.0 * done,
        "curve": {
            "epoch": list(range(1, done + 1)), "val_accuracy": curve, "val_loss": [1 - a for a in curve],
            "train_loss": [1 - a for a in curve], "seconds": [6.0] * done,
        },
    }  # fmt: skip
    if done:
        attrs["metrics"] = {"val_accuracy": curve[-1], "val_loss": 1 - curve[-1]}
    if kind == "refused":
        attrs["refused"] = "duplicate"
    if kind == "FAIL":
        attrs["reason"] = f"worker died at step {number}"
    state = TrialState.PRUNED if kind == "refused" else TrialState[kind]
    values = [curve[-1], costs["latency_ms"]] if kind == "COMPLETE" else None
    return create_trial(state=state, params=params, distributions=SPACE, values=values, user_attrs=attrs)


def make_run(folder: Path, trials: int) -> Path:
    """Make a run directory with a study of `trials` trials."""
    folder.mkdir(parents=True)
    (folder / "experiment.yaml").write_text(yaml.safe_dump({"name": "large", "storage": {"study": None}}))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}")
    sa.event.listen(
        storage.engine, "connect", lambda connection, _: connection.execute("pragma synchronous=off")
    )
    storage.engine.dispose()
    study = optuna.create_study(study_name="large", storage=storage, directions=["maximize", "minimize"])
    for key, value in ATTRS.items():
        study.set_user_attr(key, value)
    rng = np.random.default_rng(0)
    kinds = rng.choice(list(STATES), size=trials, p=list(STATES.values()))
    for number, kind in enumerate(kinds):
        study.add_trial(trial(number, str(kind), rng))
    storage.engine.dispose()
    return folder


def measure(words: list[str]) -> dict[str, float]:
    """Run an `ama` command; return wall and CPU seconds and peak memory.

    Raises:
        RuntimeError: the command failed.
    """
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "search.cli.app", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"ama {' '.join(words)}: exit code {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "gib": usage.ru_maxrss * unit / 2**30,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", type=Path, help="folder of the study; made if missing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        run = args.run or Path(place) / "large"
        if not (run / "study.db").exists():
            print(f"making a study of {args.trials:,} trials", flush=True)
            make_run(run, args.trials)
        commands = {
            "report": ["report", str(run), "--out", str(Path(place) / "report")],
            "pick": ["pick", str(run), "--max", "latency_ms=0.6x", "--out", str(Path(place) / "pick.yaml")],
        }
        found = {name: [measure(words) for _ in range(args.repeats)] for name, words in commands.items()}
    figures: dict[str, float] = {}
    for name, runs in found.items():
        for key in ("seconds", "cpu_seconds"):
            figures[f"{name}_{key}"] = round(statistics.median(run[key] for run in runs), 2)
        figures[f"{name}_gib"] = round(max(run["gib"] for run in runs), 3)
    record = {
        "command": "python -m benchmarks.report",
        "trials": args.trials,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "load": [round(value, 1) for value in os.getloadavg()],
        "runs": found,
        "figures": figures,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "report.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"medians of {args.repeats}, load {record['load']}; limits: report 15 s, pick 3 s, 2 GiB")
    for name, value in figures.items():
        print(name, value)


if __name__ == "__main__":
    main()
