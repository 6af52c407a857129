"""Searches in processes of their own, which the tests break, and what they must have come to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

import search
from search.experiment.experiment import Experiment
from search.experiment.resolved import resolved_yaml
from search.study.record import ran
from trainables.config import DistillConfig

PARTS = Path(__file__).parent
PATIENCE = 400.0  # seconds for a session of a search on a busy machine
TRIALS = 12

BASE: dict[str, Any] = {
    "name": "toy",
    "data": {"name": "digits", "train_limit": 200},
    "teacher": {"arch": "import:recorded:make", "epochs": 1},
    "objectives": ["val_accuracy", "flops"],
    "space": {"widths": [0.25]},
    "budget": {"trials": TRIALS, "epochs": 6, "grace_epochs": 2, "reduction_factor": 2},
    "resources": {"concurrent": 2},
    "runtime": {"device": "cpu", "precision": "fp32"},
    "costs": {"seconds": 0.1, "batch_size": 4},
}


def experiment(run: Path, **sections: Any) -> Experiment:
    """The base experiment with its run in `run`; mappings are merged, everything else is replaced."""
    merged = {**BASE, "run": {"dir": str(run)}}
    for name, value in sections.items():
        merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) else value
    return Experiment.model_validate(merged)


def wait_until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """The first true value of `condition`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds:.0f} s for: {what}"
        time.sleep(0.05)
    return value


@dataclass(frozen=True)
class Epoch:
    """A line of the journal: an epoch of a trial began or ended."""

    what: str
    key: str  # digest of the trial's config
    epoch: int
    pid: int
    time: float


class Bench:
    """One run directory, the searches started on it, and the journal of what its workers trained.

    Args:
        folder: for everything.
        teacher: a folder with a teacher and its cost table.
        run: the run directory; None: in `folder`.
        study: URL of the database; None: SQLite in the run directory.
        environment: more variables for the processes.
        sections: of the experiment, over the base.
    """

    def __init__(
        self,
        folder: Path,
        teacher: Path,
        *,
        run: Path | None = None,
        study: str | None = None,
        environment: dict[str, str] | None = None,
        **sections: Any,
    ) -> None:
        self.folder, self.run = folder, run or folder / "run"
        shutil.copytree(teacher, self.run, dirs_exist_ok=True)
        self.url = study or f"sqlite:///{self.run}/study.db"
        storage = {"storage": {"study": study}} if study else {}
        self.experiment = experiment(self.run, **{**storage, **sections})
        (folder / "x.yaml").write_text(resolved_yaml(self.experiment))
        self.journal = folder / "journal"
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(PARTS), str(Path(search.__file__).parents[1])]),
            "AMA_TEST_JOURNAL": str(self.journal),
            **(environment or {}),
        }
        if study:
            self.environment["AMA_STUDY_URL"] = study
        self._sessions = 0

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """`ama search` in a process group of its own; its output goes to `log`."""
        self._sessions += 1
        command = [sys.executable, "-m", "search.cli.app", "search", str(self.folder / "x.yaml"), *options]
        with self.log.open("wb") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env=self.environment
            )

    @property
    def log(self) -> Path:
        """What the newest session wrote."""
        return self.folder / f"log-{self._sessions}"

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def finish(self, process: subprocess.Popen[bytes], code: int = 0) -> str:
        """Wait for the end of a session; what it wrote."""
        process.wait(PATIENCE)
        self.kill()  # of a driver that was started alone nothing is left; of a killed one there may be
        assert process.returncode == code, self.said()
        return self.said()

    def processes(self) -> Iterator[int]:
        """Every process that was started for this run: driver, Ray, workers."""
        mark = f"AMA_TEST_JOURNAL={self.journal}\0".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    if mark in (entry / "environ").read_bytes():
                        yield int(entry.name)
                except OSError:
                    continue  # ended, or not ours

    def kill(self, first: int | None = None) -> None:
        """SIGKILL for all of them, `first` before the others."""
        pids = list(self.processes())
        while pids:
            for pid in sorted(pids, key=lambda pid: pid != first):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
            pids = [pid for pid in self.processes() if _lives(pid)]

    def epochs(self, what: str = "ended") -> list[Epoch]:
        """Lines of the journal, oldest first."""
        text = self.journal.read_text() if self.journal.exists() else ""
        lines = [Epoch(**json.loads(line)) for line in text.splitlines()]
        return [line for line in lines if line.what == what]

    def rows(self) -> list[FrozenTrial]:
        """The rows of trials that ran, as another process reads them; none while there is no study."""
        try:
            study = optuna.load_study(study_name=self.experiment.name, storage=self.url)
            return [row for row in study.trials if ran(row)]
        except (KeyError, optuna.exceptions.StorageInternalError):
            return []
        except Exception as fault:  # no table yet, or the database is just being made
            if "no such table" in str(fault) or "does not exist" in str(fault):
                return []
            raise

    def wait_for_epochs(self, count: int, process: subprocess.Popen[bytes]) -> bool:
        """Until so many epochs have ended; False where the session ended before."""
        wait_until(lambda: process.poll() is not None or len(self.epochs()) >= count, f"{count} epochs")
        return process.poll() is None


def _lives(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def key_of(row: FrozenTrial) -> str:
    """The digest by which the journal knows the row's trial."""
    return DistillConfig.model_validate(row.user_attrs["config"]).digest()


def check_rows(bench: Bench, trials: int = TRIALS, states: frozenset[str] = frozenset()) -> None:
    """Every row has ended, with a whole curve, and no parameters came twice."""
    rows = bench.rows()
    told = [(row.number, row.state.name, row.user_attrs.get("reason")) for row in rows]
    assert len(rows) == trials, told
    assert {row.state.name for row in rows} <= (states or {"COMPLETE", "PRUNED"}), told
    assert len({str(sorted(row.params.items())) for row in rows}) == trials
    assert len({key_of(row) for row in rows}) == trials
    for row in rows:
        if row.state.name in ("COMPLETE", "PRUNED"):
            assert row.user_attrs["curve"]["epoch"] == list(range(1, row.user_attrs["epochs"] + 1)), row
        if row.state.name == "COMPLETE":
            assert row.user_attrs["epochs"] == bench.experiment.budget.epochs


def check_epochs(bench: Bench, breaks: int) -> int:
    """What the workers' own journal says; returns how many epochs were trained again.

    No trial had a row of its own twice, none was trained on after its end, and whoever was cut off lost at
    most the epoch whose checkpoint was not written yet, a break each.
    """
    ended = bench.epochs()
    rows = {key_of(row): row for row in bench.rows()}
    assert {line.key for line in ended} == set(rows), "an epoch of a trial that has no row"
    again = 0
    for key, row in rows.items():
        order = [line.epoch for line in ended if line.key == key]
        times = Counter(order)
        assert sorted(times) == list(range(1, row.user_attrs["epochs"] + 1)), (row.number, order)
        repeats = sum(times.values()) - len(times)
        assert repeats <= breaks, (row.number, order)
        for before, after in pairwise(order):
            assert after in (before, before + 1), (row.number, order)
        again += repeats
    return again


def ended_rows(bench: Bench) -> dict[str, Any]:
    """Digest to end time of the rows that have ended."""
    return {key_of(row): row.datetime_complete for row in bench.rows() if row.state.is_finished()}
