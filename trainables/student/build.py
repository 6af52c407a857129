"""Students: the teacher with spans of its blocks replaced by AMA modules."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from trainables.blocks.blocks import Block
from trainables.config import StudentSpec, hash_json
from trainables.errors import InputError
from trainables.network.reset import recalibrate_batchnorm, reset_parameters
from trainables.network.surgery import Skip, put
from trainables.runtime.runtime import seeded
from trainables.student.ama_module import hidden_channels, make_module

__all__ = [
    "Span",
    "Taps",
    "build_span",
    "build_student",
    "candidate_spans",
    "merged_widths",
    "recalibrate_batchnorm",
    "reset_parameters",
    "spans_of",
]


@dataclass(frozen=True)
class Span:
    """A run of consecutive blocks replaced together by one AMA module. Shapes are without the batch."""

    blocks: tuple[str, ...]
    width: float
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    layout: str
    activation: str
    members: tuple[str, ...]  # submodule paths of all blocks in execution order

    @property
    def key(self) -> str:
        """Unique text, e.g. `layer1.0+layer1.1@0.25`: names the module in the cost table and the library."""
        return f"{'+'.join(self.blocks)}@{float(self.width)!r}"

    @property
    def first(self) -> str:
        """Path where the module goes: the student's tap."""
        return self.members[0]

    @property
    def last(self) -> str:
        """Path whose output the module stands for: the teacher's tap."""
        return self.members[-1]


def spans_of(blocks: Sequence[Block], spec: StudentSpec) -> tuple[Span, ...]:
    """The spans that `spec` replaces, in execution order.

    With `spec.fuse`, a block that takes exactly the previous block's output and keeps its shape joins the
    previous block's span if both have the same width.

    Raises:
        InputError: the spec names blocks that are not among `blocks` (all of them are listed).
    """
    names = [block.name for block in blocks]
    unknown = sorted(set(spec.widths) - set(names))
    if unknown:
        raise InputError(f"student.widths: no block {', '.join(unknown)}; the blocks are {', '.join(names)}")
    runs: list[list[Block]] = []
    for block in blocks:
        width = spec.widths.get(block.name)
        if width is None:
            continue
        if spec.fuse and runs and _joins(runs[-1][-1], block) and spec.widths[runs[-1][-1].name] == width:
            runs[-1].append(block)
        else:
            runs.append([block])
    return tuple(_span(run, spec.widths[run[0].name]) for run in runs)


def candidate_spans(blocks: Sequence[Block], widths: Sequence[float], fuse: bool) -> tuple[Span, ...]:
    """Every span that any spec with these widths can contain: what a cost table and a library must hold.

    Of several widths that give one module (`merged_widths`), the least stands for all.
    """
    spans = []
    for start in range(len(blocks)):
        stop = start + 1
        while fuse and stop < len(blocks) and _joins(blocks[stop - 1], blocks[stop]):
            stop += 1
        for end in range(start + 1, stop + 1):
            kept = dict.fromkeys(merged_widths(blocks[end - 1], widths).values())
            spans += [_span(blocks[start:end], width) for width in kept]
    return tuple(spans)


def merged_widths(block: Block, widths: Sequence[float]) -> dict[float, float]:
    """Every width by the least of `widths` that gives a module as wide over this block.

    Hidden channels are rounded to eights, so that widths 0.25 and 0.5 of 16 channels are one module. All
    blocks of a span have one output shape, so what holds for one holds for the span.
    """
    least: dict[int, float] = {}
    for width in sorted(widths):
        least.setdefault(_hidden(block, width), width)
    return {width: least[_hidden(block, width)] for width in widths}


def _hidden(block: Block, width: float) -> int:
    return hidden_channels(width, block.out_shape[0 if block.layout == "nchw" else -1])


def _joins(before: Block, block: Block) -> bool:
    same_layout = block.layout == before.layout
    return block.follows == before.name and block.in_shape == block.out_shape and same_layout


def _span(run: Sequence[Block], width: float) -> Span:
    return Span(
        blocks=tuple(block.name for block in run),
        width=width,
        in_shape=run[0].in_shape,
        out_shape=run[-1].out_shape,
        layout=run[0].layout,
        activation=run[-1].activation,
        members=tuple(member for block in run for member in block.members),
    )


def build_span(span: Span, seed: int = 0) -> nn.Module:
    """A span's AMA module with weights that depend on (seed, span) alone; on the CPU, in training mode."""
    mixed = int(hash_json([seed, span.key])[:12], 16)
    with seeded(mixed):
        return make_module(span.in_shape, span.out_shape, span.width, span.layout, span.activation)


def build_student(
    teacher: nn.Module,
    blocks: Sequence[Block],
    spec: StudentSpec,
    seed: int = 0,
    modules: Mapping[str, Mapping[str, Any]] | None = None,
) -> nn.Module:
    """A copy of the teacher in which every span of `spec` is one AMA module; the rest is the teacher's own.

    The module stands at the path of the span's first member, the other members pass their input on. Training
    mode, device and floating-point type are the teacher's, and so is `requires_grad` of everything kept; the
    modules' parameters are trainable. With nothing replaced, it computes bit for bit what the teacher does.

    Args:
        teacher: stays as it is.
        blocks: of this teacher, as `find_blocks` gave them.
        spec: which blocks to replace, at which width.
        seed: of the modules' first weights; a module's do not depend on what else is replaced.
        modules: first weights (state dicts) by `Span.key`, e.g. from a library; a span not in it is fresh.

    Raises:
        InputError: unknown block names, or a state dict in `modules` that does not fit its span.
    """
    spans = spans_of(blocks, spec)
    student = copy.deepcopy(teacher)
    for span in spans:
        module = build_span(span, seed)
        state = (modules or {}).get(span.key)
        if state is not None:
            try:
                module.load_state_dict(state)
            except RuntimeError as error:
                raise InputError(f"modules: the weights of {span.key} do not fit: {error}") from None
        _install(student, span, module)
    return student


def _install(student: nn.Module, span: Span, module: nn.Module) -> None:
    old = student.get_submodule(span.first)
    like = next((p for p in old.parameters() if p.is_floating_point()), None)
    if like is not None:
        module = module.to(like.device, like.dtype)
    put(student, span.first, module.train(old.training))
    for path in span.members[1:]:
        put(student, path, Skip().train(old.training))


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
