"""The key `space.student`: which architectures students have, and whether the methods can train them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

from search.experiment.validation_messages import Fault
from search.experiment.yaml12 import describe_value
from trainables.config import DEFAULT_METHOD, METHODS, REPLACED


def _students(value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"expected teacher, an architecture, or a list of them, got {describe_value(value)}")
    if len(set(names)) < len(names):
        raise ValueError(f"expected distinct students, got {describe_value(list(names))}")
    return tuple(names)


def _written(value: Sequence[str]) -> Any:
    return value[0] if len(value) == 1 else list(value)


StudentSpace = Annotated[
    tuple[str, ...], BeforeValidator(_students), PlainSerializer(_written, return_type=Any)
]


def student_fault(students: Sequence[str], methods: Collection[str]) -> Fault | None:
    """Return the first student that no method trains, or method that trains no student; else None."""
    if tuple(students) == (REPLACED,) and set(methods) == {DEFAULT_METHOD}:
        return None  # spares importing the method
    kinds = {name: "replaced" if name == REPLACED else "separate" for name in students}
    trained = {name: METHODS.get(name).students for name in methods}
    for student, kind in kinds.items():
        if not any(kind in each for each in trained.values()):
            made = "made from the teacher" if student == REPLACED else f"of another architecture ({student})"
            return ("student",), f"expected a student that {', '.join(methods)} can train, got one {made}"
    for method, each in trained.items():
        if not set(kinds.values()) & set(each):
            wanted = "an architecture such as wrn10_1" if "separate" in each else REPLACED
            return (
                "student",
            ), f"expected {wanted}, because of the method {method}, got {', '.join(students)}"
    return None
