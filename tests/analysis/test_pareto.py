import math
from itertools import pairwise

import numpy as np
import pytest

from analysis.errors import InputError
from analysis.pareto import (
    Box,
    Objective,
    box,
    front_mask,
    hypervolume,
    hypervolume_history,
    knee,
    minimised,
    normalise,
    scale_to_front,
    spread,
)

PAIR = (Objective("val_accuracy", "maximize"), Objective("latency_ms", "minimize"))
UNIT = Box(np.zeros(2), np.ones(2))


def dominated(points: np.ndarray, i: int) -> bool:
    return any((p <= points[i]).all() and (p < points[i]).any() for p in points)


@pytest.mark.parametrize("dims", [2, 3, 5])
def test_front_is_what_the_definition_says(dims: int) -> None:
    points = np.random.default_rng(dims).random((60, dims))
    assert front_mask(points).tolist() == [not dominated(points, i) for i in range(60)]


def test_front_drops_nan_and_keeps_the_first_of_duplicates() -> None:
    points = np.array([[np.nan, 0], [1.0, 2.0], [1.0, 2.0], [2.0, 1.0], [-np.inf, 0], [3.0, 3.0]])
    assert front_mask(points).tolist() == [False, True, False, True, False, False]
    assert front_mask(np.empty((0, 2))).tolist() == []


def test_signs_flip_at_the_boundary_alone() -> None:
    assert minimised([[0.9, 3.0]], PAIR).tolist() == [[-0.9, 3.0]]
    assert minimised([], PAIR).shape == (0, 2)


def test_box_is_fixed_by_teacher_and_classes() -> None:
    three = (*PAIR, Objective("val_loss", "minimize"))
    found = box(three, {"latency_ms": 5.0}, classes=10)
    assert found.reference == pytest.approx([-0.1, 5.0, math.log(10)])
    assert found.ideal == pytest.approx([-1.0, 0.0, 0.0])
    assert normalise(minimised([[1.0, 5.0, 0.0]], three), found)[0] == pytest.approx([0.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("objectives", "teacher", "classes", "message"),
    [
        (PAIR, {"latency_ms": None}, 10, "teacher's latency_ms must be a positive number, got None"),
        (PAIR, {"latency_ms": 0.0}, 10, "must be a positive number, got 0.0"),
        (PAIR, {"latency_ms": 5.0}, 1, "at least 2 classes, got 1"),
        ((PAIR[0], Objective("epochs", "minimize")), {"epochs": 1}, 10, "objective 'epochs'"),
        ((PAIR[0], Objective("flops", "maximize")), {"flops": 5}, 10, "flops have the wrong direction"),
    ],
)
def test_box_refuses_what_has_none(
    objectives: tuple[Objective, ...], teacher: dict[str, float], classes: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        box(objectives, teacher, classes)


def test_hypervolume_closed_forms() -> None:
    assert hypervolume(np.array([[0.5, 0.5]]), UNIT) == pytest.approx(0.25)
    assert hypervolume(np.array([[0.2, 0.7], [0.6, 0.1]]), UNIT) == pytest.approx(0.8 * 0.3 + 0.4 * 0.6)
    assert hypervolume(np.array([[0.0, 0.0]]), UNIT) == pytest.approx(1.0)
    assert hypervolume(np.empty((0, 2)), UNIT) == 0.0


def test_points_outside_the_box_are_clipped_out() -> None:
    assert hypervolume(np.array([[-3.0, 0.5]]), UNIT) == pytest.approx(
        0.5
    )  # better than ideal counts as ideal
    assert hypervolume(np.array([[0.1, 1.2], [1.0, 0.0], [np.nan, 0.0]]), UNIT) == 0.0
    only = hypervolume(np.array([[0.5, 0.5]]), UNIT)
    assert hypervolume(np.array([[0.5, 0.5], [0.01, 1.5]]), UNIT) == pytest.approx(only)


@pytest.mark.parametrize("dims", [2, 3])
def test_history_is_the_hypervolume_of_every_prefix(dims: int) -> None:
    points = np.random.default_rng(0).random((40, dims)) * 1.3
    points[7] = np.nan
    unit = Box(np.zeros(dims), np.ones(dims))
    volumes, sizes = hypervolume_history(points, unit)
    expected = [hypervolume(points[: i + 1][front_mask(points[: i + 1])], unit) for i in range(40)]
    assert volumes == pytest.approx(expected)
    assert sizes.tolist() == [int(front_mask(points[: i + 1]).sum()) for i in range(40)]
    assert all(a <= b for a, b in pairwise(volumes))


def test_knee_is_furthest_from_the_chord_whatever_the_units() -> None:
    front = np.array([[0.0, 1.0], [0.1, 0.3], [0.3, 0.2], [1.0, 0.0]])
    assert knee(front) == 1
    assert knee(front * [1000.0, 0.01] + [5.0, -3.0]) == 1
    chord = np.array([1.0, 1.0]) / math.sqrt(2)
    distances = (1.0 - front.sum(axis=1)) / math.sqrt(2)
    assert distances.argmax() == 1
    assert chord @ chord == pytest.approx(1.0)


def test_knee_of_degenerate_fronts_is_the_first() -> None:
    assert knee(np.array([[3.0, 4.0]])) == 0
    assert knee(np.array([[0.0, 1.0], [1.0, 0.0]])) == 0
    assert knee(np.array([[0.0, 1.0], [0.4, 0.6], [1.0, 0.0]])) == 0
    assert scale_to_front(np.array([[2.0, 1.0], [2.0, 3.0]])).tolist() == [[0.0, 0.0], [0.0, 1.0]]


def test_spread_holds_the_ends_and_fills_the_widest_gap() -> None:
    x = np.array([0.0, 0.05, 0.1, 0.5, 0.9, 1.0])
    front = np.stack([x, 1.0 - x], axis=1)
    assert spread(front, 2) == [0, 5]
    assert spread(front, 3) == [0, 3, 5]
    assert spread(front, 99) == [0, 1, 2, 3, 4, 5]
    assert spread(front[::-1], 3) == [5, 2, 0]  # in order of the first objective
    assert spread(front, 1) == [knee(front)]


def test_spread_of_three_objectives_holds_each_best() -> None:
    points = np.random.default_rng(3).random((50, 3))
    front = points[front_mask(points)]
    chosen = spread(front, 5)
    assert len(set(chosen)) == 5
    assert {int(front[:, j].argmin()) for j in range(3)} <= set(chosen)
