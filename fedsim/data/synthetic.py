"""Sources that make their examples: each client's data a function of (data seed, client), of any number of clients.

Knows no file and no partition: who holds what is part of what is generated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.core.keys import Key
from fedsim.core.types import Array, Count, FloatArray, IntArray, NonNegative
from fedsim.data.source import Examples, sources

# The reference code is unseeded, so the seed is ours, vetted and frozen: changing it changes every published number.
# Sizes are so heavy-tailed that one of 30 clients may own 77 % of the data. 5 is the first seed from 0 under which, for
# 30 clients, none owns 30 % (20 % here) and total and median size are within 15 % of what is expected (13603 and 105).
DATA_SEED = 5
SMALLEST = 50
"""Examples that every client holds; the log-normal part comes on top."""


@dataclass(frozen=True, slots=True)
class LeafSynthetic:
    """The Synthetic(alpha, beta) federation; a Generator. See ``leaf_synthetic``."""

    alpha: float
    beta: float
    iid: bool
    shape: tuple[int, ...]
    outputs: int
    max_examples: int
    key: Key

    def sizes(self, clients: IntArray) -> IntArray:
        """Return how many examples each of *clients* holds. Shapes: (n,) -> (n,)."""
        # Imported here: only this source needs it.
        from scipy.special import ndtri  # pyright: ignore[reportMissingTypeStubs]  # It has none.

        normals: FloatArray = ndtri(self.key.fold("sizes").uniform(clients))
        drawn = SMALLEST + np.exp(4.0 + 2.0 * normals).astype(np.int64)
        return np.minimum(drawn, self.max_examples)

    def client(self, client: int) -> Examples:
        """Return the examples of *client*. Shapes: x (size, features), y (size,)."""
        key = self.key.fold("client", client)
        size = int(self.sizes(np.array([client]))[0])
        weights, bias = self._model(client)
        spread = np.arange(1.0, self.shape[0] + 1.0) ** -0.6  # Square root of the variances j ** -1.2.
        noise = key.fold("examples").numpy().standard_normal((size, self.shape[0]))
        x = (self._centre(client) + spread * noise).astype(np.float32)
        # From the float32 features, so that a label is a function of what a model sees. The reference takes the
        # argmax of a softmax, which is the argmax of the logits.
        y = np.argmax(x.astype(np.float64) @ weights + bias, axis=1)
        return Examples(x, y.astype(np.int64))

    def _model(self, client: int) -> tuple[FloatArray, FloatArray]:
        if self.iid:
            draws, shift = self.key.fold("model").numpy(), 0.0
        else:
            draws = self.key.fold("client", client, "model").numpy()
            shift = self.alpha * draws.standard_normal()  # u_k: one number, for the weights and for the bias.
        weights = shift + draws.standard_normal((self.shape[0], self.outputs))
        return weights, shift + draws.standard_normal(self.outputs)

    def _centre(self, client: int) -> Array:
        if self.iid:
            return np.zeros(self.shape)
        draws = self.key.fold("client", client, "centre").numpy()
        return self.beta * draws.standard_normal() + draws.standard_normal(self.shape)


@sources.register("leaf_synthetic")
def leaf_synthetic(
    alpha: NonNegative = 1.0,
    beta: NonNegative = 1.0,
    iid: bool = False,
    features: Count = 60,
    outputs: Count = 10,
    data_seed: int = DATA_SEED,
    max_examples: Count = 10_000,
) -> LeafSynthetic:
    """Return the Synthetic(alpha, beta) federation of FedProx, where clients differ in model, features and size.

    For client k: u ~ N(0, alpha), W (features, outputs) and b (outputs,) ~ N(u, 1); B ~ N(0, beta), v ~ N(B, 1),
    x ~ N(v, diag(j ** -1.2)), y = argmax softmax(xW + b); size = 50 + LogNormal(4, 2), rounded down. *alpha* and
    *beta* are standard deviations, as in the reference code (the paper writes them as variances). With *iid* all
    share one W and b, and v = 0.

    A trap of the original: u moves the logits of all classes alike, so *alpha* moves no label. Models differ between
    clients at alpha = 0 as well; what *beta* does is real.

    The data follow from *data_seed*, not from the run's seed, so that runs of many seeds share one data set. No
    client holds more than *max_examples*: without the cap one in two million holds over a million.
    Reference: Li et al. 2020 (FedProx), arXiv:1812.06127, section 5.1.

    >>> leaf_synthetic(1, 1).client(3).x.shape[1]
    60
    """
    key = Key(data_seed).fold("leaf_synthetic")
    return LeafSynthetic(alpha, beta, iid, (features,), outputs, max_examples, key)
