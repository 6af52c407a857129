"""Build students: the teacher with spans of its blocks replaced by AMA modules."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from trainables.blocks.blocks import Block
from trainables.config import StudentSpec
from trainables.config_base import hash_json
from trainables.errors import InputError
from trainables.network.architectures import ImageShape, build_model
from trainables.network.reset import recalibrate_batchnorm, reset_parameters
from trainables.network.surgery import Skip, put
from trainables.network.taps import Taps
from trainables.network.trace import undisturbed
from trainables.runtime.seeds import seeded
from trainables.student.ama_module import make_module
from trainables.student.spans import Span, candidate_spans, merged_widths, spans_of

__all__ = [
    "Span",
    "Taps",
    "build_span",
    "build_student",
    "candidate_spans",
    "merged_widths",
    "recalibrate_batchnorm",
    "reset_parameters",
    "spans_of",
]


def build_span(span: Span, seed: int = 0) -> nn.Module:
    """Make a span's AMA module. Its weights depend on (seed, span) alone; on the CPU, in training mode."""
    mixed = int(hash_json([seed, span.key])[:12], 16)
    with seeded(mixed):
        return make_module(span.in_shape, span.out_shape, span.width, span.layout, span.activation)


def build_student(
    teacher: nn.Module,
    blocks: Sequence[Block],
    spec: StudentSpec,
    seed: int = 0,
    modules: Mapping[str, Mapping[str, Any]] | None = None,
    image_shape: ImageShape | None = None,
) -> nn.Module:
    """Copy the teacher and replace every span of `spec` by one AMA module, or build a separate student.

    The module is at the path of the span's first member; the other members return their input. Training
    mode, device and floating-point type are the teacher's, and so is `requires_grad` of everything kept. The
    modules' parameters are trainable. If nothing is replaced, the outputs equal the teacher's bit for bit.
    A separate student (`spec.arch`) has the teacher's number of classes and random weights; see
    `build_separate`.

    Args:
        teacher: not changed.
        blocks: of this teacher, as `find_blocks` gave them.
        spec: which blocks to replace, at which width.
        seed: of the modules' initial weights; they do not depend on which other blocks are replaced.
        modules: initial weights (state dicts) by `Span.key`, e.g. from a library; other spans are random.
        image_shape: (3, H, W); needed for a separate student.

    Returns:
        The student, images (B, 3, H, W) to logits (B, classes).

    Raises:
        InputError: unknown block names, or a state dict in `modules` that does not fit its span; no such
            architecture, or `image_shape` is missing.

    Example:
        spec = StudentSpec(widths={block.name: 0.25 for block in blocks})
        student = build_student(teacher.model, blocks, spec)
        print(sum(parameter.numel() for parameter in student.parameters()))
    """
    if spec.arch is not None:
        if image_shape is None:
            raise InputError(f"student {spec.arch}: expected image_shape, the (3, H, W) of its images")
        separate = build_separate(spec.arch, _classes(teacher, image_shape), image_shape, seed)
        like = next(teacher.parameters())
        return separate.to(like.device, like.dtype).train(teacher.training)
    spans = spans_of(blocks, spec)
    student = copy.deepcopy(teacher)
    for span in spans:
        module = build_span(span, seed)
        state = (modules or {}).get(span.key)
        if state is not None:
            try:
                module.load_state_dict(state)
            except RuntimeError as error:
                raise InputError(f"modules: the weights of {span.key} do not fit: {error}") from None
        install(student, span, module)
    return student


def build_separate(arch: str, num_classes: int, image_shape: ImageShape, seed: int = 0) -> nn.Module:
    """Build a student of another architecture than the teacher's, with random weights from (seed, arch).

    Models of torchvision get the stem for small images up to 64 px, as teachers do.

    Args:
        arch: as `teacher.arch`.
        num_classes: length of the logits.
        image_shape: (3, H, W).
        seed: of the weights.

    Returns:
        Images (B, 3, H, W) to logits (B, num_classes), on the CPU, in training mode.

    Raises:
        InputError: no such architecture, or it does not work on such images.
    """
    with seeded(int(hash_json([seed, arch])[:12], 16)):
        try:
            return build_model(arch, num_classes, image_shape)
        except InputError as error:
            text = (
                str(error).replace("teacher.small_stem: true, ", "").replace("teacher.arch", "space.student")
            )
            raise InputError(text) from error


def _classes(teacher: nn.Module, image_shape: ImageShape) -> int:
    """Return the length of the teacher's logits."""
    like = next(teacher.parameters())
    with undisturbed(teacher), torch.no_grad():
        logits = teacher(torch.zeros(1, *image_shape, device=like.device, dtype=like.dtype))
    return int(logits.shape[1])


def install(student: nn.Module, span: Span, module: nn.Module) -> None:
    """Put `module` in the place of the span's blocks, on their device; the model is changed."""
    old = student.get_submodule(span.first)
    like = next((p for p in old.parameters() if p.is_floating_point()), None)
    if like is not None:
        module = module.to(like.device, like.dtype)
    put(student, span.first, module.train(old.training))
    for path in span.members[1:]:
        put(student, path, Skip().train(old.training))
