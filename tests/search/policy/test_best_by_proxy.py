"""First proposals against brute force over every student of a small space."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.policy.best_by_proxy import best_by_proxy, price_of, spread
from trainables.blocks.blocks import Block
from trainables.config import StudentSpec
from trainables.costs.table import Costs
from trainables.student.spans import candidate_spans, spans_of

SHAPES = [(32, 4, 4), (32, 4, 4), (32, 4, 4), (64, 2, 2), (64, 2, 2)]  # of the blocks' outputs
WIDTHS = (0.25, 0.5)


def chain(follows=True):
    blocks, before = [], SHAPES[0]
    for i, shape in enumerate(SHAPES):
        name, previous = f"b{i}", f"b{i - 1}" if i and follows else None
        blocks.append(Block(name, (name,), before, shape, "nchw", "relu", 10, 10, previous))
        before = shape
    return tuple(blocks)


def table(blocks, fuse, figures):
    keys = [span.key for span in candidate_spans(blocks, WIDTHS, fuse)]
    proxies = dict(zip(keys, figures, strict=False))
    saved = {key: 3 + 7 * (i % 5) + len(key) % 3 for i, key in enumerate(keys)}

    def price(spec):
        return 1000.0 - sum(saved[span.key] for span in spans_of(blocks, spec))

    return proxies, price


def brute_force(blocks, fuse, proxies, price):
    students = []
    for levels in product((None, *WIDTHS), repeat=len(blocks)):
        widths = {b.name: w for b, w in zip(blocks, levels, strict=True) if w is not None}
        spec = StudentSpec(widths=widths, fuse=fuse)
        students.append((price(spec), sum(proxies[span.key] for span in spans_of(blocks, spec))))
    best = {}
    for cost, proxy in students:
        if not any(c <= cost and p <= proxy and (c, p) != (cost, proxy) for c, p in students):
            best[cost] = proxy
    return best


@settings(max_examples=40, deadline=None)
@given(
    figures=st.lists(st.floats(-0.05, 1.0), min_size=36, max_size=36),
    fuse=st.booleans(),
    follows=st.booleans(),
)
def test_finds_exactly_the_undominated_students(figures, fuse, follows):
    blocks = chain(follows)
    proxies, price = table(blocks, fuse, figures)
    found = best_by_proxy(blocks, WIDTHS, fuse, proxies, price)
    expected = brute_force(blocks, fuse, proxies, price)
    assert {c.price: pytest.approx(c.proxy, abs=1e-9) for c in found} == expected
    for candidate in found:
        assert candidate.price == pytest.approx(price(candidate.spec))
        summed = sum(proxies[span.key] for span in spans_of(blocks, candidate.spec))
        assert candidate.proxy == pytest.approx(summed)


def test_spread_covers_the_price_axis_without_the_teacher():
    blocks = chain()
    proxies, price = table(blocks, True, [0.1 + 0.01 * i for i in range(36)])
    found = best_by_proxy(blocks, WIDTHS, True, proxies, price)
    chosen = spread(found, 3)
    assert 1 <= len(chosen) <= 3
    assert chosen[0].price == min(c.price for c in found)
    assert all(c.spec.widths for c in chosen)
    assert spread(found, 0) == [] and spread(found[-1:], 2) == []


def test_price_of_takes_one_metric():
    costs = Costs(params=3, flops=5, latency_ms=7.5)
    assert [price_of(lambda spec: costs, m)(StudentSpec()) for m in ("params", "flops", "latency_ms")] == [
        3,
        5,
        7.5,
    ]
