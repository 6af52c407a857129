"""Check a cluster file offline: for `ray up` (AWS, Google Cloud, hosts of your own) or for KubeRay.

ama cluster check cluster.yaml
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from search.cluster_files.kuberay import kubernetes_faults
from search.cluster_files.launcher import launcher_faults
from search.cluster_files.rules import hide, placeholders, secret_faults
from search.experiment.yaml12 import read_yaml
from trainables.errors import InputError

_NEXT_DOCUMENT = re.compile(r"^---(?:[ \t].*)?$\n?", re.MULTILINE)


def check(path: str | os.PathLike[str]) -> list[str]:
    """Check a cluster file offline and return its faults.

    Relative paths in `file_mounts` are relative to the current directory, as for `ray up`.

    Args:
        path: the file.

    Returns:
        One line per fault: file, dotted key, expected and actual value. Secrets are never shown.
    """
    try:
        documents, faults = _read(path)
    except InputError as error:
        return [hide(str(error))]
    if any("kind" in document for document in documents):
        faults += kubernetes_faults(documents)
    elif len(documents) == 1:
        faults += [*launcher_faults(documents[0]), *secret_faults(documents[0])]
    else:
        faults.append(f"the file: expected one YAML document for `ray up`, got {len(documents)}")
    return [f"{path}: {hide(fault)}" for fault in faults]


def to_fill_in(path: str | os.PathLike[str]) -> list[str]:
    """Return the placeholders in a file (ids of zeros, `your-...`) as `key (value)`."""
    documents, _ = _read(path)
    return [f"{key} ({value})" for document in documents for key, value in placeholders(document)]


def _read(path: str | os.PathLike[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Read the file's non-empty documents, and one line per duplicate key.

    Raises:
        InputError: the file does not exist, or is not UTF-8 text or not YAML.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"{path}: expected a cluster file, got: {reason}") from None
    documents, faults, start = [], [], 0
    for end in [*(match.end() for match in _NEXT_DOCUMENT.finditer(text)), len(text)]:
        # The line feeds before a document make its line numbers those of the file.
        part = "\n" * text.count("\n", 0, start) + _NEXT_DOCUMENT.sub("\n", text[start:end])
        _, duplicates = read_yaml(part, str(path))
        faults += duplicates
        # Values are read as YAML 1.1, as Ray and kubectl read them.
        if data := yaml.safe_load(part):
            documents.append(data)
        start = end
    if not documents:
        raise InputError(f"{path}: expected a cluster file, got an empty one")
    return documents, faults
