"""Contrast between networks' embeddings of the same image, with a memory bank for each network.

The term of one pair is that of CRD (Tian et al. 2020, "Contrastive Representation Distillation",
arXiv:1910.10699); between several networks it is that of MCL-OKD (Yang, An, Xu 2021, "Multi-view Contrastive
Learning for Online Knowledge Distillation", arXiv:2006.04093). There, negatives are drawn for every image;
here, one set of them serves a batch, and an image leaves out those of its own class. The expectation is the
same, and the scores of a batch are one matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.data.load import GIB
from trainables.errors import InputError
from trainables.runtime.seeds import seeded

DIM = 128  # of the compared vectors
MOMENTUM = 0.5  # share of a bank's row that an update keeps


class MemoryBank(nn.Module):
    """The last vectors of one network for every training image, smoothed over its visits.

    Rows start random: with zeros all scores are equal, and positives get no gradient.

    Attributes:
        rows: (images, dim) in fp32, in the state dict; of length 1 once updated, about 1 before.

    Example:
        bank = MemoryBank(images=100, dim=8, seed=0)
        vectors = torch.nn.functional.normalize(torch.ones(2, 8))
        bank.update(torch.tensor([3, 5]), vectors)
        print(bank.rows.shape, bank.rows[3].norm())
    """

    rows: Tensor

    def __init__(self, images: int, dim: int = DIM, momentum: float = MOMENTUM, seed: int = 0) -> None:
        """Draw the rows uniformly from ±1 / sqrt(dim / 3)."""
        super().__init__()
        self.momentum = momentum
        side = 1 / math.sqrt(dim / 3)
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("rows", torch.empty(images, dim).uniform_(-side, side, generator=generator))

    @torch.no_grad()
    def update(self, index: Tensor, vectors: Tensor) -> None:
        """Move the rows of some images towards `vectors`: row <- normalise(m row + (1 - m) vector).

        Args:
            index: (B,) int64, different images.
            vectors: (B, dim) of length 1.
        """
        mixed = self.momentum * self.rows[index] + (1 - self.momentum) * vectors.to(self.rows.dtype)
        self.rows[index] = F.normalize(mixed)


def draw_negatives(images: int, count: int, seed: int, step: int) -> Tensor:
    """Draw `count` different images of `images`, all if there are fewer: int64 (count,), on the CPU.

    They depend on the arguments alone.
    """
    generator = np.random.default_rng([seed, step])
    return torch.from_numpy(generator.choice(images, min(count, images), replace=False, shuffle=False))


def log_probabilities(
    anchors: Tensor, positives: Tensor, negatives: Tensor, usable: Tensor, images: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log P = cosine/τ - log Z of an anchor with its positive and with every negative.

    Z = images x mean(exp(cosine/τ)) over the batch, without a gradient, so that the mean of P is 1 / images.

    Args:
        anchors: (B, dim) of length 1.
        positives: (B, dim), for each anchor the bank's row of its image.
        negatives: (K, dim) rows of the bank, for all anchors.
        usable: (B, K) bool, false where a negative has the anchor's class.
        images: rows of the bank.
        temperature: τ.

    Returns:
        (B,) of the positives, (B, K) of the negatives, and (B, 1): how often each usable negative counts, so
        that they count as K.
    """
    positive = (anchors * positives).sum(1) / temperature
    others = anchors @ negatives.T / temperature
    found = usable.sum(1, keepdim=True)
    times = len(negatives) / found.clamp_min(1).to(others.dtype)
    with torch.no_grad():
        counts = usable * times  # (B, K)
        scores = torch.cat([positive[:, None], others + counts.log()], 1)
        total = scores.logsumexp((0, 1)) - (len(anchors) + counts.sum()).log()
        log_z = math.log(images) + total
    return positive - log_z, others - log_z, times


def contrastive_loss(
    anchors: Tensor, positives: Tensor, negatives: Tensor, usable: Tensor, images: int, temperature: float
) -> Tensor:
    """-mean[ log P⁺/(P⁺ + c) + Σ log c/(P + c) ], c = K / images: one network's vectors, another's bank.

    It is the loss of telling an anchor's own image from K drawn at random. An anchor without a usable
    negative has the first part alone. Arguments as `log_probabilities`.

    Returns:
        0-d, the mean over the batch, in the type of the anchors.
    """
    positive, others, times = log_probabilities(anchors, positives, negatives, usable, images, temperature)
    log_c = math.log(len(negatives) / images)
    # log P/(P + c) = -softplus(log c - log P): finite for every cosine and temperature.
    rejected = (F.softplus(others - log_c) * usable).sum(1, keepdim=True) * times
    return (F.softplus(log_c - positive) + rejected.squeeze(1)).mean()


class Contrast(nn.Module):
    """Contrast between two or more networks on the same images, as a term of a method's loss.

    It owns a linear head and a memory bank for each network; neither belongs to the student. A network that
    is not trained, such as the teacher, is given by its embeddings as the others are: its head is trained.

        self.contrast = Contrast([64, 64], data.train.labels, seed=config.seed)     # in __init__
        part = self.contrast.loss([ours, theirs], labels, index, progress.step)     # in losses
        self.contrast.update(batch.index)                                           # in after_step

    Attributes:
        heads: from a network's embedding to the compared vector.
        banks: one for each network.
        labels: (images,) classes of the training images.

    Example:
        labels = torch.arange(40) % 4
        contrast = Contrast([8, 16], labels, negatives=32)
        index = torch.tensor([0, 7])
        embeddings = [torch.randn(2, 8), torch.randn(2, 16)]
        print(contrast.loss(embeddings, labels[index], index, step=0))
        contrast.update(index)
    """

    heads: Sequence[nn.Linear]
    banks: Sequence[MemoryBank]
    labels: Tensor
    positives: Tensor

    def __init__(
        self,
        widths: Sequence[int],
        labels: Tensor,
        negatives: int = 256,
        temperature: float = 0.1,
        seed: int = 0,
        memory_limit: float | None = None,
        dim: int = DIM,
    ) -> None:
        """Make heads and banks on the CPU.

        Args:
            widths: size of each network's embedding.
            labels: (images,) int64, of all training images.
            negatives: K, images drawn a step; at most all are.
            temperature: τ of the scores.
            seed: of heads, banks and draws.
            memory_limit: most bytes that the banks may take.
            dim: of the compared vectors.

        Raises:
            InputError: the banks exceed the limit.
        """
        super().__init__()
        check_banks(len(widths), len(labels), memory_limit, dim)
        self.negatives, self.temperature, self.seed = negatives, temperature, seed
        with seeded(seed):
            self.heads = nn.ModuleList(nn.Linear(width, dim) for width in widths)  # type: ignore[assignment]
        banks = [MemoryBank(len(labels), dim, seed=seed + view) for view, _ in enumerate(widths)]
        self.banks = nn.ModuleList(banks)  # type: ignore[assignment]
        self.register_buffer("labels", labels.clone(), persistent=False)
        # Whose row is the positive of each image; `permute` changes it.
        self.register_buffer("positives", torch.arange(len(labels)), persistent=False)
        self._step = -1
        self._pending: list[list[Tensor]] = []

    def loss(self, embeddings: Sequence[Tensor], labels: Tensor, index: Tensor, step: int) -> Tensor:
        """Return the sum of `contrastive_loss` over all ordered pairs of networks; call outside autocast.

        Args:
            embeddings: of each network, (B, width).
            labels: (B,) int64.
            index: (B,) int64, of the images in the training set.
            step: of the whole training; negatives depend on it and the seed.

        Returns:
            0-d fp32: a mean over the batch for each pair.
        """
        vectors = [
            F.normalize(head(_ordinary(embedding).to(head.weight.dtype)))
            for head, embedding in zip(self.heads, embeddings, strict=True)
        ]
        self._keep(vectors, step)
        images = len(self.labels)
        drawn = draw_negatives(images, self.negatives, self.seed, step).to(index.device)
        usable = labels[:, None] != self.labels[drawn]
        own = self.positives[index]
        pairs = []
        for theirs, bank in enumerate(self.banks):
            positives, negatives = bank.rows[own], bank.rows[drawn]
            pairs += [
                contrastive_loss(anchors, positives, negatives, usable, images, self.temperature)
                for ours, anchors in enumerate(vectors)
                if ours != theirs
            ]
        return torch.stack(pairs).sum()

    def _keep(self, vectors: Sequence[Tensor], step: int) -> None:
        """Keep the vectors for `update`."""
        if step != self._step:
            self._step, self._pending = step, []
        self._pending.append([each.detach() for each in vectors])

    def update(self, index: Tensor) -> None:
        """Update the banks with the vectors of the last `loss`; call once a step, after the optimiser.

        Args:
            index: (B,) int64, of all images of the step. If the step was computed in parts, or again after
                memory ran out, the last B vectors are those of these images in order.
        """
        for bank, vectors in zip(self.banks, zip(*self._pending, strict=True), strict=True):
            bank.update(index, torch.cat(vectors)[-len(index) :])
        self._pending = []

    def permute(self, seed: int) -> None:
        """Give every image the row of another as its positive: a control that must lose what contrast gains.

        It is not saved: call it again before resuming.
        """
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))
        self.positives.copy_(order)


def _ordinary(embedding: Tensor) -> Tensor:
    """Return the embedding, copied if it is an inference tensor, which autograd cannot save."""
    return embedding.clone() if embedding.is_inference() else embedding


def check_banks(views: int, images: int, limit: float | None, dim: int = DIM) -> None:
    """Refuse memory banks that are too large.

    Raises:
        InputError: `views` banks in fp32 exceed `limit` bytes.
    """
    size = views * images * dim * 4
    if limit is not None and size > limit:
        raise InputError(
            f"contrast: {views} memory banks of {images} images need {size / GIB:.3g} GiB, more than "
            f"data.memory_limit ({limit / GIB:.3g} GiB): raise it, train fewer peers, or use a method or an "
            "embedding term without memory banks"
        )
