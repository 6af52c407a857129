"""`space.student`: its forms, and which students and methods go together."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from search.experiment.experiment import Experiment
from search.experiment.resolved import resolved


def experiment(**space: object) -> Experiment:
    return Experiment.model_validate({"name": "x", "space": space})


@pytest.mark.parametrize(
    ("given", "students", "written"),
    [
        ("teacher", ("teacher",), "teacher"),
        ("wrn10_1", ("wrn10_1",), "wrn10_1"),
        (["wrn10_1"], ("wrn10_1",), "wrn10_1"),
        (["teacher", "wrn10_1"], ("teacher", "wrn10_1"), ["teacher", "wrn10_1"]),
    ],
)
def test_one_student_or_a_list_of_them(given: object, students: tuple[str, ...], written: object) -> None:
    made = experiment(student=given)
    assert made.space.student == students and resolved(made)["space"]["student"] == written
    assert Experiment.model_validate(resolved(made)) == made


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"student": []}, "expected teacher, an architecture"),
        ({"student": 3}, "expected teacher, an architecture"),
        ({"student": ["wrn10_1", "wrn10_1"]}, "expected distinct students"),
        ({"student": "wrn10_1", "train": "modules"}, "modules would freeze all of a separate student"),
        ({"method": "separate"}, "expected a student that separate can train, got one made from the teacher"),
        ({"method": ["ama", "fitnet"]}, "because of the method fitnet, got teacher"),
        ({"method": "fitnet", "student": ["teacher", "wrn10_1"]}, "that fitnet can train, got one made"),
    ],
)
def test_what_cannot_be_trained_is_refused(space: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        experiment(**space)


def test_a_library_is_made_for_students_of_the_teacher_alone() -> None:
    fields = {"name": "x", "warm_start": "library"}
    for student, used in (("teacher", True), (["teacher", "wrn10_1"], True), ("wrn10_1", False)):
        made = Experiment.model_validate({**fields, "space": {"student": student}})
        assert made.uses_library is used


@pytest.mark.parametrize("wiring", ["reachable", ["chained", "reachable"]])
@pytest.mark.parametrize("warm_start", ["teacher", "none", "library"])
def test_a_wiring_that_reads_a_library_needs_one(wiring: object, warm_start: str) -> None:
    given = {"name": "x", "warm_start": warm_start, "space": {"loss": {"wiring": wiring}}}
    if warm_start == "library":
        assert Experiment.model_validate(given).uses_library
    else:
        with pytest.raises(ValidationError, match=f"expected library, got {warm_start}: .*wiring: reachable"):
            Experiment.model_validate(given)
        for other in ({"method": "adain"}, {"student": "wrn10_1"}):  # it has no effect there
            Experiment.model_validate({**given, "space": {"loss": {"wiring": wiring}, **other}})
