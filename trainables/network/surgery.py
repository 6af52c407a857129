"""Replace submodules of a model in place."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class Skip(nn.Identity):
    """Return the input and ignore further arguments: takes the place of a block that a span absorbed."""

    def forward(self, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the input itself."""
        return input


def put(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """Put `module` at `path` and wherever else the model holds the same old submodule; return the old one.

    Works for attributes, `nn.Sequential`, `nn.ModuleList` and `nn.ModuleDict` alike; nothing else changes.
    """
    old = model.get_submodule(path)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = module
    return old


@contextmanager
def exchanged(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put `modules` (path to module) into the model; restore the old ones on exit."""
    old: dict[str, nn.Module] = {}
    try:
        for path, module in modules.items():
            old[path] = put(model, path, module)
        yield
    finally:
        for path, module in old.items():
            put(model, path, module)


def frozen_copy(model: nn.Module) -> nn.Module:
    """Copy the modules of a model; the copy shares all weights and buffers, and none requires a gradient."""
    weights = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    buffers = {id(buffer): buffer for buffer in model.buffers()}
    return copy.deepcopy(model, weights | buffers)
