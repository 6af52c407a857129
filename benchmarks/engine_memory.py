"""Does the memory of one process stay flat over many trials?

    python -m benchmarks.engine_memory --trials 200

One actor's life without Ray: students of changing shape are assembled, trained for an epoch on digits, saved
and dropped, one after the other. Compared are the resident memory after the last trial and after the 20th.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from trainables.blocks import find_blocks
from trainables.config import DataConfig, DistillConfig, LossConfig, OptimConfig, RuntimeConfig, StudentSpec
from trainables.data import load_data
from trainables.distill import Distiller
from trainables.models import build_model
from trainables.runtime import device_name, resolve

RESULTS = Path(__file__).parent / "results"
SETTLED = 20  # trials after which nothing is new any more
WIDTHS = (0.25, 0.5, 1.0)


def resident_mib() -> float:
    """Resident memory of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def lives(trials: int, runtime: RuntimeConfig, images: int = 500) -> Iterator[float]:
    """Run so many trials; resident MiB after each."""
    resolved = resolve(runtime)
    data = load_data(DataConfig(name="digits", train_limit=images))
    teacher = build_model("cifar_resnet20", 10, data.image_shape).eval()
    blocks = find_blocks(teacher, torch.zeros(1, *data.image_shape))
    for number in range(trials):
        chosen = blocks[number % 4 :: 1 + number % 3]
        config = DistillConfig(
            student=StudentSpec(
                widths={block.name: WIDTHS[number % len(WIDTHS)] for block in chosen}, fuse=number % 2 == 0
            ),
            loss=LossConfig(supervision="adaptive" if number % 5 == 0 else "uniform"),
            optim=OptimConfig(batch_size=(32, 64, 128)[number % 3]),
            epochs=1,
            seed=number,
        )
        distiller = Distiller(config, teacher, blocks, data, resolved)
        distiller.run_epoch()
        distiller.state_dict()
        del distiller
        yield resident_mib()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.trials <= SETTLED:
        parser.error(f"--trials: expected more than {SETTLED}")
    runtime = RuntimeConfig(device=args.device, threads=1)
    found = list(lives(args.trials, runtime))
    machine = device_name(resolve(runtime).device)
    ratio = round(found[-1] / found[SETTLED - 1], 4)
    conditions = {"machine": machine, "torch": torch.__version__, "trials": args.trials}
    args.out.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
    content = {**conditions, "memory_growth": ratio, "resident_mib": [round(each, 1) for each in found]}
    (args.out / f"engine-memory-{slug}.json").write_text(json.dumps(content) + "\n")
    print(
        f"resident MiB after trial {SETTLED}: {found[SETTLED - 1]:.1f}, after {args.trials}: {found[-1]:.1f}"
    )
    print(f"memory_growth {ratio}")


if __name__ == "__main__":
    main()
