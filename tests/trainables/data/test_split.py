import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.data.stratify import allocate, stratified_sample, stratified_split
from trainables.errors import InputError

CLASSES = ("ant", "bee", "cow")


def labels_of(*counts: int) -> np.ndarray:
    return np.random.default_rng(7).permutation(np.repeat(np.arange(len(counts)), counts))


def test_allocation_of_equal_classes_is_equal() -> None:
    counts = np.array([100, 100, 100])
    assert allocate(counts, 30, np.zeros(3, int), counts).tolist() == [10, 10, 10]


def test_allocation_gives_the_odd_ones_to_the_largest_remainders() -> None:
    counts = np.array([50, 30, 20])
    assert allocate(counts, 13, np.zeros(3, int), counts).tolist() == [6, 4, 3]  # shares 6.5, 3.9, 2.6


def test_allocation_respects_the_lower_bound_of_a_rare_class() -> None:
    counts = np.array([1000, 2])
    assert allocate(counts, 10, np.ones(2, int), counts).tolist() == [9, 1]


@given(st.lists(st.integers(2, 40), min_size=1, max_size=12), st.integers(0, 500))
def test_allocation_stays_within_bounds_and_adds_up(counts: list[int], total: int) -> None:
    array = np.array(counts)
    low, high = np.ones_like(array), array - 1
    taken = allocate(array, total, low, high)
    assert (taken >= low).all() and (taken <= high).all()
    assert taken.sum() == np.clip(total, low.sum(), high.sum())


@given(st.lists(st.integers(2, 30), min_size=2, max_size=6), st.floats(0.01, 0.99), st.integers(0, 5))
def test_split_is_a_partition_with_every_class_on_both_sides(
    counts: list[int], fraction: float, seed: int
) -> None:
    labels = labels_of(*counts)
    names = [str(i) for i in range(len(counts))]
    rest, held_out = stratified_split(labels, fraction, names, seed, stream=1)
    assert sorted([*rest, *held_out]) == list(range(len(labels)))
    assert (np.diff(rest) > 0).all() and (np.diff(held_out) > 0).all()
    assert set(labels[rest]) == set(labels[held_out]) == set(range(len(counts)))


def test_split_holds_out_each_class_in_proportion() -> None:
    labels = labels_of(400, 200, 100)
    _, held_out = stratified_split(labels, 0.1, CLASSES, 0, stream=1)
    assert np.bincount(labels[held_out]).tolist() == [40, 20, 10]


def test_split_depends_on_seed_and_stream_alone() -> None:
    labels = labels_of(50, 50, 50)
    first = stratified_split(labels, 0.2, CLASSES, 3, stream=1)[1].tolist()
    np.random.seed(99)
    assert stratified_split(labels, 0.2, CLASSES, 3, stream=1)[1].tolist() == first
    assert stratified_split(labels, 0.2, CLASSES, 4, stream=1)[1].tolist() != first
    assert stratified_split(labels, 0.2, CLASSES, 3, stream=2)[1].tolist() != first


def test_a_class_too_small_to_split_is_named() -> None:
    with pytest.raises(InputError, match="class 'bee' has 1 usable training image"):
        stratified_split(labels_of(5, 1, 5), 0.2, CLASSES, 0, stream=1)


def test_sample_has_the_size_and_proportions_asked_for() -> None:
    labels = labels_of(400, 200, 100)
    sample = stratified_sample(labels, 70, 3, 0, stream=2)
    assert np.bincount(labels[sample]).tolist() == [40, 20, 10]
    assert len(set(sample.tolist())) == 70
    assert stratified_sample(labels, 700, 3, 0, stream=2).tolist() == list(range(700))


def test_sample_of_impossible_size_is_refused() -> None:
    labels = labels_of(4, 4, 4)
    with pytest.raises(InputError, match=r"data\.train_limit: 13 is more than the 12"):
        stratified_sample(labels, 13, 3, 0, stream=2)
    with pytest.raises(InputError, match=r"data\.train_limit: expected at least one image per class \(3\)"):
        stratified_sample(labels, 2, 3, 0, stream=2)
