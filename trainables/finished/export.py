"""Export a finished student to files that run without this package: `torch.export` (.pt2), ONNX (.onnx).

Every file is loaded again and compared with the eager PyTorch model before it is put in place.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from trainables.config import Triple
from trainables.errors import InputError
from trainables.finished.model_files import load_model
from trainables.runtime.runtime import Runtime

FORMATS = ("pt2", "onnx")
ONNX_MODULES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # largest absolute difference of a logit, fp32
ONNX_BYTES = 2**31 - 2**20  # most weights: a protobuf file holds 2 GiB, including the graph
RANDOM_IMAGES = 7
LEAST_IMAGES = 3
TIMED_SECONDS = 0.3

Outputs = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ExportResult:
    """An exported and checked file.

    `max_abs_difference` is the largest difference of a logit from eager PyTorch in fp32 over all batches
    compared. Latencies are medians in ms for one image on this machine's CPU. Inputs in 0..1 must be
    normalised with `mean` and `std`.

    Example:
        result = export_model("models/student", "pt2", "student.pt2")
        print(result.bytes, result.max_abs_difference, result.latency_ms, result.eager_latency_ms)
    """

    path: Path
    format: str
    bytes: int
    max_abs_difference: float
    latency_ms: float
    eager_latency_ms: float
    image_shape: tuple[int, int, int]
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)


def export_model(
    path: str | os.PathLike[str],
    format: str = "pt2",
    out: str | os.PathLike[str] | None = None,
    runtime: Runtime | None = None,
    *,
    images: torch.Tensor | None = None,
) -> ExportResult:
    """Write a retrained model as one file that runs without this package, and compare it with PyTorch.

    Args:
        path: the model's folder, as `retrain` wrote it.
        format: "pt2" or "onnx".
        out: the file to write; None: `model.<format>` beside the weights.
        runtime: its thread count is used to measure latencies; the file itself is for CPUs, in fp32.
        images: a few dozen real normalised images (N, 3, H, W) to compare on; None: random ones.

    Returns:
        Path, size, largest difference and latencies of the file.

    Raises:
        InputError: no model in `path`, images of another size, an unknown format, a missing package, a model
            that cannot be exported, or outputs that differ.

    Example:
        result = export_model("models/student", out="student.pt2")
        program = torch.export.load(result.path).module()
        print(program(torch.zeros(2, *result.image_shape)).shape)
    """
    model, manifest = load_model(path)
    shape = tuple(manifest["teacher"]["image_shape"])
    samples = torch.randn(RANDOM_IMAGES, *shape, generator=torch.Generator().manual_seed(0))
    if images is not None:
        if tuple(images.shape[1:]) != shape:
            raise InputError(f"export: expected images of shape {shape}, but got {tuple(images.shape[1:])}")
        samples = torch.cat([images.float().cpu(), samples[: max(0, LEAST_IMAGES - len(images))]])
    if runtime is not None:
        torch.set_num_threads(runtime.threads)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    result = export_module(model, samples, format, folder / f"model.{format}" if out is None else out)
    mean, std = (tuple(manifest["data"][key]) for key in ("mean", "std"))
    return replace(result, mean=mean, std=std)


def export_module(
    model: nn.Module,
    example: torch.Tensor,
    format: str,
    out: str | os.PathLike[str],
    *,
    tolerance: float = TOLERANCE,
) -> ExportResult:
    """Export a model with a dynamic batch size, load the file again and compare the two.

    Args:
        model: images (B, 3, H, W) to logits (B, classes); not changed. A copy on the CPU, in fp32 and eval
            mode, is exported.
        example: normalised images (B, 3, H, W), B >= 3, real ones if possible. The first two are used for the
            export; outputs are compared on one image and on all.
        format: "pt2" or "onnx".
        out: the file to write. It is replaced only by a file that passed the comparison.
        tolerance: smallest difference of a logit that is an error.

    Returns:
        Path, size, largest difference and latencies of the file.

    Raises:
        InputError: unknown format, a missing package, a model that the exporter does not support, or outputs
            that differ.
    """
    if format not in FORMATS:
        raise InputError(f"export: format must be one of {', '.join(FORMATS)}, but got {format!r}")
    if format == "onnx":
        _require_onnx(model)
    assert len(example) >= 3, (
        "three images or more: the exporter takes two, one more shows the batch is dynamic"
    )
    model = copy.deepcopy(model).to(device="cpu", dtype=torch.float32).eval()
    images = example.to(device="cpu", dtype=torch.float32).contiguous()
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
        draft = Path(folder) / out.name
        try:
            exported = _write(model, images[:2], format, draft)
            difference = _largest_difference(model, exported, images)
        except Exception as error:  # exporters and run times may raise anything
            name = type(model).__name__
            raise InputError(f"export: {name} cannot be exported as {format}: {_reason(error)}") from error
        if not difference < tolerance:
            raise InputError(
                f"export: {out.name} is not the model: its logits differ from PyTorch's by up to "
                f"{difference:.3g}, expected less than {tolerance:g}"
            )
        result = ExportResult(
            path=out,
            format=format,
            bytes=draft.stat().st_size,
            max_abs_difference=difference,
            latency_ms=_median_ms(exported, images[:1]),
            eager_latency_ms=_median_ms(model, images[:1]),
            image_shape=(images.shape[1], images.shape[2], images.shape[3]),
        )
        draft.replace(out)
    return result


def snippet(result: ExportResult) -> str:
    """Return ten lines of Python that load and run the file on any machine with torch (or onnxruntime)."""
    shape = ", ".join(map(str, result.image_shape))
    normalise = [
        f"images = np.random.rand(1, {shape}).astype(np.float32)  # your RGB images in 0..1, (B, {shape})",
        f"mean, std = np.array([{result.mean}, {result.std}], np.float32)[:, :, None, None]",
        "inputs = (images - mean) / std",
    ]
    if result.format == "onnx":
        imports = ["import numpy as np", "import onnxruntime"]
        load = f"session = onnxruntime.InferenceSession({str(result.path)!r})"
        run = 'logits = session.run(["logits"], {"images": inputs})[0]'
    else:
        imports = ["import numpy as np", "import torch"]
        load = f"model = torch.export.load({str(result.path)!r}).module()"
        run = "logits = model(torch.from_numpy(inputs)).detach().numpy()"
    answer = ["probabilities = np.exp(logits - logits.max(1, keepdims=True))"]
    answer += ["probabilities /= probabilities.sum(1, keepdims=True)"]
    answer += ["print(logits.argmax(1), probabilities.max(1))  # class index and its probability"]
    return "\n".join([*imports, load, *normalise, run, *answer]) + "\n"


def _require_onnx(model: nn.Module) -> None:
    for name in ONNX_MODULES:
        try:
            import_module(name)
        except ImportError:
            raise InputError(
                f'export: ONNX needs the package {name}; run: pip install "ama-search[export]"'
            ) from None
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if size > ONNX_BYTES:
        raise InputError(
            f"export: an ONNX file holds 2 GiB, but the weights are {size / 2**30:.1f} GiB; use pt2"
        )


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _write(model: nn.Module, pair: torch.Tensor, format: str, path: Path) -> Outputs:
    """Export to `path`; return a function that runs the file: images (B, 3, H, W) to logits (B, classes)."""
    with quiet(), torch.no_grad():
        return _write_pt2(model, pair, path) if format == "pt2" else _write_onnx(model, pair, path)


def _write_pt2(model: nn.Module, pair: torch.Tensor, path: Path) -> Outputs:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (pair,), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()

    def outputs(images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = loaded(images)
        return logits

    return outputs


def _write_onnx(model: nn.Module, pair: torch.Tensor, path: Path) -> Outputs:
    import onnx
    import onnxruntime

    torch.onnx.export(
        model,
        (pair,),
        path,
        dynamo=True,
        verbose=False,
        external_data=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
    )
    onnx.checker.check_model(path, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def outputs(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return outputs


@torch.no_grad()
def _largest_difference(model: nn.Module, exported: Outputs, images: torch.Tensor) -> float:
    """Compare on the first image and on all images (B, 3, H, W); NaN if either model returns NaN."""
    largest = torch.zeros(())
    for batch in (images[:1], images):
        expected, got = model(batch), exported(batch)
        if expected.shape != got.shape:
            return float("nan")
        # torch.maximum propagates NaN.
        largest = torch.maximum(largest, (expected - got).abs().max())
    return float(largest)


@torch.no_grad()
def _median_ms(outputs: Outputs, images: torch.Tensor) -> float:
    with quiet():  # the import may warn about CUDA
        from torch.utils.benchmark import Timer
    timer = Timer("outputs(images)", globals={"outputs": outputs, "images": images})
    timer.timeit(2)  # warm-up
    return float(timer.blocked_autorange(min_run_time=TIMED_SECONDS).median * 1e3)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide everything that Python code prints, logs or warns; errors still raise."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
