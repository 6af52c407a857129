"""Find the teacher's blocks, submodules that an AMA module can replace, by tracing one forward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from trainables.blocks.grouping import Group, choose_groups
from trainables.errors import InputError
from trainables.network.flops import count_flops, count_params
from trainables.network.surgery import Skip, exchanged
from trainables.network.trace import Shape, Trace, activation_of, layout_of, trace, undisturbed

__all__ = ["Block", "count_flops", "count_params", "find_blocks"]


@dataclass(frozen=True)
class Block:
    """A replaceable part of the teacher: one tensor in, one tensor out. Shapes are without the batch.

    Example:
        for block in find_blocks(teacher.model, data.image_shape):
            print(block.name, block.in_shape, block.out_shape, block.params, block.flops)
    """

    name: str
    members: tuple[str, ...]  # submodule paths in execution order; several for a run of plain layers
    in_shape: Shape
    out_shape: Shape
    layout: str  # nchw, nhwc or tokens
    activation: str  # how the block ends: relu, relu6, silu, hardswish, gelu or none
    params: int
    flops: int  # of one image, a multiply-accumulate counted as 2
    follows: str | None = None  # the block whose output tensor is this block's input, and nothing else's


def find_blocks(
    model: nn.Module, example: torch.Tensor | Sequence[int], patterns: Sequence[str] = ()
) -> tuple[Block, ...]:
    """Find the blocks of `model`, in execution order. The model is not changed.

    A block is the unit that the network repeats: a residual block, an inverted residual, an encoder layer, a
    VGG stage. The result is tested: the model runs with all blocks replaced.

    Args:
        model: an image classifier on any device; it runs a few times in eval mode.
        example: one image (1, 3, H, W) on the same device, further images are ignored; or the shape of one,
            (3, H, W), for a black image.
        patterns: shell globs on block names; a leading "!" excludes. If no pattern includes, all blocks are
            included.

    Returns:
        Blocks in execution order, with their shapes, params and FLOPs.

    Raises:
        InputError: the model does not run on such an image, or has no block; a pattern matches no block, or
            none is left.

    Example:
        blocks = find_blocks(teacher.model, data.image_shape)
        deep = find_blocks(teacher.model, data.image_shape, ["layer3.*"])
        print([block.name for block in blocks], len(deep))
    """
    if not isinstance(example, torch.Tensor):
        weights = next(model.parameters(), torch.empty(0))
        example = torch.zeros(1, *example, device=weights.device, dtype=weights.dtype)
    try:
        record = trace(model, example[:1])
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        shape = tuple(example.shape[1:])
        raise InputError(
            f"teacher: {type(model).__name__} does not run on an image {shape}: {error}"
        ) from error
    groups = _replaceable(model, example[:1], record, choose_groups(record))
    if not groups:
        raise InputError(_nothing_found(record))
    blocks = [_describe(record, group) for group in groups]
    names = select_names([block.name for block in blocks], patterns)
    return tuple(block for block in _linked(record, blocks) if block.name in names)


def select_names(names: Sequence[str], patterns: Sequence[str]) -> set[str]:
    """Return the block names that `patterns` select; see `find_blocks`.

    Raises:
        InputError: a pattern matches no name (the message lists all such patterns), or no name is left.
    """
    known = f"the blocks are {', '.join(names)}"
    lost = [p for p in patterns if not any(fnmatchcase(name, p.removeprefix("!")) for name in names)]
    if lost:
        raise InputError(f"space.blocks: no block matches {', '.join(map(repr, lost))}; {known}")
    wanted = [p for p in patterns if not p.startswith("!")] or ["*"]
    refused = [p[1:] for p in patterns if p.startswith("!")]
    chosen = {
        name
        for name in names
        if any(fnmatchcase(name, p) for p in wanted) and not any(fnmatchcase(name, p) for p in refused)
    }
    if not chosen:
        raise InputError(f"space.blocks: {list(patterns)} leave no block; {known}")
    return chosen


def _describe(record: Trace, group: Group) -> Block:
    first, last = record.single(group[0]), record.single(group[-1])
    assert first and last and first.in_shape and last.out_shape
    params = {id(p): p.numel() for path in group for p in record.model.get_submodule(path).parameters()}
    return Block(
        name=_name(group),
        members=group,
        in_shape=first.in_shape[1:],
        out_shape=last.out_shape[1:],
        layout=layout_of(record, first) or "nchw",
        activation=activation_of(last.result),
        params=sum(params.values()),
        flops=sum(call.flops for path in group if (call := record.single(path))),
    )


def _name(group: Group) -> str:
    return group[0] if len(group) == 1 else f"{group[0]}-{group[-1].rpartition('.')[2]}"


def _linked(record: Trace, blocks: list[Block]) -> list[Block]:
    """Fill in `follows`; it stays None if anything else reads the tensor between two blocks."""
    makers = {}
    for block in blocks:
        last = record.single(block.members[-1])
        makers[last and last.out_key] = block.name
    readers = record.readers()
    linked = []
    for block in blocks:
        first = record.single(block.members[0])
        assert first is not None
        low, high = first.nodes
        alone = all(low <= reader < high for reader in readers.get(first.source, ()))
        linked.append(replace(block, follows=makers.get(first.in_key) if alone else None))
    return linked


class _Stub(nn.Module):
    """Return the block's recorded output for any input, and count the calls."""

    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.output, self.calls = output.detach(), 0

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.calls += 1
        return self.output.clone()


def _replaceable(model: nn.Module, image: torch.Tensor, record: Trace, groups: list[Group]) -> list[Group]:
    """Return the groups that the model runs without; code that accesses parts of a block would fail."""
    if _runs_without(model, image, record, groups):
        return groups
    return [group for group in groups if _runs_without(model, image, record, [group])]


def _runs_without(model: nn.Module, image: torch.Tensor, record: Trace, groups: list[Group]) -> bool:
    stubs: dict[str, nn.Module] = {path: Skip() for group in groups for path in group}
    for group in groups:
        last = record.single(group[-1])
        assert last is not None
        stubs[group[0]] = _Stub(last.output)
    expected = record.order[0].out_shape
    with undisturbed(model), exchanged(model, stubs), torch.no_grad():
        try:
            output = model(image)
        except Exception:  # the user's code may raise anything
            return False
    same = not isinstance(output, torch.Tensor) or tuple(output.shape) == expected
    return same and all(stub.calls == 1 for stub in stubs.values() if isinstance(stub, _Stub))


def _nothing_found(record: Trace) -> str:
    kinds = Counter(type(call.module).__name__ for call in record.order)
    seen = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8))
    return (
        f"teacher: no replaceable block in {type(record.model).__name__}: looked at "
        f"{len(record.order)} submodule calls ({seen}) for modules that are called once "
        "with one tensor (N, C, H, W), (N, H, W, C) or (N, L, D), give one of the same rank, and hold "
        "convolutions or linear layers"
    )
