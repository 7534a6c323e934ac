"""Examples as tensors: one pool for data that are kept once, a pool per chunk for data made client by client."""

from __future__ import annotations

import os
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.core.errors import RunError
from fedsim.core.types import Array, IntArray, Params
from fedsim.data.federation import Federation
from fedsim.data.source import Examples
from fedsim.data.stream.federated import ClientStreams
from fedsim.learn.engine import shared
from fedsim.learn.work import Task

CACHED_BYTES = 512 * 2**20
"""How much of generated data is kept for clients that come back."""


class Store:
    """A federation's examples on one device, in one precision. Positions in, rows of tensors out."""

    def __init__(
        self, federation: Federation, dtype: torch.dtype, device: torch.device, *, kept_bytes: int = CACHED_BYTES,
        whole_targets: bool | None = None,
    ) -> None:  # fmt: skip
        self.federation, self.dtype, self._device, self._kept_bytes = federation, dtype, device, kept_bytes
        self._block: tuple[int, shared.Layout] | None = None
        pooled = federation.pooled
        self._pool: tuple[Tensor, Tensor] | None = self.tensors(pooled) if pooled is not None else None
        self.whole_targets = bool((federation.test if pooled is None else pooled).y.min() >= 0) if whole_targets is None else whole_targets
        """Whether no target is cross-entropy's ignore_index; of data made later it is checked as they are made. A part of a federation is
        told what the whole is."""
        self._made: OrderedDict[int, tuple[Tensor, Tensor]] = OrderedDict()
        self._made_bytes = 0

    @property
    def needed(self) -> Federation:
        """Return the federation without what no arithmetic reads: who holds what, streams, files."""
        return replace(self.federation, partition=None, streams=None, groups=None, files={}, _holdings={}, _targets={})

    def __reduce__(self) -> tuple[Callable[..., Store], tuple[Any, ...]]:
        """Return it as it was built, without memory of this process's own."""
        more = {"kept_bytes": self._kept_bytes, "whole_targets": self.whole_targets}
        return partial(Store, **more), (self.needed, self.dtype, self._device)

    def of(self, federation: Federation) -> Store:
        """Return a store of *federation*, a part of this one's, that holds of it what holds of the whole."""
        return Store(federation, self.dtype, self._device, kept_bytes=self._kept_bytes, whole_targets=self.whole_targets)

    @cached_property
    def test(self) -> tuple[Tensor, Tensor]:
        """Return the test part."""
        return self.tensors(self.federation.test)

    def share(self) -> tuple[int, shared.Layout]:
        """Return a block that holds the pool (x, y) and the test part (test_x, test_y), and how they lie in it.

        They are moved there: from then on ``federation`` has them nowhere else, so let go of the one you came with.
        The block is closed with the store.
        """
        if self._block is None:
            arrays: Params = {"test_x": self.test[0].numpy(), "test_y": self.test[1].numpy()}
            if self._pool is not None:
                arrays |= {"x": self._pool[0].numpy(), "y": self._pool[1].numpy()}
            block = shared.blank()
            weakref.finalize(self, os.close, block)
            layout, _ = shared.write(block, arrays)
            arrays = shared.views(shared.mapped(block), layout)  # The old ones are let go.
            pooled = Examples(arrays["x"], arrays["y"]) if self._pool is not None else None
            streams = self.federation.streams
            if pooled is not None and isinstance(streams, ClientStreams):  # They look labels up, and need no copy for it.
                streams = replace(streams, base=replace(streams.base, pooled=pooled))
            test = Examples(arrays["test_x"], arrays["test_y"])
            self.federation = replace(self.federation, test=test, pooled=pooled, streams=streams)
            self._pool = self.tensors(pooled) if pooled is not None else None
            del self.test
            self._block = block, layout
        return self._block

    def tensors(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """Return *examples* as tensors; floating targets take the precision of the features, classes stay whole."""
        x, y = _seen(examples.x), _seen(examples.y)
        x = x.to(self._device, self.dtype if x.is_floating_point() else x.dtype)
        return x, y.to(self._device, self.dtype if y.is_floating_point() else y.dtype)

    def sample(self, size: int, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Return a batch of *size* examples of the test part: the first ones, repeated where it is smaller, or drawn by *seed*."""
        test = self.federation.test
        places = np.resize(np.arange(len(test)), size)
        if seed is not None:
            places = np.random.Generator(np.random.PCG64(seed)).integers(len(test), size=size)
        return self.tensors(Examples(test.x[places], test.y[places]))

    def pool(self, tasks: list[Task]) -> tuple[Tensor, Tensor, IntArray]:
        """Return (x, y, offsets): tensors, and what to add to each task's positions to find its rows in them."""
        if self._pool is not None:
            return *self._pool, np.zeros(len(tasks), dtype=np.int64)
        made = [self._client(task.client) for task in tasks]
        offsets = np.concatenate([[0], np.cumsum([len(y) for _, y in made])[:-1]]).astype(np.int64)
        if len(made) == 1:
            return *made[0], offsets
        return torch.cat([x for x, _ in made]), torch.cat([y for _, y in made]), offsets

    def _client(self, client: int) -> tuple[Tensor, Tensor]:
        if client in self._made:
            self._made.move_to_end(client)
            return self._made[client]
        examples = self.federation.examples(client)
        if self.whole_targets and examples.y.min() < 0:
            raise RunError(f"client {client}: has the target {examples.y.min()}, while the test part has none below 0.")
        pair = self.tensors(examples)
        self._made[client] = pair
        self._made_bytes += _size(pair)
        while self._made_bytes > self._kept_bytes and len(self._made) > 1:
            self._made_bytes -= _size(self._made.popitem(last=False)[1])
        return pair


def _seen(array: Array) -> Tensor:
    """Return *array* as a tensor over the same memory; of one that nobody may write into torch warns, and nobody does."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(array))


def _size(pair: tuple[Tensor, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in pair)
