"""Architectures by name: He et al.'s shapes, torchvision's key names, stems for small images, factories."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from trainables.errors import InputError
from trainables.network.architectures import CIFAR_DEPTHS, build_model, resolve_stem


def conv_out(model: nn.Module, path: str, side: int) -> tuple[int, int]:
    """Height and width of what the submodule at `path` puts out for images of `side` pixels."""
    shapes = []
    hook = model.get_submodule(path).register_forward_hook(lambda _m, _i, out: shapes.append(out.shape[-2:]))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, side, side))
    hook.remove()
    return tuple(shapes[0])


@pytest.mark.parametrize("depth", [8, 20, 56, 110])
def test_cifar_resnet_has_its_name_many_layers(depth):
    model = build_model(f"cifar_resnet{depth}", 10, (3, 8, 8))
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len([n for n in layers if "downsample" not in n]) == depth


def test_cifar_resnet_parameters_in_closed_form():
    model = build_model("cifar_resnet20", 10, (3, 32, 32))
    convs = 3 * 9 * 16 + 6 * 9 * 16 * 16 + 9 * 16 * 32 + 5 * 9 * 32 * 32 + 9 * 32 * 64 + 5 * 9 * 64 * 64
    shortcuts = 16 * 32 + 32 * 64
    norms = 2 * (7 * 16 + 7 * 32 + 7 * 64)
    assert sum(p.numel() for p in model.parameters()) == convs + shortcuts + norms + 64 * 10 + 10


def test_keys_are_those_of_torchvisions_resnet():
    # ResNet-18 has two basic blocks a stage, as the CIFAR ResNet of depth 14; only its fourth stage is extra.
    theirs = {k for k in torchvision.models.resnet18().state_dict() if not k.startswith("layer4")}
    assert set(build_model("cifar_resnet14", 10, (3, 8, 8)).state_dict()) == theirs


def test_stages_halve_the_map_and_double_the_channels():
    model = build_model("cifar_resnet8", 10, (3, 32, 32))
    assert [conv_out(model, f"layer{i}", 32) for i in (1, 2, 3)] == [(32, 32), (16, 16), (8, 8)]
    assert [model.get_submodule(f"layer{i}.0.conv2").out_channels for i in (1, 2, 3)] == [16, 32, 64]


def test_wide_resnet_widens_every_stage():
    model = build_model("wrn16_4", 7, (3, 8, 8))
    assert [len(model.get_submodule(f"layer{i}")) for i in (1, 2, 3)] == [2, 2, 2]
    assert [model.get_submodule(f"layer{i}.0.conv2").out_channels for i in (1, 2, 3)] == [64, 128, 256]
    assert model.get_submodule("layer1.0.downsample.0").weight.shape == (64, 16, 1, 1)
    assert model.fc.out_features == 7


def test_building_checks_the_model_without_touching_its_statistics():
    model = build_model("cifar_resnet8", 10, (3, 8, 8))
    assert model.training
    assert int(model.bn1.num_batches_tracked) == 0


@pytest.mark.parametrize(
    ("arch", "parts"),
    [
        ("cifar_resnet21", ["6n + 2", "got 21", "nearest is 20"]),
        ("cifar_resnet116", ["8 to 110", "nearest is 110"]),
        ("wrn15_2", ["6n + 4", "nearest is 16"]),
        ("cifar_resent20", ["unknown 'cifar_resent20'", "cifar_resnet20"]),
        ("resnet18", ["nearest: torchvision:resnet18"]),
        ("torchvision:mobilenet_v9", ["unknown", "torchvision:mobilenet_v2"]),
        ("torchvision:fasterrcnn_resnet50_fpn", ["unknown"]),
        ("wrn16_0", ["unknown", "wrn16_"]),
        ("§", ["unknown", "import:<package.module>:<factory>"]),
    ],
)
def test_unknown_architectures_are_refused_with_the_nearest(arch, parts):
    with pytest.raises(InputError) as caught:
        build_model(arch, 10, (3, 32, 32))
    for part in ["teacher.arch", *parts]:
        assert part in str(caught.value)


def test_every_documented_depth_is_accepted():
    assert CIFAR_DEPTHS[0] == 8
    assert CIFAR_DEPTHS[-1] == 110
    assert {20, 32, 44, 56} <= set(CIFAR_DEPTHS)


@pytest.mark.parametrize(
    ("name", "conv"),
    [
        ("resnet18", "conv1"),
        ("mobilenet_v2", "features.0.0"),
        ("mobilenet_v3_small", "features.0.0"),
        ("efficientnet_b0", "features.0.0"),
        ("regnet_y_400mf", "stem.0"),
        ("densenet121", "features.conv0"),
        ("shufflenet_v2_x0_5", "conv1.0"),
        ("mnasnet0_5", "layers.0"),
        ("googlenet", "conv1.conv"),
    ],
)
def test_small_images_get_a_stem_that_keeps_their_size(name, conv):
    small = build_model(f"torchvision:{name}", 5, (3, 32, 32))
    assert conv_out(small, conv, 32) == (32, 32)
    native = build_model(f"torchvision:{name}", 5, (3, 32, 32), small_stem=False)
    assert conv_out(native, conv, 32) == (16, 16)


def test_resnet_stem_has_no_pooling_and_large_images_keep_theirs():
    assert isinstance(build_model("torchvision:resnet18", 5, (3, 64, 64)).maxpool, nn.Identity)
    assert isinstance(build_model("torchvision:resnet18", 5, (3, 65, 65)).maxpool, nn.MaxPool2d)
    forced = build_model("torchvision:resnet18", 5, (3, 65, 65), small_stem=True)
    assert conv_out(forced, "conv1", 65) == (65, 65)


@pytest.mark.parametrize(("side", "patches"), [(32, 16), (8, 8)])
def test_patches_shrink_with_the_image(side, patches):
    model = build_model("torchvision:convnext_tiny", 5, (3, side, side))
    assert conv_out(model, "features.0.0", side) == (patches, patches)


def test_swin_takes_small_images():
    model = build_model("torchvision:swin_t", 5, (3, 16, 16))
    assert conv_out(model, "features.0.0", 16) == (16, 16)


@pytest.mark.parametrize(("side", "tokens"), [(8, 64), (28, 14 * 14)])
def test_vit_is_cut_into_at_least_eight_by_eight_patches(side, tokens):
    model = build_model("torchvision:vit_b_16", 5, (3, side, side))
    assert model.encoder.pos_embedding.shape[1] == tokens + 1  # and the class token


@pytest.mark.parametrize(
    ("name", "shape", "small_stem"),
    [
        ("alexnet", (3, 8, 8), None),  # its pools leave nothing: fails in forward
        ("maxvit_t", (3, 32, 32), None),  # refused by its constructor
        ("vit_b_16", (3, 40, 40), False),  # 40 is not a multiple of 16
        ("vit_b_16", (3, 8, 16), None),  # not square
    ],
)
def test_images_that_a_model_cannot_take_are_refused_with_advice(name, shape, small_stem):
    with pytest.raises(InputError, match="does not work on images") as caught:
        build_model(f"torchvision:{name}", 10, shape, small_stem)
    assert name in str(caught.value)
    assert str(shape) in str(caught.value)
    assert "data.size" in str(caught.value)


def test_only_torchvision_models_have_a_choice_of_stem():
    assert resolve_stem("torchvision:resnet18", (3, 32, 32), None)
    assert not resolve_stem("torchvision:resnet18", (3, 224, 224), None)
    assert not resolve_stem("torchvision:resnet18", (3, 32, 32), False)
    assert not resolve_stem("cifar_resnet20", (3, 32, 32), True)


FACTORIES = """
from torch import nn

def asks(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))

def open_ended(**options):
    return asks(options["num_classes"])

def fixed():
    return asks(4)

class Lazy(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        self.head = nn.LazyLinear(num_classes)
    def forward(self, x):
        return self.head(x.flatten(1))

def tells_two(num_classes):
    class Two(nn.Module):
        def forward(self, x):
            return x, x
    return Two()

def no_module():
    return "a string"

def broken(num_classes):
    raise KeyError("width")

number = 3
"""


@pytest.fixture
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user's in the working directory; gives its name."""
    (tmp_path / "own_models_for_test.py").write_text(FACTORIES)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_models_for_test", raising=False)
    return "own_models_for_test"


@pytest.mark.parametrize("factory", ["asks", "open_ended", "fixed", "Lazy"])
def test_a_users_factory_is_found_in_the_working_directory(own_models, factory):
    model = build_model(f"import:{own_models}:{factory}", 4, (3, 8, 8))
    assert model(torch.zeros(3, 3, 8, 8)).shape == (3, 4)


def test_a_factory_that_is_a_builtin_without_signature_is_refused(own_models):
    with pytest.raises(InputError, match=r"must give a torch\.nn\.Module, but gave"):
        build_model("import:builtins:dict", 4, (3, 8, 8))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("own_models_for_test:fixed", ["(2, 7)", "(2, 4)"]),
        ("own_models_for_test:tells_two", ["(2, 7)", "tuple"]),
        ("own_models_for_test:no_module", ["torch.nn.Module", "str"]),
        ("own_models_for_test:broken", ["factory failed", "KeyError", "width"]),
        ("own_models_for_test:fixd", ["no callable 'fixd'", "fixed"]),
        ("own_models_for_test:number", ["no callable 'number'"]),
        ("no_such_package.models:make", ["cannot import no_such_package.models", "ModuleNotFoundError"]),
        ("own_models_for_test", ["import:<package.module>:<name>"]),
    ],
)
def test_a_factory_that_cannot_be_used_says_why(own_models, name, parts):
    with pytest.raises(InputError) as caught:
        build_model(f"import:{name}", 7, (3, 8, 8))
    for part in ["teacher.arch", *parts]:
        assert part in str(caught.value)
