"""The cost table: params, FLOPs and measured latency of every block and every candidate module of a teacher.

With it the cost of any student is known before it trains: the teacher's, less its replaced blocks, plus
its modules. Params and FLOPs are exact; latency adds up as far as the parts do not disturb each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, PositiveInt

from trainables.blocks.blocks import Block
from trainables.config import Config, StudentSpec
from trainables.errors import InputError
from trainables.files import write_text
from trainables.student.spans import Span, candidate_spans, merged_widths

COST_METRICS = ("params", "flops", "latency_ms")


@dataclass(frozen=True)
class Costs:
    """What a model or a part of one costs. FLOPs are of one image, latency of one batch."""

    params: int
    flops: int
    latency_ms: float

    def as_dict(self) -> dict[str, float]:
        """By metric name; params and FLOPs stay integers."""
        return {"params": self.params, "flops": self.flops, "latency_ms": self.latency_ms}


class Spread(Config):
    """Interquartile range in ms of the runs behind each latency."""

    teacher: float
    blocks: dict[str, float]
    modules: dict[str, float]


class _Step(NamedTuple):
    """One block in execution order: its name, and whether fusing joins it to the block before."""

    name: str
    joins: bool


class CostTable(Config):
    """Costs of a teacher, its blocks and its candidate modules, and the conditions of the measurement."""

    format: Literal[1] = 1
    version: str = Field(description="of the code that measured")
    teacher_hash: str
    device: str = Field(description="the processor's own name")
    batch_size: PositiveInt = Field(description="images a forward pass behind every latency")
    threads: PositiveInt
    precision: str = Field(description="autocast type of inference: fp32, bf16 or fp16")
    channels_last: bool
    image_shape: tuple[int, int, int]
    runs: int = Field(description="fewest timed runs behind a latency")
    widths: tuple[float, ...]
    fuse: bool = Field(description="whether spans of several blocks are in the table")
    structure: tuple[Block, ...]
    teacher: Costs
    blocks: dict[str, Costs]
    modules: dict[str, Costs] = Field(description="by `Span.key`")
    spread: Spread

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """Every span in the table, in execution order."""
        return candidate_spans(self.structure, self.widths, self.fuse)

    def price(self, spec: StudentSpec) -> Costs:
        """The cost of a student, in microseconds: no model is built.

        Raises:
            InputError: a block or a width that the table does not hold.
        """
        wanted, fuse, total = spec.widths, spec.fuse, self.teacher
        runs: list[tuple[int, int, float]] = []
        found = 0
        for index, (name, joins) in enumerate(self._steps):
            width = wanted.get(name)
            if width is None:
                continue
            found += 1
            if fuse and joins and runs and runs[-1][1:] == (index, width):
                runs[-1] = (runs[-1][0], index + 1, width)
            else:
                runs.append((index, index + 1, width))
        if found < len(wanted):
            unknown = ", ".join(sorted(set(wanted) - set(self.blocks)))
            raise InputError(
                f"student.widths: no block {unknown} in the cost table; it has {', '.join(self.blocks)}"
            )
        params, flops, latency = total.params, total.flops, total.latency_ms
        for run in runs:
            change = self._changes.get(run)
            if change is None:
                raise InputError(self._missing(*run))
            params += change.params
            flops += change.flops
            latency += change.latency_ms
        return Costs(params, flops, latency)

    def cheapest(self, metric: str, fuse: bool | None = None) -> tuple[StudentSpec, Costs]:
        """The student that costs least, found exactly by dynamic programming over the blocks.

        Args:
            metric: params, flops or latency_ms.
            fuse: whether adjacent replaced blocks of one width are fused; None: whichever is cheaper.

        Raises:
            InputError: no such metric; or fused students are asked for, but not in the table.
        """
        return self._extreme(metric, fuse, sign=1)

    def price_bounds(self, metric: str, fuse: bool | None = None) -> tuple[float, float]:
        """The least and the greatest cost of any student; see `cheapest`."""
        prices = [self._extreme(metric, fuse, sign)[1].as_dict()[metric] for sign in (1, -1)]
        return prices[0], prices[1]

    def to_profile(self) -> dict[str, Any]:
        """The JSON form of `ama profile`."""
        blocks = [
            {
                "name": block.name,
                "in_shape": list(block.in_shape),
                "out_shape": list(block.out_shape),
                **self.blocks[block.name].as_dict(),
                "spread_ms": self.spread.blocks[block.name],
            }
            for block in self.structure
        ]
        modules = [
            {
                "span": list(span.blocks),
                "width": span.width,
                **self.modules[span.key].as_dict(),
                "spread_ms": self.spread.modules[span.key],
            }
            for span in self.spans
        ]
        conditions = self.model_dump(
            mode="json", include={"device", "batch_size", "threads", "precision", "image_shape", "runs"}
        )
        teacher = {**self.teacher.as_dict(), "spread_ms": self.spread.teacher}
        return {"teacher": teacher, "blocks": blocks, "modules": modules, **conditions}

    def save(self, path: Path) -> None:
        """Write the table as JSON; a reader never sees half of it."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @cached_property
    def _steps(self) -> tuple[_Step, ...]:
        pairs = {span.blocks for span in candidate_spans(self.structure, [1.0], fuse=True)}
        names = [block.name for block in self.structure]
        return tuple(_Step(b, (a, b) in pairs) for a, b in zip(["", *names], names, strict=False))

    @cached_property
    def _changes(self) -> dict[tuple[int, int, float], Costs]:
        """By (first block, block after the last, width): the module's cost less that of its blocks."""
        place = {block.name: index for index, block in enumerate(self.structure)}
        changes = {}
        for span in self.spans:
            module, blocks = self.modules[span.key], [self.blocks[name] for name in span.blocks]
            start = place[span.blocks[0]]
            change = Costs(
                module.params - sum(block.params for block in blocks),
                module.flops - sum(block.flops for block in blocks),
                module.latency_ms - sum(block.latency_ms for block in blocks),
            )
            for width, least in merged_widths(self.structure[start], self.widths).items():
                if least == span.width:  # a width that gives the same module has its price
                    changes[start, start + len(blocks), width] = change
        return changes

    def _missing(self, start: int, stop: int, width: float) -> str:
        names = "+".join(step.name for step in self._steps[start:stop])
        return (
            f"student.widths: the cost table has no module of width {width:g} for {names}; it has the widths "
            f"{', '.join(f'{w:g}' for w in self.widths)}, {'fused' if self.fuse else 'no fused'} spans"
        )

    def _extreme(self, metric: str, fuse: bool | None, sign: int) -> tuple[StudentSpec, Costs]:
        if metric not in COST_METRICS:
            raise InputError(f"expected a cost metric ({', '.join(COST_METRICS)}), got {metric!r}")
        if fuse and not self.fuse:
            raise InputError("costs: the table holds no fused spans, but fused students are asked for")
        choices = [fuse] if fuse is not None else [False, True] if self.fuse else [False]
        found = []
        for choice in choices:
            spec = StudentSpec(widths=self._best_widths(metric, choice, sign), fuse=choice)
            found.append((spec, self.price(spec)))
        return min(found, key=lambda pair: sign * pair[1].as_dict()[metric])

    def _best_widths(self, metric: str, fuse: bool, sign: int) -> dict[str, float]:
        """Widths of the student with the least `sign * metric`.

        `best[i]` maps the width that the blocks before i end with (None: kept) to the least change of cost
        and the choices that lead there. A span may not be followed by one that would have joined it.
        """
        steps = self._steps
        best: list[dict[float | None, tuple[float, dict[str, float]]]] = [{} for _ in range(len(steps) + 1)]
        best[0][None] = (0.0, {})

        def offer(index: int, width: float | None, value: float, widths: dict[str, float]) -> None:
            if width not in best[index] or value < best[index][width][0]:
                best[index][width] = (value, widths)

        moves: list[list[tuple[int, float, float]]] = [[] for _ in steps]
        for (start, stop, width), change in self._changes.items():
            if fuse or stop == start + 1:
                moves[start].append((stop, width, sign * change.as_dict()[metric]))
        for start, step in enumerate(steps):
            for last, (value, widths) in best[start].items():
                offer(start + 1, None, value, widths)
                for stop, width, gain in moves[start]:
                    if not (fuse and step.joins and last == width):
                        names = (step.name for step in steps[start:stop])
                        offer(stop, width, value + gain, widths | dict.fromkeys(names, width))
        return min(best[-1].values(), key=lambda end: end[0])[1]
