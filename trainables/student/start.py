"""Make the untrained student that a distillation starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

from torch import Tensor, nn

from trainables.blocks.blocks import Block
from trainables.config import DistillConfig
from trainables.data.dataset import ImageData
from trainables.errors import InputError
from trainables.network.reset import recalibrate_batchnorm, reset_parameters
from trainables.runtime.runtime import Runtime
from trainables.student.build import build_separate, build_student
from trainables.student.spans import Span

RECALIBRATION = (3, 512)  # batches, images a batch

Modules = Mapping[str, Mapping[str, Tensor]]  # span key to state dict of its pre-distilled AMA module


def start_student(
    config: DistillConfig,
    teacher: nn.Module,
    blocks: Sequence[Block],
    spans: Sequence[Span],
    data: ImageData,
    runtime: Runtime,
    modules: Modules | None,
) -> nn.Module:
    """Make the untrained student of `config` on the runtime's device; trained parameters require gradients.

    A separate student has random weights, whatever `warm_start` says: neither teacher nor library fit it.

    Args:
        spans: `spans_of(blocks, config.student)`.
        modules: used with `warm_start: library` alone. Batch-norm statistics are then re-estimated on
            training images, because errors of the replaced blocks add up along the depth.

    Raises:
        InputError: `warm_start: library` without the modules it needs; `train: modules` with random kept
            parts or a separate student.
    """
    arch = config.student.arch
    if arch is not None:
        if config.train == "modules":
            raise InputError(f"train: modules would freeze all of {arch}, a separate student: use train: all")
        separate = build_separate(arch, data.num_classes, data.image_shape, config.seed)
        return separate.to(runtime.device, memory_format=runtime.memory_format)  # type: ignore[call-overload,no-any-return]
    library = config.warm_start == "library"
    if library and modules is None:
        raise InputError("warm_start: library needs a module library, and there is none; use teacher or none")
    if library and (missing := [span.key for span in spans if span.key not in (modules or {})]):
        raise InputError(f"warm_start: the module library lacks {', '.join(missing)}")
    if config.train == "modules" and config.warm_start == "none":
        raise InputError("train: modules freezes the kept parts, which warm_start: none makes random")
    student = build_student(teacher, blocks, config.student, config.seed, modules if library else None)
    if config.warm_start == "none":
        reset_parameters(student, config.seed)
    student.to(runtime.device, memory_format=runtime.memory_format)  # type: ignore[call-overload]
    if library and spans:
        re_estimate(student, config, data, runtime)
    student.requires_grad_(config.train == "all")
    for span in spans:
        student.get_submodule(span.first).requires_grad_(True)
    return student


def training_mode(student: nn.Module, train: str, spans: Sequence[Span]) -> None:
    """Set the training mode for `train` of the config: frozen parts keep their batch-norm statistics."""
    student.train(train == "all")
    for span in spans:
        student.get_submodule(span.first).train()


def re_estimate(
    student: nn.Module,
    config: DistillConfig,
    data: ImageData,
    runtime: Runtime,
    parts: Sequence[nn.Module] | None = None,
) -> None:
    """Re-estimate batch-norm statistics, of `parts` or all, on a few batches of training images."""
    batches = data.train_batches(RECALIBRATION[1], config.seed, config.epochs, runtime)
    recalibrate_batchnorm(student, islice(batches, RECALIBRATION[0]), runtime, parts)
