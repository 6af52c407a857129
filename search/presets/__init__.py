"""Presets: ready-made experiment files, found by name, to run or to copy."""

from __future__ import annotations

from importlib import resources


def presets() -> tuple[str, ...]:
    """Return the names of the presets."""
    files = resources.files("search.presets").iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


def preset_text(name: str) -> str:
    """Return the YAML text of the preset `name`."""
    return resources.files("search.presets").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
