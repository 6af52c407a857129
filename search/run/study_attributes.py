"""Attributes of a study: experiment, teacher, data, blocks, versions, command."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

from analysis.metrics import specifications
from search.experiment.experiment import Experiment
from search.experiment.resolved import resolved
from search.policy.limits import Limit
from search.stages.prepare import Prepared
from search.study.record import now

FORMAT = 1


def study_attrs(experiment: Experiment, setup: Prepared, limits: list[Limit], command: str) -> dict[str, Any]:
    """Collect the attributes of a new study.

    Args:
        experiment: the experiment as requested.
        setup: its prepared teacher, data, blocks and costs.
        limits: its constraints in absolute values.
        command: the command as typed, without passwords.
    """
    table, data, record = setup.costs, setup.data, setup.teacher.record
    return {
        "format": FORMAT,
        "experiment": resolved(experiment),
        "objectives": [{"metric": o.metric, "direction": o.direction} for o in experiment.objectives],
        "constraints": [vars(limit) for limit in limits],
        "teacher": {
            "arch": record.arch,
            "hash": record.hash,
            "val_accuracy": record.val_accuracy,
            "val_loss": record.val_loss,
            "test_accuracy": record.test_accuracy,
            **setup.teacher_scores,
            **table.teacher.as_dict(),
        },
        **({"metrics": specifications(own)} if (own := experiment.own_metrics) else {}),
        "data": {
            "name": data.name,
            "classes": data.num_classes,
            "train": len(data.train),
            "val": len(data.val),
            "image_shape": list(data.image_shape),
            "hash": data.hash,
        },
        "blocks": table.to_profile()["blocks"],
        "widths": list(experiment.space.widths),
        "versions": versions(),
        "command": command,
        "device": table.device,
        "budget": experiment.budget.model_dump(mode="json"),
        "started": now(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that influence the results."""
    packages = ("ama-search", "torch", "torchvision", "ray", "optuna", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
