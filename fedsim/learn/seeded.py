"""The global generators of torch, numpy and Python, which a stranger's code draws from: borrowed under a seed, and given back."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from contextlib import contextmanager

import numpy as np
import torch

from fedsim.core.borrowed import borrowed


@contextmanager
def seeded(seed: int) -> Generator[None]:
    """Run with the global generators of torch, numpy and Python at *seed*, and give the caller's states back."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), borrowed():
        # The one for all devices looks for each kind of these, which takes a hundred times as long.
        (torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed)(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield


@contextmanager
def watched() -> Generator[Callable[[], bool]]:
    """Yield a function that tells whether numpy's or Python's global generator has been drawn from since; give them back."""
    python, numpy = random.getstate(), np.random.get_state(legacy=False)
    with borrowed():
        yield lambda: random.getstate() != python or repr(np.random.get_state(legacy=False)) != repr(numpy)
