"""Elementary functions as every processor computes them: by numpy and the C library, in the place of MKL's vector functions.

MKL's begin with approximations of the processor (rsqrtps, rcpps), which are other bits on AMD's than on Intel's, and not even its square
root is the rounded one. ``hold`` puts these in torch's place for the whole of a process. Knows torch's dispatcher and nothing of ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.core.types import Array

FUNCTIONS: Mapping[str, Callable[[Array], Array]] = {
    "sqrt": np.sqrt, "acos": np.arccos, "asin": np.arcsin, "atan": np.arctan, "tan": np.tan, "log": np.log, "log2": np.log2,
    "log10": np.log10,
}  # fmt: skip
"""Those of MKL, in its branch for all processors, that use such an approximation: read off its code, of MKL 2024.2."""
SPARED = {("log", torch.float32)}
"""What does not, of these."""
EXACT = "sqrt"
"""The one that numpy rounds correctly in any type; the others are taken in float64 and rounded from there."""
HALF = 0.5
"""The power that torch takes as a square root."""


@cache
def hold() -> Any:
    """Have torch compute FUNCTIONS by numpy on the CPU, from now on in this process; autograd, vmap and traces go by it too."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # That a kernel is replaced is what is wanted.
        for name in FUNCTIONS:
            for overload, function in _three(name, _own(name)).items():
                library.impl(overload, function, "CPU")
        plain = _own("pow.Tensor_Scalar")
        library.impl("pow.Tensor_Scalar", lambda x, exponent: _power(plain, x, exponent), "CPU")
    return library  # Where it goes, its kernels go.


def held() -> bool:
    """Return whether torch's square root is the rounded one here, as numpy's is: MKL's is not, of one number in eight."""
    numbers = np.arange(1, 1000, dtype=np.float32)
    return bool((torch.sqrt(torch.from_numpy(numbers)).numpy() == np.sqrt(numbers)).all())


def _own(overload: str) -> Callable[..., Tensor]:
    """Return the kernel that torch has of its own."""
    made: Any = torch._C  # pyright: ignore[reportPrivateUsage]  # What a kernel is called with, nothing public makes.
    kernel, keys = torch.library.get_kernel(f"aten::{overload}", "CPU"), made.DispatchKeySet(made.DispatchKey.CPU)
    return lambda *given: kernel.call_boxed(keys, *given)


def _three(name: str, plain: Callable[..., Tensor]) -> dict[str, Callable[..., Tensor]]:
    """Return the function *name* in its three forms, by their names: that makes a tensor, in place, and into another."""

    def into(x: Tensor, *, out: Tensor) -> Tensor:
        return out.resize_(x.shape).copy_(_taken(name, plain, x))

    return {name: lambda x: _taken(name, plain, x), f"{name}_": lambda x: x.copy_(_taken(name, plain, x)), f"{name}.out": into}


def _taken(name: str, plain: Callable[..., Tensor], x: Tensor) -> Tensor:
    """Return what *name* is of each of *x*: by numpy in single and double precision and of whole numbers, else by *plain*, torch's own."""
    if not x.dtype.is_floating_point and not x.dtype.is_complex:
        x = x.to(torch.get_default_dtype())
    if x.dtype not in (torch.float32, torch.float64) or (name, x.dtype) in SPARED:
        return plain(x)
    array = x.detach().resolve_neg().numpy()
    with np.errstate(all="ignore"):
        found = FUNCTIONS[name](array if name == EXACT else array.astype(np.float64, copy=False))
    return torch.from_numpy(np.asarray(found, dtype=array.dtype))


def _power(plain: Callable[..., Tensor], x: Tensor, exponent: Any) -> Tensor:
    """Return powers by one number: *plain*, torch's own, but for square roots."""
    if exponent == HALF and x.dtype in (torch.float32, torch.float64):
        return _taken(EXACT, plain, x)
    return plain(x, exponent)
