"""How the numbers of a step are computed: in which type products are, and what is computed twice to save memory.

Knows no model and no batch. Both are the scenario's, the same wherever an engine stands.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Precision = Literal["bfloat16", "tf32"]
"""What products may be computed in, beside the type that parameters are kept in; tf32 is a GPU's own."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """*precision* of products and convolutions in training, None for the parameters' own; *checkpointing* of activations.

    With bfloat16 (Micikevicius et al. 2018, arXiv:1710.03740, without loss scaling, of which its range has no need) parameters,
    gradients, sums, losses and updates stay float32, and so do evaluation and aggregation; with tf32 they do too, and factors are rounded
    to 10 bits on their way into a GPU's product. With *checkpointing* (Chen et al. 2016,
    arXiv:1604.06174) the backward pass computes most of the forward pass anew in the place of keeping it: the same bits, at the price of
    one forward pass more. With *graphs* a step runs as a CUDA graph where it can: learning rates are tensors in it.
    """

    precision: Precision | None = None
    checkpointing: bool = False
    graphs: bool = False

    def training(self, device: str) -> AbstractContextManager[object]:
        """Return a context in which a model trains so on a *device* of that type."""
        both = ExitStack()
        both.enter_context(self.at_work(device))
        if self.precision == "bfloat16":
            both.enter_context(torch.autocast(device, torch.bfloat16, cache_enabled=False))
            both.enter_context(_WholeStatistics())
        return both

    def at_work(self, device: str) -> AbstractContextManager[object]:
        """Return a context in which steps that were compiled for this are run: on a GPU with its products, by kernels that repeat them."""
        return _products(lower=self.precision == "tf32") if device == "cuda" else nullcontext()


@contextmanager
def _products(*, lower: bool) -> Generator[None]:
    """Let a GPU round the factors of products only where *lower*, and take no kernel by its timing, or whose sums come in any order.

    torch's own setting rounds in convolutions and not in other products.
    """
    backends: Any = torch.backends  # Without types for what they are set to.
    matmul, cudnn = backends.cuda.matmul, backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = lower, lower, True, False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = before


class _WholeStatistics(TorchFunctionMode):
    """Lets batch normalisation count in float32, as its running statistics are: torch's has no rule for rows of both types."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (torch.batch_norm, functional.batch_norm):
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


PLAIN = Arithmetic()
"""Everything in the parameters' own type, and nothing computed twice."""
