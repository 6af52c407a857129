"""Read the inputs and outputs of submodules while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Inputs:
    """Record the inputs of some submodules in the last forward pass; a context manager.

    Args:
        model: whose submodules.
        paths: of the submodules.
        copied: paths whose input is copied, because the module itself or later code writes into it
            (see `overwritten_inputs`).
    """

    def __init__(self, model: nn.Module, paths: Sequence[str], copied: Collection[str] = ()) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.paths = tuple(paths)
        self._copied = frozenset(copied)
        self._handles = [
            model.get_submodule(path).register_forward_pre_hook(self._keep(path)) for path in paths
        ]

    def _keep(self, path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            self.inputs[path] = args[0].clone() if path in self._copied else args[0]

        return hook

    def __enter__(self) -> Inputs:
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self.inputs.clear()


class frozen:  # noqa: N801 - a context manager, used like a function
    """Switch off the gradients of a model's parameters; restore them on exit."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    def __enter__(self) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(False)

    def __exit__(self, *exception: object) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(True)


class _Tap:
    """Forward hook that keeps a module's output. A deep copy of the module does not copy the hook."""

    def __init__(self, outputs: dict[str, torch.Tensor], path: str, copied: bool) -> None:
        self.outputs, self.path, self.copied = outputs, path, copied

    def __call__(self, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        self.outputs[self.path] = output.clone() if self.copied else output

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _no_tap


def _no_tap(module: nn.Module, args: Any, output: torch.Tensor) -> None:
    """Do nothing: the hook that replaces a tap in a copy of its model."""


class Taps:
    """Record the outputs of some submodules in the last forward pass; a context manager.

    `outputs` maps each path to its tensor, with its graph. They stay alive until `clear` or the next pass.

    Args:
        model: whose submodules.
        paths: of the submodules.
        copied: paths whose output is copied, because later code writes into it (see `overwritten_outputs`).
    """

    def __init__(self, model: nn.Module, paths: Sequence[str], copied: Collection[str] = ()) -> None:
        self.outputs: dict[str, torch.Tensor] = {}
        self._handles: list[RemovableHandle] = []
        for path in paths:
            module = model.get_submodule(path)
            self._handles.append(module.register_forward_hook(_Tap(self.outputs, path, path in copied)))

    def clear(self) -> None:
        """Forget the outputs."""
        self.outputs.clear()

    def close(self) -> None:
        """Remove the hooks and forget the outputs."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.clear()

    def __enter__(self) -> Taps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def overwritten_outputs(model: nn.Module, paths: Sequence[str], images: Tensor) -> frozenset[str]:
    """Find the paths whose output is changed in place after the submodule has returned it.

    An in-place activation at the start of the next block does that: code that reads the map after the pass
    gets the activated one. Run the model once, without gradients, in the mode that the caller has set.

    Args:
        model: images (B, C, H, W) to anything.
        paths: submodules that return one tensor.
        images: a few, on the model's device.
    """
    seen: dict[str, tuple[Tensor, int]] = {}

    def watch(path: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            seen[path] = output, output._version

        return hook

    handles = [model.get_submodule(path).register_forward_hook(watch(path)) for path in paths]
    return _changed(model, images, seen, handles)


def overwritten_inputs(model: nn.Module, paths: Sequence[str], images: Tensor) -> frozenset[str]:
    """Find the paths whose input is changed in place, by the submodule or later (`overwritten_outputs`)."""
    seen: dict[str, tuple[Tensor, int]] = {}

    def watch(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            seen[path] = args[0], args[0]._version

        return hook

    handles = [model.get_submodule(path).register_forward_pre_hook(watch(path)) for path in paths]
    return _changed(model, images, seen, handles)


def _changed(
    model: nn.Module,
    images: Tensor,
    seen: dict[str, tuple[Tensor, int]],
    handles: Sequence[RemovableHandle],
) -> frozenset[str]:
    try:
        # Inference tensors have no version counter.
        with torch.inference_mode(False), torch.no_grad():
            model(images.clone())
        return frozenset(path for path, (tensor, version) in seen.items() if tensor._version != version)
    finally:
        for handle in handles:
            handle.remove()
