import numpy as np
import pandas as pd
import pytest

from analysis.errors import InputError
from analysis.picks.limits import Limit, parse_limits

TEACHER = {"flops": 80e6, "latency_ms": 6.0, "val_accuracy": 0.9}


def test_texts_and_mappings_mean_the_same() -> None:
    texts = parse_limits(["flops=0.5x", "params=100k"], ["accuracy=88%"], TEACHER)
    mapped = parse_limits({"flops": "0.5x", "params": 100_000}, {"val_accuracy": 0.88}, TEACHER)
    assert [(x.metric, x.op, x.value) for x in texts] == [
        ("flops", "<=", 40e6),
        ("params", "<=", 1e5),
        ("val_accuracy", ">=", pytest.approx(0.88)),
    ]
    assert [(x.metric, x.op, x.value) for x in mapped] == [(x.metric, x.op, x.value) for x in texts]
    assert parse_limits("flops=1M", None, TEACHER)[0].value == 1e6
    assert parse_limits(None, None, TEACHER) == ()
    assert str(texts[0]) == "flops <= 40.0 M (0.5x)"
    assert parse_limits({"measured_latency_ms": "0.5x"}, None, TEACHER)[0].value == 3.0


@pytest.mark.parametrize(
    ("most", "message"),
    [
        (["flops"], "max 'flops': expected metric=value"),
        (["=3"], "expected metric=value"),
        (["flops=many"], "'many' is not a number"),
        (["flips=3"], "did you mean 'flops'"),
        (["flops=3M", "flops=2M"], r"max flops=2M: there is already the limit flops <= 3.00 M"),
        (["epochs=0.5x"], "max epochs=0.5x: the teacher has no epochs"),
    ],
)
def test_faulty_limits_are_named(most: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_limits(most, None, TEACHER)


def test_excess_is_relative_and_unknown_is_never_within() -> None:
    values = pd.Series([50.0, 40.0, 20.0, np.nan])
    assert Limit("flops", "<=", 40.0, "40").excess(values).tolist() == [0.25, 0.0, -0.5, np.inf]
    assert Limit("flops", ">=", 40.0, "40").excess(values).tolist() == [-0.25, 0.0, 0.5, np.inf]
