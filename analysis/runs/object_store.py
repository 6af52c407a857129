"""Access run directories in an object store, `s3://bucket/prefix` or `gs://bucket/prefix`.

It uses pyarrow's file systems, as Ray does. Credentials, region and `AWS_ENDPOINT_URL_S3` come from the
environment, and are never written to a file or message.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from analysis.errors import InputError

SCHEMES = ("s3", "gs", "gcs")
_REMOTE = re.compile(rf"({'|'.join(SCHEMES)})://")
_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def is_remote(place: str | os.PathLike[str]) -> bool:
    """Return True if `place` is in an object store."""
    return _REMOTE.match(os.fspath(place)) is not None


@dataclass(frozen=True)
class Store:
    """The objects below a URI, by name relative to it.

    Every method raises `InputError` if the store cannot be reached or denies access.
    """

    uri: str
    _files: Any = field(repr=False)  # pyarrow.fs.FileSystem
    _root: str = field(repr=False)

    @classmethod
    def open(cls, uri: str) -> Store:
        """Open the store at `uri`, without a request to it."""
        from pyarrow.fs import FileSystem

        with _faults(uri):
            files, root = FileSystem.from_uri(uri.rstrip("/"))
        if not root:
            raise InputError(f"{uri}: expected a bucket, as in s3://bucket/runs/first")
        return cls(uri.rstrip("/"), files, root)

    def sizes(self, below: str = "") -> dict[str, int]:
        """Return names and sizes (bytes) of all objects, or of those in the folder `below`."""
        from pyarrow.fs import FileSelector

        root = f"{self._root}/{below}" if below else self._root
        with _faults(self.uri):
            found = self._files.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
        return {info.path.removeprefix(f"{self._root}/"): info.size for info in found if info.is_file}

    def top(self) -> list[str]:
        """Return the names of the objects and folders directly below the URI."""
        from pyarrow.fs import FileSelector

        with _faults(self.uri):
            found = self._files.get_file_info(FileSelector(self._root, allow_not_found=True))
        return [info.base_name for info in found]

    def exists(self, name: str) -> bool:
        """Return True if an object with this name exists."""
        with _faults(self.uri):
            return bool(self._files.get_file_info(f"{self._root}/{name}").is_file)

    def read(self, name: str) -> bytes:
        """Return the content of an object."""
        with _faults(self.uri), self._files.open_input_stream(f"{self._root}/{name}") as stream:
            return bytes(stream.readall())

    def write(self, name: str, content: bytes) -> None:
        """Create or replace an object."""
        with _faults(self.uri), self._files.open_output_stream(f"{self._root}/{name}") as stream:
            stream.write(content)

    def download(self, names: Sequence[str], folder: Path) -> None:
        """Copy objects into `folder`, keeping their names."""
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(self.read(name))

    def delete(self, name: str) -> None:
        """Delete an object if it exists."""
        with _faults(self.uri):
            if self.exists(name):
                self._files.delete_file(f"{self._root}/{name}")


@contextmanager
def _faults(uri: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as fault:  # pyarrow's errors are subclasses of these
        # Keep only the store's part of the message, without the request id.
        text = re.sub(r"\s*\(Request ID: [^)]*\)", "", str(fault).splitlines()[0] if str(fault) else "")
        raise InputError(f"{uri}: {without_keys(text.partition(': AWS Error ')[2] or text)}") from None


def without_keys(text: str) -> str:
    """Replace the environment's access keys in `text`."""
    for name in _SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return text


def join(place: str | os.PathLike[str], *names: str) -> str:
    """Append names to `place`, a folder or a URI."""
    text = os.fspath(place)
    if is_remote(text):
        return "/".join((text.rstrip("/"), *names))
    return str(Path(text, *names))


def split(place: str) -> tuple[str, str]:
    """Split `place` (a URI or a path) into its folder and its last name."""
    if is_remote(place):
        folder, _, name = place.rstrip("/").rpartition("/")
        return folder, name
    path = PurePath(place)
    return str(path.parent), path.name
