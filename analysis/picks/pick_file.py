"""Write and read the pick file, which holds the picked trials and their run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
import yaml

from analysis.errors import InputError
from analysis.picks.pick import Pick
from analysis.runs.object_store import is_remote
from analysis.runs.run import Run

FORMAT = 1


@dataclass(frozen=True)
class PickFile:
    """Content of a pick file; `run` is the run directory, a URI in an object store, or None.

    Example:
        write_pick("picked.yaml", pick("runs/digits"), "runs/digits")
        found = read_pick("picked.yaml")
        print(found.run, found.study, [p.number for p in found.picks])
    """

    path: Path
    run: Path | str | None
    study: str
    experiment: dict[str, Any]
    teacher: dict[str, Any]
    picks: tuple[Pick, ...]


def write_pick(path: str | Path, picks: list[Pick], run: str | Path | optuna.Study | Run) -> Path:
    """Write `picks` and all inputs of a retraining as YAML, atomically.

    Args:
        path: the file; `retrain_picks` and the report look for `pick.yaml` in the run directory.
        picks: picks from `pick`.
        run: the run of these picks.

    Returns:
        The path.

    Raises:
        InputError: there is no such run.

    Example:
        chosen = pick("runs/digits", top=2)
        print(write_pick("runs/digits/pick.yaml", chosen, "runs/digits"))
    """
    path, opened = Path(path), Run.open(run)
    content = {
        "format": FORMAT,
        "version": version("ama-search"),
        "run": _run_from(path.parent, opened),
        "study": opened.name,
        "experiment": opened.experiment,
        "teacher": opened.teacher,
        "picks": [asdict(p) for p in picks],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100), encoding="utf-8")
    part.replace(path)
    return path


def _run_from(folder: Path, run: Run) -> str | None:
    """Return the run directory: relative if `folder` is inside it (the run can be moved), else absolute."""
    folder = folder.resolve()
    path = run.path.resolve() if run.path else None
    if path and folder.is_relative_to(path):
        return os.path.relpath(path, folder)
    if run.place and is_remote(run.place):
        return run.place
    return str(path) if path else None


def read_pick(path: str | Path) -> PickFile:
    """Read a pick file, or the `pick.yaml` of a run directory.

    Args:
        path: the file or the run directory.

    Returns:
        The picks with their run, experiment and teacher.

    Raises:
        InputError: the file does not exist, is not YAML or has another format, or a key is missing or has the
            wrong type.

    Example:
        write_pick("runs/digits/pick.yaml", pick("runs/digits"), "runs/digits")
        print(read_pick("runs/digits").picks[0].config["loss"])
    """
    path = Path(path)
    path = path / "pick.yaml" if path.is_dir() else path
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as a pick (written by `ama pick`): {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        got = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path} is not a pick file: expected a mapping with format: {FORMAT}, got {got!r}")
    rows = content.get("picks")
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path}: picks must be a list with at least one pick, got {rows!r}")
    run = content.get("run")
    return PickFile(
        path=path,
        run=_run_of(str(run), path.parent) if run else None,
        study=str(content.get("study", "")),
        experiment=_mapping(content, "experiment", str(path)),
        teacher=_mapping(content, "teacher", str(path)),
        picks=tuple(_read_one(row, f"{path}: picks[{i}]") for i, row in enumerate(rows)),
    )


def _run_of(run: str, folder: Path) -> Path | str:
    return run if is_remote(run) else (folder / run).resolve()


def _mapping(content: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = content.get(key)
    if not isinstance(value, dict):
        raise InputError(f"{where}: {key} must be a mapping, got {value!r}")
    return dict(value)


def _read_one(row: Any, where: str) -> Pick:
    if not isinstance(row, dict) or not isinstance(row.get("number"), int):
        raise InputError(f"{where}: expected a mapping with the trial's number, got {row!r}")
    values, config = _mapping(row, "values", where), _mapping(row, "config", where)
    return Pick(row["number"], values, config, _mapping(row, "costs", where), str(row.get("reason", "")))
