"""Terms on embeddings: relations between the images of a batch, the student's against the teacher's.

An embedding is the input of the last linear layer, (B, D); D may differ between the two. The factors inside
the terms are their published weights beside cross-entropy of weight 1. A batch of one image has no relations:
the terms are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.methods.terms.numerics import at_least_fp32, unit

EmbeddingTerm = Callable[[Tensor, Tensor], Tensor]  # student (B, D), teacher (B, D')

DISTANCES, ANGLES = 25.0, 50.0  # published weights of RKD's parts
LEAST_SQUARE = 1e-12  # of a distance: its root has no slope at zero
MOST_ANGLES = 128  # images between which angles are compared: memory grows with their cube
SIMILARITIES = 30000.0  # published weight of PKT
TINY = 1e-7  # added to a probability before its logarithm


def rkd(student: Tensor, teacher: Tensor) -> Tensor:
    """25 x distances + 50 x angles, relational distillation (Park et al. 2019, arXiv:1904.05068).

    Distances are those between any two images, divided by their mean; angles are the cosines at an image
    between two others. Both are compared by the smooth L1 loss. Batches of more than 128 images are compared
    in groups of equal size.
    """
    groups = -(-len(student) // MOST_ANGLES)
    pairs = zip(student.tensor_split(groups), teacher.tensor_split(groups), strict=True)
    parts = [_relations(ours, theirs) * len(ours) for ours, theirs in pairs]
    return torch.stack(parts).sum() / len(student)


def _relations(student: Tensor, teacher: Tensor) -> Tensor:
    ours, theirs = _differences(student), _differences(teacher)
    distances = F.smooth_l1_loss(_distances(ours), _distances(theirs))
    angles = F.smooth_l1_loss(_angles(ours), _angles(theirs))
    return DISTANCES * distances + ANGLES * angles


def _differences(x: Tensor) -> Tensor:
    x = at_least_fp32(x)
    return x[None] - x[:, None]  # (B, B, D)


def _distances(differences: Tensor) -> Tensor:
    """Return the distances divided by their mean over pairs of images, zero on the diagonal: (B, B)."""
    count = len(differences)
    others = 1 - torch.eye(count, device=differences.device, dtype=differences.dtype)
    found = differences.square().sum(2).clamp_min(LEAST_SQUARE).sqrt() * others
    return found / (found.sum() / max(1, count * (count - 1))).clamp_min(LEAST_SQUARE)


def _angles(differences: Tensor) -> Tensor:
    """Return the cosines at the first image between the second and the third: (B, B, B)."""
    directions = unit(differences, LEAST_SQUARE)
    return directions @ directions.transpose(1, 2)


def pkt(student: Tensor, teacher: Tensor) -> Tensor:
    """30000 x mean of p log(p/q) over pairs of images (Passalis & Tefas 2018, arXiv:1803.10837).

    p of the teacher and q of the student are the cosine similarities of embeddings, scaled to 0..1 and
    divided by the sum of their row.
    """
    p, q = _similarities(teacher), _similarities(student)
    return SIMILARITIES * (p * ((p + TINY) / (q + TINY)).log()).mean()


def _similarities(x: Tensor) -> Tensor:
    directions = unit(at_least_fp32(x))
    found = (directions @ directions.T + 1) / 2
    return found / found.sum(1, keepdim=True)


EMBEDDING_TERMS: Mapping[str, EmbeddingTerm] = {"rkd": rkd, "pkt": pkt}
