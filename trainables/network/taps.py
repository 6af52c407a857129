"""Read the inputs and outputs of submodules while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Inputs:
    """What some submodules were given in the last forward pass; a context manager."""

    def __init__(self, model: nn.Module, paths: Sequence[str]) -> None:
        self.inputs: dict[str, Tensor] = {}
        self._handles = [
            model.get_submodule(path).register_forward_pre_hook(self._keep(path)) for path in paths
        ]

    def _keep(self, path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            self.inputs[path] = args[0]

        return hook

    def __enter__(self) -> Inputs:
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self.inputs.clear()


class frozen:  # noqa: N801 - a context manager, used like a function
    """A model whose parameters need no gradients inside, and do again afterwards."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    def __enter__(self) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(False)

    def __exit__(self, *exception: object) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(True)


class _Tap:
    """Forward hook that keeps a module's output. A deep copy of the module does not take it along."""

    def __init__(self, outputs: dict[str, torch.Tensor], path: str) -> None:
        self.outputs, self.path = outputs, path

    def __call__(self, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        self.outputs[self.path] = output

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _no_tap


def _no_tap(module: nn.Module, args: Any, output: torch.Tensor) -> None:
    """What a tap becomes in a copy of its model: nothing happens."""


class Taps:
    """The outputs of some submodules, as the last forward pass left them; a context manager.

    `outputs` maps each path to its tensor, with its graph. They stay alive until `clear` or the next.
    """

    def __init__(self, model: nn.Module, paths: Sequence[str]) -> None:
        self.outputs: dict[str, torch.Tensor] = {}
        self._handles: list[RemovableHandle] = []
        for path in paths:
            module = model.get_submodule(path)
            self._handles.append(module.register_forward_hook(_Tap(self.outputs, path)))

    def clear(self) -> None:
        """Forget the outputs."""
        self.outputs.clear()

    def close(self) -> None:
        """Take the hooks off and forget the outputs."""
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
