"""Parts of the loss, learned weights and mixes: the numbers, and what is drawn of them."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import optuna
import pandas as pd
import pytest
from matplotlib.figure import Figure
from optuna.trial import create_trial

from analysis.report import loss_parts
from analysis.report.loss_plots import OTHER, draw_loss_parts, draw_span_weights
from analysis.report.style import PART_COLOURS, RC
from analysis.report.write import write_report
from analysis.runs.run import Run

Make = Callable[..., optuna.Study]
NOTHING = {"complete": 0, "pruned": 0, "failed": 0, "running": 0, "waiting": 0, "refused": 0}
OLD_RUN = Path(__file__).parents[2] / "data" / "run-v0.1" / "finished.tar.xz"


def test_the_parts_of_an_epoch_add_up_to_its_training_loss(make_study: Make) -> None:
    study = make_study(names="two")
    run = Run.open(study)
    numbers = loss_parts.shown_students(run, limit=4)
    table = loss_parts.loss_parts(run, numbers)
    assert list(dict.fromkeys(table["number"])) == numbers
    for (number, epoch), part in table.groupby(["number", "epoch"]):
        curve = run.trial(int(number)).user_attrs["curve"]
        assert part["loss"].sum() == pytest.approx(curve["train_loss"][epoch - 1])
        assert part["train_loss"].nunique() == 1
        recorded = {name.removeprefix("loss/") for name in curve if name.startswith("loss/")}
        assert set(part["part"]) == recorded
    assert len(table.groupby(["number", "epoch"])) == 4 * 8


def test_the_picked_are_shown_and_else_the_front_from_end_to_end(make_study: Make) -> None:
    run = Run.open(make_study(names="one", complete=60))
    front = run.front()["number"].tolist()
    assert len(front) > 3
    assert loss_parts.shown_students(run, limit=3) == [
        front[0],
        front[round((len(front) - 1) / 2)],
        front[-1],
    ]
    assert loss_parts.shown_students(run, [front[2], 999, front[2], front[0]]) == [front[2], front[0]]
    assert loss_parts.shown_students(run, [999]) == loss_parts.shown_students(run)
    assert loss_parts.shown_students(Run.open(make_study()), [3]) == []


def test_weights_of_the_fronts_adaptive_students_by_block(make_study: Make) -> None:
    study = make_study(**NOTHING, names="one")
    spans = [{"span": ["layer1.1", "layer1.2"], "width": 0.25}, {"span": ["layer3.0"], "width": 0.5}]
    weights = {"weight/layer1.1+layer1.2": 1.25, "weight/layer3.0": 0.75}
    mix = {"mix/layer3.0/layer3.0.act": 0.875, "mix/layer3.0/layer3.1.act": 0.125}
    curve = {"epoch": [1], "train_loss": [2.0], "loss/ce": [2.0], "entropy": [0.9]}
    for values, learned in (([0.9, 3.0], weights | mix), ([0.8, 2.0], {})):
        last = {name: column[-1] for name, column in curve.items()} | learned
        kept = curve | {name: [value] for name, value in learned.items()}
        study.add_trial(
            create_trial(
                values=values,
                user_attrs={"config": {}, "replaced": spans, "metrics": last, "curve": kept},
            )
        )
    run = Run.open(study)
    cells = loss_parts.span_weights(run)
    assert set(cells["number"]) == {0}, "the other student was supervised uniformly"
    found = cells.set_index("block")["weight"]
    assert found.dropna().to_dict() == {"layer1.1": 1.25, "layer1.2": 1.25, "layer3.0": 0.75}
    mixes = loss_parts.mixes(run)
    assert mixes.values.tolist() == [
        [0, "layer3.0", "layer3.0.act", 0.875],
        [0, "layer3.0", "layer3.1.act", 0.125],
    ]
    assert loss_parts.mix_rows(mixes, 10)[1] == [["0", "layer3.0", "layer3.0.act 0.88, layer3.1.act 0.12"]]
    assert loss_parts.mix_rows(mixes, 0)[1] == []
    shown = texts_of(draw_span_weights(cells, {0: "zero"}))
    assert {"1.25", "0.75", "zero"} <= set(shown)
    assert shown.count("1.25") == 1, "a span of two blocks is one cell"


def test_reasons_say_what_is_missing(make_study: Make) -> None:
    old, empty = Run.open(make_study()), Run.open(make_study(**{**NOTHING, "running": 1}, names="one"))
    assert "version 0.1 did not" in loss_parts.why_no_parts(old)
    assert "recorded learned weights (version 0.1 did not)" in loss_parts.why_no_weights(old)
    assert loss_parts.why_no_parts(empty) == loss_parts.why_no_weights(empty) == "the front is still empty"
    today = Run.open(make_study(names="one"))
    assert "was not adaptive" in loss_parts.why_no_weights(today)
    assert loss_parts.loss_parts(old, [1, 2]).empty and loss_parts.span_weights(old).empty
    assert loss_parts.mixes(old).empty


def texts_of(figure: Figure) -> list[str]:
    figure.canvas.draw()
    return [text.get_text() for axes in figure.axes for text in [*axes.texts, *axes.get_yticklabels()]]


def parts_table(parts: dict[str, list[float]], number: int = 4) -> pd.DataFrame:
    total = np.sum(list(parts.values()), axis=0)
    rows = [
        (number, epoch + 1, part, loss, total[epoch])
        for part, losses in parts.items()
        for epoch, loss in enumerate(losses)
    ]
    return pd.DataFrame(rows, columns=["number", "epoch", "part", "loss", "train_loss"])


def test_stacks_reach_the_training_loss_and_negative_parts_lie_below_zero() -> None:
    figure = draw_loss_parts(
        parts_table({"ce": [3.0, 2.0], "pull": [-1.0, -0.5], "kl": [0.5, 0.25]}), {4: "four"}
    )
    (axes,) = figure.axes
    tops = [area.get_datalim(axes.transData).y1 for area in axes.collections]
    lows = [area.get_datalim(axes.transData).y0 for area in axes.collections]
    assert max(tops) == pytest.approx(3.5)
    assert min(lows) == pytest.approx(-1.0)
    assert axes.get_lines()[0].get_ydata().tolist() == [2.5, 2.5, 1.75, 1.75]  # type: ignore[union-attr]
    assert axes.get_title() == "four"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["ce", "pull", "kl", "training loss, their sum"]


def test_a_single_epoch_is_seen() -> None:
    (axes,) = draw_loss_parts(parts_table({"ce": [1.0], "kl": [0.5]}), {}).axes
    assert len(axes.collections) == 2
    assert axes.get_xlim() == (0.5, 1.5)


def test_more_parts_than_colours_share_one() -> None:
    parts = {f"part {i}": [float(i + 1)] for i in range(len(PART_COLOURS) + 3)}
    figure = draw_loss_parts(parts_table(parts), {})
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(labels) == len(PART_COLOURS) + 1
    assert OTHER in labels and "part 0" not in labels and "part 9" in labels
    assert max(area.get_datalim(figure.axes[0].transData).y1 for area in figure.axes[0].collections) == sum(
        range(1, len(parts) + 1)
    )


def test_a_report_of_version_01_withholds_the_figures_with_a_reason(tmp_path: Path) -> None:
    with tarfile.open(OLD_RUN) as archive:
        archive.extractall(tmp_path, filter="data")
    report = write_report(tmp_path / "run", tmp_path / "report")
    drawn = {path.stem for path in report.figures}
    assert not {"loss-parts", "span-weights"} & drawn
    text = report.index.read_text(encoding="utf-8")
    assert "no trial of the front recorded the parts of its loss (version 0.1 did not)" in text
    assert "<dt>Also searched</dt><dd>alpha, beta, fuse, lr, supervision, tau</dd>" in text
    assert {"alpha", "lr"} <= set(pd.read_csv(report.out / "trials.csv").columns)
    assert not (report.out / "methods.csv").read_text().strip().count("\n")


def labels_overlap(figure: Figure) -> list[str]:
    """Texts of the figure that lie over each other or outside it."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    texts = [t for axes in figure.axes for t in (axes.title, axes.xaxis.label, axes.yaxis.label)]
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        texts += axes.texts
    texts += [t for legend in figure.legends for t in legend.get_texts()]
    # The box around a slanted text is larger than the text.
    upright = [t for t in texts if t.get_text() and t.get_visible() and t.get_rotation() % 90 == 0]
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in upright]
    width, height = figure.canvas.get_width_height()
    found = [n for n, box in boxes if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1]
    for i, (name, box) in enumerate(boxes):
        found += [
            f"{name} / {other}" for other, at in boxes[i + 1 :] if box.padded(-1).overlaps(at.padded(-1))
        ]
    return found


@pytest.mark.parametrize("students", [1, 2, 5, 6])
def test_no_text_of_the_parts_lies_over_another(students: int) -> None:
    parts = {
        "ce": [2.0, 1.0, 0.5],
        "kl": [100.0, 1.0, 0.5],
        "regulariser": [0.1, 0.1, 0.1],
        "b": [-1.0, 0, 0],
    }
    table = pd.concat([parts_table(parts, number) for number in range(students)])
    names = {number: f"{1200 + number}: 91.34 %, 40.8 M\nrelational" for number in range(students)}
    with matplotlib.rc_context(RC):
        assert labels_overlap(draw_loss_parts(table, names)) == []


def test_no_text_of_the_weights_lies_over_another(make_study: Make) -> None:
    run = Run.open(make_study(names="one", complete=120))
    cells = loss_parts.span_weights(run)
    assert cells["number"].nunique() > 2
    names = {int(n): f"{n}: 91.34 %, 40.8 M" for n in cells["number"]}
    with matplotlib.rc_context(RC):
        assert labels_overlap(draw_span_weights(cells, names)) == []
