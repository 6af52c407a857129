"""Make what methods need before the first trial: their stages, each once, kept in files."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainables.config import METHODS
from trainables.config_base import MethodConfig, hash_json
from trainables.errors import InputError
from trainables.methods.base import Method, Setup, Stage, StageProgress
from trainables.training.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint

log = logging.getLogger(__name__)

SUFFIX = ".pt"


def make_stages(
    setup: Setup,
    settings: Iterable[tuple[str, MethodConfig]],
    folder: Path,
    seed: int = 0,
    progress: StageProgress | None = None,
) -> dict[str, Mapping[str, Any]]:
    """Run the stages of some methods, or read their results from `folder`.

    A result's file is named by the stage's settings, and by teachers, data and seed: with others, the stage
    runs again. An interrupted stage continues from its own checkpoints.

    Args:
        setup: teachers, blocks, data and runtime; a stage never sees test images.
        settings: (name, settings) of every method whose stages are needed.
        folder: of the results; made if missing.
        seed: of the run.
        progress: progress callback.

    Returns:
        The results by `Stage.key`, for `Setup.stages`.

    Raises:
        InputError: no such method, or a stage cannot use this setup.

    Example:
        setup = Setup.of(teacher.model, blocks, data)
        stages = make_stages(setup, [("ama", LossConfig())], Path("stages"))
        print(stages)  # empty: activation-map adaptation needs none
    """
    found: dict[str, Mapping[str, Any]] = {}
    for name, config in settings:
        method: type[Method] = METHODS.get(name)
        for stage in method.stages:
            if (key := stage.key(config)) not in found:
                found[key] = _made(stage, key, setup, config, folder, seed, progress)
    return found


def _made(
    stage: Stage,
    key: str,
    setup: Setup,
    config: MethodConfig,
    folder: Path,
    seed: int,
    progress: StageProgress | None,
) -> Mapping[str, Any]:
    origin = hash_json([setup.teacher_hash, setup.data.hash, seed])
    file = folder / f"{key}-{origin}{SUFFIX}"
    if has_checkpoint(file):
        try:
            return load_checkpoint(file)
        except InputError as fault:
            log.warning("stage %s runs again: %s", stage.name, fault)
    work = folder / f"{key}-{origin}"
    work.mkdir(parents=True, exist_ok=True)
    result = stage.make(setup, config, seed, work, progress or (lambda *_: None))
    save_checkpoint(file, result)
    shutil.rmtree(work, ignore_errors=True)
    return load_checkpoint(file)
