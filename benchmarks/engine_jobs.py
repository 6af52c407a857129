"""One epoch of a distillation in four implementations: ours, bare arithmetic, a plain loop, torchdistill.

`python -m benchmarks.engine` runs and compares them. All train on the same images, score the same validation
images, and start from the same teacher and student.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from trainables.blocks.blocks import Block, find_blocks
from trainables.config import DataConfig, DistillConfig, OptimConfig, RuntimeConfig, StudentSpec
from trainables.data.dataset import ImageData
from trainables.data.load import load_data
from trainables.data.split import AnySplit, Split
from trainables.loss_config import LossConfig
from trainables.methods.base import Setup
from trainables.network.architectures import build_model
from trainables.network.evaluate import evaluate
from trainables.network.taps import Taps
from trainables.network.weights import load_weights
from trainables.runtime.runtime import Runtime, resolve
from trainables.runtime.seeds import seeded
from trainables.student.build import build_student
from trainables.student.spans import Span, spans_of
from trainables.training.fastest_runtime import tuned
from trainables.training.loop import Distiller
from trainables.training.optim import lr_at, make_optimizer

WORKERS = 2  # of the data loaders
EVAL_BATCH = 512


@dataclass(frozen=True)
class Job:
    """What to train, and on which images; the same for all contenders."""

    root: str | None  # image folder; None: digits, enlarged to 32 pixels
    teacher: str | None  # weights of a CIFAR ResNet-20; None: random ones, to measure times alone
    device: str
    threads: int
    precision: str  # of ours and the bare one, auto: measured; the other two use torch's defaults
    layout: str  # likewise
    batch: int
    images: int | None  # training images an epoch; None: all
    epochs: int
    seed: int = 0
    val_images: int | None = None  # None: a ninth of the training images, as in the whole data set


@dataclass(frozen=True)
class Parts:
    """A job, loaded."""

    data: ImageData
    teacher: nn.Module
    blocks: tuple[Block, ...]
    runtime: Runtime
    epochs: int
    batch: int
    seed: int

    def config(self, name: str) -> DistillConfig:
        """Return the trial of the student called `name`."""
        return DistillConfig(
            student=students(self.blocks)[name],
            loss=LossConfig(alpha=0.5, tau=4.0, beta=1.0),
            optim=OptimConfig(lr=0.05, batch_size=self.batch),
            epochs=self.epochs,
            seed=self.seed,
        )

    def student(self, config: DistillConfig) -> nn.Module:
        """Build the untrained student on the device."""
        return build_student(self.teacher, self.blocks, config.student, config.seed).to(self.runtime.device)


def students(blocks: tuple[Block, ...]) -> dict[str, StudentSpec]:
    """Return three students: all blocks replaced and fused, every second one, the last two."""
    names = [block.name for block in blocks]
    return {
        "small": StudentSpec(widths=dict.fromkeys(names, 0.25), fuse=True),
        "medium": StudentSpec(widths=dict.fromkeys(names[1::2], 0.5)),
        "large": StudentSpec(widths=dict.fromkeys(names[-2:], 0.5)),
    }


def data_config(job: Job) -> DataConfig:
    """Return the config of the job's images."""
    if job.root:
        return DataConfig(name="imagefolder", root=job.root, train_limit=job.images)
    return DataConfig(name="digits", size=32, augment="crop-flip", train_limit=job.images)


def load(job: Job, config: DataConfig | None = None) -> Parts:
    """Load the job's images (or those of `config`) and the teacher, and set torch's threads."""
    data = load_data(config or data_config(job))
    if job.images and config is None:
        count = min(job.val_images or max(1, len(data.train) // 9), len(data.val))
        assert isinstance(data.val, Split), "the benchmark's images fit into memory"
        held = torch.linspace(0, len(data.val) - 1, count).long()
        data = replace(data, val=Split(data.val.images[held], data.val.labels[held]))
    with seeded(0):
        teacher = build_model("cifar_resnet20", data.num_classes, data.image_shape)
    asked = {name: getattr(job, name) for name in ("device", "threads", "precision", "layout")}
    runtime = resolve(tuned(RuntimeConfig.model_validate(asked), teacher, data.image_shape, job.batch))
    if job.teacher:
        load_weights(teacher, Path(job.teacher), "the teacher")
    teacher = teacher.eval().to(runtime.device)
    blocks = find_blocks(teacher, torch.zeros(1, *data.image_shape, device=runtime.device))
    return Parts(data, teacher, blocks, runtime, job.epochs, job.batch, job.seed)


class Ours:
    """`trainables.training.loop` as a trial runs it."""

    def __init__(self, parts: Parts, student: str) -> None:
        self.distiller = Distiller(
            parts.config(student), Setup.of(parts.teacher, parts.blocks, parts.data, parts.runtime)
        )

    def run_epoch(self) -> float:
        return self.distiller.run_epoch().val_accuracy


class Bare:
    """The arithmetic alone, with our `Runtime`, on batches that are normalised in advance.

    Teacher forward, student forward and backward from cross-entropy, optimiser; validation forward. It has
    no logit or feature term, no augmentation and no metrics: everything else that ours does is overhead.
    """

    def __init__(self, parts: Parts, student: str) -> None:
        config, self.runtime = parts.config(student), parts.runtime
        layout = parts.runtime.memory_format
        self.teacher = parts.teacher.to(memory_format=layout)  # type: ignore[call-overload]
        self.student = parts.student(config).to(memory_format=layout).train()  # type: ignore[call-overload]
        self.train = list(parts.data.train_batches(config.optim.batch_size, 0, 0, parts.runtime))
        self.val = list(parts.data.eval_batches("val", parts.runtime, parts.runtime.eval_batch))
        optim, walk = config.optim, parts.runtime.optimizer
        self.optimizer = make_optimizer(self.student, optim.lr, optim.momentum, optim.weight_decay, walk)

    def run_epoch(self) -> float:
        self.student.train()
        for images, labels in self.train:
            with self.runtime.autocast():
                with torch.inference_mode():
                    self.teacher(images)
                logits = self.student(images)
            self.optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        self.student.eval()
        with torch.inference_mode(), self.runtime.autocast():
            right = sum((self.student(images).argmax(1) == labels).sum() for images, labels in self.val)
        return float(right) / sum(len(labels) for _, labels in self.val)


class Pictures(Dataset[tuple[Tensor, int]]):
    """Decoded images in memory, transformed one at a time, as in torchvision's CIFAR10."""

    def __init__(self, split: AnySplit, transform: Callable[[Image.Image], Tensor]) -> None:
        assert isinstance(split, Split), "the benchmark's images fit into memory"
        self.images = split.images.permute(0, 2, 3, 1).contiguous().numpy()  # (N, H, W, 3)
        self.labels = split.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def pictures(data: ImageData) -> tuple[Pictures, Pictures]:
    """Return training and validation images with torchvision's transforms."""
    plain = [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
    changed: list[Any] = []
    if data.augment.pad:
        size = data.image_shape[1]
        changed.append(transforms.RandomCrop(size, padding=data.augment.pad, padding_mode="reflect"))
    if data.augment.flip:
        changed.append(transforms.RandomHorizontalFlip())
    return (
        Pictures(data.train, transforms.Compose([*changed, *plain])),
        Pictures(data.val, transforms.Compose(plain)),
    )


def sgd(student: nn.Module, config: DistillConfig) -> torch.optim.SGD:
    """Make the optimiser as a user would write it by hand."""
    optim = config.optim
    return torch.optim.SGD(
        student.parameters(), optim.lr, optim.momentum, weight_decay=optim.weight_decay, nesterov=True
    )


def schedule(parts: Parts, config: DistillConfig) -> Callable[[int], float]:
    """Return our learning-rate schedule relative to the peak: all contenders use the same rates."""
    steps = parts.data.steps_per_epoch(config.optim.batch_size)
    warmup = round(config.optim.warmup_epochs * steps)
    return lambda step: lr_at(step, config.epochs * steps, warmup, 1.0)


class Plain:
    """The loop a user would write: DataLoader, torchvision transforms, the same loss by hand, fp32."""

    def __init__(self, parts: Parts, student: str) -> None:
        self.parts, self.config = parts, parts.config(student)
        self.teacher, self.student = parts.teacher, parts.student(self.config)
        train, val = pictures(parts.data)
        # Persistent workers: starting them in every epoch would take too large a share of a short epoch.
        options: dict[str, Any] = {"num_workers": WORKERS, "persistent_workers": True}
        self.train = DataLoader(train, self.config.optim.batch_size, shuffle=True, **options)
        self.val = DataLoader(val, EVAL_BATCH, **options)
        self.optimizer = sgd(self.student, self.config)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule(parts, self.config))
        self.spans = spans_of(parts.blocks, self.config.student)

    def run_epoch(self) -> float:
        self.student.train()
        device = self.parts.runtime.device
        with (
            Taps(self.teacher, [span.last for span in self.spans]) as targets,
            Taps(self.student, [span.first for span in self.spans]) as maps,
        ):
            for images, labels in self.train:
                images, labels = images.to(device), labels.to(device)
                with torch.no_grad():
                    teacher_logits = self.teacher(images)
                logits = self.student(images)
                loss = self.loss(logits, teacher_logits, labels)
                for span in self.spans:
                    target = targets.outputs[span.last]
                    error = (maps.outputs[span.first] - target).pow(2).sum() / target.pow(2).sum()
                    loss = loss + self.config.loss.beta * error
                self.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                self.schedule.step()
        return accuracy(self.student, self.val, self.parts.runtime.device)

    def loss(self, logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        alpha, tau = self.config.loss.alpha, self.config.loss.tau
        soft = F.kl_div(
            F.log_softmax(logits / tau, 1), F.softmax(teacher_logits / tau, 1), reduction="batchmean"
        )
        return (1 - alpha) * F.cross_entropy(logits, labels) + alpha * tau**2 * soft


class TorchDistill:
    """torchdistill's distillation box, hooks and losses, used as in its examples; fp32."""

    def __init__(self, parts: Parts, student: str) -> None:
        from torchdistill.core.distillation import get_distillation_box  # type: ignore[import-not-found]

        logging.getLogger("torchdistill").setLevel(logging.WARNING)
        self.parts, config = parts, parts.config(student)
        train, val = pictures(parts.data)
        self.student = parts.student(config)
        spans = spans_of(parts.blocks, config.student)
        self.box = get_distillation_box(
            copy.deepcopy(parts.teacher),  # torchdistill freezes it, and the next student is built from ours
            self.student,
            {"train": train, "val": val},
            torchdistill_config(parts, config, spans),
            parts.runtime.device,
            None,
            False,
            1,
        )

    def run_epoch(self) -> float:
        box, device = self.box, self.parts.runtime.device
        box.pre_epoch_process(epoch=0)
        for images, labels, extra in box.train_data_loader:
            loss = box.forward_process(images.to(device), labels.to(device), extra)
            box.post_forward_process(loss=loss)
        box.post_epoch_process()
        return accuracy(self.student, box.val_data_loader, device)


def torchdistill_config(parts: Parts, config: DistillConfig, spans: tuple[Span, ...]) -> dict[str, Any]:
    """Write the same distillation as a torchdistill config.

    Its map loss is the mean squared error; weights from the maps of one batch scale it to our relative error.
    """
    images, _ = next(parts.data.eval_batches("train", parts.runtime, config.optim.batch_size))
    with torch.no_grad(), Taps(parts.teacher, [span.last for span in spans]) as taps:
        parts.teacher(images)
        power = {span.last: taps.outputs[span.last].square().mean().item() for span in spans}
    optim, loss = config.optim, config.loss
    ends = {"student_module_path": ".", "teacher_module_path": "."}
    ends |= {"student_module_io": "output", "teacher_module_io": "output"}
    kd = {"key": "KDLoss", "kwargs": {**ends, "temperature": loss.tau, "alpha": 1 - loss.alpha}}
    terms: dict[str, Any] = {"kd": {"criterion": kd, "weight": 1.0}}
    for span in spans:
        sides = {
            "input": {"is_from_teacher": False, "module_path": span.first, "io": "output"},
            "target": {"is_from_teacher": True, "module_path": span.last, "io": "output"},
        }
        terms[span.key] = {
            "criterion": {"key": "MSELoss", "kwargs": {}},
            "criterion_wrapper": {"key": "SimpleLossWrapper", "kwargs": sides},
            "weight": loss.beta / power[span.last],
        }
    options = {"num_workers": WORKERS, "persistent_workers": True}
    return {
        "num_epochs": config.epochs,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
            "kwargs": {"batch_size": optim.batch_size, **options},
        },
        "val_data_loader": {
            "dataset_id": "val",
            "sampler": {"class_or_func": torch.utils.data.SequentialSampler, "kwargs": {}},
            "kwargs": {"batch_size": EVAL_BATCH, **options},
        },
        "teacher": {
            "forward_proc": "forward_batch_only",
            "requires_grad": False,
            "forward_hook": {"input": [], "output": [span.last for span in spans]},
        },
        "student": {
            "forward_proc": "forward_batch_only",
            "forward_hook": {"input": [], "output": [span.first for span in spans]},
        },
        "optimizer": {
            "key": "SGD",
            "kwargs": {
                "lr": optim.lr,
                "momentum": optim.momentum,
                "weight_decay": optim.weight_decay,
                "nesterov": True,
            },
        },
        "scheduler": {
            "key": "LambdaLR",
            "kwargs": {"lr_lambda": schedule(parts, config)},
            "scheduling_step": 1,
        },
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
    }


def accuracy(student: nn.Module, batches: DataLoader[Any], device: torch.device) -> float:
    """Return the accuracy in fp32, computed as a user would."""

    def moved() -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels, *_ in batches:
            yield images.to(device), labels.to(device)

    plain = Runtime(device, "fp32", False, torch.get_num_threads())
    return evaluate(student, moved(), plain).accuracy


CONTENDERS: dict[str, Callable[[Parts, str], Any]] = {
    "ours": Ours,
    "bare": Bare,
    "plain": Plain,
    "torchdistill": TorchDistill,
}
