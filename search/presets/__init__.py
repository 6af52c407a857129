"""Ready-made experiment files, found by name: examples to copy."""

from __future__ import annotations

from importlib import resources


def presets() -> tuple[str, ...]:
    """The names of the experiment files that come with the package."""
    files = resources.files("search.presets").iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


def preset_text(name: str) -> str:
    """The YAML text of the preset `name`."""
    return resources.files("search.presets").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
