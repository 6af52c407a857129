"""Names of the files of a run directory."""

from __future__ import annotations

TEACHER_FILE = "teacher.safetensors"
COSTS_FILE = "costs.json"
EXPERIMENT_FILE = "experiment.yaml"
