"""Resize and normalise images: from uint8 pixels to network inputs."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from trainables.config import Triple
from trainables.data.row_file import RowFile
from trainables.data.sources import Images
from trainables.data.stratify import Indices

Constants = tuple[torch.Tensor, torch.Tensor]

CHUNK_BYTES = 2**20  # uint8 images handled at once when whole splits are converted


def normalise(images: torch.Tensor, constants: Constants, memory_format: torch.memory_format) -> torch.Tensor:
    """Normalise uint8 images (B, 3, H, W) to a new float32 tensor `(images / 255 - mean) / std`."""
    scale, offset = constants
    return images.to(torch.float32, memory_format=memory_format).mul_(scale).add_(offset)


def normalisation_constants(mean: Triple, std: Triple, device: torch.device) -> Constants:
    """Return scale and offset, float32 (1, 3, 1, 1), that map 0..255 to `(x / 255 - mean) / std`."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=device)
    offset = torch.tensor([-m / s for m, s in zip(mean, std)], device=device)
    return scale.view(1, 3, 1, 1), offset.view(1, 3, 1, 1)


def resize(images: Images, size: int) -> Images:
    """Resize square images (N, 3, H, H) to `size` pixels a side (bilinear, antialiased).

    Images that already have the size are returned unchanged.
    """
    if images.shape[-1] == size:
        return images
    resized = np.empty((len(images), 3, size, size), dtype=np.uint8)
    count = chunk_length(max(size, images.shape[-1]))
    for start in range(0, len(images), count):
        chunk = torch.from_numpy(images[start : start + count].astype(np.float32))
        chunk = F.interpolate(chunk, size=(size, size), mode="bilinear", antialias=True)
        resized[start : start + count] = chunk.round_().clamp_(0, 255).numpy()
    return resized


def chunk_length(size: int) -> int:
    """Return how many images of `size` pixels a side are handled at once."""
    return max(1, CHUNK_BYTES // (3 * size**2))


def channel_statistics(images: Images | RowFile, indices: Indices, size: int) -> tuple[Triple, Triple]:
    """Compute mean and standard deviation per channel of inputs in 0..1, to four decimals.

    Args:
        images: (N, 3, H, H), may be a memory map or a file.
        indices: of the images to use.
        size: side in pixels that they are resized to first.
    """
    total, squares = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    count = chunk_length(max(size, images.shape[-1]))
    for start in range(0, len(indices), count):
        chunk = resize(images[indices[start : start + count]], size)
        values = torch.from_numpy(chunk).float().div_(255)
        total += values.sum((2, 3)).double().sum(0)
        squares += values.square_().sum((2, 3)).double().sum(0)
    n = len(indices) * size * size
    mean = total / n
    std = (squares / n - mean**2).clamp(min=0).sqrt()
    return _triple(mean), _triple(std.clamp(min=1e-4))  # a constant channel must not divide by zero


def _triple(values: torch.Tensor) -> Triple:
    red, green, blue = (round(value, 4) for value in values.tolist())
    return red, green, blue
