"""Spans: consecutive blocks that one AMA module replaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainables.blocks.blocks import Block
from trainables.config import StudentSpec
from trainables.errors import InputError
from trainables.student.ama_module import hidden_channels


@dataclass(frozen=True)
class Span:
    """Consecutive blocks replaced together by one AMA module. Shapes are without the batch."""

    blocks: tuple[str, ...]
    width: float
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    layout: str
    activation: str
    members: tuple[str, ...]  # submodule paths of all blocks in execution order

    @property
    def key(self) -> str:
        """The module's name in the cost table and the library, e.g. `layer1.0+layer1.1@0.25`."""
        return f"{'+'.join(self.blocks)}@{float(self.width)!r}"

    @property
    def first(self) -> str:
        """The first submodule path: where the module goes, and where the student's map is read."""
        return self.members[0]

    @property
    def last(self) -> str:
        """The last submodule path: its output in the teacher is the map that the module replaces."""
        return self.members[-1]


def spans_of(blocks: Sequence[Block], spec: StudentSpec) -> tuple[Span, ...]:
    """Return the spans of the teacher that the student replaces; a separate student replaces none.

    Raises:
        InputError: as `teacher_spans`.
    """
    return () if spec.arch is not None else teacher_spans(blocks, spec)


def teacher_spans(blocks: Sequence[Block], spec: StudentSpec) -> tuple[Span, ...]:
    """Return the spans that `spec.widths` names, in execution order, whatever the student's architecture.

    With `spec.fuse`, a block that takes exactly the previous block's output and keeps its shape joins the
    previous block's span if both have the same width.

    Raises:
        InputError: the spec names blocks that are not in `blocks`; the message lists all of them.
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
        if spec.fuse and runs and joins(runs[-1][-1], block) and spec.widths[runs[-1][-1].name] == width:
            runs[-1].append(block)
        else:
            runs.append([block])
    return tuple(_span(run, spec.widths[run[0].name]) for run in runs)


def candidate_spans(blocks: Sequence[Block], widths: Sequence[float], fuse: bool) -> tuple[Span, ...]:
    """Return every span that a spec with these widths can contain, for the cost table and the library.

    Of several widths that give the same module (`merged_widths`), only the smallest is used.
    """
    spans = []
    for start in range(len(blocks)):
        stop = start + 1
        while fuse and stop < len(blocks) and joins(blocks[stop - 1], blocks[stop]):
            stop += 1
        for end in range(start + 1, stop + 1):
            kept = dict.fromkeys(merged_widths(blocks[end - 1], widths).values())
            spans += [_span(blocks[start:end], width) for width in kept]
    return tuple(spans)


def merged_widths(block: Block, widths: Sequence[float]) -> dict[float, float]:
    """Map every width to the smallest of `widths` that gives the same module over this block.

    Hidden channels are rounded to multiples of 8, so widths 0.25 and 0.5 of 16 channels give the same module.
    All blocks of a span have the same output shape, so the result for one block holds for the span.
    """
    least: dict[int, float] = {}
    for width in sorted(widths):
        least.setdefault(_hidden(block, width), width)
    return {width: least[_hidden(block, width)] for width in widths}


def _hidden(block: Block, width: float) -> int:
    return hidden_channels(width, block.out_shape[0 if block.layout == "nchw" else -1])


def joins(before: Block, block: Block) -> bool:
    """Return whether fusing joins `block` to `before` if both are replaced at the same width.

    It does if `block` takes exactly the output of `before` and keeps its shape.
    """
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
