"""Running statistics measured anew: a model's, on a few examples that whoever measures has. Knows no server and no target."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsim.core.types import Params
from fedsim.learn.kept import Kept
from fedsim.learn.models import buffers, called, trainable
from fedsim.learn.norms import measuring, tracking
from fedsim.learn.seeded import seeded


@dataclass(frozen=True, slots=True)
class Calibration:
    """*model*, whose numbers are not looked at, and the features *x* that are to be measured. Shapes: x (n, ...)."""

    model: nn.Module
    x: Tensor

    @property
    def names(self) -> list[str]:
        """Return the names of the buffers that are measured; others stay as they are."""
        found = [f"{name}.{which}" if name else which for name in tracking(self.model) for which in ("running_mean", "running_var")]
        return [name for name in found if name in buffers(self.model)]

    def measured(self, params: Params) -> Params:
        """Return *params* with the statistics of ``x`` under them: one pass, each layer normalising by the whole of ``x`` in its turn.

        Only layers with running statistics are in training mode; dropout, say, is not. As torch.optim.swa_utils.update_bn with one batch.
        """
        kept, threads, names = Kept(self.model), torch.get_num_threads(), self.names
        tensors = {**trainable(self.model), **buffers(self.model)}
        given = {name: torch.tensor(params[name]).to(like) if name in params else like.detach().clone() for name, like in tensors.items()}
        torch.set_num_threads(1)  # As everywhere: sums depend on it.
        try:
            with torch.no_grad(), measuring(self.model), seeded(0):
                called(self.model, given, self.x)
        finally:
            kept.back()
            torch.set_num_threads(threads)
        return {**params, **{name: given[name].cpu().numpy() for name in names}}
