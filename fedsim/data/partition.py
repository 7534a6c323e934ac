"""Partitions: which client holds which training example of a pool.

Pure functions of (labels or groups, clients, key). Every example goes to exactly one client, and no client goes
without. Knows no features, no file and no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from fedsim.core import answers
from fedsim.core.errors import ScenarioError, choices
from fedsim.core.keys import Key
from fedsim.core.registry import Registry
from fedsim.core.types import Count, FloatArray, IntArray, NonNegative, Range


@dataclass(frozen=True, slots=True)
class Partition:
    """One permutation of positions and the offsets that cut it, so that a million clients are two arrays.

    Shapes: order (n,), a permutation of 0 to n - 1, ascending within each client; offsets (clients + 1,).
    """

    order: IntArray
    offsets: IntArray

    @classmethod
    def of(cls, owner: IntArray, clients: int) -> Partition:
        """Return the partition in which client ``owner[i]`` holds example i. Shapes: owner (n,).

        >>> Partition.of(np.array([1, 0, 1]), 2).positions(1).tolist()
        [0, 2]
        """
        order = np.argsort(owner, kind="stable")  # Stable: positions stay ascending within a client.
        offsets = np.zeros(clients + 1, dtype=np.int64)
        np.cumsum(np.bincount(owner, minlength=clients), out=offsets[1:])
        # Read-only: ``positions`` hands out views, and a view that is written to would rob another client.
        order.setflags(write=False)
        offsets.setflags(write=False)
        return cls(order, offsets)

    @property
    def sizes(self) -> IntArray:
        """Return how many examples each client holds. Shapes: (clients,)."""
        return np.diff(self.offsets)

    def positions(self, client: int) -> IntArray:
        """Return the positions that *client* holds, ascending; a view, not a copy."""
        return self.order[self.offsets[client] : self.offsets[client + 1]]


def _parted(made: Partition, given: Mapping[str, Any]) -> None:
    """Refuse places that are none, or anybody's twice."""
    clients, examples = given["clients"], len(given["labels"])
    try:
        order, offsets = answers.whole(made.order, most=examples - 1), answers.whole(made.offsets, clients + 1, most=len(made.order))
        answers.wrong(offsets[1:], np.diff(offsets) < 0, "offsets in ascending order")
        if offsets[0] or offsets[-1] != len(order):
            raise ValueError(f"offsets from {offsets[0]} to {offsets[-1]}, expected 0 to {len(order)}, the length of order")
        twice = np.bincount(order, minlength=examples) > 1
        if twice.any():
            raise ValueError(f"example {int(twice.argmax())} to more than one place, expected each once")
    except ValueError as error:
        raise ValueError(f"gives {error}") from error


partitions: Registry[Callable[..., Partition]] = Registry(
    "partition", given=["labels", "groups", "clients", "key"], key="data.partition",
    gives=answers.Gives("a Partition", ("order", "offsets"), looked=_parted),
)  # fmt: skip
"""Functions that return a Partition. Given: ``labels`` (n,), ``groups`` (n,) or None, ``clients`` (int), ``key``."""


@partitions.register("iid")
def iid(labels: IntArray, clients: int, key: Key) -> Partition:
    """Return a partition dealt at random into equal sizes, plus or minus one.

    Reference: McMahan et al. 2017, arXiv:1602.05629, section 3.

    >>> iid(np.array([0, 0, 1, 1, 2]), 2, Key(0)).sizes.tolist()
    [3, 2]
    """
    _enough(labels, clients)
    return _deal(_even(len(labels), clients), key)


@partitions.register("dirichlet")
def dirichlet(
    labels: IntArray,
    clients: int,
    alpha: Annotated[float, Range(gt=0, why="label skew; 0.1 is strong, 100 is nearly iid")],
    key: Key,
) -> Partition:
    """Return a partition with Dirichlet(alpha) label shares per client, and equal sizes, plus or minus one.

    Smaller *alpha* means more skew; every example is given to exactly one client. *alpha* is the concentration per
    class, scaled by the pool's own class shares, so that a large one is nearly iid on unbalanced labels too. Clients
    draw in random turn; when a class runs out, a mix is renormalised over the classes that are left, so the last
    in turn take what there is.
    Shapes: labels (n,) -> order (n,), offsets (clients + 1,).
    Reference: Hsu et al. 2019, arXiv:1909.06335, section 3.

    >>> dirichlet(np.array([0, 0, 1, 1]), 2, 1e6, Key(0)).sizes.tolist()
    [2, 2]
    """
    _enough(labels, clients)
    kinds, classes = np.unique(labels, return_inverse=True)
    left = np.bincount(classes).astype(np.int64)
    log_mix = _log_dirichlet(alpha * len(kinds) * left / len(labels), clients, key.fold("mix"))
    sizes = _even(len(labels), clients)
    draws = key.fold("draws").numpy()
    counts = np.zeros((clients, len(kinds)), dtype=np.int64)
    for client in key.fold("turn").numpy().permutation(clients).tolist():
        missing = int(sizes[client])
        while missing:  # Ends: each pass takes at least one example, since it picks only classes that have some.
            taken = np.minimum(_pick(log_mix[client], left > 0, draws.random(missing)), left)
            counts[client] += taken
            left -= taken
            missing -= int(taken.sum())
    # Examples shuffled, then stably sorted by class: each class hands out a random run of its own.
    shuffled = key.fold("examples").numpy().permutation(len(labels))
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    owner = np.empty(len(labels), dtype=np.int64)
    owner[by_class] = np.repeat(np.tile(np.arange(clients), len(kinds)), counts.T.ravel())
    return Partition.of(owner, clients)


@partitions.register("shards")
def shards(labels: IntArray, clients: int, key: Key, per_client: Count = 2) -> Partition:
    """Return a partition of the examples sorted by label, cut into equal shards, *per_client* to each at random.

    A shard may straddle a class boundary, so a client can hold more labels than shards.
    Reference: McMahan et al. 2017, arXiv:1602.05629, section 3.

    >>> shards(np.array([0, 1, 0, 1]), 2, Key(0), per_client=1).order.tolist() in ([0, 2, 1, 3], [1, 3, 0, 2])
    True
    """
    _enough(labels, clients)
    total = clients * per_client
    if total > len(labels):
        raise ScenarioError(
            f"data.partition.per_client = {per_client}: {clients} clients take {total} shards, more than there are"
            f" examples ({len(labels)}). At most {len(labels) // clients} works."
        )
    shard_owner = key.fold("deal").numpy().permutation(total) // per_client
    owner = np.empty(len(labels), dtype=np.int64)
    owner[np.argsort(labels, kind="stable")] = np.repeat(shard_owner, _even(len(labels), total))
    return Partition.of(owner, clients)


@partitions.register("quantity")
def quantity(
    labels: IntArray,
    clients: int,
    key: Key,
    sizes: Literal["lognormal", "power"] = "lognormal",
    sigma: NonNegative = 1.0,
    exponent: NonNegative = 1.0,
) -> Partition:
    """Return a partition of unequal sizes, the labels of each client iid.

    'lognormal': sizes in proportion to LogNormal(0, *sigma*) draws. 'power': the client of rank k, ranks dealt at
    random, in proportion to ``k ** -exponent`` (Zipf). Each client gets one example first, the rest is shared out
    by largest remainder. A setting of the other rule is not read.

    >>> sorted(quantity(np.zeros(14, int), 3, Key(0), sizes="power").sizes.tolist())
    [3, 4, 7]
    """
    _enough(labels, clients)
    draws = key.fold("sizes").numpy()
    if sizes == "lognormal":
        log_weights = sigma * draws.standard_normal(clients)
    elif sizes == "power":
        log_weights = -exponent * np.log1p(draws.permutation(clients))
    else:
        raise ScenarioError(f"data.partition.sizes = {sizes!r}: no such rule. {choices(sizes, ['lognormal', 'power'])}")
    return _deal(1 + _apportion(log_weights, len(labels) - clients), key)


@partitions.register("blocks")
def blocks(labels: IntArray, clients: int) -> Partition:
    """Return a partition of the examples, in their order, into equal runs: of a stream each client sees another time.

    >>> blocks(np.zeros(5, int), 2).positions(0).tolist()
    [0, 1, 2]
    """
    _enough(labels, clients)
    return Partition.of(np.repeat(np.arange(clients), _even(len(labels), clients)), clients)


@partitions.register("round_robin")
def round_robin(labels: IntArray, clients: int) -> Partition:
    """Return a partition that deals the examples, in their order, one by one: of a stream all clients see all times.

    >>> round_robin(np.zeros(5, int), 2).positions(0).tolist()
    [0, 2, 4]
    """
    _enough(labels, clients)
    return Partition.of(np.arange(len(labels)) % clients, clients)


@partitions.register("natural")
def natural(groups: IntArray | None, clients: int) -> Partition:
    """Return the partition that the data came with: one client per group, in the order of their numbers.

    >>> natural(np.array([1, 0, 1]), 2).sizes.tolist()
    [1, 2]
    """
    if groups is None:
        raise ScenarioError(
            "data.partition.kind = 'natural': this source does not say whose each example is."
            f" Name its column of clients, or take one of: {', '.join(n for n in partitions if n != 'natural')}."
        )
    names, owner = np.unique(groups, return_inverse=True)  # A source of the reader's own may leave numbers out.
    if len(names) != clients:
        raise ScenarioError(
            f"clients.count = {clients}: the source has {len(names)} natural clients. Set it to {len(names)}."
        )
    return Partition.of(owner.astype(np.int64), clients)


def _enough(labels: IntArray, clients: int) -> None:
    if clients > len(labels):
        raise ScenarioError(
            f"clients.count = {clients}: more clients than examples ({len(labels)}). At most {len(labels)} works."
        )


def _even(n: int, parts: int) -> IntArray:
    """Return *parts* sizes that sum to *n*, the larger ones first, none more than one above another."""
    return n // parts + (np.arange(parts) < n % parts).astype(np.int64)


def _deal(sizes: IntArray, key: Key) -> Partition:
    """Return the partition that gives each client a random sample of its size, without replacement."""
    owner = np.empty(int(sizes.sum()), dtype=np.int64)
    owner[key.fold("deal").numpy().permutation(len(owner))] = np.repeat(np.arange(len(sizes)), sizes)
    return Partition.of(owner, len(sizes))


def _apportion(log_weights: FloatArray, total: int) -> IntArray:
    """Return whole numbers that sum to *total*, in proportion to the weights, by largest remainder."""
    weights = np.exp(log_weights - log_weights.max())  # In logs: a huge sigma must not overflow.
    exact = total * weights / weights.sum()
    whole = np.floor(exact).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: total - int(whole.sum())]] += 1
    return whole


def _log_dirichlet(alphas: FloatArray, rows: int, key: Key) -> FloatArray:
    """Return Dirichlet(*alphas*) draws as logarithms, each row up to a constant. Shapes: (c,) -> (rows, c).

    In logs, since at alpha = 0.001 most shares underflow to zero, and a zero could not be renormalised over the
    classes that are left: log Gamma(a) = log Gamma(a + 1) + log(U) / a (Marsaglia and Tsang 2000, section 6).
    """
    alphas = np.clip(alphas, 1e-12, 1e12)  # Beyond, one class each and the pool's own mix, to the last bit or so.
    size = (rows, len(alphas))
    gammas = key.fold("gamma").numpy().standard_gamma(alphas + 1.0, size)
    return np.log(gammas) + np.log1p(-key.fold("boost").numpy().random(size)) / alphas


def _pick(log_mix: FloatArray, there: np.ndarray[tuple[int], np.dtype[np.bool_]], uniforms: FloatArray) -> IntArray:
    """Return how often each class is drawn from the mix, renormalised over the classes that are *there*."""
    kept = np.where(there, log_mix, -np.inf)
    edges = np.cumsum(np.exp(kept - kept.max()))
    # side="right": a class of width zero lies between two equal edges and is never picked; edges[-1] is exactly 1.
    return np.bincount(np.searchsorted(edges / edges[-1], uniforms, side="right"), minlength=len(log_mix))
