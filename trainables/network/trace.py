"""Trace one forward pass: inputs, outputs and FLOPs of every submodule call. Used to find blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from trainables.runtime.seeds import seeded

Key = tuple[int, int]  # identity of a tensor's content: id of the object, number of in-place writes
Shape = tuple[int, ...]

ACTIVATIONS = {"Relu": "relu", "Hardtanh": "relu6", "Silu": "silu", "Hardswish": "hardswish", "Gelu": "gelu"}
# Operations that only move, select or copy values: the activation before them still applies.
MOVES = {
    "View",
    "UnsafeView",
    "ReshapeAlias",
    "Permute",
    "Transpose",
    "T",
    "Clone",
    "MaxPool2DWithIndices",
    "Split",
}
FLAGS = (bool, int, float, str)  # types of arguments beside the tensor that a replacement may ignore
COMPUTE = (nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.modules.conv._ConvNd)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Set eval mode, gradients on and attention's fused fast path off; restore everything on exit.

    The fast path is one operator whose FLOPs are not counted. Random generators are restored too.
    """
    training = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        with seeded(0), torch.enable_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, flag in training.items():
            module.training = flag


@dataclass
class Call:
    """One call of a module. Input fields are None unless the input was one tensor; output fields likewise."""

    path: str
    module: nn.Module
    begin: int
    in_shape: Shape | None = None
    out_shape: Shape | None = None
    in_key: Key | None = None
    out_key: Key | None = None
    source: Node | None = None  # grad_fn of the input tensor
    result: Node | None = None  # grad_fn of the output tensor
    plain: bool = False  # one positional tensor in, one tensor out, no other argument holds a tensor
    flops: int = 0
    end: int = -1
    nodes: tuple[int, int] = (0, 0)  # sequence numbers of the autograd nodes made while it ran: [low, high)
    output: Any = None

    @property
    def resized(self) -> bool:
        """Return whether the call changed the size of its map in any axis but the channels."""
        a, b = self.in_shape, self.out_shape
        return a is not None and b is not None and (len(a) != len(b) or (len(a) == 4 and a[2:] != b[2:]))


@dataclass
class Trace:
    """Every module call of one forward pass on one image, in order of their starts, and the total FLOPs."""

    model: nn.Module
    calls: dict[str, list[Call]] = field(default_factory=dict)
    order: list[Call] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)  # while they live, no two tensors share an id
    flops: int = 0
    image: Key | None = None

    def single(self, path: str) -> Call | None:
        """Return the call of the module at `path` if it was called once, one tensor in and one out."""
        calls = self.calls.get(path, [])
        return calls[0] if len(calls) == 1 and calls[0].plain else None

    def inside(self, call: Call) -> list[Call]:
        """Return the calls made while `call` ran."""
        return self.order[call.begin + 1 : call.end]

    def readers(self) -> dict[Node | None, list[int]]:
        """Map every autograd node to the sequence numbers of the operations that read its result."""
        found: dict[Node | None, list[int]] = {}
        outputs = [leaf for leaf in tree_leaves(self.order[0].output) if isinstance(leaf, torch.Tensor)]
        waiting = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
        seen = set(waiting)
        while waiting:
            node = waiting.pop()
            for source, _ in node.next_functions:
                if source is None:
                    continue
                found.setdefault(source, []).append(node._sequence_nr())
                if source not in seen:
                    seen.add(source)
                    waiting.append(source)
        return found


def trace(model: nn.Module, example: torch.Tensor) -> Trace:
    """Run `model` once on `example` (1, 3, H, W), on the model's device, and record every module's calls.

    Training flags, hooks, statistics, gradients and random generators are restored.
    """
    record = Trace(model)
    names = {module: path for path, module in model.named_modules()}
    handles = []
    with undisturbed(model), FlopCounterMode(display=False) as counter:
        recorder = _Recorder(record, counter, names)
        try:
            for module in names:
                handles.append(module.register_forward_pre_hook(recorder.before, with_kwargs=True))
                handles.append(module.register_forward_hook(recorder.after, with_kwargs=True))
            # Not a leaf: autograd forbids in-place writes to leaves, and a model may start with one.
            image = example.detach().clone().requires_grad_() * 1
            record.image = (id(image), image._version)
            record.kept.append(image)
            model(image)
        finally:
            for handle in handles:
                handle.remove()
        record.flops = counter.get_total_flops()
    return record


class _Recorder:
    def __init__(self, record: Trace, counter: FlopCounterMode, names: dict[nn.Module, str]) -> None:
        self.record, self.counter, self.names = record, counter, names
        self.running: list[Call] = []
        self.leaf = torch.ones((), requires_grad=True)

    def now(self) -> int:
        """Return the sequence number of a new autograd node: all earlier nodes have smaller ones."""
        node = (self.leaf * 1).grad_fn
        assert node is not None
        return node._sequence_nr()

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = Call(self.names[module], module, begin=len(self.record.order))
        call.nodes = (self.now(), -1)
        call.flops = -self.counter.get_total_flops()
        extra = [value for value in (*args[1:], *kwargs.values()) if value is not None]
        if args and isinstance(args[0], torch.Tensor) and all(isinstance(v, FLAGS) for v in extra):
            x = args[0]
            call.in_shape, call.in_key, call.source = tuple(x.shape), (id(x), x._version), x.grad_fn
        self.record.kept.append((args, kwargs))
        self.record.order.append(call)
        self.record.calls.setdefault(call.path, []).append(call)
        self.running.append(call)

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = self.running.pop()
        while call.module is not module:  # a call that ended in an exception that the model caught
            call = self.running.pop()
        call.flops += self.counter.get_total_flops()
        call.nodes = (call.nodes[0], self.now())
        call.end = len(self.record.order)
        self.record.kept.append(output)
        call.output = output
        if isinstance(output, torch.Tensor):
            call.out_shape, call.out_key = tuple(output.shape), (id(output), output._version)
            call.result = output.grad_fn
            call.plain = call.in_shape is not None


def activation_of(node: Node | None) -> str:
    """Return the activation behind a tensor's grad_fn: relu, relu6, silu, hardswish, gelu or none."""
    while node is not None:
        name = node.name().removesuffix("0").removesuffix("1").removesuffix("Backward")
        if name == "Hardtanh":
            limits: tuple[Any, Any] = (node._saved_min_val, node._saved_max_val)  # type: ignore[attr-defined]
            return "relu6" if limits == (0.0, 6.0) else "none"
        if name in ACTIVATIONS:
            return ACTIVATIONS[name]
        if name == "Cat":
            parts = {activation_of(part) for part, _ in node.next_functions}
            return parts.pop() if len(parts) == 1 else "none"
        if name not in MOVES:
            return "none"
        node = node.next_functions[0][0]
    return "none"


def layout_of(record: Trace, call: Call) -> str | None:
    """Return the layout of a call's maps: nchw, nhwc or tokens; None for a shape that cannot be replaced.

    The first submodule whose parameters show the layout decides: a convolution or batch norm means channels
    first, a LayerNorm or Linear on the last axis channels last. 4-D maps are nchw if no submodule decides.
    """
    first, last = call.in_shape, call.out_shape
    if first is None or last is None or len(first) != len(last) or first[0] != last[0]:
        return None
    if len(first) == 3:
        convs = (nn.Conv1d, nn.BatchNorm1d)
        return None if any(isinstance(c.module, convs) for c in record.inside(call)) else "tokens"
    if len(first) != 4:
        return None
    for inner in [call, *record.inside(call)]:
        shape, module = inner.in_shape, inner.module
        if shape is None or len(shape) != 4:
            continue
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.GroupNorm):
            return "nchw"
        if shape != first:  # rearranged, e.g. into windows: does not show the layout of the block's maps
            continue
        if isinstance(module, nn.Linear):
            return "nhwc"
        if isinstance(module, nn.LayerNorm) and type(module).forward is nn.LayerNorm.forward:
            return "nhwc" if len(module.normalized_shape) == 1 else "nchw"
    return "nchw"


def compute_leaves(module: nn.Module) -> int:
    """Count the modules inside, `module` included, that hold a weight matrix or kernel."""
    return sum(is_compute(inner) for inner in module.modules())


def is_compute(module: nn.Module) -> bool:
    """Return whether `module` itself, not a child, holds a weight matrix or kernel."""
    if isinstance(module, COMPUTE):
        return True
    own = module.parameters(recurse=False)
    return any(sum(side > 1 for side in parameter.shape) > 1 for parameter in own)


def is_container(module: nn.Module) -> bool:
    """Return whether calling `module` only calls its children one after the other."""
    return type(module).forward is nn.Sequential.forward
