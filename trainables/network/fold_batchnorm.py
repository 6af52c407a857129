"""Fold batch norms into the convolutions before them, for inference."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from trainables.network.surgery import Skip, put
from trainables.network.taps import Taps
from trainables.network.trace import trace

TOLERANCE = 1e-4  # relative, in fp32: for the logits and every map that is read


def folded(model: nn.Module, example: Tensor, paths: list[str]) -> nn.Module | None:
    """Return a copy of `model` in eval mode with batch norms folded: same outputs, fewer passes over memory.

    Args:
        model: images (B, 3, H, W) to logits; not changed.
        example: a few images, (B, 3, H, W), on the model's device.
        paths: submodules whose outputs must stay the same, too.

    Returns:
        The copy; None if there is nothing to fold or the copy's outputs on `example` differ.
    """
    pairs = _pairs(model, example[:1])
    if not pairs:
        return None
    copied = copy.deepcopy(model).eval()
    for conv, norm in pairs:
        one = fuse_conv_bn_eval(copied.get_submodule(conv), copied.get_submodule(norm))  # type: ignore[type-var,arg-type]
        put(copied, conv, one)
        put(copied, norm, Skip())
    ours, theirs = (_outputs(each, example, paths) for each in (copied, model))
    return copied if all(map(_close, ours, theirs)) else None


def _pairs(model: nn.Module, image: Tensor) -> list[tuple[str, str]]:
    """Find convolutions whose output goes to a batch norm alone; return (convolution, norm) paths."""
    record = trace(model, image)
    convs = {
        call.out_key: path
        for path in record.calls
        if (call := record.single(path)) and type(call.module) is nn.Conv2d
    }
    found = []
    for path in record.calls:
        call = record.single(path)
        if call is None or type(call.module) is not nn.BatchNorm2d or call.in_key not in convs:
            continue
        if call.module.track_running_stats:
            found.append((convs[call.in_key], path))
    return found


@torch.inference_mode()
def _outputs(model: nn.Module, images: Tensor, paths: list[str]) -> list[Tensor]:
    with Taps(model, paths) as taps:
        logits = model(images)
        return [logits, *(taps.outputs[path] for path in paths)]


def _close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).norm() <= TOLERANCE * theirs.norm())
