"""The process in which the golden record is made: the same arithmetic on every x86-64 CPU.

Which kernels a library takes depends on the CPU, and kernels differ in the last bit. Here every library is
told to take those that all CPUs have: torch's own (ATEN_CPU_CAPABILITY), MKL's (MKL_CBWR), OpenBLAS's behind
NumPy and SciPy (OPENBLAS_CORETYPE), NumPy's loops (NPY_DISABLE_CPU_FEATURES) and the C library's exp and log
(GLIBC_TUNABLES). oneDNN and NNPACK are switched off by `make.py` itself. One thread, so that sums have one
order.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
MARK = "AMA_GOLDEN"  # in the environment of such a process

SETTINGS = {
    MARK: "1",
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OPENBLAS_CORETYPE": "Prescott",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-AVX512F,-FMA,-FMA4,-AVX2_Usable,-FMA_Usable",
    "PYTHONHASHSEED": "0",
    "CUDA_VISIBLE_DEVICES": "",
}


def environment(home: Path) -> dict[str, str]:
    """The variables of such a process; whatever it keeps for later goes to `home`."""
    kept = {name: value for name, value in os.environ.items() if name != "AMA_STUDY_URL"}
    paths = [str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    return {
        **kept,
        **SETTINGS,
        "NPY_DISABLE_CPU_FEATURES": " ".join(_numpy_features()),
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "PYTHONPATH": os.pathsep.join(paths),
    }


def run_maker(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `make.py` with these arguments in such a process."""
    command = [sys.executable, str(FOLDER / "make.py"), *arguments]
    return subprocess.run(
        command, env=environment(home), cwd=home, capture_output=True, text=True, check=False
    )


def _numpy_features() -> list[str]:
    """What NumPy would use here beyond what every CPU has."""
    umath = np._core._multiarray_umath  # type: ignore[attr-defined]
    return [name for name in umath.__cpu_dispatch__ if umath.__cpu_features__[name]]
