"""Resolve device, precision, memory layout and threads on this machine."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from trainables.config import RuntimeConfig
from trainables.errors import InputError

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
EVAL_BATCH = 512  # images, unless a batch size was measured


@dataclass(frozen=True)
class Runtime:
    """A resolved `RuntimeConfig`: every setting as it is used.

    Example:
        runtime = resolve()
        with runtime.autocast():
            print(runtime.device, runtime.precision, runtime.threads)
    """

    device: torch.device
    precision: str  # fp32, bf16 or fp16
    channels_last: bool
    threads: int
    optimizer: str = "auto"  # auto (as torch chooses), single, foreach or fused
    compiled: bool = False
    eval_batch: int = EVAL_BATCH

    @property
    def memory_format(self) -> torch.memory_format:
        """Return the layout of 4-D activation maps."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context of forward passes in training; with fp32 it does nothing."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=AUTOCAST[self.precision])


def resolve(config: RuntimeConfig | None = None) -> Runtime:
    """Resolve `config` on this machine and set torch's CPU thread count.

    Args:
        config: device, precision, layout, threads; None: all chosen for this machine.

    Returns:
        The settings in use. Functions that take a runtime put models and data on its device.

    Raises:
        InputError: the device does not exist, or does not support the precision.

    Example:
        runtime = resolve(RuntimeConfig(device="cpu", precision="fp32", threads=1))
        print(runtime.device, resolve().device)
    """
    config = config or RuntimeConfig()
    device = _device(config.device)
    threads = config.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if _fast_bf16(device) else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise InputError("runtime.precision: fp16 needs a GPU, but the device is cpu; use bf16 or fp32")
    # The fastest settings differ from model to model: `fastest_runtime.tuned` measures them.
    layout = config.layout
    if layout == "auto":
        layout = "channels_last" if device.type == "cuda" else "contiguous"
    return Runtime(
        device,
        precision,
        layout == "channels_last",
        threads,
        config.optimizer,
        config.compile == "on",
        config.eval_batch or EVAL_BATCH,
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"runtime.device: expected auto, cpu, cuda or cuda:<n>, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"runtime.device: {name} does not exist: {torch.cuda.device_count()} GPUs visible")
    return device


@cache
def _fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Without AMX or AVX512-BF16 a CPU emulates bf16, and fp32 is faster.
    flags = cpu_flags()
    return device.type == "cpu" and bool({"amx_bf16", "avx512_bf16"} & flags)


@cache
def cpu_flags() -> frozenset[str]:
    """Return the instruction-set flags of this machine's CPU as Linux names them; empty if unknown."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return frozenset()
    for line in info.read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


@cache
def device_name(device: torch.device) -> str:
    """Return the processor's name, e.g. `NVIDIA H100 80GB HBM3` or the CPU's model name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()} ({os.cpu_count()} cores)"
    return f"cpu ({os.cpu_count()} cores)"
