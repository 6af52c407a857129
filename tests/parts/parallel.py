"""Divide the tests among the processes of pytest-xdist.

A file stays in one process, and so do all files that share an expensive fixture. (`--dist loadgroup` of
pytest-xdist 3.8 ignores its marks with pytest 9.2.)
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

FIXTURES = ("local_ray", "tiny_run")  # made once for all files that name them, the second from the first
FOLDERS = ("tests/cluster/",)  # its fixtures are a database, an object store and a Ray of two nodes


@cache
def group_of(file: Path, name: str) -> str:
    """Return the group of a test file: the fixture or folder it shares, otherwise its own name.

    Args:
        file: path of the file.
        name: path below the root of the session, with slashes.
    """
    if folder := next((folder for folder in FOLDERS if name.startswith(folder)), None):
        return folder
    text = file.read_text()
    return next((fixture for fixture in reversed(FIXTURES) if fixture in text), name)


def sort_long_first(items: list[pytest.Item]) -> None:
    """Sort the groups that share a fixture before files with slow tests, and these before all others."""

    def rank(item: pytest.Item) -> int:
        name = item.nodeid.partition("::")[0]
        group = group_of(item.path, name)
        return [*FIXTURES, *FOLDERS].index(group) if group != name else 9 if name in slow else 10

    slow = {item.nodeid.partition("::")[0] for item in items if item.get_closest_marker("slow")}
    items.sort(key=rank)


def scheduler(config: pytest.Config, log: Any) -> Any:
    """Return a scheduler of pytest-xdist that hands out whole groups, in the order of the tests."""
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            name = nodeid.partition("::")[0]
            return group_of(config.rootpath / name, name)

    config.option.loadscopereorder = False
    return GroupScheduling(config, log)
