"""Block discovery on torchvision's families and on networks it has never seen."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from trainables.blocks.blocks import find_blocks, select_names
from trainables.errors import InputError
from trainables.network.architectures import build_model
from trainables.network.flops import count_flops, count_params
from trainables.network.trace import activation_of, trace


def small_vit(num_classes: int = 10) -> nn.Module:
    return torchvision.models.VisionTransformer(16, 4, 12, 2, 32, 64, num_classes=num_classes)


def family(name: str) -> tuple[nn.Module, torch.Tensor]:
    if name == "vit_b_16":
        return small_vit(), torch.randn(1, 3, 16, 16)
    extra = {"init_weights": False} if name.startswith(("vgg", "googlenet", "inception")) else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=10, **extra)
    side = 80 if name == "inception_v3" else 64 if name.startswith("swin") else 32
    return model, torch.randn(1, 3, side, side)


def test_a_shape_stands_for_an_example() -> None:
    model = build_model("cifar_resnet8", 10, (3, 8, 8)).double()
    assert find_blocks(model, (3, 8, 8)) == find_blocks(model, torch.zeros(1, 3, 8, 8, dtype=torch.float64))


# name, number of blocks, first block, last block, layout, activation, number of blocks that follow another
FAMILIES = [
    ("resnet18", 8, "layer1.0", "layer4.1", "nchw", "relu", 7),
    ("resnet50", 16, "layer1.0", "layer4.2", "nchw", "relu", 15),
    ("resnext50_32x4d", 16, "layer1.0", "layer4.2", "nchw", "relu", 15),
    ("wide_resnet50_2", 16, "layer1.0", "layer4.2", "nchw", "relu", 15),
    ("mobilenet_v2", 17, "features.1", "features.17", "nchw", "none", 16),
    ("mobilenet_v3_small", 11, "features.1", "features.11", "nchw", "none", 10),
    ("mobilenet_v3_large", 15, "features.1", "features.15", "nchw", "none", 14),
    ("efficientnet_b0", 16, "features.1.0", "features.7.0", "nchw", "none", 15),
    ("efficientnet_v2_s", 40, "features.1.0", "features.6.14", "nchw", "none", 39),
    (
        "regnet_x_400mf",
        22,
        "trunk_output.block1.block1-0",
        "trunk_output.block4.block4-11",
        "nchw",
        "relu",
        21,
    ),
    (
        "regnet_y_400mf",
        16,
        "trunk_output.block1.block1-0",
        "trunk_output.block4.block4-5",
        "nchw",
        "relu",
        15,
    ),
    ("vgg11", 5, "features.0-1", "features.16-19", "nchw", "relu", 0),
    ("vgg16", 5, "features.0-3", "features.24-29", "nchw", "relu", 0),
    ("vgg11_bn", 5, "features.0-2", "features.22-27", "nchw", "relu", 0),
    ("vgg16_bn", 5, "features.0-5", "features.34-42", "nchw", "relu", 0),
    ("densenet121", 4, "features.denseblock1", "features.denseblock4", "nchw", "none", 0),
    ("convnext_tiny", 18, "features.1.0", "features.7.2", "nchw", "none", 14),
    ("swin_t", 12, "features.1.0", "features.7.1", "nhwc", "none", 8),
    ("swin_v2_t", 12, "features.1.0", "features.7.1", "nhwc", "none", 8),
    (
        "vit_b_16",
        12,
        "encoder.layers.encoder_layer_0",
        "encoder.layers.encoder_layer_11",
        "tokens",
        "none",
        11,
    ),
    ("squeezenet1_1", 8, "features.3", "features.12", "nchw", "relu", 5),
    ("shufflenet_v2_x1_0", 16, "stage2.0", "stage4.3", "nchw", "relu", 15),
    ("mnasnet1_0", 16, "layers.8.0", "layers.13.0", "nchw", "none", 15),
    ("googlenet", 9, "inception3a", "inception5b", "nchw", "relu", 6),
    ("inception_v3", 11, "Mixed_5b", "Mixed_7c", "nchw", "relu", 10),
]


@pytest.mark.parametrize(("name", "count", "first", "last", "layout", "ends", "chained"), FAMILIES)
def test_families(name: str, count: int, first: str, last: str, layout: str, ends: str, chained: int) -> None:
    model, image = family(name)
    blocks = find_blocks(model, image)
    assert (len(blocks), blocks[0].name, blocks[-1].name) == (count, first, last)
    assert {block.layout for block in blocks} == {layout}
    assert {block.activation for block in blocks} == {ends}
    assert sum(block.follows is not None for block in blocks) == chained
    assert sum(block.flops for block in blocks) < count_flops(model, image)
    assert sum(block.params for block in blocks) < count_params(model)
    for block in blocks:
        assert len(block.in_shape) == len(block.out_shape) and block.flops > 0 and block.params > 0
        assert all(model.get_submodule(path) is not None for path in block.members)


def cifar_resnet(blocks: int) -> nn.Module:
    return build_model(f"cifar_resnet{6 * blocks + 2}", 10, (3, 32, 32))


@pytest.mark.parametrize(("arch", "per_stage"), [("cifar_resnet8", 1), ("cifar_resnet20", 3), ("wrn16_2", 2)])
def test_blocks_of_small_resnets(arch: str, per_stage: int) -> None:
    blocks = find_blocks(build_model(arch, 10, (3, 8, 8)), torch.randn(1, 3, 8, 8))
    assert [b.name for b in blocks] == [f"layer{stage}.{i}" for stage in (1, 2, 3) for i in range(per_stage)]
    assert [b.follows for b in blocks] == [None, *(b.name for b in blocks[:-1])]
    assert {b.activation for b in blocks} == {"relu"}


def test_block_of_a_cifar_resnet_in_numbers() -> None:
    blocks = {block.name: block for block in find_blocks(cifar_resnet(3), torch.randn(1, 3, 32, 32))}
    block = blocks["layer2.0"]
    assert block.in_shape == (16, 32, 32) and block.out_shape == (32, 16, 16)
    assert block.members == ("layer2.0",) and block.follows == "layer1.2"
    kernels = 16 * 32 * 9 + 32 * 32 * 9 + 16 * 32
    assert block.params == kernels + 3 * 2 * 32
    assert block.flops == 2 * kernels * 16 * 16
    assert blocks["layer1.0"].follows is None  # its input is the stem's, which is no block


def test_attention_is_counted() -> None:
    tokens, dim, hidden = 16 + 1, 32, 64
    block = find_blocks(small_vit(), torch.randn(1, 3, 16, 16))[0]
    linear = 2 * tokens * (4 * dim * dim + 2 * dim * hidden)
    assert block.flops == linear + 2 * 2 * tokens * tokens * dim
    assert torch.backends.mha.get_fastpath_enabled()


def conv(c_in: int, c_out: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(c_in, c_out, 3, stride, 1), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]


def names(model: nn.Module, side: int = 16) -> list[str]:
    return [block.name for block in find_blocks(model, torch.randn(1, 3, side, side))]


def test_plain_sequential_splits_at_pools_and_strides() -> None:
    layers = [*conv(3, 8), *conv(8, 8), nn.MaxPool2d(2), *conv(8, 16), *conv(16, 24, 2), *conv(24, 24)]
    blocks = find_blocks(nn.Sequential(*layers, *head(24)), torch.randn(1, 3, 16, 16))
    assert [block.name for block in blocks] == ["0-5", "7-9", "10-15"]
    assert blocks[2].in_shape == (16, 8, 8) and blocks[2].out_shape == (24, 4, 4)
    assert [block.follows for block in blocks] == [None, None, "7-9"]
    assert [block.activation for block in blocks] == ["relu"] * 3
    assert blocks[0].members == ("0", "1", "2", "3", "4", "5")


def test_nested_sequentials_are_blocks() -> None:
    stages = [nn.Sequential(*conv(8, 8), *conv(8, 8)) for _ in range(3)]
    assert names(nn.Sequential(nn.Sequential(*conv(3, 8)), *stages, *head(8))) == ["0", "1", "2", "3"]
    pooled = [nn.Sequential(*conv(a, b), *conv(b, b), nn.MaxPool2d(2)) for a, b in ((3, 8), (8, 16))]
    blocks = find_blocks(nn.Sequential(*pooled, *head(16)), torch.randn(1, 3, 16, 16))
    assert [(block.name, block.out_shape) for block in blocks] == [("0", (8, 8, 8)), ("1", (16, 4, 4))]
    assert blocks[1].activation == "relu"  # a maximum of rectified values is rectified


def test_units_of_one_convolution_form_stages() -> None:
    units = [nn.Sequential(*conv(3, 8)), nn.Sequential(*conv(8, 8)), nn.MaxPool2d(2)]
    more = [nn.Sequential(*conv(8, 16)), nn.Sequential(*conv(16, 16))]
    assert names(nn.Sequential(*units, *more, *head(16))) == ["0-1", "3-4"]


def test_one_stage_gives_its_single_convolutions() -> None:
    assert names(nn.Sequential(nn.Sequential(*conv(3, 8), *conv(8, 8), *conv(8, 8)), *head(8))) == [
        "0.0-2",
        "0.3-5",
        "0.6-8",
    ]


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.shared, self.head = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.a(x))
        y = self.b(x)
        x = self.shared(self.shared(self.c(y) + y))
        return self.head(x).mean((2, 3))


def test_custom_network_gives_its_convolutions() -> None:
    blocks = find_blocks(Custom(), torch.randn(1, 3, 8, 8))
    # The layer called twice and the classifier are no blocks; the sum reads b's output beside c.
    assert [(block.name, block.follows) for block in blocks] == [("a", None), ("b", None), ("c", None)]


class Chained(Custom):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.c(self.b(self.a(x)))).mean((2, 3))


class InPlace(Custom):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.c(F.relu_(self.b(self.a(x))))).mean((2, 3))


def test_follows_needs_the_very_same_tensor() -> None:
    image = torch.randn(1, 3, 8, 8)
    assert [block.follows for block in find_blocks(Chained(), image)] == [None, "a", "b"]
    assert [block.follows for block in find_blocks(InPlace(), image)] == [None, "a", None]


class Separable(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels)
        self.point = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.point(self.depth(x)))


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two, self.end = Separable(channels), Separable(channels), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.two(self.one(x)) + x)


class Stage(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Residual(8) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_stages_are_taken_apart_residual_blocks_are_not() -> None:
    # The stage with one block only is taken apart as its like is; residual blocks stay whole although
    # each holds two composites of one class.
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), Stage(1), Stage(2), *head(8))
    assert names(model) == ["1.layers.0", "2.layers.0", "2.layers.1"]


class Gate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


def test_stem_of_its_own_kind_is_no_block_where_there_are_others() -> None:
    assert names(nn.Sequential(Separable(3), nn.Conv2d(3, 8, 1), Residual(8), Residual(8), *head(8))) == [
        "2",
        "3",
    ]


def test_small_composites_do_not_hide_the_bulk() -> None:
    model = nn.Sequential(*conv(3, 8), *conv(8, 8), Gate(8), *conv(8, 8), Gate(8), *head(8))
    assert names(model) == ["0-5", "6", "7-9", "10"]


class Windows(nn.Module):
    """Takes (N, C, H, W), works on windows (N, tokens, windows, C) inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.one, self.two = (
            nn.LayerNorm(channels),
            nn.Linear(channels, channels),
            nn.Linear(channels, channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        windows = F.unfold(x, 2, stride=2).view(x.shape[0], x.shape[1], 4, -1).permute(0, 2, 3, 1)
        windows = self.two(self.one(self.norm(windows))).permute(0, 3, 1, 2).flatten(1, 2)
        return F.fold(windows, x.shape[2:], 2, stride=2)


def test_layout_is_the_blocks_own_not_that_of_windows_inside() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Windows(8), Windows(8), *head(8))
    blocks = find_blocks(model, torch.randn(1, 3, 8, 8))
    assert [(b.name, b.layout, b.in_shape) for b in blocks] == [
        ("1", "nchw", (8, 8, 8)),
        ("2", "nchw", (8, 8, 8)),
    ]


class Noisy(Chained):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + torch.rand_like(x))


def test_random_models_leave_the_generator_alone() -> None:
    model = Noisy()
    before = torch.get_rng_state()
    blocks = find_blocks(model, torch.zeros(1, 3, 8, 8))
    count_flops(model, torch.zeros(1, 3, 8, 8))
    assert torch.equal(torch.get_rng_state(), before) and len(blocks) == 3


class Backbone(Custom):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(x)))


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.fc = Backbone(), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.backbone(x).mean((2, 3)))


def test_a_composite_that_is_the_whole_network_is_taken_apart() -> None:
    assert names(Wrapped()) == ["backbone.a", "backbone.b", "backbone.c"]


class TorchEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, activation="gelu", batch_first=True)
        self.patch, self.encoder = nn.Conv2d(3, 16, 4, 4), nn.TransformerEncoder(layer, 3)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.encoder(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


def test_layers_called_with_flags_and_layers_looked_into() -> None:
    # nn.TransformerEncoder calls its layers with flags, which is fine, and reads attributes of its first
    # layer, which therefore cannot be replaced.
    blocks = find_blocks(TorchEncoder(), torch.randn(1, 3, 16, 16))
    assert [block.name for block in blocks] == ["encoder.layers.1", "encoder.layers.2"]
    assert blocks[0].in_shape == (16, 16) and blocks[0].layout == "tokens"


class Hidden(nn.Module):
    """Calls its layers through a plain list, which surgery cannot reach."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = Separable(3), Separable(3), nn.Linear(3, 10)
        self.layers = [self.a]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.b(self.layers[0](x)).mean((2, 3)))


def test_what_surgery_cannot_reach_is_no_block() -> None:
    assert names(Hidden()) == ["b"]


ENDS: list[tuple[Callable[[torch.Tensor], torch.Tensor], str]] = [
    (F.relu, "relu"),
    (F.relu_, "relu"),
    (F.relu6, "relu6"),
    (nn.ReLU6(inplace=True), "relu6"),
    (lambda x: F.hardtanh(x, 0.0, 1.0), "none"),
    (F.silu, "silu"),
    (F.hardswish, "hardswish"),
    (F.gelu, "gelu"),
    (F.leaky_relu, "none"),
    (lambda x: F.dropout2d(F.relu(x), training=False).permute(0, 1, 3, 2), "relu"),
    (lambda x: torch.cat([F.relu(x), F.relu(-x)], 1), "relu"),
    (lambda x: torch.cat([F.relu(x), x], 1), "none"),
    (lambda x: x + 1, "none"),
]


class Ending(nn.Module):
    def __init__(self, end: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.end = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.two(self.one(x)))


@pytest.mark.parametrize(("end", "expected"), ENDS)
def test_activation_is_read_from_what_the_block_computes(
    end: Callable[[torch.Tensor], torch.Tensor], expected: str
) -> None:
    model = nn.Sequential(Ending(end), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(10))
    model(torch.randn(1, 3, 4, 4))
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # a frozen teacher says it as well
    # `Ending` is all of the network here and would be taken apart, so ask the trace.
    call = trace(model, torch.randn(1, 3, 4, 4)).single("0")
    assert call is not None and activation_of(call.result) == expected


def test_tracing_leaves_no_trace() -> None:
    model = cifar_resnet(1)
    model.train()
    model.layer1.eval()
    model.layer2.requires_grad_(False)
    calls: list[str] = []
    model.fc.register_forward_hook(lambda *_: calls.append("mine"))
    before = copy.deepcopy(model.state_dict())
    modules = dict(model.named_modules())
    flags = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    find_blocks(model, torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.rand(3), expected)
    assert [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == flags
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert dict(model.named_modules()) == modules and calls
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.layer2.parameters()] == [False] * 9


def test_flops_and_params_in_closed_form() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(8 * 16, 10))
    images = torch.randn(5, 3, 4, 4)
    assert count_flops(model, images) == 2 * (3 * 8 * 9 * 16 + 8 * 16 * 10)  # of one image, not of five
    assert count_params(model) == 3 * 8 * 9 + 8 * 16 * 10 + 10
    tied = nn.Sequential(model, model)
    assert count_params(tied) == count_params(model)


def test_patterns_choose() -> None:
    model, image = cifar_resnet(2), torch.randn(1, 3, 16, 16)
    assert [b.name for b in find_blocks(model, image, ["layer2.*"])] == ["layer2.0", "layer2.1"]
    rest = find_blocks(model, image, ["layer[12].*", "!*.0"])
    assert [b.name for b in rest] == ["layer1.1", "layer2.1"]
    assert len(find_blocks(model, image, ["!layer1.0"])) == 5
    assert select_names(["features.0-3", "features.5-8"], ["features.0-3"]) == {"features.0-3"}


def test_bad_input_says_what_there_is() -> None:
    model, image = cifar_resnet(1), torch.randn(1, 3, 16, 16)
    with pytest.raises(
        InputError, match=r"no block matches 'layer9\.\*', '!conv'; the blocks are layer1\.0, "
    ):
        find_blocks(model, image, ["layer1.*", "layer9.*", "!conv"])
    with pytest.raises(InputError, match=r"leave no block; the blocks are layer1\.0, layer2\.0, layer3\.0"):
        find_blocks(model, image, ["!*"])
    perceptron = nn.Sequential(nn.Flatten(), nn.Linear(48, 10), nn.ReLU(), nn.Linear(10, 10))
    with pytest.raises(InputError, match=r"no replaceable block in Sequential: looked at 5 .*2 Linear"):
        find_blocks(perceptron, torch.randn(1, 3, 4, 4))
    with pytest.raises(InputError, match=r"Sequential does not run on an image \(3, 5, 5\)"):
        find_blocks(perceptron, torch.randn(1, 3, 5, 5))
