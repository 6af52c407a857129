"""The cost table: exact sums on real families, prices in closed form, the exact cheapest, refusals."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from trainables.blocks.blocks import Block, find_blocks
from trainables.config import RuntimeConfig, StudentSpec
from trainables.costs.load import load_costs
from trainables.costs.measure import measure_costs
from trainables.costs.table import COST_METRICS, Costs, CostTable, Spread
from trainables.errors import InputError
from trainables.network.architectures import build_model
from trainables.network.flops import count_flops, count_params
from trainables.network.weights import weights_hash
from trainables.runtime.runtime import device_name, resolve
from trainables.student.build import build_student
from trainables.student.spans import candidate_spans, spans_of

WIDTHS = (0.125, 0.5)


def tiny_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(16, 4, 3, 2, 32, 64, num_classes=10).eval()


def vgg11() -> nn.Module:
    model = torchvision.models.vgg11(num_classes=10)
    model.classifier = nn.Linear(512 * 7 * 7, 10)  # its own holds 120 million weights that no block has
    return model


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "cifar_resnet20": lambda: build_model("cifar_resnet20", 10, (3, 16, 16)),
    "mobilenet_v3_small": lambda: build_model("torchvision:mobilenet_v3_small", 10, (3, 16, 16)),
    "vgg11": vgg11,
    "vit": tiny_vit,
}


def measured(model: nn.Module, size: int = 16, fuse: bool = True) -> CostTable:
    runtime = resolve(RuntimeConfig(device="cpu", threads=1))
    blocks = find_blocks(model, torch.zeros(1, 3, size, size))
    return measure_costs(model, blocks, WIDTHS, fuse, (3, size, size), runtime, 1, seconds=0.05)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    torch.manual_seed(0)
    return build_model("cifar_resnet8", 10, (3, 8, 8)).eval()


@pytest.fixture(scope="module")
def table(teacher: nn.Module) -> CostTable:
    return measured(teacher, 8)


def random_spec(blocks: Sequence[Block], rng: random.Random, widths: Sequence[float] = WIDTHS) -> StudentSpec:
    share = rng.random()
    chosen = {block.name: rng.choice(widths) for block in blocks if rng.random() < share}
    return StudentSpec(widths=chosen, fuse=rng.random() < 0.5)


@pytest.mark.parametrize("family", FAMILIES)
def test_params_and_flops_of_assembled_students_are_exact(family: str) -> None:
    model = FAMILIES[family]()
    size = 32 if family == "vgg11" else 16
    table, rng, example = measured(model, size), random.Random(0), torch.zeros(1, 3, size, size)
    assert len(table.structure) >= 2
    for _ in range(5):
        spec = random_spec(table.structure, rng)
        student = build_student(model, table.structure, spec)
        price = table.price(spec)
        assert (price.params, price.flops) == (count_params(student), count_flops(student, example)), spec
        assert price.latency_ms > 0


def test_the_table_holds_every_candidate_and_its_conditions(teacher: nn.Module, table: CostTable) -> None:
    assert set(table.modules) == {s.key for s in candidate_spans(table.structure, WIDTHS, fuse=True)}
    assert set(table.spread.modules) == set(table.modules) and set(table.spread.blocks) == set(table.blocks)
    assert all(cost.latency_ms > 0 for cost in (*table.blocks.values(), *table.modules.values()))
    assert (table.batch_size, table.threads, table.precision, table.image_shape) == (1, 1, "fp32", (3, 8, 8))
    assert table.device == device_name(torch.device("cpu")) and table.runs >= 9
    assert table.teacher_hash == weights_hash(teacher)
    assert sum(cost.latency_ms for cost in table.blocks.values()) < 1.2 * table.teacher.latency_ms


def test_widths_that_give_one_module_have_one_price(table: CostTable) -> None:
    # 0.125 and 0.5 of 16 channels both make 8 hidden channels.
    assert "layer1.0@0.125" in table.modules and "layer1.0@0.5" not in table.modules
    low, high = (table.price(StudentSpec(widths={"layer1.0": width})) for width in WIDTHS)
    assert low == high
    low, high = (table.price(StudentSpec(widths={"layer3.0": width})) for width in WIDTHS)
    assert low.params < high.params


def invented(
    rows: Sequence[tuple[int, int]], fuse: bool = True, widths: Sequence[float] = (0.25, 0.5)
) -> CostTable:
    """A chain of blocks (channels in, channels out) whose costs are random numbers."""
    rng = random.Random(len(rows))
    blocks = tuple(
        Block(f"b{i}", (f"b{i}",), (a, 4, 4), (b, 4, 4), "nchw", "relu",
              rng.randint(50, 99), rng.randint(500, 999), f"b{i - 1}" if i else None)
        for i, (a, b) in enumerate(rows)
    )  # fmt: skip
    modules = {
        span.key: Costs(rng.randint(1, 120), rng.randint(1, 1200), rng.uniform(0.01, 1.2))
        for span in candidate_spans(blocks, widths, fuse)
    }
    costs = {b.name: Costs(b.params, b.flops, rng.uniform(0.5, 1.0)) for b in blocks}
    return CostTable(
        version="1", teacher_hash="t", device="d", batch_size=4, threads=1, precision="fp32",
        channels_last=False,
        image_shape=(3, 4, 4), runs=15, widths=tuple(widths), fuse=fuse, structure=blocks,
        teacher=Costs(1000, 10000, 10.0), blocks=costs, modules=modules,
        spread=Spread(teacher=0.1, blocks=dict.fromkeys(costs, 0.1), modules=dict.fromkeys(modules, 0.1)),
    )  # fmt: skip


CHAIN = [(64, 64), (64, 64), (64, 128), (128, 128), (128, 128)]


def all_specs(table: CostTable, fuses: Sequence[bool]) -> list[StudentSpec]:
    levels = itertools.product((None, *table.widths), repeat=len(table.structure))
    chosen = [{b.name: w for b, w in zip(table.structure, level, strict=True) if w} for level in levels]
    return [StudentSpec(widths=widths, fuse=fuse) for widths in chosen for fuse in fuses]


def test_price_is_the_teacher_less_its_blocks_plus_its_modules_for_every_student() -> None:
    table = invented(CHAIN)
    for spec in all_specs(table, [False, True]):
        spans = spans_of(table.structure, spec)
        price = table.price(spec)
        for metric in COST_METRICS:
            gone = sum(table.blocks[name].as_dict()[metric] for span in spans for name in span.blocks)
            come = sum(table.modules[span.key].as_dict()[metric] for span in spans)
            assert price.as_dict()[metric] == pytest.approx(table.teacher.as_dict()[metric] - gone + come)


def test_the_teacher_itself_costs_what_was_measured(table: CostTable) -> None:
    assert table.price(StudentSpec()) == table.teacher


@pytest.mark.parametrize("metric", COST_METRICS)
@pytest.mark.parametrize("fuse", [None, True, False])
@pytest.mark.parametrize("rows", [CHAIN, CHAIN[2:], [(64, 64)] * 5])
def test_cheapest_and_bounds_equal_enumeration(
    metric: str, fuse: bool | None, rows: list[tuple[int, int]]
) -> None:
    table = invented(rows)
    fuses = [False, True] if fuse is None else [fuse]
    prices = [table.price(spec).as_dict()[metric] for spec in all_specs(table, fuses)]
    spec, price = table.cheapest(metric, fuse)
    assert price == table.price(spec) and spec.fuse in fuses
    assert price.as_dict()[metric] == pytest.approx(min(prices))
    assert table.price_bounds(metric, fuse) == pytest.approx((min(prices), max(prices)))


def test_a_table_without_fused_spans_prices_unfused_students_only() -> None:
    table = invented(CHAIN, fuse=False)
    together = {"b0": 0.25, "b1": 0.25}
    assert table.price(StudentSpec(widths=together, fuse=False)).params > 0
    assert table.cheapest("flops")[0].fuse is False
    with pytest.raises(InputError, match=r"no module of width 0\.25 for b0\+b1.*no fused spans"):
        table.price(StudentSpec(widths=together, fuse=True))
    with pytest.raises(InputError, match="no fused spans"):
        table.cheapest("flops", fuse=True)


def test_what_the_table_does_not_hold_is_an_input_error() -> None:
    table = invented(CHAIN)
    with pytest.raises(InputError, match="no block nope in the cost table; it has b0, b1"):
        table.price(StudentSpec(widths={"nope": 0.25, "b0": 0.25}))
    with pytest.raises(InputError, match=r"width 0\.75 for b0; it has the widths 0\.25, 0\.5"):
        table.price(StudentSpec(widths={"b0": 0.75}))
    with pytest.raises(InputError, match=r"latency_ms.*got 'joules'"):
        table.cheapest("joules")


def test_profile_has_the_documented_form(table: CostTable) -> None:
    profile = table.to_profile()
    assert {"params", "flops", "latency_ms"} <= set(profile["teacher"])
    assert [row["name"] for row in profile["blocks"]] == [block.name for block in table.structure]
    for row in profile["blocks"]:
        assert {"in_shape", "out_shape", "params", "flops", "latency_ms"} <= set(row)
    assert len(profile["modules"]) == len(table.modules)
    row = next(r for r in profile["modules"] if r["span"] == ["layer3.0"] and r["width"] == 0.5)
    assert row["params"] == table.modules["layer3.0@0.5"].params
    assert profile["batch_size"] == 1 and profile["device"] == table.device


def test_save_and_load_round_trip(table: CostTable, tmp_path: Path) -> None:
    path = tmp_path / "run" / "costs.json"
    table.save(path)
    again = load_costs(path, **matching(table))
    assert again == table
    rng = random.Random(1)
    for _ in range(20):
        spec = random_spec(table.structure, rng)
        assert again.price(spec) == table.price(spec)
    assert [p.name for p in path.parent.iterdir()] == ["costs.json"]


def matching(table: CostTable) -> dict[str, object]:
    return {
        "teacher_hash": table.teacher_hash,
        "image_shape": table.image_shape,
        "blocks": table.structure,
        "widths": table.widths,
        "fuse": True,
        "device": table.device,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_hash": "other"}, "teacher hash: expected other, got t"),
        ({"image_shape": (3, 8, 8)}, r"image shape: expected \(3, 8, 8\), got \(3, 4, 4\)"),
        ({"batch_size": 7}, "batch size: expected 7, got 4"),
        ({"device": "elsewhere"}, "device: expected elsewhere, got d"),
        ({"device": None}, "device: expected .*, got d"),
        ({"widths": (0.25, 1.0)}, r"widths: .*missing \[1.0\]"),
        ({"blocks": invented(CHAIN).structure[1:]}, "blocks: expected b1, b2, b3, b4, got b0, b1"),
        ({"blocks": invented([*CHAIN[:4], (32, 64)]).structure}, "block b4: expected Block.*64"),
    ],
)
def test_a_table_of_something_else_is_refused(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    table = invented(CHAIN)
    path = tmp_path / "costs.json"
    table.save(path)
    with pytest.raises(InputError, match=f"(?s)costs.json.*{message}"):
        load_costs(path, **{**matching(table), **change})  # type: ignore[arg-type]


def test_fused_spans_and_another_device_have_to_be_asked_for(tmp_path: Path) -> None:
    table = invented(CHAIN, fuse=False)
    path = tmp_path / "costs.json"
    table.save(path)
    with pytest.raises(InputError, match="fused spans: expected True, got False"):
        load_costs(path, **matching(table))  # type: ignore[arg-type]
    wanted = {**matching(table), "fuse": False, "device": "elsewhere"}
    assert load_costs(path, **wanted, allow_other_device=True) == table  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text[: len(text) // 2], "not a cost table of format 1"),
        (lambda text: text.replace('"format": 1', '"format": 4'), "format: Input should be 1, 2 or 3, got"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "expected format 1 for these costs"),
        (lambda text: text.replace('"format": 1', '"format": 3'), "expected format 1 for these costs"),
        (lambda text: text.replace('"batch_size": 4', '"batch_size": 0'), "batch_size"),
        (lambda text: text.replace('"b0@0.25": {', '"b9@0.25": {'), "entries do not match"),
        (lambda text: text.replace('"fuse": true', '"fuse": false'), "entries do not match"),
    ],
)
def test_a_damaged_table_is_refused(edit: Callable[[str], str], message: str, tmp_path: Path) -> None:
    table = invented(CHAIN)
    path = tmp_path / "costs.json"
    table.save(path)
    path.write_text(edit(path.read_text()))
    with pytest.raises(InputError, match=f"costs.json.*{message}"):
        load_costs(path, **matching(table))  # type: ignore[arg-type]


def test_a_missing_table_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"costs\.json: cannot read the cost table: No such file"):
        load_costs(tmp_path / "costs.json", **matching(invented(CHAIN)))  # type: ignore[arg-type]


class Residual(nn.Module):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.norm = conv, nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


class Tied(nn.Module):
    """Two blocks share a convolution: taking one out does not take its parameters out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 10)
        self.stages = nn.Sequential(*(Residual(nn.Conv2d(8, 8, 3, padding=1)) for _ in range(3)))
        self.stages[1].conv.weight = self.stages[0].conv.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


def test_blocks_that_share_weights_cannot_be_priced() -> None:
    with pytest.raises(InputError, match="do not add up"):
        measured(Tied(), 8)


def test_measuring_leaves_the_teacher_alone(teacher: nn.Module) -> None:
    before = weights_hash(teacher)
    images = torch.randn(2, 3, 8, 8)
    expected = teacher(images)
    measured(teacher, 8, fuse=False)
    assert weights_hash(teacher) == before and torch.equal(teacher(images), expected)
    assert not any("forward" in vars(module) for module in teacher.modules())
