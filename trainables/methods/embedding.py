"""Embeddings of students, and the contrast between them and the teacher's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from trainables.config import DistillConfig
from trainables.data.load import limit_bytes
from trainables.errors import InputError
from trainables.methods.base import Setup
from trainables.methods.terms.contrast import Contrast
from trainables.network.classifier import classifier_path

LEAST_CONTRASTED = 2  # images a batch: scores are normalised over the batch


def make_contrast(
    setup: Setup,
    config: DistillConfig,
    students: Sequence[nn.Module],
    teacher: bool,
    negatives: int,
    temperature: float,
) -> tuple[Contrast, str]:
    """Make the contrast between students, and with the teacher, on the setup's device.

    Its `loss` takes the students' embeddings in this order, the teacher's (`Signals.embedding`) last.

    Args:
        students: of one architecture.
        teacher: whether the teacher is compared too.
        negatives: K, images drawn a step.
        temperature: of the scores.

    Returns:
        The contrast, and the path of the students' layer whose input is the embedding.

    Raises:
        InputError: a network without a linear classifier, batches of one image, or memory banks larger than
            `data.memory_limit`.

    Example:
        student = build_student(teacher.model, blocks, StudentSpec())
        contrast, path = make_contrast(setup, DistillConfig(), [student], True, 256, temperature=0.07)
        print(path, contrast)
    """
    if config.optim.batch_size < LEAST_CONTRASTED:
        raise InputError(
            f"contrast: compares the images of a batch, so it needs optim.batch_size >= {LEAST_CONTRASTED}, "
            f"got {config.optim.batch_size}"
        )
    path = classifier_path(students[0], setup.supervisor.few)
    layers = [student.get_submodule(path) for student in students]
    if teacher:
        layers.append(setup.teacher.get_submodule(setup.supervisor.classifier))
    contrast = Contrast(
        [_width(layer) for layer in layers],
        setup.data.train.labels,
        negatives,
        temperature,
        config.seed,
        limit_bytes(setup.data.memory_limit),
    ).to(setup.runtime.device)
    return contrast, path


def _width(layer: nn.Module) -> int:
    assert isinstance(layer, nn.Linear)
    return layer.in_features
