"""The environment in which every x86-64 machine computes the same bits, as data, and whether this process began in it.

Libraries choose kernels by processor when they load, and kernels round differently. Knows variables and what this machine has;
what the libraries chose then is asked of them by ``learn/kernels.py``.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from numpy._core import _multiarray_umath as _umath  # pyright: ignore[reportAttributeAccessIssue]  # In no stub. The place where numpy says which features it was built for, and found.

FIXED: Mapping[str, str] = {
    "FEDSIM_REPRODUCIBLE": "everywhere",  # What a process of ours is told by, beside what libraries read.
    "MKL_CBWR": "COMPATIBLE",  # Products of torch: the one branch that MKL has on every maker's processors.
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # Convolutions.
    "DNNL_MAX_CPU_ISA": "AVX2",  # As older versions of it are asked.
    "OPENBLAS_CORETYPE": "Haswell",  # Products of numpy and scipy.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
"""What is set, whatever it was."""
NUMPY = "NPY_DISABLE_CPU_FEATURES"
"""What numpy is not to use of this processor: what is above AVX2, by the names that this numpy has for it."""
DROPPED = (
    "NPY_ENABLE_CPU_FEATURES", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE", "ONEDNN_CPU_ISA_HINTS", "DNNL_CPU_ISA_HINTS",
    "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "TORCH_MKLDNN_MATMUL_MIN_DIM", "GLIBC_TUNABLES",
)  # fmt: skip
"""What would choose among kernels beside them, and is left out: at its default it is the same everywhere."""
UP_TO_AVX2 = frozenset(
    "MMX SSE SSE2 SSE3 SSSE3 SSE41 SSE42 POPCNT CX16 LAHF AVX F16C FMA3 AVX2 BMI BMI2 LZCNT MOVBE X86_V2 X86_V3".split()
)
"""The features, by numpy's names, that every processor with AVX2 has; what is not among them is not used."""
NEEDED = frozenset({"avx2", "fma", "f16c", "bmi1", "bmi2"})
"""The same as far as they are asked for, by the system's names."""


def pins() -> dict[str, str]:
    """Return the variables of that environment: the same on every machine, but for those that name what this numpy knows."""
    above = sorted(name for name in _umath.__cpu_dispatch__ if name not in UP_TO_AVX2)
    return {**FIXED, **({NUMPY: " ".join(above)} if above else {})}


def pinned(environment: Mapping[str, str]) -> dict[str, str]:
    """Return *environment* with all that chooses among kernels pinned, whatever it said of it."""
    kept = {name: value for name, value in environment.items() if name not in DROPPED and name != NUMPY}
    return {**kept, **pins()}


def unpinned(began: Mapping[str, str] | None = None) -> str:
    """Return what differs from that environment in the one that this process *began* in, or in its own now; empty where nothing does.

    That of the beginning is the system's where it tells it: what a process sets later, libraries may have read before.
    """
    for found in (_began() if began is None else began, os.environ):
        for name, value in pins().items():
            if found.get(name) != value:
                return f"{name} = {found.get(name)!r}, and not {value!r}"
        for name in (*DROPPED, *(() if NUMPY in pins() else (NUMPY,))):
            if name in found:
                return f"{name} = {found[name]!r}, and not left out"
    return ""


@cache
def lacking() -> str:
    """Return why no process of this machine can be held to that environment, in words; empty where one can."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"this machine is {platform.machine()}, and no x86-64"
    if above := sorted(name for name in _umath.__cpu_baseline__ if name not in UP_TO_AVX2):
        return f"this numpy was built for {', '.join(above)}, and cannot do without"
    flags = _flags()
    missing = sorted(NEEDED - flags) if flags else [] if _umath.__cpu_features__.get("AVX2") else ["avx2"]
    return f"this processor has no {', '.join(missing)}" if missing else ""


def _flags() -> frozenset[str]:
    """Return the processor's features as the system names them; none where it does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def _began() -> Mapping[str, str]:
    try:
        words = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return os.environ
    return dict(os.fsdecode(word).split("=", 1) for word in words if b"=" in word)
