"""Find the classifier of a network: the last linear layer, whose input is the embedding of an image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainables.errors import InputError
from trainables.network.trace import undisturbed


def classifier_path(model: nn.Module, images: Tensor) -> str:
    """Return the path of the linear layer whose output is the model's logits.

    The layer's input, (B, D), is the embedding of the images.

    Args:
        model: images (B, 3, H, W) to logits (B, classes); run once, in eval mode, without gradients.
        images: a few, on the model's device.

    Raises:
        InputError: the model does not end with a linear layer on one vector per image.

    Example:
        images, _ = next(data.eval_batches("val", resolve(), 2))
        path = classifier_path(teacher.model, images)
        print(path, teacher.model.get_submodule(path).in_features)
    """
    last: list[tuple[str, Tensor, Any]] = []

    def keep(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            last[:] = [(path, args[0], output)]

        return hook

    linear = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_hook(keep(path)) for path, module in linear]
    try:
        with undisturbed(model), torch.no_grad():
            logits = model(images)
    finally:
        for handle in handles:
            handle.remove()
    if last and last[0][1].ndim == 2 and torch.equal(last[0][2], logits):
        return last[0][0]
    raise InputError(
        "embeddings: expected a model that ends with a linear layer on one vector per image "
        f"(torch.nn.Linear); {type(model).__name__} does not: choose a method or term without embeddings"
    )
