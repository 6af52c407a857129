"""The cost table: params, FLOPs and measured latency of every block and every candidate module of a teacher.

It gives the cost of any student before training: the teacher's, minus its replaced blocks, plus its modules.
Params and FLOPs are exact. Latency is approximate: it assumes that parts do not affect each other's speed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, PlainSerializer, PositiveInt, model_validator

from trainables.blocks.blocks import Block
from trainables.config import REPLACED, StudentSpec
from trainables.config_base import Config
from trainables.errors import InputError
from trainables.files import write_text
from trainables.student.spans import Span, candidate_spans, joins, merged_widths

COST_METRICS = ("params", "flops", "latency_ms")
STUDENTS = (REPLACED,)  # in `cheapest`: students of the teacher alone


@dataclass(frozen=True)
class Costs:
    """Costs of a model or of a part. FLOPs are of one image, latency of one batch.

    `others` holds the extra costs of the experiment, by metric name.

    Example:
        price = costs.price(StudentSpec(widths={blocks[0].name: 0.25}))
        print(price.params, price.flops / costs.teacher.flops, price.latency_ms)
    """

    params: int
    flops: int
    latency_ms: float
    others: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, float]:
        """Return the costs by metric name; params and FLOPs stay integers."""
        named = {"params": self.params, "flops": self.flops, "latency_ms": self.latency_ms}
        return {**named, **self.others}

    def plus(self, other: Costs, sign: int = 1) -> Costs:
        """Return the sum of two costs, or their difference with `sign` -1."""
        return Costs(
            self.params + sign * other.params,
            self.flops + sign * other.flops,
            self.latency_ms + sign * other.latency_ms,
            {name: value + sign * other.others[name] for name, value in self.others.items()},
        )


def _named(value: Any) -> Any:
    """Convert costs from the file's form (one mapping by metric name) to the fields of `Costs`."""
    if not isinstance(value, dict):
        return value
    others = {name: cost for name, cost in value.items() if name not in COST_METRICS}
    return {name: cost for name, cost in value.items() if name in COST_METRICS} | {"others": others}


WrittenCosts = Annotated[
    Costs, BeforeValidator(_named), PlainSerializer(Costs.as_dict, return_type=dict[str, int | float])
]


def _empty(value: Mapping[str, Any]) -> bool:
    """Return whether to leave a mapping out of the file, which older versions then read."""
    return not value


class Spread(Config):
    """Interquartile range in ms of the runs behind each latency."""

    teacher: float
    blocks: dict[str, float]
    modules: dict[str, float]
    students: dict[str, float] = Field(default_factory=dict, exclude_if=_empty)


def format_of(others: Mapping[str, Any], students: Mapping[str, Any]) -> Literal[1, 2, 3]:
    """Return the file format of a table with these extra costs and separate students."""
    if students:
        return 3
    return 2 if others else 1


class _Step(NamedTuple):
    """One block in execution order: its name, and whether fusing joins it to the block before."""

    name: str
    joins: bool


class CostTable(Config):
    """Costs of a teacher, its blocks, its candidate modules and separate students, and how they were got.

    Example:
        spec, least = costs.cheapest("flops")
        print(spec.widths, least.flops, costs.price_bounds("params"))
        costs.save(Path("costs.json"))
    """

    format: Literal[1, 2, 3] = Field(
        1, description="2: there are costs beside params, flops and latency_ms; 3: separate students"
    )
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
    teacher: WrittenCosts
    blocks: dict[str, WrittenCosts]
    modules: dict[str, WrittenCosts] = Field(description="by `Span.key`")
    students: dict[str, WrittenCosts] = Field(
        default_factory=dict, exclude_if=_empty, description="separate students by architecture"
    )
    spread: Spread

    @model_validator(mode="after")
    def _same_costs(self) -> CostTable:
        if self.format != (expected := format_of(self.teacher.others, self.students)):
            raise ValueError(f"expected format {expected} for these costs and students, got {self.format}")
        for name, costs in {**self.blocks, **self.modules, **self.students}.items():
            if set(costs.others) != set(self.teacher.others):
                raise ValueError(f"{name}: expected the costs {', '.join(self.metrics)}")
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        """Return the names of the costs."""
        return tuple(self.teacher.as_dict())

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """Return every span in the table, in execution order."""
        return candidate_spans(self.structure, self.widths, self.fuse)

    def price(self, spec: StudentSpec) -> Costs:
        """Return the cost of a student. It takes microseconds: no model is built.

        Raises:
            InputError: the table does not hold a block, a width or the architecture of `spec`.
        """
        if spec.arch is not None:
            return self._separate(spec.arch)
        wanted, fuse = spec.widths, spec.fuse
        runs: list[tuple[int, int, float]] = []
        found = 0
        for index, (name, joined) in enumerate(self._steps):
            width = wanted.get(name)
            if width is None:
                continue
            found += 1
            if fuse and joined and runs and runs[-1][1:] == (index, width):
                runs[-1] = (runs[-1][0], index + 1, width)
            else:
                runs.append((index, index + 1, width))
        if found < len(wanted):
            unknown = ", ".join(sorted(set(wanted) - set(self.blocks)))
            raise InputError(
                f"student.widths: no block {unknown} in the cost table; it has {', '.join(self.blocks)}"
            )
        total = self.teacher
        params, flops, latency, others = total.params, total.flops, total.latency_ms, dict(total.others)
        for run in runs:
            change = self._changes.get(run)
            if change is None:
                raise InputError(self._missing(*run))
            params += change.params
            flops += change.flops
            latency += change.latency_ms
            for name in others:
                others[name] += change.others[name]
        return Costs(params, flops, latency, others)

    def cheapest(
        self, metric: str, fuse: bool | None = None, students: Sequence[str] = STUDENTS
    ) -> tuple[StudentSpec, Costs]:
        """Find the cheapest student, exactly, by dynamic programming over the blocks.

        Args:
            metric: params, flops, latency_ms or the name of an extra cost.
            fuse: whether adjacent replaced blocks of one width are fused; None: whichever is cheaper.
            students: `teacher` for the teacher with replaced blocks, and architectures of separate students.

        Raises:
            InputError: no such metric; or `fuse` is True but the table has no fused spans.
        """
        return self._extreme(metric, fuse, 1, students)

    def price_bounds(
        self, metric: str, fuse: bool | None = None, students: Sequence[str] = STUDENTS
    ) -> tuple[float, float]:
        """Return the lowest and the highest cost of any student; see `cheapest`."""
        prices = [self._extreme(metric, fuse, sign, students)[1].as_dict()[metric] for sign in (1, -1)]
        return prices[0], prices[1]

    def to_profile(self) -> dict[str, Any]:
        """Return the table as `ama profile` prints it in JSON."""
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
        separate = [
            {"arch": arch, **costs.as_dict(), "spread_ms": self.spread.students[arch]}
            for arch, costs in self.students.items()
        ]
        listed = {"students": separate} if separate else {}
        return {"teacher": teacher, "blocks": blocks, "modules": modules, **listed, **conditions}

    def save(self, path: Path) -> None:
        """Write the table as JSON, atomically."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @cached_property
    def _steps(self) -> tuple[_Step, ...]:
        blocks = self.structure
        return tuple(
            _Step(block.name, i > 0 and joins(blocks[i - 1], block)) for i, block in enumerate(blocks)
        )

    @cached_property
    def _changes(self) -> dict[tuple[int, int, float], Costs]:
        """Map (first block, block after the last, width) to the module's cost minus its blocks' cost."""
        place = {block.name: index for index, block in enumerate(self.structure)}
        changes = {}
        for span in self.spans:
            blocks = [self.blocks[name] for name in span.blocks]
            start = place[span.blocks[0]]
            change = self.modules[span.key].plus(reduce(Costs.plus, blocks), -1)
            for width, least in merged_widths(self.structure[start], self.widths).items():
                if least == span.width:  # widths that give the same module cost the same
                    changes[start, start + len(blocks), width] = change
        return changes

    def _missing(self, start: int, stop: int, width: float) -> str:
        names = "+".join(step.name for step in self._steps[start:stop])
        return (
            f"student.widths: the cost table has no module of width {width:g} for {names}; it has the widths "
            f"{', '.join(f'{w:g}' for w in self.widths)}, {'fused' if self.fuse else 'no fused'} spans"
        )

    def _separate(self, arch: str) -> Costs:
        if arch not in self.students:
            raise InputError(
                f"student.arch: no student {arch} in the cost table; it has "
                f"{', '.join(self.students) or 'students of the teacher alone'}"
            )
        return self.students[arch]

    def _extreme(
        self, metric: str, fuse: bool | None, sign: int, students: Sequence[str]
    ) -> tuple[StudentSpec, Costs]:
        if metric not in self.metrics:
            raise InputError(f"expected a cost metric ({', '.join(self.metrics)}), got {metric!r}")
        if fuse and not self.fuse:
            raise InputError("costs: the table holds no fused spans, but fused students are asked for")
        found = [(spec, self.price(spec)) for spec in self._extremes(metric, fuse, sign, students)]
        return min(found, key=lambda pair: sign * pair[1].as_dict()[metric])

    def _extremes(
        self, metric: str, fuse: bool | None, sign: int, students: Sequence[str]
    ) -> Iterator[StudentSpec]:
        """Yield the students of every kind among which the cheapest is."""
        choices = [fuse] if fuse is not None else [False, True] if self.fuse else [False]
        for choice in choices if REPLACED in students else ():
            yield StudentSpec(widths=self._best_widths(metric, choice, sign), fuse=choice)
        yield from (StudentSpec(arch=arch) for arch in students if arch != REPLACED)

    def _best_widths(self, metric: str, fuse: bool, sign: int) -> dict[str, float]:
        """Return the widths of the student with the lowest `sign * metric`.

        `best[i]` covers the blocks before i. It maps the width of the last one (None: kept) to the lowest
        change of cost and the widths that give it. A span is never followed by one that fusing would join.
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
