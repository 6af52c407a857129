"""Compare costs from the cost table with those of students that are built and run.

    python -m benchmarks.prices
    python -m benchmarks.prices --threads 2 --seconds 60

Uses random students of two teachers with random weights: `cifar_resnet56` at 32x32, and `cifar_resnet20` at
8x8, where calls and memory traffic take more time than arithmetic. Params and FLOPs must be equal. Latency is
compared with an end-to-end measurement of the built students, made after the table.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import time
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from benchmarks import RESULTS
from trainables.blocks.blocks import Block, find_blocks
from trainables.config import RuntimeConfig, StudentSpec
from trainables.costs.latency import measure_many
from trainables.costs.measure import measure_costs
from trainables.costs.table import CostTable
from trainables.network.architectures import build_model
from trainables.network.flops import count_flops, count_params
from trainables.runtime.runtime import Runtime, device_name, resolve
from trainables.runtime.seeds import seeded
from trainables.student.build import build_student

WIDTHS = (0.125, 0.25, 0.5)
CASES = {"resnet56_32px": ("cifar_resnet56", 32, 8), "resnet20_8px": ("cifar_resnet20", 8, 32)}


def random_students(blocks: tuple[Block, ...], count: int, seed: int) -> list[StudentSpec]:
    """Return random students with none to all blocks replaced, with mixed widths, fused or not."""
    rng = random.Random(seed)
    specs = []
    for _ in range(count):
        share = rng.random()
        widths = {block.name: rng.choice(WIDTHS) for block in blocks if rng.random() < share}
        specs.append(StudentSpec(widths=widths, fuse=rng.random() < 0.5))
    return specs


def compare(
    arch: str, size: int, batch: int, runtime: Runtime, count: int, seconds: float, seed: int
) -> dict[str, Any]:
    with seeded(seed):
        teacher = build_model(arch, 10, (3, size, size)).eval().to(runtime.device)
    image = torch.zeros(1, 3, size, size, device=runtime.device)
    blocks = find_blocks(teacher, image)
    start = time.perf_counter()
    table = measure_costs(teacher, blocks, WIDTHS, True, (3, size, size), runtime, batch, seconds=seconds)
    table_seconds = time.perf_counter() - start
    specs = random_students(blocks, count, seed)
    students = {str(i): build_student(teacher, blocks, spec) for i, spec in enumerate(specs)}
    example = torch.randn(batch, 3, size, size)
    measured = measure_many({"teacher": teacher, **students}, example, runtime, seconds=2 * seconds)
    prices = [table.price(spec) for spec in specs]
    counted = [(count_params(s), count_flops(s, image)) for s in students.values()]
    price_ms = np.array([price.latency_ms for price in prices])
    real_ms = np.array([measured[name].median_ms for name in students])
    errors = np.abs(price_ms / real_ms - 1)
    ratio = table.teacher.latency_ms / measured["teacher"].median_ms
    ratio_errors = np.abs(price_ms / real_ms / ratio - 1)
    return {
        "arch": arch,
        "image_shape": [3, size, size],
        "batch_size": batch,
        "students": count,
        "blocks": len(blocks),
        "modules": len(table.modules),
        "params_exact": sum(p.params == c[0] for p, c in zip(prices, counted, strict=True)),
        "flops_exact": sum(p.flops == c[1] for p, c in zip(prices, counted, strict=True)),
        "latency_error": {
            "median": float(np.median(errors)),
            "mean": float(errors.mean()),
            "std": float(errors.std(ddof=1)),
            "max": float(errors.max()),
            "bias": float(np.mean(price_ms / real_ms - 1)),
        },
        "median_error_of_ratio_to_teacher": float(np.median(ratio_errors)),
        "spearman": float(spearmanr(price_ms, real_ms).statistic),
        "teacher_ms": {"table": table.teacher.latency_ms, "measured": measured["teacher"].median_ms},
        "students_ms": {"price": price_ms.round(4).tolist(), "measured": real_ms.round(4).tolist()},
        "table_runs": table.runs,
        "end_to_end_runs": measured["teacher"].runs,
        "table_seconds": table_seconds,
        "price_microseconds": price_microseconds(table, specs),
    }


def price_microseconds(table: CostTable, specs: list[StudentSpec], rounds: int = 50) -> float:
    """Return the median over rounds of the mean time of one `price` call, in µs."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for spec in specs:
            table.price(spec)
        times.append((time.perf_counter() - start) / len(specs) * 1e6)
    return float(np.median(times))


def show(name: str, found: dict[str, Any]) -> None:
    error, n, side = found["latency_error"], found["students"], found["image_shape"][1]
    real = found["students_ms"]["measured"]
    print(f"{name}: {found['arch']}, {side} px, batches of {found['batch_size']}, n = {n} students")
    print(f"  params exact for {found['params_exact']}, FLOPs for {found['flops_exact']} of {n}")
    print(
        f"  latency error: median {error['median']:.3f}, mean {error['mean']:.3f} ± {error['std']:.3f} (sd), "
        f"worst {error['max']:.3f}, bias {error['bias']:+.3f}; Spearman {found['spearman']:.3f}; "
        f"of the ratio to the teacher: median {found['median_error_of_ratio_to_teacher']:.3f}"
    )
    print(
        f"  students take {min(real):.2f} to {max(real):.2f} ms, "
        f"the teacher {found['teacher_ms']['measured']:.2f} ms ({found['end_to_end_runs']} runs each)"
    )
    print(
        f"  the table: {found['table_runs']} runs or more a figure, {found['table_seconds']:.0f} s; "
        f"one price {found['price_microseconds']:.1f} µs"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--students", type=int, default=30)
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="measuring time of a table; students take twice that"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, help="images a forward pass; default: 8 at 32 px, 32 at 8 px")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    runtime = resolve(RuntimeConfig(device=args.device, threads=args.threads))
    machine = device_name(runtime.device)
    print(
        f"{machine}, {args.threads} thread(s), fp32, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"
    )
    found = {}
    for name, (arch, size, batch) in CASES.items():
        found[name] = compare(
            arch, size, args.batch or batch, runtime, args.students, args.seconds, args.seed
        )
        show(name, found[name])
    conditions = {
        "machine": machine,
        "threads": args.threads,
        "precision": "fp32",
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
        "command": f"python -m benchmarks.prices --threads {args.threads} --seconds {args.seconds:g}",
    }
    main_case, small = found["resnet56_32px"], found["resnet20_8px"]
    figures = {
        "price_params_exact": main_case["params_exact"] / args.students,
        "price_flops_exact": main_case["flops_exact"] / args.students,
        "price_latency_median_error": round(main_case["latency_error"]["median"], 4),
        "price_latency_spearman": round(main_case["spearman"], 4),
        "price_latency_median_error_8px": round(small["latency_error"]["median"], 4),
        "price_latency_spearman_8px": round(small["spearman"], 4),
        "price_microseconds": round(main_case["price_microseconds"], 1),
    }
    slug = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
    path = RESULTS / f"prices-{slug}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**conditions, "figures": figures, "cases": found}, indent=1) + "\n")
    for name, value in figures.items():
        print(name, value)


if __name__ == "__main__":
    main()
