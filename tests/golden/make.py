"""The golden record: what the code computed, to the last bit, when it was last meant to change.

    python tests/golden/make.py --write                make the whole record again
    python tests/golden/make.py --write digests teacher
                                                       make these entries again, leave the others
    python tests/golden/make.py --out FILE             write the entries to FILE; the record stays as it is

`record.json` beside this file holds, by entry: every epoch of small distillations of every kind with the
SHA-256 of the student they end with, a teacher's training, a retrained model, a module library, blocks and
exact costs of some architectures, the proposals of every sampler, and the digests by which checkpoints and
libraries are recognised. Floats are stored exactly, as `float.hex` writes them. `test_golden.py` makes the
entries again and compares.

When the record may be rewritten:

- Never in a change that moves, renames, splits or speeds up code. Such a change passes with the record as it
  is, or it changed what is computed.
- In a change that means to compute something else: only the entries that it means to change, by their
  names, in the same commit, and the commit's message says which and why.
- `digests` holds what tells checkpoints, libraries and teachers of one config from another's, `checkpoints`
  what is in a checkpoint. The former changes where a config gets or loses a key; then checkpoints of before
  are refused, unless the code says otherwise. Rewrite them alone, and never together with entries that were
  not meant to change.
- With newer versions of torch, NumPy, SciPy or Optuna: in a commit of its own, on the code whose record it
  replaces, after the comparison within tolerances has passed. The record names the versions that it is of.

How it comes to be the same on another CPU is said in `fixed_process.py`. Only there, in a process of its own,
are entries made; run by hand, this script starts that process.

Whoever moves product code: all that this file takes from it is imported right below.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fixed_process import FOLDER, MARK, environment
from optuna.trial import TrialState, create_trial
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from search.experiment.experiment import Experiment
from search.policy.first_trials import first_proposals
from search.policy.limits import Limit
from search.policy.proposer import Proposal, Proposer, SpaceExhaustedError
from search.policy.space import SearchSpace, student_key
from trainables.blocks.blocks import Block, find_blocks
from trainables.config import (
    DataConfig,
    DistillConfig,
    LibraryConfig,
    OptimConfig,
    RuntimeConfig,
    StudentSpec,
    TeacherConfig,
)
from trainables.costs.measure import measure_costs
from trainables.costs.table import CostTable
from trainables.data.dataset import ImageData
from trainables.data.load import load_data
from trainables.finished.model_files import MANIFEST
from trainables.finished.retrain import baselines, retrain_one
from trainables.library.build import build_library
from trainables.library.library import Library, library_key
from trainables.loss_config import LossConfig
from trainables.methods.ama import Ama
from trainables.methods.base import Setup
from trainables.network.architectures import build_model
from trainables.network.flops import count_flops, count_params
from trainables.runtime.runtime import Runtime, resolve
from trainables.runtime.seeds import seeded
from trainables.student.build import build_student
from trainables.teacher.teacher import Teacher
from trainables.teacher.training import train_teacher
from trainables.training.loop import Distiller
from trainables.training.metrics import EpochMetrics

RECORD = FOLDER / "record.json"
FORMAT = 1

# Fields of an epoch that are measured, not computed.
MEASURED = {
    "seconds",
    "images_per_second",
    "data_seconds",
    "step_seconds",
    "eval_seconds",
    "host_mib",
    "gpu_mib",
}
SAMPLERS = ("tpe", "nsga2", "gp", "random")
PROPOSALS = 40  # of each sampler, refused ones included
FIXED_LOSS = {"alpha": 0.5, "tau": 4.0, "beta": 1.0, "supervision": "uniform"}
WIDTHS = (0.25, 0.5, 1.0)
DATA = DataConfig(name="digits", train_limit=96, val_fraction=0.1)
TEACHER = TeacherConfig(arch="cifar_resnet20", epochs=2, lr=0.05, batch_size=32)
LIBRARY = LibraryConfig(epochs=1.0, student_epochs=2.0, batch_size=32)
BATCH = OptimConfig(batch_size=32)
ARCHITECTURES = {"cifar_resnet20": 8, "wrn16_1": 16, "torchvision:mobilenet_v2": 32}  # and images' sides


def fingerprint() -> dict[str, str]:
    """What the last bit depends on; the CPU's name is for people alone."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        **{name: version(name) for name in ("numpy", "optuna", "scipy")},
        "greenlet": str(find_spec("greenlet") is not None),  # with it, GP optimises in another order
        "torch": torch.__version__,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cpu": names[0] if names else platform.processor(),
    }


def state_hash(state: Mapping[str, Any]) -> str:
    """SHA-256 of the names, shapes, types and bytes of the tensors, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def unweighted(metrics: EpochMetrics, config: DistillConfig) -> dict[str, Any]:
    """An epoch with the loss's parts as 0.1 recorded them: without their weights, 0 for a missing one."""
    loss = config.loss
    assert isinstance(loss, LossConfig)
    weights = {"ce": 1 - loss.alpha, "kl": loss.alpha, "feature": loss.beta}
    parts = {name: metrics.losses.get(name, 0.0) / (weight or 1.0) for name, weight in weights.items()}
    return computed(metrics.as_dict() | parts)


def computed(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """An epoch without what is measured."""
    return {name: value for name, value in metrics.items() if name not in MEASURED}


class Fussy(nn.Module):
    """A network that finds no memory to be trained on more than `most` images at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.most = build_model("cifar_resnet8", 10, (3, 8, 8)), 10**6

    def forward(self, images: Tensor) -> Tensor:
        if self.training and len(images) > self.most:
            raise torch.OutOfMemoryError(f"{len(images)} images")
        logits: Tensor = self.net(images)
        return logits


class Dropped(nn.Module):
    """A network with dropout, which draws random numbers while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.net = build_model("cifar_resnet8", 10, (3, 8, 8))
        self.net.fc = nn.Sequential(nn.Dropout(0.3), self.net.fc)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits


def blocks_of(model: nn.Module, shape: Sequence[int]) -> tuple[Block, ...]:
    return find_blocks(model, torch.zeros(1, *shape))


class Maker:
    """Makes entries; what several need is made once.

    Args:
        folder: an empty folder for files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runtime: Runtime = resolve(
            RuntimeConfig(device="cpu", precision="fp32", layout="contiguous", threads=1, eval_batch=512)
        )
        self.teacher_reports: list[dict[str, Any]] = []
        self._checkpoints: dict[str, dict[str, Any]] = {}  # of the distillations so far

    # What the entries share

    @cached_property
    def data(self) -> ImageData:
        return load_data(DATA, test=True)

    @cached_property
    def teacher(self) -> Teacher:
        out = self.folder / "teacher.safetensors"
        return train_teacher(
            TEACHER, self.data, self.runtime, out, seed=0, report=self.teacher_reports.append
        )

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        return blocks_of(self.teacher.model, self.data.image_shape)

    @cached_property
    def library(self) -> Library:
        setup = Setup.of(self.teacher.model, self.blocks, self.data, self.runtime)
        return build_library(setup, WIDTHS, True, LIBRARY, seed=0, key=self._library_key())

    def _library_key(self) -> str:
        record = self.teacher.record
        return library_key(record.hash, self.data.hash, self.blocks, WIDTHS, True, LIBRARY, 0)

    @cached_property
    def costs(self) -> CostTable:
        """The teacher's cost table, with latencies that follow from FLOPs instead of a clock."""
        table = measure_costs(
            self.teacher.model,
            self.blocks,
            WIDTHS,
            True,
            self.data.image_shape,
            self.runtime,
            batch_size=1,
            seconds=0.0,
        )
        values = table.model_dump(mode="json")
        for part in (values["teacher"], *values["blocks"].values(), *values["modules"].values()):
            part["latency_ms"] = part["flops"] / 2**20
        return CostTable.model_validate(values)

    # Distillations

    @cached_property
    def configs(self) -> dict[str, DistillConfig]:
        """By name; what the names stand for beyond the config is in `distilled`."""
        # Of widths that give one module the least, as in the library.
        few = {"layer1.1": 0.25, "layer2.2": 0.5, "layer3.0": 1.0}
        runs = {"layer1.1": 0.25, "layer1.2": 0.25, "layer2.1": 0.5, "layer2.2": 0.5, "layer3.2": 0.5}
        one = StudentSpec(widths=few)
        fused, unfused = StudentSpec(widths=runs, fuse=True), StudentSpec(widths=runs, fuse=False)
        adaptive = LossConfig(supervision="adaptive", alpha=0.3, tau=2.0, beta=2.0, entropy_weight=0.5)
        last = StudentSpec(widths={"net.layer3.0": 0.5})
        plain: dict[str, Any] = {"optim": BATCH, "epochs": 2, "seed": 3}
        uniform = DistillConfig(student=one, **plain)
        found = {
            "uniform": uniform,
            "adaptive": DistillConfig(student=one, loss=adaptive, **plain),
            "adaptive-fused": DistillConfig(student=fused, loss=adaptive, **plain),
            "fused": DistillConfig(student=fused, **plain),
            "unfused": DistillConfig(student=unfused, **plain),
            "logits": DistillConfig(student=one, loss=LossConfig(alpha=1.0, beta=0.0), **plain),
            "maps": DistillConfig(student=one, loss=LossConfig(alpha=0.0, beta=1.0), **plain),
            "random-start": DistillConfig(student=one, warm_start="none", **plain),
            "library-start": DistillConfig(student=fused, warm_start="library", **plain),
            "modules": DistillConfig(student=one, train="modules", **plain),
            "modules-library": DistillConfig(student=fused, train="modules", warm_start="library", **plain),
            "streamed": DistillConfig(student=one, **plain),
            "half-batches": DistillConfig(student=last, **plain),
            "dropout": DistillConfig(student=last, **plain),
            "augmented": DistillConfig(student=one, **plain),
            "smoothed": DistillConfig(
                student=one,
                **{**plain, "optim": OptimConfig(batch_size=40, label_smoothing=0.1, warmup_epochs=1.0)},
            ),
        }
        return found | {f"baseline-{name}": config for name, config in baselines(uniform).items()}

    def distilled(self, name: str) -> dict[str, Any]:
        """The epochs of a distillation, the student that it starts from, and the one that it ends with."""
        config, data = self.configs[name], self.data
        model, blocks = self.teacher.model, self.blocks
        if name == "streamed":
            data = self._image_folder()
            with seeded(1):
                model = build_model("cifar_resnet20", data.num_classes, data.image_shape).eval()
            blocks = blocks_of(model, data.image_shape)
        elif name == "augmented":
            data = load_data(DATA.model_copy(update={"augment": "crop-flip"}))
        elif name in ("half-batches", "dropout"):
            with seeded(2):
                model = Fussy().eval() if name == "half-batches" else Dropped().eval()
            blocks = blocks_of(model, data.image_shape)
        modules = self.library.modules if config.warm_start == "library" else None
        distiller = Distiller(config, Setup.of(model, blocks, data, self.runtime, modules))
        start = state_hash(distiller.student.state_dict())
        if isinstance(distiller.student, Fussy):
            distiller.student.most = 20  # of the 32 images of a step
        while not distiller.finished:
            distiller.run_epoch()
        state = distiller.student.state_dict()
        assert isinstance(distiller.method, Ama)
        self._checkpoints[name] = distiller.state_dict()
        return {
            "start": start,
            "epochs": [unweighted(metrics, config) for metrics in distiller.history],
            "student": state_hash(state),
            "student_keys": sorted(state),
            "loss": {name: tensor.tolist() for name, tensor in distiller.method.loss.state_dict().items()},
        }

    def checkpoints_entry(self) -> dict[str, Any]:
        """What a checkpoint of each distillation holds, without its numbers."""
        for name in self.configs.keys() - self._checkpoints.keys():
            self.distilled(name)
        return {
            name: {
                "keys": sorted(state),
                "format": state["format"],
                "origin": sorted(state["origin"]),
                "method": sorted(key for key in state["method"] if not key.startswith("student.")),
                "optimizers": {
                    phase: [
                        {**{k: v for k, v in group.items() if k != "params"}, "params": len(group["params"])}
                        for group in optimizer["param_groups"]
                    ]
                    for phase, optimizer in state["optimizers"].items()
                },
            }
            for name, state in self._checkpoints.items()
        }

    def _image_folder(self) -> ImageData:
        """Two classes of random images in files, read as they are needed."""
        root, random = self.folder / "images", np.random.default_rng(0)
        for split, name in itertools.product(("train", "test"), "ab"):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for index in range(40):
                pixels = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
        config = DataConfig(
            name="imagefolder",
            root=str(root),
            cache=str(self.folder / "cache"),
            storage="stream",
            workers=0,
            augment="crop-flip",
        )
        return load_data(config)

    # Everything else that is trained or counted

    def data_entry(self) -> dict[str, Any]:
        images, labels = next(self.data.train_batches(32, 0, 1, self.runtime))
        splits = {"train": self.data.train, "val": self.data.val, "test": self.data.test}
        return {
            "images": {name: len(split) for name, split in splits.items() if split is not None},
            "mean": list(self.data.mean),
            "std": list(self.data.std),
            "classes": list(self.data.classes),
            "labels": labels.tolist(),
            "batch": state_hash({"images": images, "labels": labels}),
        }

    def teacher_entry(self) -> dict[str, Any]:
        record = dataclasses.asdict(self.teacher.record)
        state = self.teacher.model.state_dict()
        return {
            "epochs": [computed(report) for report in self.teacher_reports],
            "record": {k: v for k, v in record.items() if k not in ("seconds", "version")},
            "weights": state_hash(state),
            "keys": sorted(state),
        }

    def retrained_entry(self) -> dict[str, Any]:
        config = self.configs["adaptive"].model_copy(update={"epochs": 1, "seed": 4})
        out = self.folder / "retrained"
        result = dataclasses.asdict(
            retrain_one(config, self.teacher, self.blocks, self.data, self.runtime, out, data_config=DATA)
        )
        manifest = json.loads((out / MANIFEST).read_text())
        weights = state_hash(load_file(result["path"]))  # the file's header has no fixed order
        return {
            "result": {k: v for k, v in result.items() if k not in ("path", "seconds")},
            "weights": weights,
            "files": sorted(file.name for file in out.iterdir()),
            "manifest_keys": sorted(manifest),
        }

    def library_entry(self) -> dict[str, Any]:
        library = self.library
        spec = self.configs["fused"].student
        return {
            "modules": {key: state_hash(state) for key, state in sorted(library.modules.items())},
            "errors": dict(library.errors),
            "solo_loss": dict(library.solo_loss),
            "proxy": library.proxy(self.blocks, spec),
        }

    def blocks_entry(self, arch: str) -> dict[str, Any]:
        """Blocks as they are found, and students' exact costs, as they are counted on the students."""
        side = ARCHITECTURES[arch]
        shape = (3, side, side)
        with seeded(0):
            model = build_model(arch, 10, shape).eval()
        blocks = blocks_of(model, shape)
        names = [block.name for block in blocks]
        specs = {
            "teacher": StudentSpec(),
            "all": StudentSpec(widths=dict.fromkeys(names, 0.25)),
            "all-unfused": StudentSpec(widths=dict.fromkeys(names, 0.25), fuse=False),
            "every-third": StudentSpec(widths=dict.fromkeys(names[::3], 0.5)),
        }
        image = torch.zeros(1, *shape)
        students = {name: build_student(model, blocks, spec, seed=5) for name, spec in specs.items()}
        return {
            "blocks": [dataclasses.asdict(block) for block in blocks],
            "students": {
                name: {
                    "params": count_params(student),
                    "flops": count_flops(student, image),
                    "weights": state_hash(student.state_dict()),
                }
                for name, student in students.items()
            },
        }

    def costs_entry(self) -> dict[str, Any]:
        values = self.costs.model_dump(mode="json")
        kept = ("teacher", "blocks", "modules", "widths", "fuse", "image_shape")
        specs = {name: config.student for name, config in self.configs.items()}
        ours = {name: spec for name, spec in specs.items() if set(spec.widths) <= set(values["blocks"])}
        return {
            **{name: values[name] for name in kept},
            "prices": {name: self.costs.price(spec).as_dict() for name, spec in ours.items()},
            "bounds": {
                metric: list(self.costs.price_bounds(metric)) for metric in ("params", "flops", "latency_ms")
            },
        }

    def digests_entry(self) -> dict[str, Any]:
        """What a checkpoint, a library, a teacher or a trial is recognised by."""
        return {
            "configs": {name: config.digest() for name, config in self.configs.items()},
            "trials": {name: student_key(config) for name, config in self.configs.items()},
            "data": self.data.hash,
            "data_config": DATA.digest(),
            "teacher": self.teacher.record.hash,
            "teacher_config": TEACHER.digest(),
            "library": self._library_key(),
            "library_config": LIBRARY.digest(),
        }

    # Proposals

    def _experiment(self, sampler: str, first_share: float = 0.0, **sections: Any) -> Experiment:
        # A proposal of GP takes the longer the more trials it has seen.
        startup = {"gp": 24, "nsga2": 8}.get(sampler, 10)
        return Experiment.model_validate(
            {
                "name": "golden",
                "seed": 7,
                "sampler": {"name": sampler, "startup_trials": startup},
                "space": {
                    "blocks": ["layer1.*", "layer3.*"],
                    "widths": list(WIDTHS),
                    "fuse": "search",
                    "optim": {"batch_size": {"choices": [32, 64]}},
                },
                "objectives": ["val_accuracy", "flops"],
                "constraints": {"flops": "<= 0.7x", "val_accuracy": ">= 0.4"},
                "budget": {"trials": PROPOSALS, "epochs": 3, "first_share": first_share},
                "warm_start": "library",
                **sections,
            }
        )

    def _space(self, experiment: Experiment, blocks: Sequence[Block]) -> SearchSpace:
        """With the parameters' names of 0.1: samplers go through them in the order of their names."""
        return dataclasses.replace(SearchSpace.from_experiment(experiment, blocks), flat=True)

    @cached_property
    def _searched(self) -> tuple[Block, ...]:
        return tuple(block for block in self.blocks if not block.name.startswith("layer2"))

    def _limits(self) -> list[Limit]:
        most = 0.7 * self.costs.teacher.flops
        return [Limit("flops", "<=", most, "flops <= 0.7x"), Limit("val_accuracy", ">=", 0.4, "accuracy")]

    def proposals_entry(self, sampler: str) -> dict[str, Any]:
        experiment = self._experiment(sampler, first_share=0.1)
        space = self._space(experiment, self._searched)
        first = first_proposals(space, self._searched, self.costs, self.library)
        proposer = Proposer(experiment, space, self.costs.price, self._limits(), (), first)
        made = list(itertools.islice(_dialogue(proposer, experiment), PROPOSALS))
        return {"first": first, "space": space.size(), "proposals": [_row(proposal) for proposal in made]}

    def small_entry(self) -> dict[str, Any]:
        """Every student of a small space, proposals refused as duplicates, and how the search then ends."""
        experiment = self._experiment(
            "random",
            space={"widths": [0.5], "loss": FIXED_LOSS, "optim": {"lr": 0.05}, "fuse": True},
        )
        space = self._space(experiment, self._searched[-3:])
        proposer, made = Proposer(experiment, space, self.costs.price, []), []
        try:
            for proposal in _dialogue(proposer, experiment):
                made.append(_row(proposal))
        except SpaceExhaustedError as end:
            return {"space": space.size(), "proposals": made, "end": str(end)}
        raise AssertionError("a small space has an end")

    def resumed_entry(self) -> dict[str, Any]:
        """Proposals of a search that goes on from the rows of an earlier one."""
        experiment = self._experiment("tpe")
        space = self._space(experiment, self._searched)
        proposer = Proposer(experiment, space, self.costs.price, self._limits())
        past = []
        for number, proposal in enumerate(itertools.islice(_dialogue(proposer, experiment), PROPOSALS // 2)):
            attrs: dict[str, Any] = {
                "config": proposal.config.model_dump(mode="json"),
                "costs": proposal.costs.as_dict(),
            }
            state, values = TrialState.PRUNED, None
            if proposal.refused:
                attrs["refused"] = proposal.refused
            else:
                epochs = _epochs(number)
                curve = [_accuracy(proposal, epoch) for epoch in range(1, epochs + 1)]
                attrs["curve"] = {"epoch": list(range(1, epochs + 1)), "val_accuracy": curve}
                if epochs == experiment.budget.epochs:
                    state, values = TrialState.COMPLETE, [curve[-1], float(proposal.costs.flops)]
            row = create_trial(
                state=state,
                params=dict(proposal.params),
                distributions=dict(proposal.distributions),
                values=values,
                user_attrs=attrs,
            )
            row.number = number
            past.append(row)
        again = Proposer(experiment, space, self.costs.price, self._limits(), past)
        made = itertools.islice(_dialogue(again, experiment, len(past)), PROPOSALS // 2)
        return {"proposals": [_row(proposal) for proposal in made]}

    # All of them

    def entries(self) -> dict[str, Callable[[], Any]]:
        """What makes each entry, by its name."""
        return {
            "data": self.data_entry,
            "teacher": self.teacher_entry,
            "library": self.library_entry,
            "costs": self.costs_entry,
            "digests": self.digests_entry,
            "retrained": self.retrained_entry,
            **{f"distilled/{name}": lambda name=name: self.distilled(name) for name in self.configs},
            "checkpoints": self.checkpoints_entry,
            **{f"blocks/{arch}": lambda arch=arch: self.blocks_entry(arch) for arch in ARCHITECTURES},
            **{f"proposals/{name}": lambda name=name: self.proposals_entry(name) for name in SAMPLERS},
            "proposals/tpe-resumed": self.resumed_entry,
            "proposals/small": self.small_entry,
        }


def _dialogue(proposer: Proposer, experiment: Experiment, number: int = 0) -> Iterator[Proposal]:
    """Proposals without end; two trials run at a time, and their made-up results are told back."""
    running: list[tuple[int, Proposal]] = []
    while True:
        for proposal in proposer.propose(seed=experiment.seed):
            if proposal.refused is None:
                proposer.accepted(number)
                running.append((number, proposal))
            number += 1
            yield proposal
        if len(running) > 1:
            _finish(proposer, experiment, *running.pop(0))


def _finish(proposer: Proposer, experiment: Experiment, number: int, proposal: Proposal) -> None:
    epochs, values = _epochs(number), [0.0, 0.0]
    for epoch in range(1, epochs + 1):
        values = [_accuracy(proposal, epoch), float(proposal.costs.flops)]
        proposer.reported(number, epoch, values)
    violations = proposer.violations({"val_accuracy": values[0]})
    if number % 11 == 10:
        proposer.ended(number, TrialState.FAIL)
    elif epochs == experiment.budget.epochs:
        proposer.completed(number, values, violations)
    else:
        proposer.stopped(number, violations)


def _epochs(number: int) -> int:
    """How far a trial gets: two of three to the end, the others are stopped early."""
    return 1 + number // 3 % 2 if number % 3 == 2 else 3


def _accuracy(proposal: Proposal, epoch: int) -> float:
    """More for expensive students, later epochs and learning rates near 0.05; sums and quotients alone."""
    share = proposal.costs.params / (proposal.costs.params + 50_000)
    return 0.2 * share + 0.1 * epoch + 0.3 - abs(proposal.config.optim.lr - 0.05)


def _row(proposal: Proposal) -> dict[str, Any]:
    return {
        "params": dict(proposal.params),
        "refused": proposal.refused,
        "costs": proposal.costs.as_dict(),
        "violations": dict(proposal.violations),
    }


def exact(value: Any) -> Any:
    """The same as JSON, each float as `float.hex` writes it."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(key): exact(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [exact(item) for item in value]
    assert value is None or isinstance(value, (bool, int, str)), f"{type(value)} in an entry"
    return value


def make(names: Sequence[str] = (), strict: bool = False) -> dict[str, Any]:
    """The record with these entries; with all of them where none is named.

    An entry that cannot be made says why instead, so that the others can be compared; `strict`: it raises.
    """
    warnings.filterwarnings("ignore", category=UserWarning, module="optuna")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.backends.mkldnn.enabled = False
    torch.backends.nnpack.set_flags(False)
    with tempfile.TemporaryDirectory() as folder:
        entries = Maker(Path(folder)).entries()
        if unknown := sorted(set(names) - set(entries)):
            raise SystemExit(f"no entries {', '.join(unknown)}; there are {', '.join(entries)}")
        made = {}
        for name in names or entries:
            began = time.perf_counter()
            try:
                made[name] = exact(entries[name]())
            except Exception:
                if strict:
                    raise
                made[name] = {"failed": traceback.format_exc()}
            print(f"{name}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
        return {"format": FORMAT, "fingerprint": fingerprint(), "entries": made}


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="Make the entries of the golden record.")
    parser.add_argument("names", nargs="*", help="entries; all where none is named")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--write", action="store_true", help=f"write them into {RECORD.name}")
    where.add_argument("--out", type=Path, help="write them to this file")
    asked = parser.parse_args()
    if MARK not in os.environ:
        with tempfile.TemporaryDirectory() as home:
            command = [sys.executable, str(FOLDER / "make.py"), *sys.argv[1:]]
            sys.exit(subprocess.run(command, env=environment(Path(home)), check=False).returncode)
    made = make(asked.names, strict=asked.write)
    if asked.write and asked.names:
        before = json.loads(RECORD.read_text())
        if before["fingerprint"] != made["fingerprint"]:
            raise SystemExit("the record is of other versions or another CPU: all entries, or none")
        made["entries"] = before["entries"] | made["entries"]
    text = json.dumps(made, indent=1, sort_keys=True) + "\n"
    (RECORD if asked.write else asked.out).write_text(text)


if __name__ == "__main__":
    main()
