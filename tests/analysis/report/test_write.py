import html.parser
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState, create_trial
from PIL import Image

from analysis.errors import InputError
from analysis.pareto import hypervolume
from analysis.picks.pick import pick
from analysis.picks.pick_file import write_pick
from analysis.report.texts import suggest
from analysis.report.write import Report, write_report
from analysis.runs.run import Run
from analysis.runs.status import status

Make = Callable[..., optuna.Study]
WHY = "<script>alert(1)</script> | x"
NOTHING = {"complete": 0, "pruned": 0, "failed": 0, "running": 0, "waiting": 0, "refused": 0}
VOID = {"meta", "link", "br", "img"}


class Balanced(html.parser.HTMLParser):
    """Checks that tags close in order, and collects texts and links."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v or "" for k, v in attrs if k in ("href", "src", "xlink:href")]
        self.ids += [v or "" for k, v in attrs if k == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parse(path: Path) -> tuple[str, Balanced]:
    text = path.read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    return text, parser


@pytest.fixture(scope="module")
def full(make_run: Callable[..., Path]) -> Path:
    """A run with picks and retrained students, whose texts try to break out of the page."""
    run = make_run()
    study = optuna.load_study(study_name="demo", storage=f"sqlite:///{run / 'study.db'}")
    study.add_trial(
        create_trial(
            state=TrialState.FAIL, user_attrs={"config": {}, "reason": "<script>alert(1)</script> | x"}
        )
    )
    study.set_user_attr("command", "ama search 'a&b' <i>")
    write_pick(run / "pick.yaml", pick(run, top=2), run)
    (run / "retrained").mkdir()
    rows = [
        {"number": 3, "kind": "ama", "seed": s, "test_accuracy": 0.9 + s / 100, "test_loss": 0.3 + s / 10}
        for s in range(2)
    ]
    (run / "retrained" / "results.json").write_text(json.dumps(rows))
    return run


@pytest.fixture(scope="module")
def report(full: Path) -> Report:
    return write_report(full, full / "report")


def test_report_is_one_page_that_needs_nothing_else(report: Report) -> None:
    text, parser = parse(report.index)
    outside = [x for x in parser.links if not x.startswith("#") and not x.startswith("data:")]
    assert all((report.out / x).is_file() for x in outside)  # nothing but the tables beside it
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert len(parser.ids) == len(set(parser.ids))
    assert {x[1:] for x in parser.links if x.startswith("#")} <= set(parser.ids)
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; | x" in text
    assert "ama search &#x27;a&amp;b&#x27; &lt;i&gt;" in text
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_report_says_what_there_is(full: Path, report: Report) -> None:
    text = report.index.read_text(encoding="utf-8")
    run = Run.open(full)
    for number in run.front()["number"]:
        assert f'<td class="text">{number}</td>' in text
    for words in ("cifar_resnet20", "90.50 ± 0.71 %", "0.3500 ± 0.0707", "1 of 9", "refused before training"):
        assert words in text
    assert text.count('<tr class="picked">') == 2
    assert f"ama pick {full} --knee --out {full}/pick.yaml" in text
    assert f"ama retrain {full}/pick.yaml" in text
    summary = report.summary.read_text(encoding="utf-8")
    assert f"| {run.front()['number'].iloc[0]} | " in summary
    assert "90.50 ± 0.71 %" in summary


SCALES = {"%": [1e2], "ms": [1.0], "k": [1e-3], "M": [1e-6], "minutes": [60.0], "": [1.0, 1e2]}


def test_every_number_of_the_tables_is_in_a_csv_beside_them(report: Report) -> None:
    numbers = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e-?\d+)?")
    known = [float(x) for file in report.tables for x in numbers.findall(file.read_text(encoding="utf-8"))]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", report.index.read_text(encoding="utf-8"))
    checked = 0
    for cell in cells:
        unit = next((unit for unit in SCALES if unit and f" {unit}" in cell), "")
        for shown in numbers.findall(cell.replace("100 %", "")):  # the teacher's share of itself
            half = 0.5001 * 10.0 ** -len(shown.partition(".")[2])
            near = (abs(x * scale - float(shown)) < half for scale in SCALES[unit] for x in known)
            assert any(near), f"{shown} of {cell!r}"
            checked += 1
    assert checked > 100


def test_sections_are_linked_where_there_are_any(report: Report, make_study: Make, tmp_path: Path) -> None:
    assert {"#retrained", "#failures"} <= set(parse(report.index)[1].links)
    clean = write_report(make_study(**{**NOTHING, "complete": 1}), tmp_path)
    assert not {"#retrained", "#failures"} & set(parse(clean.index)[1].links)


def test_latencies_far_above_their_predictions_are_explained(make_study: Make, tmp_path: Path) -> None:
    study = make_study(complete=5)
    front = Run.open(study).front()
    for factor, said in ((1.1, False), (1.8, True)):
        measured = {str(r["number"]): {"latency_ms": factor * r["latency_ms"]} for _, r in front.iterrows()}
        study.set_user_attr("measured", measured)
        text = write_report(study, tmp_path).index.read_text(encoding="utf-8")
        assert ("is 80 % above the prediction" in text) == said


def test_every_figure_has_picture_vector_and_numbers(report: Report) -> None:
    slugs = {p.stem for p in report.figures}
    assert slugs == {
        *("front-val_accuracy-latency_ms", "accuracy-flops", "accuracy-params", "hypervolume", "block-map"),
        *("learning-curves", "importance-val_accuracy", "importance-latency_ms", "block-effects", "settings"),
    }
    for slug in slugs:
        with Image.open(report.out / f"{slug}.png") as image:
            assert image.width == 780
            assert len(image.convert("L").getcolors(256) or []) > 20  # not an empty picture
        assert (report.out / f"{slug}.svg").read_text().startswith("<?xml")
        assert len(pd.read_csv(report.out / f"{slug}.csv"))
    assert all(path.is_file() for path in report.tables)
    assert len(pd.read_csv(report.out / "trials.csv")) == 49
    front = pd.read_csv(report.out / "front-val_accuracy-latency_ms.csv")
    assert front["picked"].sum() == 2


def test_three_objectives_have_three_fronts(make_study: Make, tmp_path: Path) -> None:
    objectives = [
        {"metric": "val_loss", "direction": "minimize"},
        {"metric": "flops", "direction": "minimize"},
        {"metric": "params", "direction": "minimize"},
    ]
    report = write_report(make_study(objectives=objectives, complete=12), tmp_path)
    names = {p.name for p in report.figures}
    assert {"front-val_loss-flops.png", "front-val_loss-params.png", "front-params-flops.png"} <= names
    assert "accuracy-latency_ms.png" in names


def test_a_run_with_nothing_finished_says_so(make_study: Make, tmp_path: Path) -> None:
    report = write_report(make_study(**{**NOTHING, "running": 2, "pruned": 3, "failed": 1}), tmp_path)
    text, _ = parse(report.index)
    assert "No trial has finished yet: 2 running, 3 stopped early, 1 failed." in text
    assert "Nothing to pick: no trial has finished yet" in text
    assert "needs 10 fully trained trials, there are 0" in text
    assert "No trial has finished yet" in report.summary.read_text()
    assert not (tmp_path / "block-map.png").exists()


def test_a_run_whose_first_trials_run(make_study: Make, tmp_path: Path) -> None:
    study = make_study(**NOTHING)
    study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs={"config": {}}))
    text, _ = parse(write_report(study, tmp_path).index)
    assert "no trial has ended yet" in text
    assert "no epoch has ended yet" in text


def test_one_finished_trial_is_enough(make_study: Make, tmp_path: Path) -> None:
    report = write_report(make_study(**{**NOTHING, "complete": 1}), tmp_path)
    assert (tmp_path / "block-map.png").is_file()
    parse(report.index)


def test_a_later_report_leaves_no_stale_picture(make_study: Make, tmp_path: Path) -> None:
    write_report(make_study(complete=12), tmp_path)
    write_report(make_study(complete=4), tmp_path)
    assert not (tmp_path / "settings.png").exists()


def test_no_trials_is_an_error(make_study: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no trials yet"):
        write_report(make_study(**NOTHING), tmp_path)


@pytest.fixture(scope="module")
def two(make_run: Callable[..., Path]) -> Report:
    """The report of a run that searched two methods, with picks."""
    run = make_run("two", names="two", complete=60)
    return write_report(run, run / "report", pick(run, top=3))


def test_a_report_of_two_methods_names_them_and_their_settings(two: Report) -> None:
    text, parser = parse(two.index)
    assert {"#methods", "#loss"} <= set(parser.links)
    assert "<dt>Methods</dt><dd>ama, toy</dd>" in text
    assert "ama: alpha, ama: beta, ama: supervision, method, lr, toy: alpha, toy: kind, toy: layers" in text
    assert "optim/lr" not in text and "import:mine.py:Toy" not in text
    drawn = {p.stem for p in two.figures}
    assert {"loss-parts", "span-weights", "settings", "importance-val_accuracy-ama"} <= drawn
    assert "importance-val_accuracy-toy" in drawn
    table = pd.read_csv(two.out / "trials.csv")
    assert {"loss/ce", "loss/pull", "queue", "toy/kind", "ama/alpha", "weight/layer1.0"} <= set(table.columns)
    assert table.columns.is_unique
    curves = pd.read_csv(two.out / "learning-curves.csv")
    assert np.allclose(curves.filter(like="loss/").sum(axis=1), curves["train_loss"])
    shown = pd.read_csv(two.out / "loss-parts.csv")
    assert shown["number"].nunique() == 3, "the picked students alone"
    assert "Shown: the picked students." in text
    summary = two.summary.read_text(encoding="utf-8")
    assert "## Results by method" in summary and "![Parts of the loss](loss-parts.png)" in summary


def test_its_tables_say_what_their_csv_files_say(two: Report) -> None:
    test_every_number_of_the_tables_is_in_a_csv_beside_them(two)


def test_a_report_of_one_method_has_short_names(make_study: Make, tmp_path: Path) -> None:
    report = write_report(make_study(names="one", complete=40), tmp_path)
    text, parser = parse(report.index)
    assert "<dt>Method</dt><dd>ama</dd>" in text
    assert "<dt>Also searched</dt><dd>alpha, beta, supervision, lr</dd>" in text
    assert "#methods" not in parser.links
    assert {"loss-parts", "span-weights"} <= {p.stem for p in report.figures}
    assert "Learned targets" in text and "layer1.0.act 0.75, layer1.1.act 0.25" in text


def test_suggestions_are_picks_that_their_commands_would_make(make_run: Callable[..., Path]) -> None:
    run = Run.open(make_run(complete=80))
    knee, half = suggest(run)
    assert knee.command == f"ama pick {run.path} --knee"
    assert half.command == f"ama pick {run.path} --max latency_ms=0.5x"
    assert half.pick.values["latency_ms"] <= 0.5 * run.teacher["latency_ms"]
    assert suggest(Run.open(make_run("none", complete=0))) == []


def test_status_is_plain_and_complete(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    found = json.loads(json.dumps(status(folder)))
    assert found["trials"] == {
        **{"COMPLETE": 30, "PRUNED": 8, "FAIL": 3, "RUNNING": 2, "WAITING": 1, "refused": 4}
    }
    run = Run.open(folder)
    assert [row["number"] for row in found["front"]] == run.front()["number"].tolist()
    assert set(found["front"][0]["values"]) == {
        *("val_accuracy", "val_loss", "latency_ms", "flops", "params", "epochs")
    }
    assert found["hypervolume"] == pytest.approx(hypervolume(run.points(run.front()), run.box))
    assert found["epochs"] == 30 * 8 + 13 * 2
    assert found["budget"]["trials"] == 40
    assert found["ended"] is None


def test_status_works_before_the_first_trial(make_study: Make) -> None:
    found = status(make_study(**NOTHING))
    assert found["trials"]["COMPLETE"] == 0
    assert (found["front"], found["hypervolume"]) == ([], 0.0)
