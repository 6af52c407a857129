import copy
import logging
import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import ConvNeXt, MobileNetV3, VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig

from trainables.blocks.blocks import find_blocks
from trainables.config import DataConfig, DistillConfig, RuntimeConfig, StudentSpec, TeacherConfig
from trainables.data.load import load_data
from trainables.errors import InputError
from trainables.finished.export import TOLERANCE, export_model, export_module, quiet, snippet
from trainables.finished.model_files import load_model
from trainables.finished.retrain import retrain_one
from trainables.network.architectures import build_model
from trainables.runtime.runtime import resolve
from trainables.student.build import build_student
from trainables.teacher.training import train_teacher


def mobilenet_v3():
    residual = partial(InvertedResidualConfig, width_mult=1.0, dilation=1)
    settings = [
        residual(8, 3, 16, 16, True, "RE", 2),
        residual(16, 3, 32, 16, False, "RE", 1),
        residual(16, 5, 48, 24, True, "HS", 2),
        residual(24, 5, 48, 24, True, "HS", 1),
    ]
    return MobileNetV3(settings, last_channel=32, num_classes=10)


def convnext():
    settings = [CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 2)]
    return ConvNeXt(settings, layer_scale=1.0, num_classes=10)


def vit():
    model = VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10
    )
    nn.init.normal_(model.heads.head.weight)  # torchvision starts at zero, where any two exports agree
    return model


FAMILIES = {
    "resnet": lambda: build_model("cifar_resnet8", 10, (3, 32, 32)),
    "mobilenet_v3": mobilenet_v3,
    "convnext": convnext,
    "vit": vit,
}


def student(family):
    """A student with every second block replaced, and logits of about unit spread on random images."""
    torch.manual_seed(0)
    teacher = FAMILIES[family]()
    images = torch.randn(16, 3, 32, 32)
    teacher.train()(images)  # batch norm statistics that fit the weights
    blocks = find_blocks(teacher.eval(), images[:1])
    spec = StudentSpec(widths={block.name: 0.25 for block in blocks[::2]})
    model = build_student(teacher, blocks, spec)
    for _ in range(10):
        model.train()(images)
    with torch.no_grad():
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        last.weight /= model.eval()(images).std()
    return model


@pytest.fixture
def images():
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("format", ["pt2", "onnx"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_student_and_its_file_compute_the_same(family, format, images, tmp_path, capfd):
    model = student(family)
    result = export_module(model, images, format, tmp_path / "deep" / f"student.{format}")
    assert model(images).std() > 0.1  # else the comparison would say nothing
    assert result.max_abs_difference < TOLERANCE
    assert result.path.stat().st_size == result.bytes > 4 * sum(p.numel() for p in model.parameters())
    assert result.latency_ms > 0 and result.eager_latency_ms > 0 and result.image_shape == (3, 32, 32)
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in result.path.parent.iterdir()] == [result.path.name]


@pytest.fixture(scope="module")
def retrained(tmp_path_factory):
    """Digits data and the folder of a student retrained on a few of them for one epoch."""
    data = load_data(DataConfig(name="digits", train_limit=120), test=True)
    runtime = resolve(RuntimeConfig(device="cpu", precision="fp32"))
    config = TeacherConfig(arch="cifar_resnet8", epochs=1, batch_size=32)
    folder = tmp_path_factory.mktemp("retrained")
    teacher = train_teacher(config, data, runtime, folder / "teacher.safetensors")
    blocks = find_blocks(teacher.model, torch.zeros(1, *data.image_shape))
    spec = StudentSpec(widths={blocks[1].name: 0.25})
    retrain_one(DistillConfig(student=spec, epochs=1), teacher, blocks, data, runtime, folder / "model")
    return data, folder / "model"


@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_snippet_gives_what_the_retrained_model_gives(retrained, format):
    data, folder = retrained
    runtime = resolve(RuntimeConfig(device="cpu", precision="fp32", threads=1))
    images, _ = next(data.eval_batches("test", runtime, batch_size=16))
    result = export_model(folder, format, runtime=runtime, images=images)
    assert result.path == folder / f"model.{format}"
    text = snippet(result)
    assert len(text.splitlines()) == 10
    # The same images by the snippet, unnormalised, as its reader would have them.
    saved = folder / "images.npy"
    np.save(saved, data.test.images[:16].numpy().astype(np.float32) / 255)
    lines = [
        f"images = np.load({str(saved)!r})" if x.startswith("images =") else x for x in text.splitlines()
    ]
    answer = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    expected = load_model(folder)[0](images).argmax(1)
    assert " ".join(answer.stdout.split("]")[0].strip("[").split()) == " ".join(map(str, expected.tolist()))


def test_export_model_needs_no_images_and_takes_any_of_its_files(retrained, tmp_path):
    data, folder = retrained
    result = export_model(folder / "model.json", out=tmp_path / "named.pt2")
    assert result.path == tmp_path / "named.pt2" and result.format == "pt2"
    assert result.mean == data.mean and result.std == data.std
    one = export_model(folder, out=tmp_path / "one.pt2", images=torch.zeros(1, *data.image_shape))
    assert one.max_abs_difference < TOLERANCE


def test_images_of_another_size_are_refused(retrained, tmp_path):
    data, folder = retrained
    _, height, width = data.image_shape
    with pytest.raises(InputError, match=rf"shape \(3, {height}, {width}\), but got \(3, 5, 5\)"):
        export_model(folder, out=tmp_path / "x.pt2", images=torch.zeros(4, 3, 5, 5))


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))


def test_file_works_for_batches_of_any_size_and_the_model_stays_as_it_was(images, tmp_path):
    model = small()
    model(images)
    before = copy.deepcopy(model.state_dict())
    result = export_module(model.train(), images, "pt2", tmp_path / "small.pt2")
    loaded = torch.export.load(result.path).module()
    for size in (1, 2, 3, 64):
        batch = torch.randn(size, 3, 32, 32)
        torch.testing.assert_close(loaded(batch), model(batch))
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Shifted(nn.Module):
    """Computes something else when exported."""

    def forward(self, images):
        return images.flatten(1)[:, :4] + (0.01 if torch.compiler.is_exporting() else 0.0)


class Undefined(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :4] / 0.0


class Branching(nn.Module):
    def forward(self, images):
        return images.flatten(1) if images.sum() > 0 else -images.flatten(1)


class BatchBound(nn.Module):
    def forward(self, images):
        pixels = images.flatten(1)[:, :4]
        return pixels + 1 if len(images) == 2 else pixels


def test_outputs_that_differ_are_an_error_with_the_figure_and_leave_the_old_file(images, tmp_path):
    out = tmp_path / "model.pt2"
    out.write_text("old")
    with pytest.raises(InputError, match=r"differ from PyTorch's by up to 0\.01, expected less than 0\.0001"):
        export_module(Shifted(), images, "pt2", out)
    with pytest.raises(InputError, match="by up to nan"):
        export_module(Undefined(), images, "pt2", out)
    assert out.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("format", ["pt2", "onnx"])
@pytest.mark.parametrize("model", [Branching(), BatchBound()])
def test_a_model_that_cannot_be_captured_is_named(model, format, images, tmp_path):
    with pytest.raises(
        InputError, match=rf"export: {type(model).__name__} cannot be exported as {format}: \w+"
    ):
        export_module(model, images, format, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_unknown_format_is_refused(images, tmp_path):
    with pytest.raises(InputError, match="format must be one of pt2, onnx, but got 'tflite'"):
        export_module(small(), images, "tflite", tmp_path / "model")


def test_missing_package_says_what_to_install(images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # an import of it now fails, as if it were not there
    with pytest.raises(
        InputError, match=r'needs the package onnxscript; run: pip install "ama-search\[export\]"'
    ):
        export_module(small(), images, "onnx", tmp_path / "model.onnx")


def test_weights_that_onnx_cannot_hold_are_refused(images, tmp_path):
    class Huge(nn.Module):
        def __init__(self):
            super().__init__()
            # One stored number, 2 GiB by its shape.
            self.register_buffer("table", torch.zeros(1).expand(2**29))

    with pytest.raises(InputError, match=r"holds 2 GiB, but the weights are 2\.0 GiB; use pt2"):
        export_module(Huge(), images, "onnx", tmp_path / "model.onnx")


def test_quiet_silences_warnings_and_logs_and_gives_them_back(capfd):
    log = logging.getLogger("loud")
    with quiet():
        warnings.warn("unheard", stacklevel=1)
        log.error("unheard")
    with pytest.warns(UserWarning, match="heard"):
        warnings.warn("heard", stacklevel=1)
    log.error("heard")
    assert "unheard" not in capfd.readouterr().err
    assert log.isEnabledFor(logging.ERROR)
