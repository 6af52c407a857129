"""Measure a cost table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from trainables.blocks.blocks import Block
from trainables.config import StudentSpec
from trainables.costs.extra import Cost, measure_extra
from trainables.costs.latency import (
    SECONDS,
    Latency,
    Part,
    Probe,
    Times,
    measure_latency,
    measure_many,
    measure_probes,
    prepared,
    summary,
)
from trainables.costs.load import load_costs
from trainables.costs.table import COST_METRICS, Costs, CostTable, Spread, format_of
from trainables.errors import InputError
from trainables.files import code_version
from trainables.network.flops import count_flops, count_params
from trainables.network.weights import weights_hash
from trainables.runtime.runtime import Runtime, device_name
from trainables.student.build import build_span, build_student
from trainables.student.spans import Span, candidate_spans, merged_widths, spans_of

__all__ = [
    "COST_METRICS",
    "CostTable",
    "Costs",
    "Latency",
    "Spread",
    "load_costs",
    "measure_costs",
    "measure_latency",
    "measure_many",
]

CPU_BATCH = 32
GPU_BATCH = 256


def measure_costs(
    teacher: nn.Module,
    blocks: Sequence[Block],
    widths: Sequence[float],
    fuse: bool,
    image_shape: Sequence[int],
    runtime: Runtime,
    batch_size: int | None = None,
    *,
    precision: str = "fp32",
    seconds: float = SECONDS,
    progress: Callable[[int, int], None] | None = None,
    extra: Mapping[str, Cost] | None = None,
    students: Sequence[str] = (),
) -> CostTable:
    """Measure the costs of a teacher, its blocks, its candidate modules and separate students.

    Blocks are timed inside the running teacher, modules inside running students: one student for each width
    with every block replaced, and as few more as needed to run every kind of module once. Modules of the
    same shapes and layers do the same work at every place and share one latency. Separate students are timed
    as a whole, in turns with the others.

    Args:
        teacher: not changed; copies of it run.
        blocks: of this teacher, as `find_blocks` gave them.
        widths: of the candidate modules.
        fuse: whether to include spans of several blocks.
        image_shape: (3, H, W).
        runtime: its device, layout and threads are used; its (training) precision is not.
        batch_size: images a forward pass; None: 32 on a CPU, 256 on a GPU.
        precision: autocast type of inference.
        seconds: measuring time of the latencies; slow models take longer.
        progress: called with (tenths of a second spent, total).
        extra: further costs by metric name.
        students: architectures of separate students.

    Returns:
        A table that gives the cost of any of these students: params, FLOPs of one image, ms of one
        batch.

    Raises:
        InputError: the costs of the parts do not add up, because blocks share weights with each other or
            with the rest, or because an extra cost is not a sum over the parts; or an extra cost failed.

    Example:
        widths = [0.25, 0.5]
        costs = measure_costs(teacher.model, blocks, widths, True, data.image_shape, resolve(), seconds=0.1)
        print(costs.teacher)
        print(costs.price(StudentSpec(widths={block.name: 0.25 for block in blocks})))
    """
    if batch_size is None:
        batch_size = GPU_BATCH if runtime.device.type == "cuda" else CPU_BATCH
    images = torch.randn(batch_size, *image_shape, generator=torch.Generator().manual_seed(0))
    extra = extra or {}
    kinds = _kinds(candidate_spans(blocks, widths, fuse), extra, runtime)
    specs = list(_covering(blocks, widths, kinds))
    probes = _probes(teacher, blocks, specs, kinds, runtime)
    separate = _separate_probes(teacher, blocks, students, image_shape, runtime)
    probes += separate.values()
    samples = measure_probes(probes, images, runtime, precision=precision, seconds=seconds, progress=progress)
    whole, parts = _figures(probes, samples)
    teacher_flops = count_flops(probes[0].model, images[:1].to(runtime.device))
    image = images[:1].to(runtime.device)
    whole_others = measure_extra(extra, prepared(teacher, runtime), image, runtime)
    others = _block_others(teacher, blocks, kinds, whole_others, extra, image, runtime)
    times = [summary(sample[:, 0]) for sample in samples[2 + len(specs) :]]
    table = CostTable(
        format=format_of(extra, separate),
        version=code_version(),
        teacher_hash=weights_hash(teacher),
        device=device_name(runtime.device),
        batch_size=batch_size,
        threads=runtime.threads,
        precision=precision,
        channels_last=runtime.channels_last,
        image_shape=tuple(image_shape),
        runs=min(len(sample) for sample in samples),
        widths=tuple(widths),
        fuse=fuse,
        structure=tuple(blocks),
        teacher=Costs(count_params(teacher), teacher_flops, whole.median_ms, whole_others),
        blocks={
            b.name: Costs(b.params, b.flops, parts["block", b.name].median_ms, others[b.name]) for b in blocks
        },
        modules={
            key: Costs(kind.params, kind.flops, parts["module", kind.text].median_ms, kind.others)
            for key, kind in kinds.items()
        },
        students={
            arch: _costs_of(probe.model, time, extra, image, runtime)
            for (arch, probe), time in zip(separate.items(), times, strict=True)
        },
        spread=Spread(
            teacher=whole.spread_ms,
            blocks={b.name: parts["block", b.name].spread_ms for b in blocks},
            modules={key: parts["module", kind.text].spread_ms for key, kind in kinds.items()},
            students={arch: time.spread_ms for arch, time in zip(separate, times, strict=True)},
        ),
    )
    for spec, probe in zip(specs, probes[2 : 2 + len(specs)], strict=True):
        _check_sum(table, spec, probe.model, image)
        _check_extra_sum(table, spec, measure_extra(extra, probe.model, image, runtime))
    return table


@dataclass(frozen=True)
class _Kind:
    """Modules of the same shapes and layers: their params, FLOPs and extra costs."""

    text: str
    params: int
    flops: int
    others: Mapping[str, float]


def _kinds(spans: Sequence[Span], extra: Mapping[str, Cost], runtime: Runtime) -> dict[str, _Kind]:
    """Return the kind of every span's module, by the span's key."""
    known: dict[tuple[Any, ...], _Kind] = {}
    kinds = {}
    for span in spans:
        made_of = (span.in_shape, span.out_shape, span.width, span.layout, span.activation)
        if made_of not in known:
            module = build_span(span)
            inputs = torch.zeros(1, *span.in_shape)
            flops = count_flops(module, inputs)
            moved = inputs.to(runtime.device)
            others = measure_extra(extra, prepared(module, runtime), moved, runtime) if extra else {}
            known[made_of] = _Kind(f"{span.in_shape} {module}", count_params(module), flops, others)
        kinds[span.key] = known[made_of]
    return kinds


def _block_others(
    teacher: nn.Module,
    blocks: Sequence[Block],
    kinds: Mapping[str, _Kind],
    whole: Mapping[str, float],
    extra: Mapping[str, Cost],
    image: torch.Tensor,
    runtime: Runtime,
) -> dict[str, dict[str, float]]:
    """Return the extra costs of every block.

    A block costs as much as the teacher, minus a student with this block replaced, plus the module.
    """
    if not extra:
        return {block.name: {} for block in blocks}
    singles = {key.rpartition("@")[0]: key for key in kinds}  # by the blocks of a span
    found = {}
    for block in blocks:
        width = float(singles[block.name].rpartition("@")[2])
        student = build_student(teacher, blocks, StudentSpec(widths={block.name: width}))
        without = measure_extra(extra, prepared(student, runtime), image, runtime)
        module = kinds[singles[block.name]].others
        found[block.name] = {name: whole[name] - without[name] + module[name] for name in extra}
    return found


def _covering(
    blocks: Sequence[Block], widths: Sequence[float], kinds: Mapping[str, _Kind]
) -> Iterator[StudentSpec]:
    """Yield a few students that together contain every kind of module."""
    seen: set[str] = set()
    least = {block.name: merged_widths(block, widths) for block in blocks}
    for width in widths:
        spec = StudentSpec(widths={name: merged[width] for name, merged in least.items()}, fuse=False)
        held = {kinds[span.key].text for span in spans_of(blocks, spec)}
        if held - seen:
            yield spec
        seen |= held
    spans = candidate_spans(blocks, widths, fuse=True)
    while left := [span for span in spans if span.key in kinds and kinds[span.key].text not in seen]:
        chosen: list[Span] = []
        spec = StudentSpec()
        for span in left:
            fuller = StudentSpec(widths={**spec.widths, **dict.fromkeys(span.blocks, span.width)})
            if kinds[span.key].text not in seen and set(spans_of(blocks, fuller)) == {*chosen, span}:
                spec = fuller
                chosen.append(span)
                seen.add(kinds[span.key].text)
        yield spec


def _probes(
    teacher: nn.Module,
    blocks: Sequence[Block],
    specs: Sequence[StudentSpec],
    kinds: Mapping[str, _Kind],
    runtime: Runtime,
) -> list[Probe[tuple[str, str, str]]]:
    """Make probes of the teacher alone, the teacher with its blocks timed, and each student's modules timed.

    A part's name is ("block" or "module", key of its latency, block name or span key).
    """
    timed = {("block", b.name, b.name): Part(b.members[0], b.members[-1]) for b in blocks}
    probes = [Probe(prepared(teacher, runtime), {}), Probe(prepared(teacher, runtime), timed)]
    for spec in specs:
        modules = {
            ("module", kinds[span.key].text, span.key): Part(span.first, span.last)
            for span in spans_of(blocks, spec)
        }
        probes.append(Probe(prepared(build_student(teacher, blocks, spec), runtime), modules))
    return probes


def _separate_probes(
    teacher: nn.Module,
    blocks: Sequence[Block],
    students: Sequence[str],
    image_shape: Sequence[int],
    runtime: Runtime,
) -> dict[str, Probe[tuple[str, str, str]]]:
    """Make a probe of every separate student, by its architecture."""
    side: Any = tuple(image_shape)
    built = {
        arch: build_student(teacher, blocks, StudentSpec(arch=arch), image_shape=side) for arch in students
    }
    return {arch: Probe(prepared(model, runtime), {}) for arch, model in built.items()}


def _costs_of(
    model: nn.Module, time: Latency, extra: Mapping[str, Cost], image: torch.Tensor, runtime: Runtime
) -> Costs:
    others = measure_extra(extra, model, image, runtime)
    return Costs(count_params(model), count_flops(model, image), time.median_ms, others)


def _figures(
    probes: Sequence[Probe[tuple[str, str, str]]], samples: Sequence[Times]
) -> tuple[Latency, dict[tuple[str, str], Latency]]:
    """Return the latency of the whole teacher, and of each part: the median over all parts of its kind."""
    found: dict[tuple[str, str], list[Latency]] = {}
    for probe, sample in zip(probes, samples, strict=True):
        for column, (role, text, _) in enumerate(probe.parts, start=1):
            found.setdefault((role, text), []).append(summary(sample[:, column]))
    parts = {
        name: Latency(
            float(np.median([one.median_ms for one in places])),
            float(np.median([one.spread_ms for one in places])),
            sum(one.runs for one in places),
        )
        for name, places in found.items()
    }
    return summary(samples[0][:, 0]), parts


def _check_sum(table: CostTable, spec: StudentSpec, student: nn.Module, image: torch.Tensor) -> None:
    price, counted = table.price(spec), (count_params(student), count_flops(student, image))
    if (price.params, price.flops) != counted:
        raise InputError(
            f"teacher: the costs of its blocks do not add up: with {', '.join(spec.widths)} replaced, params "
            f"and FLOPs should be {price.params} and {price.flops}, but are {counted[0]} and {counted[1]}; "
            "blocks that share weights with other parts cannot be priced: exclude them by space.blocks"
        )


def _check_extra_sum(table: CostTable, spec: StudentSpec, measured: Mapping[str, float]) -> None:
    priced = table.price(spec).others
    for name, value in measured.items():
        if not math.isclose(priced[name], value, rel_tol=1e-6, abs_tol=1e-9):
            raise InputError(
                f"cost {name}: it does not add up over the blocks: with {', '.join(spec.widths)} replaced it "
                f"should be {priced[name]:g}, but is {value:g}; a cost must be a sum over a model's parts"
            )
