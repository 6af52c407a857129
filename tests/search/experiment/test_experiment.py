"""The experiment file: what it takes, what it refuses and in which words, what it writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from search.experiment.load import load_experiment
from search.experiment.objectives import Constraint
from search.experiment.ranges import Range
from search.experiment.reference import page, schema_markdown
from search.experiment.resolved import difference, dump_yaml, resolved, resolved_yaml
from search.experiment.validation_messages import valid_names
from search.presets import presets
from trainables.errors import InputError

METRIC_FORMS = (
    "val_accuracy, val_loss, latency_ms, flops, params, or your own "
    "(import:<package.module>:<name> or import:<file.py>:<name>)"
)
RANGE_FORMS = "number, [low, high], {low, high, log} or {choices: [...]}"


@pytest.fixture
def write(tmp_path):
    """Write an experiment file; its path."""

    def to_file(text: str, name: str = "small.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return to_file


@pytest.fixture
def load(write):
    """Load an experiment from its YAML text."""
    return lambda text, *overrides, out=None: load_experiment(write(text), overrides, out)


@pytest.fixture
def faults_of(load):
    """The lines of the error that loading a text ends in, by dotted key."""

    def collect(text: str, *overrides: str) -> dict[str, str]:
        with pytest.raises(InputError) as error:
            load(text, *overrides)
        head, *lines = str(error.value).split("\n  ")
        assert head.endswith(f"{len(lines)} fault" + "s" * (len(lines) > 1))
        return dict(line.split(": ", 1) for line in lines)

    return collect


# ---- what it takes


def test_an_empty_file_is_all_defaults_with_the_files_name(load):
    experiment = load("")
    assert experiment.name == "small"
    assert experiment.run.dir == "runs/small"
    assert [(o.metric, o.direction) for o in experiment.objectives] == [
        ("val_accuracy", "maximize"),
        ("latency_ms", "minimize"),
    ]


def test_a_section_with_every_key_commented_out_means_its_defaults(load):
    assert load("budget:\nspace:\n  loss:\nconstraints:\nrun:\n") == load("")


def test_out_goes_before_run_dir_and_overrides_before_the_file(load):
    experiment = load("run: {dir: a}\nseed: 1", "seed=2", "run.dir=b", "seed=3", out="c")
    assert (experiment.seed, experiment.run.dir) == (3, "c")


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", ".001", "0.001", "+1E-3"])
def test_every_spelling_of_a_number_is_one_in_files_and_in_overrides(load, text):
    assert load(f"space: {{optim: {{lr: {text}}}}}").space.optim.lr == 0.001
    assert load("", f"space.optim.lr={text}").space.optim.lr == 0.001


def test_what_yaml_1_1_would_turn_into_something_else_stays_text(load):
    assert load("name: 2024-01-01").name == "2024-01-01"
    assert load("", "data.root=1:30", "name=no").data.root == "1:30"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5", 0.5),
        ("1", 1.0),
        ("[1, 8]", {"low": 1.0, "high": 8.0, "log": True}),
        ("{low: 1, high: 8}", {"low": 1.0, "high": 8.0, "log": True}),
        ("{low: 1, high: 8, log: false}", {"low": 1.0, "high": 8.0, "log": False}),
        ("{choices: [1, 4]}", {"choices": (1.0, 4.0)}),
    ],
)
def test_forms_of_a_range(load, text, expected):
    tau = load(f"space: {{loss: {{tau: {text}}}}}").space.loss.tau
    assert (tau if isinstance(tau, float) else tau.model_dump()) == expected
    assert isinstance(tau, Range) == (isinstance(expected, dict) and "low" in expected)


def test_log_is_the_default_where_the_magnitude_matters_and_zero_is_not_in_it(load):
    space = load(
        "space: {loss: {alpha: [0.1, 0.9], beta: [0, 1]}, "
        "optim: {lr: [0.01, 0.1], weight_decay: [1e-5, 1e-3], batch_size: [32, 64]}}"
    ).space
    logs = [
        space.loss.alpha.log,
        space.loss.beta.log,
        space.optim.lr.log,
        space.optim.weight_decay.log,
        space.optim.batch_size.log,
    ]
    assert logs == [False, False, True, True, False]
    assert isinstance(space.optim.batch_size.low, int)


def test_widths_are_sorted_and_blocks_take_two_forms(load):
    space = load(
        "space: {widths: [1, 0.25, 0.5], blocks: {include: [layer1*], exclude: ['layer1.0', '!fc']}}"
    ).space
    assert space.widths == (0.25, 0.5, 1.0)
    assert space.blocks == ("layer1*", "!layer1.0", "!fc")
    assert load("", "space.blocks=!layer1*").space.blocks == ("!layer1*",)
    assert load("", 'space.blocks=["*", "!a"]').space.blocks == ("*", "!a")


@pytest.mark.parametrize(("text", "expected"), [("true", True), ("false", False), ("search", "search")])
def test_fuse(load, text, expected):
    assert load("", f"space.fuse={text}").space.fuse == expected


def test_supervision_takes_one_or_several(load):
    assert load("", "space.loss.supervision=adaptive").space.loss.supervision == "adaptive"
    assert load("", "space.loss.supervision=[adaptive]").space.loss.supervision == "adaptive"
    both = load("", "space.loss.supervision={choices: [adaptive, uniform]}").space.loss.supervision
    assert both == ("adaptive", "uniform")


def test_objectives_and_sampler_in_short_and_long_form(load):
    experiment = load("objectives: [accuracy, {metric: flops, direction: min}, val_loss]\nsampler: nsga2")
    assert [(o.metric, o.direction) for o in experiment.objectives] == [
        ("val_accuracy", "maximize"),
        ("flops", "minimize"),
        ("val_loss", "minimize"),
    ]
    assert experiment.sampler.name == "nsga2"
    assert load("sampler: {name: gp, startup_trials: 3}").sampler.startup_trials == 3


@pytest.mark.parametrize(
    ("text", "teacher_value", "limit"),
    [
        ("<= 0.6x", 50.0, 30.0),
        (">=0.9x", 0.5, 0.45),
        ("<= 100k", 7.0, 100_000.0),
        ("<= 1.5M", 7.0, 1_500_000.0),
        ("<= 2G", 7.0, 2e9),
        ("<= 2.5", 7.0, 2.5),
        ("<= 1e5", 7.0, 1e5),
    ],
)
def test_limits_absolute_and_relative_to_the_teacher(load, text, teacher_value, limit):
    (constraint,) = load(f"constraints: {{flops: '{text}'}}").constraints
    assert constraint.limit(teacher_value) == pytest.approx(limit)
    (same,) = load(f"constraints: ['flops {text}']").constraints
    assert same == constraint
    assert constraint.text == f"flops {text[:2]} {text[2:].strip()}"


def test_a_metric_with_two_limits_survives_writing(load, tmp_path):
    experiment = load("constraints: ['params >= 1k', 'params <= 9k', 'accuracy >= 0.9']")
    dump_yaml(experiment, tmp_path / "again.yaml")
    again = load_experiment(tmp_path / "again.yaml")
    assert again.constraints == experiment.constraints
    assert again.constraints[2] == Constraint(metric="val_accuracy", op=">=", amount="0.9")


# ---- what it refuses


def test_all_faults_come_at_once_each_with_its_dotted_key(faults_of):
    text = """
seeds: 3
objectives: [acuracy, flops]
constraints: {flops: 0.5x, parms: "<= 3k", val_accuracy: ">= 97", latency_ms: "<= 0"}
budget: {epochs: 3, grace_epochs: 5, reduction_factor: 1.5}
space:
  widths: [0.5, 9]
  fuse: maybe
  loss: {alpha: [0.5, 2], tau: [3, 1], tauu: 3, beta: {lo: 1, high: 3}}
  optim: {lr: -1e-3, weight_decay: {low: 0, high: 1e-2, log: true}, batch_size: 12.5, momentum: abc}
data: {nam: digits, val_fraction: 1.5}
resources: {cpu: 1.5, gpu: -1}
run: 3
"""
    assert faults_of(text, "budget.trials=0", "teacher.arc=vgg") == {
        "seeds": "unknown key; the nearest valid key is seed",
        "objectives.0.metric": f"expected one of {METRIC_FORMS}, got 'acuracy'; the nearest is val_accuracy",
        "constraints.flops": "expected a limit such as '<= 0.6x', '<= 100k', '>= 0.9' or "
        "'>= teacher - 0.02', got '0.5x'",
        "constraints.parms": f"expected one of {METRIC_FORMS}, got 'parms'; the nearest is params",
        "constraints.val_accuracy": "expected a share between 0 and 1, got '>= 97'",
        "constraints.latency_ms": "expected a limit above 0, got '<= 0'",
        "budget.reduction_factor": "expected greater than or equal to 2, got 1.5",
        "budget.trials": "expected greater than 0, got 0",
        "space.widths.1": "expected a width above 0 and at most 4, got 9",
        "space.fuse": "expected true, false or search, got 'maybe'",
        "space.loss.alpha.high": "expected less than or equal to 1, got 2.0",
        "space.loss.tau": "expected low < high, got low 3 and high 1",
        "space.loss.tauu": "unknown key; the nearest valid key is space.loss.tau",
        "space.loss.beta.lo": "unknown key; the nearest valid key is space.loss.beta.low",
        "space.loss.beta.low": "expected a value, but the key is missing",
        "space.optim.lr": "expected greater than 0, got -0.001",
        "space.optim.weight_decay": "expected low > 0 for a log range, got low 0",
        "space.optim.batch_size": f"expected a whole {RANGE_FORMS}, got 12.5",
        "space.optim.momentum": f"expected a {RANGE_FORMS}, got 'abc'",
        "data.nam": "unknown key; the nearest valid key is data.name",
        "data.val_fraction": "expected less than 1, got 1.5",
        "resources.cpu": "expected a fraction of one or a whole number, got 1.5",
        "resources.gpu": "expected greater than or equal to 0, got -1",
        "teacher.arc": "unknown key; the nearest valid key is teacher.arch",
        "run": "expected a mapping of keys to values, got 3",
    }


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("budget.grace_epochs=11", "expected at most budget.epochs, which is 10, got 11"),
        ("space.widths=[]", "expected at least one width, got an empty list"),
        ("space.widths=[1, 0.5, 1.0]", "expected distinct widths, got [1.0, 0.5, 1.0]"),
        ("space.widths=0.5", "expected a list, got 0.5"),
        ("space.loss.tau=[2, 2]", "expected low < high, got low 2 and high 2"),
        (
            "space.loss.tau=[1, 2, 3]",
            "expected [low, high], got [1, 2, 3]; write a list of values as {choices: [...]}",
        ),
        ("space.optim.lr={choices: [0.1, 0.1]}", "expected distinct choices, got [0.1, 0.1]"),
        ("space.optim.lr=1e999", "expected a finite number, got inf"),
        (
            "space.optim.lr=true",
            "expected a number, [low, high], {low, high, log} or {choices: [...]}, got true",
        ),
        ("space.loss.supervision=[]", "expected uniform, adaptive, depth or a list of them, got []"),
        (
            "space.loss.supervision=[uniform, 3]",
            "expected uniform, adaptive, depth or a list of them, got [uniform, 3]",
        ),
        ("space.loss.supervision=[uniform, uniform]", "expected distinct kinds, got [uniform, uniform]"),
        ("objectives=[flops]", "expected at least two different metrics, got [flops]"),
        ("objectives=[flops, flops]", "expected at least two different metrics, got [flops, flops]"),
        ("objectives=flops", "expected a list of at least two metrics, got 'flops'"),
        ("constraints=3", "expected a mapping such as {flops: '<= 0.6x'}, got 3"),
        ("name=a b", "expected text"),
        ("budget.hours=0", "expected greater than 0, got 0"),
        ("storage.study=nonsense", "expected a database URL"),
        ("run.dir=7", "expected text, got 7"),
    ],
)
def test_impossible_values(faults_of, override, fault):
    key = override.partition("=")[0]
    found = faults_of("", override)
    assert list(found) == [key]
    if fault == "expected text":  # a pattern that the text doesn't match
        assert "a b" in found[key]
    else:
        assert found[key].startswith(fault)


@pytest.mark.parametrize("preset", presets())
@pytest.mark.parametrize("epochs", [1, 2, 3, 50])
def test_epochs_of_a_preset_may_be_overridden_alone(preset, epochs):
    whole = load_experiment(preset).budget
    budget = load_experiment(preset, [f"budget.epochs={epochs}"]).budget
    assert (budget.epochs, budget.grace_epochs) == (epochs, min(epochs, whole.grace_epochs))
    assert load_experiment(preset, ["budget.trials=2"]).budget.grace_epochs == whole.grace_epochs


def test_a_number_of_a_file_follows_as_well_and_what_was_typed_does_not(load, faults_of):
    text = "budget: {epochs: 8, grace_epochs: 4}"
    assert load(text, " budget . epochs =3").budget.grace_epochs == 3
    assert load(text, "budget.epochs=9", "budget.epochs=2").budget.grace_epochs == 2
    assert load(text, "budget={epochs: 2}").budget.grace_epochs == 1
    message = "expected at most budget.epochs, which is 3, got 4"
    for overrides in (
        ["budget.epochs=3", "budget.grace_epochs=4"],
        ["budget.grace_epochs=4", "budget.epochs=3"],
        ["budget={epochs: 3, grace_epochs: 4}"],
        ["budget={epochs: 9, grace_epochs: 4}", "budget.epochs=3"],
    ):
        assert faults_of(text, *overrides) == {"budget.grace_epochs": message}
    assert faults_of("budget: {epochs: 3, grace_epochs: 4}") == {"budget.grace_epochs": message}
    assert list(faults_of(text, "budget.epochs=0")) == ["budget.epochs"]
    assert list(faults_of(text, "budget.epochs=x")) == ["budget.epochs"]


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("sampler: nsga2", ["sampler.startup_trials=4"], {"name": "nsga2", "startup_trials": 4}),
        ("", ["sampler=gp", "sampler.startup_trials=4"], {"name": "gp", "startup_trials": 4}),
        ("sampler: {startup_trials: 7}", ["sampler.name=gp"], {"name": "gp", "startup_trials": 7}),
        ("sampler: gp", ["sampler=random"], {"name": "random", "startup_trials": 10}),
    ],
)
def test_a_key_of_a_section_in_short_form_may_be_overridden(load, text, overrides, expected):
    assert load(text, *overrides).sampler.model_dump() == expected


def test_resources_in_short_form_take_keys_and_other_texts_do_not(load, faults_of):
    resources = load("resources: auto", "resources.cpu=2").resources
    assert (resources.concurrent, resources.cpu) == ("auto", 2)
    assert list(faults_of("", "name=x", "name.y=1")) == ["name.y"]


@pytest.mark.parametrize("text", ["warm_start: none\nspace: {train: modules}", "space: {train: modules}", ""])
def test_frozen_parts_with_random_weights_are_refused(faults_of, text):
    found = faults_of(text, "warm_start=none", "space.train=modules")
    assert list(found) == ["warm_start"]
    assert found["warm_start"].startswith("expected teacher or library, got none: with space.train: modules")


@pytest.mark.parametrize(
    ("start", "train"), [("none", "all"), ("teacher", "modules"), ("library", "modules")]
)
def test_other_starts_are_not_refused(load, start, train):
    made = load("", f"warm_start={start}", f"space.train={train}")
    assert (made.warm_start, made.space.train) == (start, train)


def test_a_direction_against_the_metrics_nature_is_a_fault(faults_of):
    text = "objectives: [val_accuracy, {metric: flops, direction: maximize}]"
    assert faults_of(text) == {"objectives.1.direction": "expected minimize for flops, got maximize"}


def test_blocks_name_what_is_wrong_with_them(faults_of):
    assert faults_of("space: {blocks: [1, '!', a]}") == {
        "space.blocks.0": "expected a pattern, got 1",
        "space.blocks.1": "expected a pattern, got '!'",
    }
    assert faults_of("space: {blocks: {includ: [a], exclude: b}}") == {
        "space.blocks.includ": "unknown key; the nearest valid key is include",
        "space.blocks.exclude": "expected a list of patterns, got 'b'",
    }


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("space.optim.learning_rate=1", "space.optim"),
        ("optim.lr=1", "space.optim"),
        ("epochs=3", "teacher.epochs or budget.epochs"),
        ("bugdet.trials=3", "budget"),
        ("samplr=tpe", "sampler"),
    ],
)
def test_the_nearest_valid_key_may_be_in_another_section(faults_of, override, nearest):
    (fault,) = faults_of("", override).values()
    assert fault.startswith("unknown key; the nearest valid key is " + nearest)


def test_duplicate_keys_are_named_with_both_lines_beside_the_other_faults(faults_of):
    faults = faults_of("seed: 1\nspace:\n  loss:\n    tau: 1\n    tau: 2\nseed: 2\nsede: 3\n")
    assert faults == {
        "space.loss.tau": "duplicate key, on lines 4 and 5; expected it once",
        "seed": "duplicate key, on lines 1 and 6; expected it once",
        "sede": "unknown key; the nearest valid key is seed",
    }


def test_a_key_used_again_in_another_mapping_is_no_duplicate(load):
    text = (
        "objectives: [{metric: flops}, {metric: params}]\nbudget: &b {epochs: 3}\nteacher: {<<: *b, lr: 0.2}"
    )
    assert load(text).teacher.epochs == 3


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ("seed: 1\nspace: [1, 2\nname: a: b\n", 3, ""),
        ("constraints:\n  val_accuracy: >= 0.9\n", 2, "text that begins with > needs quotes"),
        ("space:\n  blocks:\n  - *layer1\n", 3, "text that begins with * needs quotes"),
        ("space:\n  blocks: [!layer1 ]\n", 2, "text that begins with ! needs quotes"),
    ],
)
def test_a_yaml_error_names_file_and_line(load, text, line, hint):
    with pytest.raises(InputError, match=rf"small\.yaml, line {line}: not valid YAML") as error:
        load(text)
    assert str(error.value).endswith(hint)


def test_files_that_are_no_experiment(load, tmp_path):
    for text in ("- 1\n", "just words", "a: \x00"):
        with pytest.raises(InputError, match=r"small\.yaml: (expected a mapping|not valid YAML)"):
            load(text)
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(InputError, match="got binary data"):
        load_experiment(tmp_path / "picture.yaml")
    with pytest.raises(InputError, match="expected an experiment file"):
        load_experiment(tmp_path)


def test_a_name_that_is_neither_file_nor_preset_lists_the_presets():
    with pytest.raises(InputError) as error:
        load_experiment("digist")
    assert "the nearest preset is digits" in str(error.value)
    assert all(name in str(error.value) for name in presets())


def test_overrides_that_cannot_be_applied(faults_of):
    text = "space: {loss: {tau: [1, 2]}}\nwarm_start: library"
    faults = faults_of(
        text, "seed", "=3", "space.loss.tau.low=2", "warm_start.name=gp", "space.fuse=[", "seed=-1"
    )
    assert faults == {
        "override 'seed'": "expected dotted.key=value",
        "override '=3'": "expected dotted.key=value",
        "space.loss.tau.low": "space.loss.tau is [1, 2] here and does not have keys; override all of it: "
        "space.loss.tau=...",
        "warm_start.name": "warm_start is 'library' here and does not have keys; override all of it: "
        "warm_start=...",
        "space.fuse": "not valid YAML: '[': expected the node content, but found '<stream end>'",
        "seed": "expected greater than or equal to 0, got -1",
    }


# ---- what it writes


def test_what_is_written_loads_as_the_same_experiment(load, tmp_path):
    experiment = load(
        "name: no\nspace: {blocks: ['!a', 'b*'], fuse: search, loss: {beta: {choices: [1, 2]}}}\n"
        "constraints: {flops: '<= 0.5x', val_accuracy: '>= 0.9'}\nstorage: {study: '${STUDY}'}",
        "space.optim.weight_decay=1e-5",
    )
    path = tmp_path / "deep" / "experiment.yaml"
    dump_yaml(experiment, path)
    assert load_experiment(path) == experiment
    assert load_experiment(path, ["constraints.flops=<= 0.4x"]).constraints[0].limit(10.0) == 4.0
    assert [file.name for file in path.parent.iterdir()] == ["experiment.yaml"]
    # A reader of YAML 1.1 sees the same values.
    assert yaml.safe_load(path.read_text()) == resolved(experiment)


def test_no_password_is_written_or_shown(load, tmp_path):
    experiment = load("storage: {study: 'postgresql://ama:s3cr3t@host/db'}")
    dump_yaml(experiment, tmp_path / "experiment.yaml")
    for text in ((tmp_path / "experiment.yaml").read_text(), repr(experiment), resolved_yaml(experiment)):
        assert "s3cr3t" not in text
    assert resolved(experiment)["storage"]["study"] == "postgresql://ama:***@host/db"
    with pytest.raises(InputError) as error:
        load("storage: {study: 'postgresql://ama:s3cr3t@host:port:x/db'}\nname: 'x://u:s3cr3t@h'")
    assert "s3cr3t" not in str(error.value)


def test_resume_may_change_how_much_and_where_but_not_what(load):
    before = resolved(load(""))
    allowed = ["budget.trials=99", "budget.hours=2", "resources.cpu=2", "runtime.threads=1", "run.dir=moved"]
    assert difference(before, load("", *allowed)) == []
    assert difference(before, load("", "seed=1", "budget.epochs=12", "space.loss.tau=2")) == [
        "seed: 0 → 1",
        "space.loss.tau: {low: 1.0, high: 8.0, log: true} → 2.0",
        "budget.epochs: 10 → 12",
    ]


def test_difference_with_a_file_of_another_version(load):
    before = resolved(load(""))
    del before["costs"]  # a key that came later
    assert difference(before, load("")) == []
    before["gone"] = 1  # a key that there is no more
    assert "gone: 1 → nothing (null)" in difference(before, load(""))


def test_experiments_can_be_loaded_without_torch_ray_or_optuna():
    code = (
        "import sys; from search.experiment.load import load_experiment\n"
        "from search.experiment.reference import schema_markdown\n"
        "load_experiment('digits'); schema_markdown()\n"
        "sys.exit(' '.join({'torch', 'ray', 'optuna'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


# ---- the reference


def test_every_key_is_in_the_schema_with_a_description():
    from search.experiment.experiment import Experiment

    text = schema_markdown()
    sections = (
        "run",
        "data",
        "teacher",
        "space",
        "budget",
        "sampler",
        "resources",
        "runtime",
        "costs",
        "library",
        "storage",
    )
    inner = {"low", "high", "log", "choices", "op", "amount", "metric", "direction"}
    for name in valid_names(Experiment):
        if name not in (*sections, "space.loss", "space.optim") and name.rpartition(".")[2] not in inner:
            (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
            kind, default, meaning = [cell.strip() for cell in row.split(" | ")[1:]]
            assert kind and default and meaning.strip(" |") not in ("", "None"), row


def test_the_documentation_is_what_the_models_say():
    written = (Path(__file__).parents[3] / "docs" / "experiment.md").read_text()
    assert written == page(), (
        "docs/experiment.md is out of date: python -m search.experiment.reference > docs/experiment.md"
    )


def test_limits_relative_to_the_teacher_by_difference(load, tmp_path):
    texts = "{val_accuracy: '>=  teacher -  2%', latency_ms: '<= teacher - 1ms', val_loss: '<= teacher'}"
    experiment = load(f"name: no\nconstraints: {texts}")
    assert [limit.limit(5.0) for limit in experiment.constraints] == [4.98, 4.0, 5.0]
    assert experiment.constraints[0].text == "val_accuracy >= teacher - 2%"
    path = tmp_path / "experiment.yaml"
    dump_yaml(experiment, path)
    assert load_experiment(path) == experiment


@pytest.mark.parametrize("amount", ["teacher - 97", "teacher * 2", "inf", "1e999x", "nan", "teacher - nan"])
def test_relative_limits_that_are_none(load, amount):
    with pytest.raises(InputError, match=r"constraints\.val_accuracy: expected"):
        load(f"name: no\nconstraints: {{val_accuracy: '>= {amount}'}}")
