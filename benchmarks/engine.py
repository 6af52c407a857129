"""Compare the time of a trial with the time of its arithmetic alone, and with other implementations.

    python -m benchmarks.engine
    python -m benchmarks.engine --root IMAGEFOLDER --teacher WEIGHTS
    python -m benchmarks.engine epochs accuracy --root IMAGEFOLDER --teacher WEIGHTS --rounds 7

Runs four parts, one after the other; each replaces its section of the result file:

- `epochs`: ours against the bare arithmetic, a loop written by hand, and torchdistill. ResNet-20 teacher,
  three students of different cost, 32 px images, batches of 256. Each contender has a separate process; they
  take turns, epoch by epoch. Times are wall times, on a GPU times of CUDA events. `_cpu_time` compares the
  CPU time of the processes, data workers included, which other programs on the machine disturb less.
- `accuracy`: validation accuracy of the three that distil, after three epochs, on three seeds.
- `memory`: memory of one actor over 200 trials.
- `trials`: time from suggestion to first step, and how busy two workers are, over 40 trials of about 10 s.
  Compared with 12 trials of a stock function trainable that loads data and teacher in every trial. Needs two
  idle cores.

Without `--root` the images are digits, enlarged; without `--teacher` one is trained on them. torchdistill is
left out if it is not installed; `make bench-engine` installs it into a separate folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks import RESULTS
from benchmarks.engine_epochs import (
    accuracies,
    accuracy_figures,
    accuracy_table,
    compete,
    epochs_table,
    plain,
    summary,
)
from benchmarks.engine_jobs import Job, data_config
from benchmarks.engine_memory import SETTLED, memory_part
from benchmarks.engine_trials import trials_part, trials_table
from trainables.config import RuntimeConfig, TeacherConfig
from trainables.data.load import load_data
from trainables.errors import InputError
from trainables.runtime.runtime import device_name, resolve
from trainables.teacher.training import train_teacher

PARTS = ("epochs", "accuracy", "memory", "trials")
TEACHER_EPOCHS = 12  # on digits
IMAGES = 2560  # training images an epoch, from an image folder
VAL_IMAGES = 2000  # validation images of `accuracy`, from an image folder

Part = dict[str, Any]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)}; default: all")
    parser.add_argument("--root", help="image folder with train/<class>/*; default: digits, enlarged")
    parser.add_argument("--teacher", help="weights of a cifar_resnet20; default: trained on the digits")
    parser.add_argument("--device", help="cpu or cuda; default: the CPU, then the GPU if any")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="auto", help="of ours and of the bare arithmetic")
    parser.add_argument("--layout", default="auto")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument(
        "--images",
        type=int,
        help=f"training images an epoch, 0: all; default: {IMAGES} of a folder, all digits",
    )
    parser.add_argument("--rounds", type=int, default=5, help="of epochs")
    parser.add_argument("--seeds", type=int, default=3, help="of accuracy")
    parser.add_argument("--epochs", type=int, default=3, help="of accuracy")
    parser.add_argument("--contenders", default="ours,bare,plain,torchdistill")
    parser.add_argument("--lives", type=int, default=200, help="trials of the part memory")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument(
        "--stock-trials", type=int, default=12, help="trials of the stock trainable, as long as ours"
    )
    parser.add_argument("--workers", type=int, default=2, help="of trials")
    parser.add_argument("--trial-seconds", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.parts = args.parts or list(PARTS)
    if unknown := sorted(set(args.parts) - set(PARTS)):
        parser.error(f"PART: expected some of {', '.join(PARTS)}, got {', '.join(unknown)}")
    if args.lives <= SETTLED:
        parser.error(f"--lives: expected more than {SETTLED}, got {args.lives}")
    if min(args.trials, args.stock_trials) <= args.workers:
        parser.error(f"--trials, --stock-trials: expected more than the {args.workers} --workers")
    if args.root and args.teacher is None:
        parser.error("--root needs a teacher trained on such images: --teacher WEIGHTS")
    others = sorted(set(vars(args)) - {"parts", "root", "teacher", "out"})
    args.given = [
        f"--{o.replace('_', '-')} {v}" for o in others if (v := getattr(args, o)) != parser.get_default(o)
    ]
    if args.images is None:
        args.images = IMAGES if args.root else 0
    args.contenders = args.contenders.split(",")
    if "torchdistill" in args.contenders and importlib.util.find_spec("torchdistill") is None:
        print("torchdistill is not installed: left out", file=sys.stderr)
        args.contenders.remove("torchdistill")
    return args


def digits_teacher(job: Job, folder: Path) -> str:
    """Train a teacher on the job's digits; return the path of its weights."""
    runtime = resolve(RuntimeConfig(device=job.device, threads=job.threads))
    config = TeacherConfig(arch="cifar_resnet20", epochs=TEACHER_EPOCHS, batch_size=64)
    path = folder / "teacher.safetensors"
    record = train_teacher(config, load_data(data_config(job)), runtime, path).record
    print(f"teacher trained, validation accuracy {record.val_accuracy:.4f}", file=sys.stderr)
    return str(path)


def epochs_part(job: Job, args: argparse.Namespace) -> Part:
    times, how = compete(replace(job, epochs=args.rounds + 1), args.contenders, args.rounds)
    ratios, figures = summary(times)
    return {"rounds": args.rounds, "ours": how, "figures": figures, "ratios": ratios, "epochs": plain(times)}


def accuracy_part(job: Job, args: argparse.Namespace) -> Part:
    names = [name for name in args.contenders if name != "bare"]
    found = accuracies(replace(job, epochs=args.epochs, val_images=VAL_IMAGES), names, args.seeds)
    conditions = {"epochs": args.epochs, "seeds": args.seeds, "val_images": VAL_IMAGES}
    return {**conditions, "figures": accuracy_figures(found), "accuracy": found}


def run(part: str, job: Job, args: argparse.Namespace, folder: Path) -> Part:
    """Run a part; return its result with the conditions it ran under."""
    run_it: dict[str, Callable[[], Part]] = {
        "epochs": lambda: epochs_part(job, args),
        "accuracy": lambda: accuracy_part(job, args),
        "memory": lambda: memory_part(args.lives, job.device, job.threads),
        "trials": lambda: trials_part(
            job, args.trials, args.stock_trials, args.workers, args.trial_seconds, folder
        ),
    }
    conditions = {
        "command": command(part, args),
        "torch": torch.__version__,
        "torchdistill": version("torchdistill") if "torchdistill" in args.contenders else None,
        "threads": job.threads,
        "batch": job.batch,
        "images": job.images,
        "data": "image folder" if job.root else "digits",
        "load_at_start": round(os.getloadavg()[0], 2),
    }
    return {**conditions, **run_it[part](), "load_at_end": round(os.getloadavg()[0], 2)}


def command(part: str, args: argparse.Namespace) -> str:
    """Return the command that repeats the part elsewhere."""
    files = ["--root IMAGES", "--teacher WEIGHTS"] if args.root else []
    return " ".join(["python -m benchmarks.engine", part, *files, *args.given])


def markdown(content: dict[str, Any]) -> str:
    """Return the result's tables, a section for each part that was run."""
    texts: dict[str, Callable[[Part], str]] = {
        "epochs": lambda p: epochs_table(p["epochs"], p["ratios"]),
        "accuracy": lambda p: accuracy_table(p["accuracy"]),
        "memory": lambda p: (
            f"After {p['trials']} trials {p['figures']['memory_growth']} times the memory "
            f"after trial {p['settled_after']} ({p['host_mib'][-1]} MiB resident)."
        ),
        "trials": trials_table,
    }
    titles = {
        "epochs": "Median seconds an epoch, training and validation",
        "accuracy": "Validation accuracy, mean and deviation over the seeds",
        "memory": "Memory of one actor",
        "trials": "Trials of a search",
    }
    lines = [f"# The engine on {content['machine']}"]
    for name in (name for name in PARTS if name in content["parts"]):
        part = content["parts"][name]
        about = (
            f"{part['threads']} thread(s), torch {part['torch']}, batches of {part['batch']}, "
            f"{part['images'] or 'all'} training images of {part['data']}, load {part['load_at_start']} to "
            f"{part['load_at_end']}"
        )
        lines += ["", f"## {titles[name]}", "", f"`{part['command']}`: {about}.", "", texts[name](part)]
    return "\n".join(lines) + "\n"


def save(out: Path, machine: str, name: str, part: Part) -> dict[str, Any]:
    """Replace this part of the machine's result file; return the whole result."""
    slug = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
    path = out / f"engine-{slug}.json"
    content: dict[str, Any] = {"machine": machine, "parts": {}}
    if path.exists():
        content = json.loads(path.read_text())
    content["parts"][name] = part
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) + "\n")
    path.with_suffix(".md").write_text(markdown(content))
    return content


def bench(device: str, args: argparse.Namespace) -> None:
    """Run the selected parts on one device."""
    machine = device_name(torch.device(device))
    job = Job(
        root=args.root,
        teacher=args.teacher,
        device=device,
        threads=args.threads,
        precision=args.precision,
        layout=args.layout,
        batch=args.batch,
        images=args.images or None,
        epochs=args.epochs,
    )
    with tempfile.TemporaryDirectory() as folder:
        if job.teacher is None and args.parts != ["memory"]:
            job = replace(job, teacher=digits_teacher(job, Path(folder)))
        for name in args.parts:
            content = save(args.out, machine, name, run(name, job, args, Path(folder)))
    print(markdown(content))
    for name in args.parts:
        for figure, value in content["parts"][name]["figures"].items():
            print(figure, value)


def main() -> None:
    args = parse()
    there = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    try:
        for device in [args.device] if args.device else there:
            bench(device, args)
    except InputError as fault:
        sys.exit(f"error: {fault}")


if __name__ == "__main__":
    main()
