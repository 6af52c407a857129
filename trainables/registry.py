"""Registries: look up data sets, samplers, methods, ... by name.

An entry is built in, comes from an installed package, or from the user's files. It is imported when it is
looked up, so that an experiment imports only what it names.
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar, cast

from trainables.errors import InputError
from trainables.files import first_line

T = TypeVar("T")

IMPORT = "import:"
FORM = "import:<package.module>:<name> or import:<file.py>:<name>"
_TEXT = re.compile(r"import:(?P<module>[^:\s][^:]*|[A-Za-z]:[^:]+):(?P<name>[A-Za-z_]\w*)")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class Registry(Generic[T]):
    """Named objects of one kind, such as data sets or samplers.

    An entry is named by
      - a built-in name;
      - the name of an entry point in `group`, which an installed package declares;
      - `import:<package.module>:<name>` or `import:<file.py>:<name>`, an object in the user's code.

    Args:
        kind: what an entry is called in messages, such as "data set".
        group: the entry-point group, `ama_search.<kind>`.
        builtins: "module:attribute" by name; a module is imported when its entry is looked up.
        expects: the class (or runtime-checkable protocol) of entries; None: anything.

    Example:
        print(DATA_SETS.names(), METHODS.names())
        print(DATA_SETS.get("digits").augment, METHODS.get("ama").Config())
    """

    def __init__(
        self, kind: str, group: str, builtins: Mapping[str, str], *, expects: type[Any] | None = None
    ) -> None:
        self.kind, self.group = kind, group
        self._builtins = dict(builtins)
        self._expects = expects

    def names(self) -> tuple[str, ...]:
        """Return the built-in names, then those of installed packages."""
        return tuple(dict.fromkeys([*self._builtins, *sorted(entry.name for entry in self._installed())]))

    def get(self, text: str) -> T:
        """Load the entry that `text` names. A built-in name wins over the same name in a package.

        Raises:
            InputError: no such entry, it cannot be imported, or it is not of the expected type.
        """
        if text.startswith(IMPORT):
            found = import_object(text)
        elif text in self._builtins:
            module, _, attribute = self._builtins[text].partition(":")
            found = getattr(importlib.import_module(module), attribute)
        else:
            found = self._load(text)
        if self._expects is not None and not isinstance(found, self._expects):
            raise InputError(
                f"{text}: expected a {self.kind}, an object of {self._expects.__module__}."
                f"{self._expects.__name__}, got {type(found).__name__}"
            )
        return cast(T, found)

    def check(self, text: str) -> None:
        """Check that `text` names an entry, without loading a built-in one.

        Raises:
            InputError: as `get`.
        """
        if text not in self._builtins:
            self.get(text)

    def _installed(self) -> list[EntryPoint]:
        return list(entry_points(group=self.group))

    def _load(self, text: str) -> Any:
        entry = next((entry for entry in self._installed() if entry.name == text), None)
        if entry is None:
            raise self._unknown(text)
        try:
            return entry.load()
        except Exception as error:  # a package may raise anything while it is imported
            package = entry.dist.name if entry.dist else "an installed package"
            raise InputError(f"{text}: cannot load {entry.value} of {package}: {_named(error)}") from error

    def _unknown(self, text: str) -> InputError:
        names = self.names()
        near = difflib.get_close_matches(text, names, n=3, cutoff=0.5)
        hint = f" (nearest: {', '.join(near)})" if near else ""
        return InputError(
            f"unknown {self.kind} {text!r}{hint}: expected one of {', '.join(names)}; or your own: {FORM}, "
            f"or an entry point in the group {self.group} of an installed package"
        )


def import_object(text: str) -> Any:
    """Import the object that `import:<package.module>:<name>` or `import:<file.py>:<name>` names.

    The working directory is searched after the installed packages. A file is imported as a module named
    like the file, because Ray ships it to workers under that name. If the file does not exist, a module of
    that name is imported instead.

    Raises:
        InputError: another form, the module cannot be imported, or it does not define that name.
    """
    module = import_module(text)
    name = text.rpartition(":")[2]
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, [n for n in vars(module) if not n.startswith("_")])
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise InputError(f"{text}: {module.__name__} does not have {name!r}{hint}")
    return getattr(module, name)


def import_module(text: str) -> ModuleType:
    """Import the module of an `import:` text; see `import_object`."""
    match = _TEXT.fullmatch(text)
    where = match["module"] if match else ""
    file = Path(where) if where.endswith(".py") else None
    name = file.stem if file else where
    if not _MODULE.fullmatch(name) or (file and "." in name):
        raise InputError(f"{text}: expected {FORM}")
    _search(Path.cwd())
    if file and file.is_file():
        _search(file.absolute().parent)
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a user's module may raise anything
        what = f"{where}: no such file" if file and not file.is_file() else f"cannot import {name}"
        raise InputError(f"{text}: {what}: {_named(error)}") from error
    if file and file.is_file() and not _is(module, file):
        raise InputError(
            f"{text}: another module is named {name!r} ({getattr(module, '__file__', None) or 'built in'}); "
            "give the file another name"
        )
    return module


def _search(folder: Path) -> None:
    """Append `folder` to `sys.path`: last, so that it never hides an installed package."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _is(module: ModuleType, file: Path) -> bool:
    found = getattr(module, "__file__", None)
    return found is not None and Path(found).resolve() == file.resolve()


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}" if str(error).strip() else type(error).__name__
