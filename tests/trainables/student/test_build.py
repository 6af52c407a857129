"""Spans, exact surgery, taps, fresh weights and batch-norm statistics."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations
from torchvision.models.resnet import BasicBlock, ResNet

from trainables.blocks.blocks import Block, find_blocks
from trainables.config import RuntimeConfig, StudentSpec
from trainables.errors import InputError
from trainables.network.reset import recalibrate_batchnorm, reset_parameters
from trainables.network.taps import Taps
from trainables.runtime.runtime import resolve
from trainables.student.build import build_span, build_student
from trainables.student.spans import candidate_spans, merged_widths, spans_of

RUNTIME = resolve(RuntimeConfig(device="cpu", precision="fp32"))


def chain(*shapes: tuple[int, ...], breaks: tuple[int, ...] = ()) -> tuple[Block, ...]:
    """Blocks b0, b1, … through these shapes; a block whose number is in `breaks` follows nothing."""
    return tuple(
        Block(
            name=f"b{i}",
            members=(f"b{i}",),
            in_shape=before,
            out_shape=after,
            layout="nchw",
            activation="relu" if i % 2 else "none",
            params=1,
            flops=1,
            follows=f"b{i - 1}" if i and i not in breaks else None,
        )
        for i, (before, after) in enumerate(pairwise(shapes))
    )


BIG, SMALL = (32, 4, 4), (64, 2, 2)
CHAIN = chain(BIG, BIG, BIG, SMALL, SMALL, SMALL, breaks=(4,))


def keys(widths: dict[str, float], fuse: bool = True) -> list[str]:
    return [span.key for span in spans_of(CHAIN, StudentSpec(widths=widths, fuse=fuse))]


def test_spans_join_what_is_adjacent_equal_and_keeps_its_shape() -> None:
    every = dict.fromkeys(["b0", "b1", "b2", "b3", "b4"], 0.25)
    # b2 changes the shape, so it starts a span; b4 does not take b3's output.
    assert keys(every) == ["b0+b1@0.25", "b2+b3@0.25", "b4@0.25"]
    assert keys(every, fuse=False) == [f"b{i}@0.25" for i in range(5)]
    assert keys({"b0": 0.25, "b1": 0.5}) == ["b0@0.25", "b1@0.5"]
    assert keys({"b1": 0.5, "b0": 0.5, "b3": 0.5}) == ["b0+b1@0.5", "b3@0.5"]
    assert keys({}) == []


def test_span_takes_shapes_and_end_from_its_ends() -> None:
    span = spans_of(CHAIN, StudentSpec(widths={"b2": 0.5, "b3": 0.5}))[0]
    assert (span.in_shape, span.out_shape, span.activation) == (BIG, SMALL, "relu")
    assert (span.first, span.last, span.blocks) == ("b2", "b3", ("b2", "b3"))


def test_unknown_blocks_are_all_named() -> None:
    with pytest.raises(InputError, match=r"no block c, layer9; the blocks are b0, b1, b2, b3, b4"):
        spans_of(CHAIN, StudentSpec(widths={"layer9": 0.5, "c": 0.5, "b0": 0.5}))


@given(st.lists(st.sampled_from([None, 0.25, 0.5]), min_size=5, max_size=5), st.booleans())
def test_candidates_hold_every_span_of_any_spec(widths: list[float | None], fuse: bool) -> None:
    spec = StudentSpec(widths={f"b{i}": w for i, w in enumerate(widths) if w}, fuse=fuse)
    spans = spans_of(CHAIN, spec)
    assert set(spans) <= set(candidate_spans(CHAIN, [0.25, 0.5], fuse))
    assert [name for span in spans for name in span.blocks] == [
        n for n in map("b{}".format, range(5)) if n in spec.widths
    ]


def test_candidates_in_numbers() -> None:
    assert len(candidate_spans(CHAIN, [0.25, 0.5], fuse=False)) == 2 * 5
    found = candidate_spans(CHAIN, [0.25, 0.5], fuse=True)
    assert len(found) == len({span.key for span in found}) == 2 * (5 + 2)


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "tokens"])
def test_of_widths_that_give_one_module_the_least_is_the_candidate(layout: str) -> None:
    narrow = {"nchw": (16, 4, 4), "nhwc": (4, 4, 16), "tokens": (4, 16)}[layout]
    block = replace(chain(narrow, narrow)[0], layout=layout)
    assert merged_widths(block, [1.0, 0.5, 0.25]) == {1.0: 1.0, 0.5: 0.25, 0.25: 0.25}
    assert [span.width for span in candidate_spans([block], [0.25, 0.5, 1.0], fuse=True)] == [0.25, 1.0]
    least, other = (build_span(spans_of([block], StudentSpec(widths={"b0": w}))[0]) for w in (0.25, 0.5))
    assert [p.shape for p in least.parameters()] == [p.shape for p in other.parameters()]


def family(name: str) -> tuple[nn.Module, torch.Tensor]:
    if name == "vit":
        vit = torchvision.models.VisionTransformer(16, 4, 3, 2, 32, 64, num_classes=5)
        nn.init.normal_(vit.heads.head.weight)  # torchvision's starts at zero
        return vit, torch.randn(2, 3, 16, 16)
    extra = {"init_weights": False} if name.startswith("vgg") else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=5, **extra)
    side = 64 if name.startswith("swin") else 32
    return model, torch.randn(2, 3, side, side)


FAMILIES = [
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "vgg11",
    "vgg16_bn",
    "densenet121",
    "convnext_tiny",
    "swin_t",
    "swin_v2_t",
    "vit",
    "squeezenet1_1",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_surgery_is_exact(name: str) -> None:
    model, images = family(name)
    model.eval()
    blocks = find_blocks(model, images)
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(build_student(model, blocks, StudentSpec())(images), expected)
    longest = max(candidate_spans(blocks, [0.25], fuse=True), key=lambda span: len(span.blocks))
    specs = [
        StudentSpec(widths={blocks[0].name: 0.25}),
        StudentSpec(widths=dict.fromkeys(longest.blocks, 0.25)),
        StudentSpec(widths={block.name: 0.25 for block in blocks}),
    ]
    for spec in specs:
        check_surgery(model, blocks, spec, images, expected)
    with torch.no_grad():
        assert torch.equal(model(images), expected)  # the teacher is as it was


def check_surgery(
    model: nn.Module,
    blocks: tuple[Block, ...],
    spec: StudentSpec,
    images: torch.Tensor,
    expected: torch.Tensor,
) -> None:
    spans = spans_of(blocks, spec)
    student = build_student(model, blocks, spec, seed=1)
    with Taps(student, [span.first for span in spans]) as taps, torch.no_grad():
        out = student(images)
        for span in spans:
            assert tuple(taps.outputs[span.first].shape[1:]) == span.out_shape
    assert out.shape == expected.shape and not torch.equal(out, expected)
    gone = tuple(f"{path}." for span in spans for path in span.members)
    kept = {key: value for key, value in model.state_dict().items() if not key.startswith(gone)}
    state = student.state_dict()
    assert {key for key in state if not key.startswith(gone)} == kept.keys()
    assert all(torch.equal(state[key], value) for key, value in kept.items())
    again = build_student(model, blocks, spec, seed=2)
    again.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(again(images), out)


def resnet() -> nn.Module:
    model = ResNet(BasicBlock, [2, 2, 1, 1], num_classes=5)
    return model.eval()


IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_seed_decides_the_modules_and_nothing_else_does() -> None:
    model = resnet()
    blocks = find_blocks(model, IMAGES)
    one = StudentSpec(widths={"layer2.1": 0.25})
    two = StudentSpec(widths={"layer1.0": 0.5, "layer2.1": 0.25})
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, same = build_student(model, blocks, one, seed=3), build_student(model, blocks, two, seed=3)
    other = build_student(model, blocks, one, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    path = "layer2.1.reduce.0.weight"
    assert torch.equal(first.state_dict()[path], same.state_dict()[path])
    assert not torch.equal(first.state_dict()[path], other.state_dict()[path])


def test_modules_start_from_given_weights() -> None:
    model = resnet()
    blocks = find_blocks(model, IMAGES)
    spec = StudentSpec(widths={"layer1.0": 0.25, "layer1.1": 0.25, "layer3.0": 0.25})
    spans = spans_of(blocks, spec)
    given_weights = {spans[0].key: build_span(spans[0], seed=9).state_dict()}
    assert list(given_weights) == ["layer1.0+layer1.1@0.25"]
    student = build_student(model, blocks, spec, seed=1, modules=given_weights)
    fresh = build_student(model, blocks, spec, seed=1)
    taken = student.get_submodule("layer1.0").state_dict()
    assert all(torch.equal(taken[key], value) for key, value in given_weights[spans[0].key].items())
    assert torch.equal(*(s.state_dict()["layer3.0.reduce.0.weight"] for s in (student, fresh)))
    with pytest.raises(InputError, match=r"the weights of layer3\.0@0\.25 do not fit"):
        build_student(model, blocks, spec, modules={spans[1].key: given_weights[spans[0].key]})


def test_modules_take_the_teachers_type_and_mode_and_train() -> None:
    model = resnet().double().requires_grad_(False)
    model.layer2.train()
    blocks = find_blocks(model, IMAGES.double())
    student = build_student(model, blocks, StudentSpec(widths={"layer1.0": 0.5, "layer2.0": 0.5}))
    assert {p.dtype for p in student.parameters()} == {torch.float64}
    assert [m.training for m in student.get_submodule("layer1.0").modules()].count(True) == 0
    assert all(m.training for m in student.get_submodule("layer2.0").modules())
    trainable = {name.rsplit(".", 3)[0][:8] for name, p in student.named_parameters() if p.requires_grad}
    assert trainable == {"layer1.0", "layer2.0"}


class Everywhere(nn.Module):
    """Layers in a ModuleList, a ModuleDict and attributes, one of them known under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.ModuleList(BasicBlock(3, 3) for _ in range(2))
        self.named = nn.ModuleDict({"a": BasicBlock(3, 3)})
        self.mine = BasicBlock(3, 3)
        self.alias = self.mine
        self.pair = nn.Sequential(OrderedDict(x=BasicBlock(3, 3)))
        self.fc = parametrizations.weight_norm(nn.Linear(3, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.row:
            x = block(x)
        return self.fc(self.pair(self.alias(self.named["a"](x))).mean((2, 3)))


def test_surgery_reaches_every_kind_of_container() -> None:
    model = Everywhere().eval()
    blocks = find_blocks(model, IMAGES)
    assert [block.name for block in blocks] == ["row.0", "row.1", "named.a", "mine", "pair.x"]
    for block in blocks:
        spec = StudentSpec(widths={block.name: 1.0})
        student = build_student(model, blocks, spec)
        with Taps(student, [block.name]) as taps, torch.no_grad():
            student(IMAGES)
            assert list(taps.outputs) == [block.name]
    student = build_student(model, blocks, StudentSpec(widths={b.name: 1.0 for b in blocks}))
    assert student.alias is student.mine
    assert not any(isinstance(module, BasicBlock) for module in student.modules())
    check_surgery(model, blocks, StudentSpec(widths={"row.1": 1.0}), IMAGES, model(IMAGES))


layer = st.tuples(st.sampled_from([8, 12]), st.sampled_from([1, 2]), st.sampled_from(["", "pool", "norm"]))


@settings(max_examples=25, deadline=None)
@given(st.lists(layer, min_size=1, max_size=5), st.integers(6, 17), st.data())
def test_surgery_on_random_plain_networks(
    plan: list[tuple[int, int, str]], side: int, data: st.DataObject
) -> None:
    layers: list[nn.Module] = []
    channels = 3
    for c_out, stride, extra in plan:
        layers += [nn.Conv2d(channels, c_out, 3, stride, 1), nn.ReLU(inplace=True)]
        layers += (
            [nn.MaxPool2d(3, 2, 1)] if extra == "pool" else [nn.BatchNorm2d(c_out)] if extra == "norm" else []
        )
        channels = c_out
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)).eval()
    images = torch.randn(2, 3, side, side)
    blocks = find_blocks(model, images)
    members = [path for block in blocks for path in block.members]
    assert len(members) == len(set(members)) and not any(
        isinstance(model[int(m)], nn.Linear) for m in members
    )
    convs = [str(i) for i, part in enumerate(model) if isinstance(part, nn.Conv2d)]
    assert set(convs) <= set(members)  # every convolution belongs to a block
    chosen = data.draw(st.sets(st.sampled_from([b.name for b in blocks]), min_size=1))
    with torch.no_grad():
        expected = model(images)
    check_surgery(model, blocks, StudentSpec(widths=dict.fromkeys(chosen, 0.5)), images, expected)


def test_taps_hold_the_last_pass_and_leave_nothing_behind() -> None:
    model = resnet()
    with Taps(model, ["layer1.1", "layer2.0"]) as taps:
        first = model(IMAGES)
        assert list(taps.outputs) == ["layer1.1", "layer2.0"]
        assert (
            taps.outputs["layer1.1"].shape == (4, 64, 8, 8) and taps.outputs["layer1.1"].grad_fn is not None
        )
        copied = copy.deepcopy(model)
        taps.clear()
        assert not taps.outputs
        assert torch.equal(copied(IMAGES), first)
        assert not taps.outputs  # a copy made while the taps were on does not write into them
    assert not taps.outputs
    assert all(not module._forward_hooks for module in model.modules())


def test_reset_gives_new_weights_that_only_the_seed_decides() -> None:
    model = torchvision.models.VisionTransformer(16, 4, 2, 2, 32, 64, num_classes=5)
    nn.init.normal_(model.class_token)
    old = copy.deepcopy(model.state_dict())
    torch.manual_seed(0)
    reset_parameters(model, 1)
    first = copy.deepcopy(model.state_dict())
    torch.manual_seed(7)
    before = torch.get_rng_state()
    reset_parameters(model, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, first[key]) for key, value in model.state_dict().items())
    reset_parameters(model, 2)
    matrices = [key for key, value in old.items() if sum(side > 1 for side in value.shape) > 1]
    assert all(not torch.equal(model.state_dict()[key], first[key]) for key in matrices)
    assert all(not torch.equal(first[key], old[key]) for key in matrices)
    assert not first["class_token"].any()
    assert first["encoder.pos_embedding"].std().item() == pytest.approx(0.02, rel=0.2)


def test_reset_keeps_signals_alive_through_depth_and_restores_statistics() -> None:
    convs = [part for _ in range(20) for part in (nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(*convs, nn.BatchNorm2d(16))
    model(torch.randn(2, 16, 8, 8))
    reset_parameters(model, 0)
    assert not model[-1].running_mean.any()  # type: ignore[operator,union-attr]
    assert 0.05 < model[:-1](torch.randn(8, 16, 8, 8)).std() < 5  # torch's default would give 1e-8


def test_reset_of_a_student_keeps_its_modules_own_start() -> None:
    model = resnet()
    blocks = find_blocks(model, IMAGES)
    student = build_student(model, blocks, StudentSpec(widths={"layer1.0": 0.5}), seed=0)
    scale = student.state_dict()["layer1.0.expand.1.weight"].clone()
    reset_parameters(student, 5)
    assert torch.equal(student.state_dict()["layer1.0.expand.1.weight"], scale) and scale.max() < 1
    convnext = torchvision.models.get_model("convnext_tiny", weights=None, num_classes=5)
    reset_parameters(convnext, 0)
    assert (convnext.state_dict()["features.1.0.layer_scale"] == 1).all()


def test_recalibration_gives_the_mean_of_the_batches() -> None:
    model = nn.Sequential(
        nn.BatchNorm2d(3, momentum=0.01), nn.Dropout(0.9), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
    )
    model[0].running_mean.fill_(100)  # type: ignore[operator,union-attr]
    model.train()
    model[3].eval()
    batches = [(torch.randn(8, 3, 4, 4) * 2 + i, torch.zeros(8)) for i in range(5)]
    affine = {name: p.clone() for name, p in model.named_parameters()}
    assert recalibrate_batchnorm(model, iter(batches), RUNTIME) == 5
    means = torch.stack([images.mean((0, 2, 3)) for images, _ in batches]).mean(0)
    variances = torch.stack([images.var((0, 2, 3)) for images, _ in batches]).mean(0)
    torch.testing.assert_close(model[0].running_mean, means)
    torch.testing.assert_close(model[0].running_var, variances)
    assert model[0].momentum == 0.01 and [m.training for m in model] == [True, True, True, False]
    assert all(torch.equal(p, affine[name]) for name, p in model.named_parameters())


def test_recalibration_without_batches_or_norms_changes_nothing() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    model[0].running_mean.fill_(2)  # type: ignore[operator,union-attr]
    assert recalibrate_batchnorm(model, [], RUNTIME) == 0
    assert (model[0].running_mean == 2).all()  # type: ignore[operator,union-attr]
    images = torch.randn(2, 3, 4, 4)
    assert recalibrate_batchnorm(nn.Conv2d(3, 3, 1), [(images, torch.zeros(2))], RUNTIME) == 0


def test_recalibration_repairs_a_student() -> None:
    """In eval mode a recalibrated student sees maps normalised as in training: mean 0 and deviation 1."""
    model = resnet()
    blocks = find_blocks(model, IMAGES)
    student = build_student(model, blocks, StudentSpec(widths={"layer2.0": 0.5}))
    images = torch.randn(64, 3, 32, 32) * 3 + 1
    recalibrate_batchnorm(student, [(images, torch.zeros(64))], RUNTIME)
    with Taps(student, ["layer2.0.expand.1"]) as taps, torch.no_grad():
        student.eval()(images)
        out = taps.outputs["layer2.0.expand.1"]
    assert out.mean((0, 2, 3)).abs().max() < 0.05 and out.std((0, 2, 3)).sub(1).abs().max() < 0.05
