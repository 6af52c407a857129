"""Students and training methods ("arms") that the paper's table compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

from trainables.blocks.blocks import Block
from trainables.config import DEFAULT_METHOD, DistillConfig, OptimConfig, StudentSpec
from trainables.config_base import MethodConfig
from trainables.errors import InputError
from trainables.loss_config import LossConfig

ALPHA, TAU, BETA = 0.9, 4.0, 1.0  # of arms that have the term
TUNING_SEED = 0  # the table's own seeds start at 1


@dataclass(frozen=True)
class Size:
    """A student: replace all blocks but those that match `keep`, at `width`; adjacent ones by one module."""

    keep: tuple[str, ...]
    width: float

    def spec(self, blocks: Sequence[Block]) -> StudentSpec:
        """Return the student of this size.

        Raises:
            InputError: the teacher has no block to replace.
        """
        names = [b.name for b in blocks if not any(fnmatch(b.name, pattern) for pattern in self.keep)]
        if not names:
            raise InputError(
                f"--sizes: keeping {', '.join(self.keep)} leaves no block of the teacher to replace"
            )
        return StudentSpec(widths=dict.fromkeys(names, self.width), fuse=True)


# Their shares of a CIFAR ResNet-20's FLOPs are 0.52, 0.34 and 0.24.
SIZES = {
    "half": Size(("*.0",), 1.0),
    "third": Size(("*.0",), 0.25),
    "quarter": Size((), 1.0),
}


@dataclass(frozen=True)
class Arm:
    """A way to train a student; `lr` is its peak learning rate if none was tuned."""

    title: str
    start: str  # as `warm_start`
    loss: MethodConfig
    lr: float
    method: str = DEFAULT_METHOD
    optim: Mapping[str, Any] = field(default_factory=dict)  # settings that differ from the other arms'
    share: float = 1.0  # of the epochs, for a method whose epoch costs several


PLAIN = LossConfig(alpha=0.0, beta=0.0)
LOGITS = LossConfig(alpha=ALPHA, tau=TAU, beta=0.0)
UNIFORM = LossConfig(alpha=ALPHA, tau=TAU, beta=BETA, supervision="uniform")
ADAPTIVE = LossConfig(alpha=ALPHA, tau=TAU, beta=BETA, supervision="adaptive")

ARMS = {
    "scratch": Arm("from scratch, cross-entropy", "none", PLAIN, 0.1),
    "hinton": Arm("from scratch, teacher's logits (Hinton et al.)", "none", LOGITS, 0.1),
    "finetune": Arm("teacher's kept weights, cross-entropy", "teacher", PLAIN, 0.05),
    "logits": Arm("teacher's kept weights, teacher's logits", "teacher", LOGITS, 0.05),
    "ama-uniform": Arm("AMA, uniform supervision", "teacher", UNIFORM, 0.05),
    "ama-adaptive": Arm("AMA, adaptive supervision", "teacher", ADAPTIVE, 0.05),
    "library": Arm("AMA, adaptive supervision, from the library", "library", ADAPTIVE, 0.05),
}
# Steps of the method: an arm, the arm without this step, and the name of the step.
STEPS = (
    ("hinton", "scratch", "the teacher's logits, from scratch"),
    ("finetune", "scratch", "the teacher's kept weights"),
    ("logits", "finetune", "the teacher's logits"),
    ("ama-uniform", "logits", "the teacher's activation maps"),
    ("ama-adaptive", "ama-uniform", "adaptive supervision"),
    ("library", "ama-adaptive", "pre-distilled modules"),
)


@dataclass(frozen=True)
class Job:
    """One training of the table."""

    size: str
    arm: str
    seed: int

    @property
    def key(self) -> str:
        """The training's name in files."""
        return f"{self.size}/{self.arm}/seed-{self.seed}"

    def config(
        self, arm: Arm, spec: StudentSpec, optim: OptimConfig, epochs: int, lr: float
    ) -> DistillConfig:
        """Return the config of the training; `lr` replaces the rate of `optim`."""
        return DistillConfig.model_validate(
            {
                "student": spec,
                "method": arm.method,
                "loss": arm.loss,
                "optim": optim.model_copy(update={**arm.optim, "lr": lr}),
                "epochs": max(1, round(arm.share * epochs)),
                "seed": self.seed,
                "warm_start": arm.start,
            }
        )


def jobs(sizes: Sequence[str], arms: Sequence[str], seeds: int) -> Iterator[Job]:
    """Yield the trainings seed by seed, so that an incomplete table has complete pairs."""
    for seed in range(TUNING_SEED + 1, TUNING_SEED + 1 + seeds):
        yield from (Job(size, arm, seed) for size in sizes for arm in arms)
