import pytest

from analysis.errors import InputError
from analysis.metrics import describe, metric_name, parse_amount, show, show_time


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("40M", (40e6, "number")),
        ("1.5g", (1.5e9, "number")),
        ("100k", (1e5, "number")),
        ("92%", (0.92, "number")),
        ("3.5 ms", (3.5, "number")),
        ("1e-3", (1e-3, "number")),
        (".5x", (0.5, "factor")),
        ("0.5X", (0.5, "factor")),
        ("teacher - 0.02", (-0.02, "difference")),
        ("teacher-2%", (-0.02, "difference")),
        ("Teacher + 1k", (1000.0, "difference")),
        ("teacher", (0.0, "difference")),
    ],
)
def test_amounts_are_read_as_people_type_them(text: str, expected: tuple[float, str]) -> None:
    amount = parse_amount(text)
    assert (pytest.approx(amount.value), amount.form) == expected


def test_amounts_relative_to_the_teacher() -> None:
    assert parse_amount("0.5x").absolute(0.8) == pytest.approx(0.4)
    assert parse_amount("teacher - 2%").absolute(0.8) == pytest.approx(0.78)
    assert parse_amount("teacher").absolute(0.8) == 0.8
    assert parse_amount("3").absolute(0.8) == 3.0
    assert [parse_amount(text).of_teacher for text in ("1", "1x", "teacher")] == [False, True, True]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        "4Q",
        "1.2.3",
        "x",
        "nan",
        "inf",
        "1e999",
        "1e999x",
        "teacher 2",
        "teacher - 0.5x",
        "teachers",
    ],
)
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not a number"):
        parse_amount(text)


def test_metric_names_aliases_and_the_nearest() -> None:
    assert metric_name("accuracy") == "val_accuracy"
    assert metric_name(" flops ") == "flops"
    with pytest.raises(InputError, match="did you mean 'flops'"):
        metric_name("flop")
    with pytest.raises(InputError, match=r"unknown metric 'zzz': expected one of val_accuracy"):
        metric_name("zzz")


@pytest.mark.parametrize(
    ("metric", "value", "expected"),
    [
        ("val_accuracy", 0.91344, "91.34 %"),
        ("latency_ms", 6.0, "6.00 ms"),
        ("latency_ms", 1234.5, "1234 ms"),
        ("flops", 40_812_544, "40.8 M"),
        ("params", 271_117, "271 k"),
        ("params", 999_990, "1.00 M"),
        ("params", 12, "12"),
        ("epochs", 8.0, "8"),
        ("val_loss", 0.30001, "0.3000"),
        ("flops", None, "–"),
        ("flops", float("nan"), "–"),
    ],
)
def test_values_are_shown_with_unit_and_sensible_digits(metric: str, value: float, expected: str) -> None:
    assert show(metric, value) == expected


def test_short_times_are_in_minutes() -> None:
    assert [show_time(h) for h in (0, 0.02, 0.999, 1, 1.5644)] == [
        *("0 minutes", "1.20 minutes", "59.9 minutes", "1.00 hours", "1.56 hours"),
    ]


def test_axes_name_their_unit() -> None:
    assert describe("latency_ms").axis_label == "latency (ms)"
    assert describe("flops").axis_label == "FLOPs"
