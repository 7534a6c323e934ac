"""Which kernels this process computes with, asked of the libraries themselves, and whether they are those of every x86-64 machine.

Knows torch, oneDNN, MKL, numpy and its BLAS, and what they answer. How a process is made to choose them, ``core/pinned.py`` knows.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import _multiarray_umath as _umath  # pyright: ignore[reportAttributeAccessIssue]  # As in core/pinned.py.
from torch import Tensor
from torch.nn import functional as F

from fedsim.core import pinned
from fedsim.core.errors import RunError, ScenarioError
from fedsim.learn import elementary

CBWR = {1: "off", 2: "AUTO", 3: "COMPATIBLE"}
"""MKL's branches, by its own numbers (mkl_types.h); others are named by theirs."""
ANSWERS: Mapping[str, str] = {
    "products": "16f43d51805fe73a", "convolutions": "4edd6c39e687f19c", "norms": "7c3e1ef274df4b53", "elements": "e9fe0d86b890d3e3",
    "numpy": "37fe2a9481930e14", "blas": "fc0de6604109b4b0", "libm": "f5f359f87b081da3",
}  # fmt: skip
"""What the libraries answer where it was measured: torch 2.13 (2.12 too, but for norms), numpy 2.3 and 2.4, glibc 2.36."""


def check(what: str = "engine.reproducible = 'everywhere'") -> dict[str, Any]:
    """Return what the promise of equal bits rests on here: the variables, the kernels, and what they answer.

    From then on torch computes by ``elementary``, too. Raises ScenarioError where this torch cannot do as *what* needs, RunError where a
    library was loaded otherwise, or this process is none that began for that.
    """
    if not torch.backends.mkl.is_available():
        raise ScenarioError(f"{what}: this torch has no MKL, whose products are the same on every machine. {INSTEAD}")
    if not hasattr(torch.library, "get_kernel"):
        raise ScenarioError(f"{what}: takes torch 2.12 or later, and this is {torch.__version__}. {INSTEAD}")
    found, wanted = kernels(), {"torch": "AVX2", "mkl": "COMPATIBLE", "numpy": ""}
    wrong = [f"{name} chose {found[name]!r}" for name, value in wanted.items() if found[name] not in (value, UNKNOWN)]
    wrong = [said for said in (pinned.unpinned(), *wrong) if said]
    if not wrong:
        elementary.hold()
        wrong = [] if elementary.held() else ["torch takes square roots as MKL does"]
    if wrong:
        raise RunError(f"{what}: this process did not load its libraries so ({wrong[0]}); nothing was computed. A defect of fedsim.")
    return {"variables": pinned.pins(), "kernels": found, "answers": dict(answers())}


INSTEAD = "reproducible = 'machine' works anywhere."
UNKNOWN = "unknown"
"""What is said of a library that cannot be asked."""


def kernels() -> dict[str, str]:
    """Return what each library chose when it was loaded: torch, MKL (its branch), numpy (what is above AVX2), its BLAS; and the libc."""
    above = sorted(name for name in _umath.__cpu_dispatch__ if _umath.__cpu_features__.get(name) and name not in pinned.UP_TO_AVX2)
    return {
        "torch": torch.backends.cpu.get_cpu_capability(), "mkl": _mkl(), "numpy": " ".join(above), "blas": _blas(),
        "libc": " ".join(platform.libc_ver()),
    }  # fmt: skip


def remark(rests: Mapping[str, Any]) -> str:
    """Return what a reader must know of what a run *rests* on, in a sentence; empty where it is as measured."""
    others = [name for name, mark in rests["answers"].items() if ANSWERS.get(name, mark) != mark]
    if not others:
        return ""
    return (
        f"engine.reproducible = 'everywhere': {', '.join(others)} come out otherwise here than with torch 2.13 and glibc 2.36. A digest"
        f" that they go into is the same where they come out as here (rests_on.answers in the manifest)."
    )


@cache
def answers() -> Mapping[str, str]:
    """Return the mark of some fixed arithmetic of each library: where these differ, kernels do, and digests may.

    What it is made of are exact numbers, whatever the processor.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {name: hashlib.sha256(made()).hexdigest()[:16] for name, made in _ASKED.items()}
    finally:
        torch.set_num_threads(threads)


def _exact(*shape: int, dtype: Any = np.float32) -> Any:
    """Return numbers between -1 and 1, of that *shape*, that no library made."""
    count = math.prod(shape)
    return ((np.arange(count, dtype=np.int64) * 7919 % 2003 - 1001).astype(dtype) / dtype(1024)).reshape(shape)


def _bytes(*tensors: Tensor) -> bytes:
    return b"".join(tensor.detach().contiguous().numpy().tobytes() for tensor in tensors)


def _products() -> bytes:
    found: list[Tensor] = []
    for dtype in (np.float32, np.float64):
        a, b = torch.from_numpy(_exact(3, 37, 61, dtype=dtype)), torch.from_numpy(_exact(3, 61, 19, dtype=dtype))
        found += [torch.bmm(a, b), a[0] @ b[0], torch.addmm(a[0, :, :19].contiguous(), a[1], b[1], beta=0.5), a[0] @ b[0, :, 0]]
    return _bytes(*found)


def _convolutions() -> bytes:
    x = torch.from_numpy(_exact(3, 5, 13, 13)).requires_grad_()
    w, b = torch.from_numpy(_exact(11, 5, 3, 3)).requires_grad_(), torch.from_numpy(_exact(11)).requires_grad_()
    found: list[Tensor] = []
    for form in (torch.contiguous_format, torch.channels_last):
        y = F.conv2d(x.contiguous(memory_format=form), w, b, padding=1)
        found += [y, *torch.autograd.grad(y.square().sum(), (x, w, b))]
    return _bytes(*found)


def _norms() -> bytes:
    """Return what normalisation comes to, and its gradients, which torch 2.13 takes otherwise than 2.12."""
    found: list[Tensor] = []
    for dtype in (np.float32, np.float64):
        x = torch.from_numpy(_exact(9, 20, dtype=dtype)).requires_grad_()
        w = torch.from_numpy(_exact(20, dtype=dtype)).requires_grad_()
        for norm in (
            lambda x, w: F.batch_norm(x, None, None, w, w, training=True), lambda x, w: F.layer_norm(x, (20,), w, w),
            lambda x, w: F.group_norm(x[:, :, None], 4, w, w),
        ):  # fmt: skip
            y = norm(x, w)
            found += [y, *torch.autograd.grad(y.pow(3).sum(), (x, w))]
    return _bytes(*found)


def _elements() -> bytes:
    found: list[Tensor] = []
    for dtype in (np.float32, np.float64):
        x = torch.from_numpy(_exact(997, dtype=dtype))
        found += [f(x) for f in (torch.exp, torch.tanh, torch.sigmoid, torch.erf, torch.sin)]
        found += [f(x.abs() * 0.9 + 0.01) for f in (torch.log, torch.rsqrt, *(getattr(torch, name) for name in elementary.FUNCTIONS))]
        found += [x.sum(), x.square().mean(), torch.logsumexp(x, 0), torch.softmax(x[:990].reshape(99, 10), 1), torch.var(x), x.norm()]
    generator = torch.Generator().manual_seed(7)
    found += [torch.randn(37, generator=generator), torch.rand(5, generator=generator), torch.empty(37).exponential_(generator=generator)]
    return _bytes(*found)


def _numpys() -> bytes:
    found: list[Any] = []
    for dtype in (np.float32, np.float64):
        x = _exact(997, dtype=dtype)
        found += [np.exp(x), np.log(np.abs(x) + 1), np.sin(x), np.tanh(x), np.power(np.abs(x) + 1, dtype(1.7)), np.sqrt(np.abs(x))]
        found += [np.sum(x), np.mean(x), np.sort(x), np.var(x.reshape(-1, 1), axis=0)]
    draw = np.random.Generator(np.random.Philox(7))
    found += [draw.normal(size=101), draw.exponential(size=101), draw.gamma(0.3, size=101), draw.dirichlet(np.full(5, 0.3))]
    return b"".join(np.asarray(each).tobytes() for each in found)


def _blases() -> bytes:
    found: list[Any] = []
    for dtype in (np.float32, np.float64):
        a, b = _exact(37, 61, dtype=dtype), _exact(61, 19, dtype=dtype)
        found += [a @ b, a @ b[:, 0], a[0] @ a[1], np.linalg.norm(a), a.T @ a]
    return b"".join(np.asarray(each).tobytes() for each in found)


def _libms() -> bytes:
    numbers = [float(x) for x in _exact(499, dtype=np.float64)]
    functions: list[Callable[[float], float]] = [math.exp, math.sin, math.tanh, math.expm1, math.erf, lambda x: math.log1p(abs(x))]
    return b"".join(np.float64(f(x)).tobytes() for f in functions for x in numbers)


_ASKED: Mapping[str, Callable[[], bytes]] = {
    "products": _products, "convolutions": _convolutions, "norms": _norms, "elements": _elements, "numpy": _numpys, "blas": _blases,
    "libm": _libms,
}  # fmt: skip


def _mkl() -> str:
    """Return MKL's branch for products that are the same again, as it took it from the environment."""
    with suppress(OSError, AttributeError):
        place = Path(str(torch.__file__)).parent / "lib" / "libtorch_cpu.so"
        number = int(ctypes.CDLL(str(place)).mkl_serv_cbwr_get(1))
        return CBWR.get(number, str(number))
    return UNKNOWN


def _blas() -> str:
    """Return the kernels that numpy's OpenBLAS took, where numpy brings one."""
    with suppress(OSError, AttributeError, StopIteration):
        place = next((Path(str(np.__file__)).parent.parent / "numpy.libs").glob("libscipy_openblas64_*"))
        name = ctypes.CDLL(str(place)).scipy_openblas_get_corename64_
        name.restype = ctypes.c_char_p
        return f"OpenBLAS, {name().decode()}"
    return UNKNOWN
