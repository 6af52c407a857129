"""Access a run directory: a local folder, or an object store with a local working copy.

    with working_folder("s3://bucket/runs/first") as folder:
        write(folder.path / "costs.json")

Trials and their checkpoints are not handled here: Ray writes them to the store directly.
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

TRIALS = "trials"  # folder of the run directory for Ray's checkpoints and logs
SYNC_SECONDS = 15.0  # interval between two syncs of a working copy
_PARTS = (".tmp", ".part")  # endings of files that are still being written

log = logging.getLogger(__name__)


class Folder:
    """A run directory, or a folder in one.

    Attributes:
        place: the place as given: a path or a URI.
        path: the folder itself, or its working copy.
    """

    def __init__(self, place: str, path: Path) -> None:
        self.place = place
        self.path = path

    @property
    def remote(self) -> bool:
        """True if `path` is a working copy of an object store."""
        return False

    def holds(self, name: str) -> bool:
        """Return True if the run directory directly contains a file or folder with this name."""
        return (self.path / name).exists()

    def fetch(self, below: str, name: str | None = None) -> None:
        """Download the files of the folder `below`, or only those named `name`, to the working copy."""

    def push(self) -> None:
        """Upload new and changed files of the working copy, and delete what `remove` deleted."""

    def remove(self, name: str) -> None:
        """Delete the file `name` if it exists."""
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
        """Always True."""
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
        """Note that this program deleted `path`; if it is in this folder, `push` deletes it in the store.

        Files that are missing for other reasons stay in the store: a cleaner of temporary folders may have
        deleted them.
        """
        if path.is_relative_to(self.path):
            self._removed.add(path.relative_to(self.path).as_posix())

    def push(self) -> None:
        """As `Folder.push`; in order of change, so that no file arrives before a file it refers to."""
        with self._lock:
            removed = sorted(self._removed)  # later removals are for the next push
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
        # `os.walk` ignores folders that are deleted meanwhile.
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
    """Return True for files that are not synced: hidden and partly written files, and Ray's files."""
    return name.parts[0] == TRIALS or name.name.startswith(".") or name.suffix in _PARTS


@contextmanager
def working_folder(place: str | os.PathLike[str]) -> Iterator[Folder]:
    """Open the folder at `place`; for an object store, a working copy that is synced until the block ends.

    In a working copy, files directly in `place` are available at once, files in folders after `fetch`.
    Changed files are uploaded within `SYNC_SECONDS`, on `push`, and at the end even after an exception. A
    file is deleted in the store only if `remove` deleted it in the working copy.

    Raises:
        InputError: the object store cannot be reached or denies access, or the URI has another scheme.
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
        except AnalysisInputError as fault:  # retried at the next sync; the last sync raises it
            log.warning("run.dir: %s", fault)

    try:
        with removals(mirror.removed), repeated(push, SYNC_SECONDS, "run directory"):
            yield mirror
    finally:
        with _as_run_dir(f"; files that were not uploaded are in {scratch}"):
            mirror.push()
        shutil.rmtree(scratch, ignore_errors=True)  # a cleaner may have deleted some of it


@contextmanager
def _as_run_dir(more: str = "") -> Iterator[None]:
    try:
        yield
    except AnalysisInputError as fault:
        raise InputError(f"run.dir: {fault}{more}") from None


def at(experiment: Experiment, folder: Folder) -> Experiment:
    """Return the experiment with the folder's local path as its run directory."""
    return experiment.model_copy(update={"run": RunConfig(dir=str(folder.path))})
