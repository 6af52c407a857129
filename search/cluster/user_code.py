"""A user's own teacher on a cluster: which files its workers need."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

OURS = {"analysis", "search", "trainables"}


def modules_of(arch: str) -> list[str]:
    """Files and packages that `import:<module>:<factory>` was imported from, to be sent to the workers.

    The module, and what it imports from the folder that it is in. Nothing for a teacher that is no import, or
    is installed, since workers have that installed too; nor for one that cannot be imported, of which the
    stages tell more.

    Args:
        arch: `teacher.arch`.
    """
    if not arch.startswith("import:"):
        return []
    name = arch.split(":")[1]
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        top = _place(importlib.import_module(name.partition(".")[0]))
        importlib.import_module(name)
    except Exception:
        return []
    if top is None or _installed(top):
        return []
    found = {_place(module) for key, module in list(sys.modules.items()) if "." not in key}
    beside = {path for path in found if path and path.parent == top.parent and not _installed(path)}
    return sorted(str(path) for path in beside | {top} if path.stem not in OURS)


def _place(module: object) -> Path | None:
    """The folder of a package, the file of a module; None for one without."""
    if paths := list(getattr(module, "__path__", None) or ()):
        return Path(paths[0]).absolute()
    file = getattr(module, "__file__", None)
    return Path(file).absolute() if file and file.endswith(".py") else None


def _installed(path: Path) -> bool:
    return bool({"site-packages", "dist-packages"} & set(path.parts)) or path.is_relative_to(sys.base_prefix)
