"""Does a distillation epoch cost what its arithmetic costs, and what do other ways of running it cost?

    python -m benchmarks.engine
    python -m benchmarks.engine --root IMAGEFOLDER --teacher WEIGHTS --rounds 7
    python -m benchmarks.engine --root IMAGEFOLDER --teacher WEIGHTS --accuracy

Ours against the bare arithmetic, a loop written by hand, and torchdistill (where it is installed:
`pip install torchdistill --no-deps`): ResNet-20 teacher, three students of different cost, 32 px images,
batches of 256. Each contender has a process of its own; they take turns, epoch by epoch. `--accuracy` trains
the three that distil for three epochs on three seeds instead. Without `--root` the images are digits,
enlarged. Times are those of the clock; `_cpu_time` compares what the processes computed, data workers
included, which other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import statistics
import sys
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine_jobs import Job
from benchmarks.engine_process import Contender, Epoch
from trainables.config import RuntimeConfig
from trainables.runtime import device_name, resolve

RESULTS = Path(__file__).parent / "results"
STUDENTS = ("small", "medium", "large")
Times = dict[str, dict[str, list[Epoch]]]  # contender to student to one epoch a round


def compete(job: Job, names: list[str], rounds: int) -> tuple[Times, dict[str, Any]]:
    """One warm-up epoch of everything, then `rounds` rounds in which every contender trains every student.

    The order of the contenders turns from round to round, so that none always follows the same one.

    Returns:
        The epochs, and in which precision and layout ours computed.
    """
    times: Times = {name: {student: [] for student in STUDENTS} for name in names}
    with ExitStack() as stack:
        contenders = [stack.enter_context(Contender(name, job)) for name in names]
        for index in range(rounds + 1):
            turn = index % len(contenders)
            for student in STUDENTS:
                for contender in contenders[turn:] + contenders[:turn]:
                    epoch = contender.epoch(student)
                    if index:
                        times[contender.name][student].append(epoch)
            print(f"round {index} of {rounds}{' (warm-up)' if not index else ''}", file=sys.stderr)
        return times, contenders[0].runtime


def ratios(times: Times, over: str, cpu: bool = False) -> dict[str, list[float]]:
    """Our time in units of another contender's, per student, round by round."""
    field = "cpu_seconds" if cpu else "seconds"
    return {
        student: [
            getattr(mine, field) / getattr(theirs, field)
            for mine, theirs in zip(epochs, times[over][student], strict=True)
        ]
        for student, epochs in times["ours"].items()
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles; the extremes where there are fewer than four values."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 3 else (min(values), 0.0, max(values))
    return {"median": statistics.median(values), "low": low, "high": high, "n": len(values)}


def summary(times: Times) -> tuple[dict[str, Any], dict[str, float]]:
    """Spreads by contender and student, and the figures: medians over all students and rounds."""
    compared: dict[str, Any] = {}
    figures = {}
    for over in (name for name in times if name != "ours"):
        by_student = ratios(times, over)
        everything = [value for values in by_student.values() for value in values]
        compared[over] = {student: spread(values) for student, values in by_student.items()}
        compared[over]["all"] = spread(everything)
        figures[f"epoch_vs_{over}"] = round(statistics.median(everything), 3)
        worked = [value for values in ratios(times, over, cpu=True).values() for value in values]
        compared[over]["cpu_time"] = spread(worked)
        figures[f"epoch_vs_{over}_cpu_time"] = round(statistics.median(worked), 3)
    return compared, figures


def table(times: Times, compared: dict[str, Any], title: str) -> str:
    """A Markdown table: median seconds an epoch, and ours as a multiple of the others'."""
    lines = [f"{title}", "", f"| contender | {' | '.join(STUDENTS)} | ours as a multiple (quartiles) |"]
    lines.append("|---|" + "---:|" * (len(STUDENTS) + 1))
    for name, by_student in times.items():
        seconds = [statistics.median(e.seconds for e in by_student[student]) for student in STUDENTS]
        found = compared.get(name, {}).get("all")
        ratio = f"{found['median']:.3f} ({found['low']:.3f} to {found['high']:.3f})" if found else ""
        lines.append(f"| {name} | {' | '.join(f'{s:.2f} s' for s in seconds)} | {ratio} |")
    return "\n".join(lines) + "\n"


def accuracies(job: Job, names: list[str], seeds: int) -> dict[str, dict[str, list[float]]]:
    """Validation accuracy of every student after the job's epochs: contender to student to one a seed."""
    found: dict[str, dict[str, list[float]]] = {name: {s: [] for s in STUDENTS} for name in names}
    for name in names:
        for seed in range(seeds):
            with Contender(name, Job(**{**asdict(job), "seed": seed})) as contender:
                for student in STUDENTS:
                    last = [contender.epoch(student) for _ in range(job.epochs)][-1]
                    found[name][student].append(last.accuracy)
            print(f"{name}, seed {seed}: {found[name]}", file=sys.stderr)
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", help="image folder with train/<class>/*; default: digits, enlarged")
    parser.add_argument("--teacher", help="weights of a cifar_resnet20; default: random, for times alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="auto", help="ours and the bare arithmetic's")
    parser.add_argument("--layout", default="auto")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=int, default=2560, help="training images an epoch; 0: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--accuracy", action="store_true", help="compare accuracies instead of times")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="with --accuracy")
    parser.add_argument("--contenders", default="ours,bare,plain,torchdistill")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.names = args.contenders.split(",")
    if "torchdistill" in args.names and importlib.util.find_spec("torchdistill") is None:
        print("torchdistill is not installed: left out", file=sys.stderr)
        args.names.remove("torchdistill")
    if args.accuracy and args.teacher is None:
        parser.error("--accuracy needs a trained teacher: --teacher WEIGHTS")
    return args


def main() -> None:
    args = parse()
    machine = device_name(resolve(RuntimeConfig(device=args.device, threads=args.threads)).device)
    conditions: dict[str, Any] = {
        "machine": machine,
        "threads": args.threads,
        "torch": torch.__version__,
        "torchdistill": version("torchdistill") if "torchdistill" in args.names else None,
        "batch": args.batch,
        "images": args.images,
        "data": "image folder" if args.root else "digits",
        "load_at_start": os.getloadavg()[0],
    }
    job = Job(
        root=args.root,
        teacher=args.teacher,
        device=args.device,
        threads=args.threads,
        precision=args.precision,
        layout=args.layout,
        batch=args.batch,
        images=args.images or None,
        epochs=args.epochs if args.accuracy else args.rounds + 1,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
    if args.accuracy:
        names = [name for name in args.names if name != "bare"]
        found = accuracies(job, names, args.seeds)
        conditions |= {"epochs": args.epochs, "seeds": args.seeds}
        write(args.out / f"engine-accuracy-{slug}.json", {**conditions, "accuracy": found})
        for name, by_student in found.items():
            values = [value for each in by_student.values() for value in each]
            print(f"accuracy_{name} {statistics.mean(values):.4f}")
        return
    times, conditions["ours"] = compete(job, args.names, args.rounds)
    compared, figures = summary(times)
    epochs = {n: {s: [asdict(e) for e in each] for s, each in by.items()} for n, by in times.items()}
    conditions |= {"rounds": args.rounds, "load_at_end": os.getloadavg()[0]}
    write(
        args.out / f"engine-{slug}.json",
        {**conditions, "figures": figures, "ratios": compared, "epochs": epochs},
    )
    title = (
        f"{machine}, {args.threads} thread(s), torch {torch.__version__}, batches of {args.batch}, "
        f"{args.images or 'all'} images an epoch, {args.rounds} rounds; median seconds an epoch"
    )
    text = table(times, compared, title)
    (args.out / f"engine-{slug}.md").write_text(text)
    print(text)
    for name, value in figures.items():
        print(name, value)


def write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
