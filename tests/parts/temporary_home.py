"""Give a test session a temporary home, and fail the session if it wrote to the real one.

Everything that the session starts (Ray's workers, commands, pytest-xdist's workers) inherits the home.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

OVERRIDES = (  # variables that would lead past the home
    *(f"XDG_{kind}_HOME" for kind in ("CACHE", "CONFIG", "DATA", "STATE")),
    "MPLCONFIGDIR",
    "TORCH_HOME",
)
LISTED = (".", ".cache", ".config")  # folders of the home in which no new name may appear
WATCHED = (  # folders of the home in which nothing may change
    *(f".cache/{name}" for name in ("ama-search", "matplotlib", "torch")),
    *(".config/matplotlib", ".ray", "ray_results"),
)


def contents(home: Path) -> dict[str, int | None]:
    """Return what a test might write in `home`.

    Returns:
        Path below `home` -> time of its last change in ns; None for a folder.
    """
    listed = [path for folder in LISTED for path in (home / folder).glob("*")]
    watched = [path for folder in WATCHED for path in (home / folder).rglob("*")]
    files: dict[str, int | None] = {str(path.relative_to(home)): None for path in listed}
    for path in watched:
        files[str(path.relative_to(home))] = None if path.is_dir() else path.lstat().st_mtime_ns
    return files


class TemporaryHome:
    """A pytest plugin of the main process: it owns the session's folder and watches the real home."""

    def __init__(self) -> None:
        """Set the environment; call this before a library that keeps a cache is imported."""
        self.real = Path.home()
        self.before = contents(self.real)
        self.written: list[str] = []
        # Sockets of Ray lie below this folder, and a socket's path is limited to about 100 characters.
        short = "/tmp" if Path("/tmp").is_dir() else None
        self.folder = Path(tempfile.mkdtemp(prefix="ama-tests-", dir=short))
        home = self.folder / "home"
        home.mkdir()
        for name in OVERRIDES:
            os.environ.pop(name, None)
        os.environ["HOME"] = os.environ["USERPROFILE"] = str(home)
        os.environ["RAY_TMPDIR"] = str(self.folder)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(self.folder / "torchinductor")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the session if the real home changed."""
        self.written = sorted({name for name, _ in self.before.items() ^ contents(self.real).items()})
        if self.written:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Name what changed in the real home."""
        if self.written:
            terminalreporter.section("the real home changed", red=True)
            terminalreporter.line("A test, or a program that ran at the same time, wrote there:")
            for name in self.written:
                terminalreporter.line(f"{self.real / name}")

    def pytest_unconfigure(self) -> None:
        """Remove the session's folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
