"""Pair maps of the teacher with maps of a separate student: same size if possible, else nearest in depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from trainables.blocks.blocks import Block, find_blocks
from trainables.errors import InputError
from trainables.network.taps import overwritten_outputs
from trainables.network.trace import undisturbed


@dataclass(frozen=True)
class Point:
    """The output of a block, where an activation map can be read.

    Attributes:
        path: of the submodule that returns the map.
        shape: of the map, without the batch.
        layout: nchw, nhwc or tokens.
        activation: how the block ends.
        depth: share of the network's blocks up to here, above 0 and up to 1.
        overwritten: whether later code changes the map in place, so that a reader must copy it.
    """

    path: str
    shape: tuple[int, ...]
    layout: str
    activation: str
    depth: float
    overwritten: bool = False

    @property
    def size(self) -> tuple[int, ...]:
        """The shape without the channels: (H, W) or (L,)."""
        return positions(self.shape, self.layout)


def positions(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Return a map's shape without the channels: (H, W) or (L,)."""
    return shape[1:] if layout == "nchw" else shape[:-1]


def points_of(blocks: Sequence[Block]) -> tuple[Point, ...]:
    """Return the end of every block of a network, in execution order."""
    return tuple(
        Point(block.members[-1], block.out_shape, block.layout, block.activation, (index + 1) / len(blocks))
        for index, block in enumerate(blocks)
    )


def stage_ends(points: Sequence[Point]) -> tuple[Point, ...]:
    """Return the last point of every size."""
    last = {(point.layout, point.size): point for point in points}
    return tuple(point for point in points if point in last.values())


def student_taps(student: nn.Module, image_shape: Sequence[int]) -> tuple[Point, ...]:
    """Return the points of a separate student whose maps are compared: the last block of every size.

    Raises:
        InputError: no blocks were found in the student.
    """
    try:
        ends = stage_ends(points_of(find_blocks(student, image_shape)))
    except InputError as error:
        reason = str(error).removeprefix("teacher: ")
        raise InputError(
            f"student: its maps cannot be read ({reason}): choose another student, or a method without maps"
        ) from None
    images = torch.zeros(2, *image_shape, device=next(student.parameters()).device)
    with undisturbed(student):
        changed = overwritten_outputs(student, [point.path for point in ends], images)
    return tuple(replace(point, overwritten=point.path in changed) for point in ends)


def paired(targets: Sequence[Point], taps: Sequence[Point]) -> tuple[Point, ...]:
    """Return the tap of each of the teacher's points: of the same size, else nearest by share of depth.

    Raises:
        InputError: no tap has the layout of a target.
    """
    found = []
    for target in targets:
        alike = [tap for tap in taps if tap.layout == target.layout]
        if not alike:
            layouts = ", ".join(sorted({tap.layout for tap in taps}))
            raise InputError(
                f"student: the teacher's {target.path} gives maps of the layout {target.layout}, the student "
                f"gives {layouts}: choose another student, or a method without maps"
            )
        same = [tap for tap in alike if tap.size == target.size]
        found.append(min(same or alike, key=lambda tap: abs(tap.depth - target.depth)))
    return tuple(found)
