"""The federation's data: which examples each client trains on, which it keeps back, which the server scores on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.core.types import Array, IntArray
from fedsim.data.partition import Partition
from fedsim.data.source import Examples, Generator, Pool
from fedsim.data.stream import Streams

TEST_FRACTION = 0.2
"""Held out for the server where neither the scenario nor the source says otherwise."""

TARGETS_KEPT = 10_000
"""Of how many clients whose data are made the targets are kept, for memories that sort by class."""

ASKED = 256
"""Clients of whom it is asked at once how many examples they hold."""

TEST_CLIENTS = 100
"""How many clients' held-out parts make the server's test set when data are generated per client."""


@dataclass(frozen=True, slots=True)
class Federation:
    """Clients 0 to count - 1 and their examples.

    Positions are places in the pool, or in the client's own examples where data are generated. *kept_back* is the
    share of a client's examples that federated evaluation uses and training never sees. *streams* says when a client
    gets what it trains on; None: it is all there from the start. *arranged*: the generator puts a client's training
    part first, in the order of arrival, and then what it keeps back. *hindsight*: the test examples are those that
    clients train on. *classes* and *clients* are the source's names of the classes and of its natural clients, in the
    order of their numbers, where it has some. *groups* are the natural groups of pooled examples,
    called *domains*. *unlabelled*: whoever looks at targets sees zeros; a rehearsal may.
    """

    count: int
    outputs: int
    shape: tuple[int, ...]
    test: Examples
    files: dict[str, str]
    key: Key
    pooled: Examples | None = None
    partition: Partition | None = None
    generator: Generator | None = None
    test_fraction: float = 0.0
    kept_back: float = 0.0
    streams: Streams | None = None
    arranged: bool = False
    hindsight: bool = False
    classes: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    unlabelled: bool = False
    groups: IntArray | None = None
    domains: tuple[str, ...] = ()
    _holdings: dict[int, list[int]] = field(default_factory=dict[int, list[int]], compare=False, repr=False)  # A cache, by blocks.
    _targets: dict[int, IntArray] = field(default_factory=dict[int, IntArray], compare=False, repr=False)  # Another.

    def sizes(self, clients: IntArray) -> IntArray:
        """Return how many examples each of *clients* trains on. Shapes: (n,) -> (n,)."""
        held = self.held(clients)
        return held - np.where(held > 1, np.clip((held * self.kept_back).astype(np.int64), self.kept_back > 0, None), 0)

    def train(self, client: int) -> IntArray:
        """Return the positions that *client* trains on, ascending."""
        positions = self.positions(client)
        size = self._size(client) if self.kept_back else len(positions)
        return positions if size == len(positions) else np.sort(self._shuffled(client, positions)[:size])

    def validation(self, client: int) -> IntArray:
        """Return the positions that *client* keeps back for evaluation; one with a single example scores on that."""
        positions, size = self.positions(client), self._size(client)
        return positions if size == len(positions) else np.sort(self._shuffled(client, positions)[size:])

    def examples(self, client: int) -> Examples:
        """Return the examples of a generated client, test part included; positions are places in them."""
        assert self.generator is not None
        return self.generator.client(client)

    def features(self, client: int, positions: IntArray) -> Array:
        """Return the features at *positions* of *client*."""
        return (self.examples(client) if self.pooled is None else self.pooled).x[positions]

    def targets(self, client: int, positions: IntArray) -> IntArray:
        """Return the targets at *positions* of *client*; zeros where the federation is *unlabelled*."""
        if self.unlabelled:
            return np.zeros(len(positions), dtype=np.int64)
        if self.pooled is not None:
            return self.pooled.y[positions]
        if client not in self._targets:
            if len(self._targets) >= TARGETS_KEPT:
                self._targets.pop(next(iter(self._targets)))
            self._targets[client] = self.examples(client).y
        return self._targets[client][positions]

    def sources(self, client: int, positions: IntArray, by: str) -> IntArray | None:
        """Return which label, or which group, each of the *positions* of *client* has; None where that is no matter of data."""
        if by == "group" and self.groups is not None:
            return self.groups[positions]
        return self.targets(client, positions) if by == "label" else None

    def labels(self, client: int) -> IntArray:
        """Return the targets that *client* trains on, in order of position."""
        targets = self.pooled.y if self.pooled is not None else self.examples(client).y
        return targets[self.train(client)]

    def held(self, clients: IntArray) -> IntArray:
        """Return how many examples each of *clients* holds, kept back ones included. Shapes: (n,) -> (n,)."""
        if self.partition is not None:
            return self.partition.offsets[clients + 1] - self.partition.offsets[clients]
        assert self.generator is not None
        sizes = self.generator.sizes(clients)
        return sizes - _test_size(sizes, self.test_fraction)

    def positions(self, client: int) -> IntArray:
        """Return all positions of *client*, kept back ones included, ascending."""
        if self.partition is not None:
            return self.partition.positions(client)
        return np.arange(self._held_by(client), dtype=np.int64)

    def _held_by(self, client: int) -> int:
        block, place = divmod(client, ASKED)  # With its neighbours: what one costs is what hundreds do.
        if block not in self._holdings:
            self._holdings[block] = self.held(np.arange(block * ASKED, min((block + 1) * ASKED, self.count))).tolist()
        return self._holdings[block][place]

    def _size(self, client: int) -> int:
        if not self.kept_back:
            return self._held_by(client)
        return int(self.sizes(np.array([client]))[0])

    def _shuffled(self, client: int, positions: IntArray) -> IntArray:
        if self.arranged:
            return positions
        return self.key.fold("kept back", client).numpy().permutation(positions)


def pool_federation(
    pool: Pool, partition: Partition, test: Examples, train: Examples, key: Key, kept_back: float, clients: tuple[str, ...] = (),
    groups: IntArray | None = None,
) -> Federation:  # fmt: skip
    """Return the federation of *partition* over *train*. *clients* are the names of natural clients, *groups* those of *train*."""
    return Federation(
        count=len(partition.offsets) - 1, outputs=pool.outputs, shape=train.x.shape[1:], test=test, files=pool.files,
        key=key, pooled=train, partition=partition, kept_back=kept_back, hindsight=test is train, classes=pool.classes, clients=clients,
        groups=groups, domains=pool.clients,
    )  # fmt: skip


def generated_federation(
    generator: Generator, clients: int, key: Key, test_fraction: float | None, kept_back: float
) -> Federation:
    """Return the federation of *clients* generated clients; each one's last examples are its test part.

    The server scores on the test parts of the first 100 clients, so that a fleet of a million can be built at once.
    With a *test_fraction* of 0 there are none, and it scores, in hindsight, on all that these clients train on.
    """
    share = TEST_FRACTION if test_fraction is None else test_fraction
    if getattr(generator, "untested", False):  # Who says how many examples clients have means those that they train on.
        share = 0.0
    parts: list[Examples] = []
    for client in range(min(clients, TEST_CLIENTS)):
        examples = generator.client(client)
        size = int(_test_size(np.array([len(examples)]), share)[0]) if share else len(examples)
        parts.append(Examples(examples.x[len(examples) - size :], examples.y[len(examples) - size :]))
    test = Examples(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]))
    return Federation(
        count=clients, outputs=generator.outputs, shape=generator.shape, test=test, files={}, key=key,
        generator=generator, test_fraction=share, kept_back=kept_back, hindsight=not share,
    )  # fmt: skip


def split(pool: Pool, test_fraction: float | None, key: Key, groups: IntArray | None = None) -> tuple[Examples, Examples, IntArray]:
    """Return (train, test, positions of train in the pool).

    A *test_fraction* that the scenario gives is held out of the training part at random; without one, the source's
    own test part is used where it has one, and a fifth is held out where it has none. A *test_fraction* of 0 holds
    nothing out: without a test part of the source, the test is then all that is trained on, in hindsight. Each of
    *groups* keeps an example to train on: what would have been its last one stays. Shapes: groups (n,).
    """
    train = pool.train
    if not test_fraction and (pool.test is not None or test_fraction is not None):
        return train, train if pool.test is None else pool.test, np.arange(len(train), dtype=np.int64)
    share = TEST_FRACTION if test_fraction is None else test_fraction
    size = round(len(train) * share)
    if not 0 < size < len(train):
        raise ScenarioError(
            f"data.test_fraction = {share}: leaves {len(train) - size} of {len(train)} examples to train on and"
            f" {size} to test on; both must have at least one."
        )
    order = key.fold("test").numpy().permutation(len(train))
    held, kept = np.sort(order[:size]), np.sort(order[size:])
    if groups is not None:
        lost = np.setdiff1d(groups[held], groups[kept])
        back = held[[int(np.flatnonzero(groups[held] == group)[0]) for group in lost]]
        held, kept = np.setdiff1d(held, back), np.union1d(kept, back)
        if not len(held):
            raise ScenarioError(
                f"data.test_fraction = {share}: each natural client has one example, and trains on it; none is left to test on."
            )
    return Examples(train.x[kept], train.y[kept]), Examples(train.x[held], train.y[held]), kept


def set_aside(train: Examples, count: int, key: Key, groups: IntArray | None = None) -> tuple[Examples, Examples, IntArray]:
    """Return (train, aside, positions of what is left): *count* examples, drawn at random, are the server's own. Shapes: groups (n,).

    Each of *groups* keeps its first example to train on. Raises ScenarioError where too few would be left.
    """
    free = np.arange(len(train), dtype=np.int64)
    if groups is not None:
        free = np.setdiff1d(free, np.unique(groups, return_index=True)[1])
    if count >= len(free):
        raise ScenarioError(
            f"server.calibration_examples = {count}: leaves the clients nothing of {len(train)} examples to train on. Take fewer."
        )
    taken = np.sort(free[key.fold("calibration").numpy().permutation(len(free))[:count]])
    left = np.setdiff1d(np.arange(len(train), dtype=np.int64), taken)
    return Examples(train.x[left], train.y[left]), Examples(train.x[taken], train.y[taken]), left


def _test_size(sizes: IntArray, share: float) -> IntArray:
    if not share:
        return np.zeros_like(sizes)
    # At least one example stays to train on, and one is tested on where there are two.
    return np.where(sizes > 1, np.clip((sizes * share).astype(np.int64), 1, sizes - 1), 0)

