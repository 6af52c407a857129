"""Run our search with the limits of ModelOpt's FastNAS example: ResNet-20 on CIFAR-10.

    python -m benchmarks.fastnas --root IMAGES --teacher FILE
    python -m benchmarks.fastnas --root IMAGES --teacher FILE --train-limit 5000 --trials 30 --epochs 4

The example's public notebook goes from 81.2 M to 59.2 M FLOPs (0.73x), from 268 k to 174 k parameters (0.65x)
and from 90.97 % to 90.28 % test accuracy: it loses 0.69 points. Ours: a search with the module library under
the same limits, its most accurate student by validation images, retrained with several seeds, each tested
once. IMAGES has train/<class>/ and test/<class>/; FILE holds the weights of a cifar_resnet20. The stages are
those of `ama search`, `ama pick` and `ama retrain` in one run directory; run again, the command continues.
Writes fastnas-<name>.json and .md into --out.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.intervals import summarise
from analysis.metrics import show
from analysis.picks.pick import pick
from analysis.picks.pick_file import write_pick
from analysis.report.retrained import RESULTS as ENTRIES
from analysis.report.retrained import read_results
from analysis.runs.run import Run
from analysis.runs.status import status
from benchmarks import RESULTS
from benchmarks.paper import ON_CPU, command_line
from search.cluster.connection import connected
from search.experiment.experiment import Experiment
from search.experiment.load import load_experiment
from search.run import search as runner
from search.run.retrain import retrain_picks
from search.run_dir.files import EXPERIMENT_FILE

FLOPS, PARAMS = 0.73, 0.65  # of the teacher's
FASTNAS_POINTS = 0.69
FASTNAS = {"flops": (81.2e6, 59.2e6), "params": (268e3, 174e3), "test_accuracy": (0.9097, 0.9028)}


def experiment(args: argparse.Namespace) -> Experiment:
    """Return the preset's experiment with FastNAS's limits and the library."""
    overrides = [
        *(f"runtime.{setting}" for setting in (ON_CPU if args.cpu else ())),
        *(["data.name=imagefolder", f"data.root={args.root}"] if args.root else []),
        *([f"teacher.checkpoint={args.teacher}"] if args.teacher else []),
        *([f"data.train_limit={args.train_limit}"] if args.train_limit else []),
        "objectives=[val_accuracy, flops]",
        f"constraints={{flops: <= {FLOPS}x, params: <= {PARAMS}x}}",
        "warm_start=library",
        f"budget.trials={args.trials}",
        f"budget.epochs={args.epochs}",
        f"budget.grace_epochs={min(args.grace, args.epochs)}",
        *args.override,
    ]
    return load_experiment("cifar10-resnet20", overrides, args.work)


def searched(found: Experiment) -> Run:
    """Start or resume the search; return its run."""
    folder = Path(found.run.dir)
    resume = (folder / EXPERIMENT_FILE).exists()
    runner.search(found, resume=resume, command=command_line("benchmarks.fastnas"))
    return Run.open(folder)


def summary(teacher: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return lost points of test accuracy, with interval, and the student's costs over the teacher's.

    Args:
        teacher: `test_accuracy`, `flops` and `params`.
        entries: retrained models of one student.
    """
    lost = [100 * (teacher["test_accuracy"] - entry["test_accuracy"]) for entry in entries]
    found = summarise(lost)
    return {
        "fastnas_drop_points": round(found.mean, 3),
        "fastnas_drop_low": None if found.low is None else round(found.low, 3),
        "fastnas_drop_high": None if found.high is None else round(found.high, 3),
        "fastnas_drop_theirs": FASTNAS_POINTS,
        "fastnas_flops_share": round(entries[0]["flops"] / teacher["flops"], 4),
        "fastnas_params_share": round(entries[0]["params"] / teacher["params"], 4),
        "fastnas_seeds": found.n,
    }


def markdown(figures: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """Format both examples as one table."""
    teacher, models = record["teacher"], record["models"]
    theirs, tested = FASTNAS, summarise([model["test_accuracy"] for model in models])
    spread = "" if tested.std is None else f" ± {100 * tested.std:.2f}"
    interval = ""
    if figures["fastnas_drop_low"] is not None:
        interval = f" [{figures['fastnas_drop_low']:.2f}, {figures['fastnas_drop_high']:.2f}]"
    rows = [
        ["", "FLOPs", "params", "test accuracy", "points lost"],
        ["---"] * 5,
        [
            "FastNAS, ResNet-20 (its notebook)",
            f"{show('flops', theirs['flops'][0])} → {show('flops', theirs['flops'][1])}",
            f"{show('params', theirs['params'][0])} → {show('params', theirs['params'][1])}",
            f"{100 * theirs['test_accuracy'][0]:.2f} → {100 * theirs['test_accuracy'][1]:.2f} %",
            f"{FASTNAS_POINTS:.2f}",
        ],
        [
            f"ours, {teacher['arch']}, n = {len(models)}",
            f"{show('flops', teacher['flops'])} → {show('flops', models[0]['flops'])}",
            f"{show('params', teacher['params'])} → {show('params', models[0]['params'])}",
            f"{100 * teacher['test_accuracy']:.2f} → {100 * tested.mean:.2f}{spread} %",
            f"{figures['fastnas_drop_points']:.2f}{interval}",
        ],
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        f"# At the limits of FastNAS's example\n\n`{record['command']}`: {record['trials']} trials of "
        f"{record['epochs']} epochs on {record['search_images']:,} images; the pick for "
        f"{models[0]['epochs']} epochs on {record['retrain_images']:,}. {record['device']}. Points lost: "
        "mean and 95 % interval over seeds. The two lines have different teachers; FastNAS's is trained on "
        f"CIFAR-10's original images.\n\n{table}\n\nThe pick: {record['pick']}.\n"
    )


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--root", help="folder with train/<class>/, test/<class>/; default: the preset's data")
    found.add_argument("--teacher", help="weights of the teacher; default: train the preset's")
    found.add_argument("--train-limit", type=int, metavar="N", help="images of the search; default: all")
    found.add_argument("--trials", type=int, default=40)
    found.add_argument("--epochs", type=int, default=6, help="epochs of a trial")
    found.add_argument("--grace", type=int, default=1, help="epochs before a trial may be stopped")
    found.add_argument(
        "--retrain-limit", type=int, metavar="N", help="training images of the retraining; default: all"
    )
    found.add_argument("--retrain-epochs", type=int, default=20)
    found.add_argument("--seeds", type=int, default=3)
    found.add_argument("--gpu", dest="cpu", action="store_false", help="do not fix runtime to one CPU thread")
    found.add_argument("--name", default="cpu", help="name in the result files, fastnas-<name>")
    found.add_argument("--work", type=Path, default=Path("runs") / "fastnas", help="the run directory")
    found.add_argument("--out", type=Path, default=RESULTS)
    found.add_argument("-o", "--override", action="append", default=[], metavar="KEY=VALUE")
    return found


def main() -> None:
    args = parser().parse_args()
    logging.basicConfig(level=logging.WARNING)

    def say(what: str, done: int, total: int) -> None:
        print(f"{what}: {done} of {total}", flush=True)

    with connected(None):
        run = searched(experiment(args))
        picks = pick(run, max=[f"flops={FLOPS}x", f"params={PARAMS}x"])
        written = write_pick(args.work / "pick.yaml", picks, run)
        print(f"pick: trial {picks[0].number}: {picks[0].reason}", flush=True)
        limit = "null" if args.retrain_limit is None else args.retrain_limit
        done = retrain_picks(
            written,
            seeds=args.seeds,
            epochs=args.retrain_epochs,
            overrides=[f"data.train_limit={limit}"],
            command=command_line("benchmarks.fastnas"),
            progress=say,
        )
    chosen = [e for e in read_results(done.folder / ENTRIES) if e["number"] == picks[0].number]
    teacher = {**run.teacher, **{key: done.rows[0][key] for key in ("test_accuracy", "test_loss")}}
    manifest = json.loads((done.folder / Path(chosen[0]["path"]).parent / "model.json").read_text())
    figures = summary(teacher, chosen)
    record = {
        "command": command_line("benchmarks.fastnas"),
        "figures": figures,
        "teacher": teacher,
        "trials": args.trials,
        "epochs": args.epochs,
        "states": status(run)["trials"],
        "search_images": run.data["train"],
        "retrain_images": manifest["data"]["images"]["train"],
        "pick": picks[0].reason,
        "config": picks[0].config,
        "models": chosen,
        "device": run.attrs.get("device"),
        "versions": run.attrs.get("versions"),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    text = markdown(figures, record)
    (args.out / f"fastnas-{args.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (args.out / f"fastnas-{args.name}.md").write_text(text)
    print(text)
    for name, value in figures.items():
        print(name, value)


if __name__ == "__main__":
    main()
