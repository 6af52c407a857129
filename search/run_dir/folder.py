"""Run directories wherever they are: a folder, or a prefix of an object store with a working copy here.

    with working_folder("s3://bucket/runs/first") as folder:
        write(folder.path / "costs.json")

Trials and their checkpoints do not pass through here: Ray writes them to the store itself.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from analysis.errors import InputError as AnalysisInputError
from analysis.runs.object_store import Store, is_remote
from search.experiment.experiment import Experiment
from search.experiment.sections import RunConfig
from search.run_dir.periodic import repeated
from trainables.errors import InputError
from trainables.files import removals, remove

TRIALS = "trials"  # folder of the run directory where Ray keeps checkpoints and logs
SYNC_SECONDS = 15.0  # between two looks for changed files of a working copy
_PARTS = (".tmp", ".part")  # endings of files that are still being written

log = logging.getLogger(__name__)


class Folder:
    """A run directory, or a folder in one.

    Attributes:
        place: as given: a path or a URI.
        path: the folder itself, or its working copy.
    """

    def __init__(self, place: str, path: Path) -> None:
        self.place = place
        self.path = path

    @property
    def remote(self) -> bool:
        """Whether `path` is a working copy of what is in an object store."""
        return False

    def holds(self, name: str) -> bool:
        """Whether there is a file or folder of this name directly in the run directory."""
        return (self.path / name).exists()

    def fetch(self, below: str, name: str | None = None) -> None:
        """Bring the files of the folder `below`, or those called `name`, into the working copy."""

    def push(self) -> None:
        """Bring every new and changed file of the working copy to the store, and what `remove` deleted."""

    def remove(self, name: str) -> None:
        """Delete the file `name` that is no longer needed; none there is no error."""
        remove(self.path / name)


class Mirror(Folder):
    """A working copy of a prefix of an object store."""

    def __init__(self, place: str, path: Path) -> None:
        self._store = Store.open(place)
        super().__init__(self._store.uri, path)
        self._known: dict[str, tuple[int, int]] = {}
        self._removed: set[str] = set()
        self._lock = threading.Lock()
        names = [name for name in self._store.top() if not _passed_over(Path(name))]
        self._download([name for name in names if self._store.exists(name)])

    @property
    def remote(self) -> bool:
        """Yes."""
        return True

    def holds(self, name: str) -> bool:
        """As `Folder.holds`."""
        return name in self._store.top()

    def fetch(self, below: str, name: str | None = None) -> None:
        """As `Folder.fetch`."""
        found = self._store.sizes(below)
        self._download([each for each in found if name is None or Path(each).name == name])

    def _download(self, names: list[str]) -> None:
        with self._lock:
            self._store.download(names, self.path)
            self._known |= {name: _stamp(self.path / name) for name in names}

    def removed(self, path: Path) -> None:
        """Note that our own code deleted `path`; where it is in this folder the next `push` deletes it there.

        A file that is missing without that stays in the store: a cleaner of temporary folders took it.
        """
        if path.is_relative_to(self.path):
            self._removed.add(path.relative_to(self.path).as_posix())

    def push(self) -> None:
        """As `Folder.push`; the files changed last go last, so that none is there before what it names."""
        with self._lock:
            removed = sorted(self._removed)  # what is removed from now on waits for the next push
            now = self._present()
            changed = [name for name, stamp in now.items() if self._known.get(name) != stamp]
            for name in sorted(changed, key=lambda each: now[each]):
                try:
                    content = (self.path / name).read_bytes()
                except FileNotFoundError:  # removed meanwhile
                    continue
                self._store.write(name, content)
                self._known[name] = now[name]
            for name in removed:
                if name not in now and not _passed_over(Path(name)):
                    self._store.delete(name)
                    self._known.pop(name, None)
                self._removed.discard(name)

    def _present(self) -> dict[str, tuple[int, int]]:
        found = {}
        # `os.walk` passes over folders that vanish meanwhile.
        for file in (Path(folder, name) for folder, _, names in os.walk(self.path) for name in names):
            name = file.relative_to(self.path)
            if not _passed_over(name):
                with suppress(FileNotFoundError):
                    found[name.as_posix()] = _stamp(file)
        return found


def _stamp(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_size


def _passed_over(name: Path) -> bool:
    """Whether a file is nobody's but its writer's, or Ray's."""
    return name.parts[0] == TRIALS or name.name.startswith(".") or name.suffix in _PARTS


@contextmanager
def working_folder(place: str | os.PathLike[str]) -> Iterator[Folder]:
    """The folder at `place`; of an object store, a copy kept in step with it until the block ends.

    Of a copy, the files directly below `place` are there at once, those of folders after a `fetch`. What is
    written to it reaches the store within `SYNC_SECONDS`, with `push`, and at the end whatever happens.
    Files are deleted there only if `remove` deleted them here.

    Raises:
        InputError: the object store cannot be reached or refuses, or `place` is a URI of something else.
    """
    text = os.fspath(place)
    if not is_remote(text):
        if "://" in text:
            raise InputError(f"run.dir: expected a folder, s3://… or gs://…, got {text}")
        yield Folder(text, Path(text))
        return
    scratch = Path(tempfile.mkdtemp(prefix="ama-run-"))
    try:
        with _as_run_dir():
            mirror = Mirror(text, scratch)
    except BaseException:
        shutil.rmtree(scratch)
        raise

    def push() -> None:
        try:
            mirror.push()
        except AnalysisInputError as fault:  # tried again, and at the end for good
            log.warning("run.dir: %s", fault)

    try:
        with removals(mirror.removed), repeated(push, SYNC_SECONDS, "run directory"):
            yield mirror
    finally:
        with _as_run_dir(f"; what did not get there is in {scratch}"):
            mirror.push()
        shutil.rmtree(scratch, ignore_errors=True)  # a cleaner may have begun to


@contextmanager
def _as_run_dir(more: str = "") -> Iterator[None]:
    try:
        yield
    except AnalysisInputError as fault:
        raise InputError(f"run.dir: {fault}{more}") from None


def at(experiment: Experiment, folder: Folder) -> Experiment:
    """The experiment with the folder in which its files can be read and written as its run directory."""
    return experiment.model_copy(update={"run": RunConfig(dir=str(folder.path))})
