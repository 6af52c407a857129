"""The presets: each loads, says what it should, and is an example to copy."""

from __future__ import annotations

import pytest

from search.experiment.load import load_experiment
from search.experiment.resolved import resolved
from search.policy.space import SearchSpace, to_config
from search.presets import preset_text, presets
from trainables.errors import InputError

NAMES = (
    *("cifar10-resnet18", "cifar10-resnet20", "cifar10-resnet56", "digits", "imagefolder-resnet50"),
    "paper",
)


def test_the_presets_that_there_are():
    assert presets() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_a_whole_experiment(name):
    experiment = load_experiment(name)
    assert experiment.name == name
    assert experiment.run.dir == f"runs/{name}"
    assert len(experiment.objectives) >= 2
    space = SearchSpace(experiment, ("a", "b"))
    assert to_config({"level/a": 0, "level/b": 1} | _lowest(space), experiment, seed=3).student.widths


def _lowest(space):
    """Every searched setting at its first value."""
    return {
        name: dist.choices[0] if hasattr(dist, "choices") else dist.low
        for name, dist in space.distributions.items()
        if not name.startswith("level/")
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_copied_preset_is_the_same_experiment(name, tmp_path):
    copy = tmp_path / f"{name}.yaml"
    copy.write_text(preset_text(name))
    assert resolved(load_experiment(copy)) == resolved(load_experiment(name))


def test_a_preset_goes_before_a_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert load_experiment("digits").data.name == "digits"
    with pytest.raises(InputError, match="expected an experiment file"):
        load_experiment("./digits")


def test_digits_is_a_search_of_at_least_thirty_trials_on_two_objectives():
    digits = load_experiment("digits")
    assert digits.budget.trials >= 30
    assert [objective.metric for objective in digits.objectives] == ["val_accuracy", "flops"]
    assert (digits.resources.cpu, digits.resources.concurrent) == (1, 2)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("cifar10")])
def test_cifar_presets_keep_their_normalisation_with_an_image_folder(name):
    swapped = load_experiment(name, ["data.name=imagefolder", "data.root=somewhere", "teacher.checkpoint=t"])
    assert swapped.data.mean == pytest.approx([125.3 / 255, 123.0 / 255, 113.9 / 255], abs=1e-5)
    assert swapped.data.std == pytest.approx([63.0 / 255, 62.1 / 255, 66.7 / 255], abs=1e-5)
    assert swapped.data.size == 32


def test_imagefolder_states_the_normalisation_of_torchvisions_weights():
    data = load_experiment("imagefolder-resnet50").data
    assert (data.name, data.size) == ("imagefolder", 224)
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
