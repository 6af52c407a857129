"""A PostgreSQL server that a test starts, stops and starts again."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

USER = "postgres"
PASSWORD = "hunter2"


def _binaries() -> Path | None:
    """The folder of PostgreSQL's own programs, which Debian keeps off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    on_path = shutil.which("pg_ctl")
    return found[-1].parent if found else Path(on_path).resolve().parent if on_path else None


class Postgres:
    """One server on a free port of this machine, in a folder of its own."""

    def __init__(self) -> None:
        binaries = _binaries()
        assert binaries is not None
        self._binaries = binaries
        self._folder = Path(tempfile.mkdtemp(prefix="ama-postgres-"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (self._folder / "password").write_text(PASSWORD)
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            shutil.chown(self._folder, USER)
            shutil.chown(self._folder / "password", USER)
        self._run("initdb", "-U", USER, "-A", "scram-sha-256", f"--pwfile={self._folder}/password", "-N")

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Postgres]:
        """A server that is gone at the end; where there can be none, the test that asked is skipped."""
        if (reason := cls.missing()) is not None:
            pytest.skip(reason)
        server = cls()
        try:
            server.start()
            yield server
        finally:
            server.remove()

    @staticmethod
    def missing() -> str | None:
        """Why there can be no server here, or None."""
        if _binaries() is None:
            return "no PostgreSQL server is installed (package postgresql)"
        if os.getuid() == 0 and subprocess.run(["id", USER], capture_output=True).returncode:
            return f"PostgreSQL does not run as root, and there is no user {USER}"
        return None

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), "-D", str(self._folder / "data"), *arguments]
        if os.getuid() == 0:
            command = ["runuser", "-u", USER, "--", *command]
        # Output to a file: the server would hold a pipe open.
        with (self._folder / "output").open("w+") as output:
            done = subprocess.run(command, stdout=output, stderr=output, cwd=self._folder)
            output.seek(0)
            assert done.returncode == 0, output.read()

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self._folder}"
        self._run("pg_ctl", "-w", "-o", options, "-l", str(self._folder / "log"), "start")

    def stop(self) -> None:
        """As a crash: connections are cut, nothing is put in order."""
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+psycopg://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        """A new database; its URL."""
        import psycopg

        with psycopg.connect(self.url().replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f'create database "{database}"')
        return self.url(database)

    def remove(self) -> None:
        if (self._folder / "data" / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self._folder)
