"""Sources from river: the streams that it ships, and its classic generators of drifting concepts.

Imports river only when asked to make something. Knows no virtual time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, cast

import numpy as np

from fedsim.core.errors import ScenarioError, choices
from fedsim.core.keys import Key
from fedsim.core.types import Array, Count, FloatArray, IntArray, NonNegative, Share
from fedsim.data.source import Examples, Pool, fingerprint, sources
from fedsim.data.table import encode


@sources.register("river")
def river(name: str) -> Pool:
    """Return a stream that comes with river, by the name of its class, its rows in their order: nothing is fetched.

    Bananas, ImageSegments, Phishing and Shuttle in river 0.26. Features are taken as they are, in the order
    of their first row; classes are numbered in sorted order. Shapes: x (n, features) float32; y (n,).
    Raises ScenarioError for a set that is not bundled, or not one of classes.
    Reference: Montiel et al. 2021, 'River: machine learning for streaming data in Python', JMLR 22.
    """
    made = _bundled()
    if name not in made:
        raise ScenarioError(f"data.source.name = {name!r}: river ships no such stream of classes. {choices(name, made)}")
    rows = list(made[name])
    x, (classes, y) = _numbers([row for row, _ in rows]), encode([str(label) for _, label in rows])
    path = made[name].path
    return Pool(Examples(x, y), len(classes), None, None, {str(path): fingerprint(path)})


def _bundled() -> dict[str, Any]:
    """Return river's data sets that are files of its own and have one class per row, by name."""
    from river import datasets
    from river.datasets import base

    found: dict[str, Any] = {}
    for name, kind in vars(datasets).items():
        if isinstance(kind, type) and issubclass(kind, base.FileDataset) and not issubclass(kind, base.RemoteDataset):
            made = cast(Any, kind)()
            if made.task in (base.BINARY_CLF, base.MULTI_CLF):
                found[name] = made
    return found


def _numbers(rows: list[Mapping[Any, Any]]) -> Array:
    names = list(rows[0])
    return np.array([[row[name] for name in names] for row in rows], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class RiverGenerator:
    """A federation whose clients draw from one of river's generators; Varied. See ``sea`` and the others.

    All clients share a concept, and each has draws of its own. *kind* is river's class, *settings* are its arguments,
    *chooses* the argument that takes the variant, *columns* turns its numbers into features. *luck* says where a
    client's draws come from: 'seed' where nothing else does, 'seed_sample' beside the concept's 'seed_model', '_rng'
    where the concept is drawn from it when the first row is asked for, and rows ever after.
    """

    kind: str
    settings: Mapping[str, Any]
    shape: tuple[int, ...]
    outputs: int
    examples_per_client: int
    key: Key
    columns: Callable[[FloatArray], Array] | None = None
    luck: Literal["seed", "seed_sample", "_rng"] = "seed"
    chooses: str = ""
    variant: int = 0
    variants: int = 1

    def sizes(self, clients: IntArray) -> IntArray:
        """Return how many examples each of *clients* holds. Shapes: (n,) -> (n,)."""
        return np.full(len(clients), self.examples_per_client, dtype=np.int64)

    def client(self, client: int) -> Examples:
        """Return the examples of *client*. Shapes: x (examples, features), y (examples,)."""
        return self.variant_of(client, self.variant)

    def variant_of(self, client: int, variant: int) -> Examples:
        """Return the examples of *client* as *variant* has them, as many as ``client`` returns."""
        drawn = iter(cast(Iterable[tuple[Mapping[Any, Any], Any]], self._begun(client, variant)))
        rows = list(islice(drawn, self.examples_per_client))
        x = np.array([list(row.values()) for row, _ in rows], dtype=np.float64)
        x = x if self.columns is None else self.columns(x)
        return Examples(x.astype(np.float32), np.array([int(label) for _, label in rows], dtype=np.int64))

    def _begun(self, client: int, variant: int) -> Any:
        """Return river's generator with the concept of all and the luck of *client*."""
        from river.datasets import synth

        arguments = {**self.settings, **({self.chooses: variant} if self.chooses else {})}
        concept, own = self.key.fold("concept").seed64(), self.key.fold("client", client).seed64()
        kind = cast(Callable[..., Any], getattr(synth, self.kind))
        if self.luck == "seed":
            return kind(seed=own, **arguments)
        if self.luck == "seed_sample":
            return kind(seed_model=concept, seed_sample=own, **arguments)
        made = kind(seed=concept, **arguments)
        drawn = iter(made)
        next(drawn)
        made._rng.seed(own)
        return drawn


@sources.register("sea")
def sea(key: Key, variant: int = 0, noise: Share = 0.0, examples_per_client: Count = 1000) -> RiverGenerator:
    """Return SEA: three features in [0, 10], class 1 where the sum of the first two is above 8, 9, 7 or 9.5 (*variant*).

    *noise* is the share of labels that are flipped. The four variants share their features (drift: 'variants').
    Shapes: x (n, 3), y (n,) in 0 to 1.
    Reference: Street and Kim 2001, 'A streaming ensemble algorithm (SEA) for large-scale classification'.

    >>> sea(Key(0)).client(3).x.shape
    (1000, 3)
    """

    return RiverGenerator(
        "SEA", {"noise": noise}, (3,), 2, examples_per_client, key, chooses="variant", variant=_variant(variant, 4), variants=4
    )


@sources.register("stagger")
def stagger(key: Key, variant: int = 0, examples_per_client: Count = 1000) -> RiverGenerator:
    """Return STAGGER: size, colour and shape of three values each, and one of three rules (*variant*) for the class.

    Each value is a feature of its own, 0 or 1. The rules share their features (drift: 'variants').
    Shapes: x (n, 9), y (n,) in 0 to 1.
    Reference: Schlimmer and Granger 1986, 'Incremental learning from noisy data'.

    >>> stagger(Key(0)).client(3).x.sum(axis=1).tolist()[:2]
    [3.0, 3.0]
    """

    return RiverGenerator(
        "STAGGER", {}, (9,), 2, examples_per_client, key, _stagger_columns,
        chooses="classification_function", variant=_variant(variant, 3), variants=3,
    )  # fmt: skip


@sources.register("agrawal")
def agrawal(key: Key, variant: int = 0, perturbation: Share = 0.0, examples_per_client: Count = 1000) -> RiverGenerator:
    """Return Agrawal's loan applicants: nine features and one of ten rules (*variant*) for who gets a loan.

    Salary, commission, age, house value, years and loan are divided by the most that they can be; education, car and
    postcode are a feature per value, 0 or 1. *perturbation* moves the numbers after the class is decided. The rules
    share their features (drift: 'variants'). Shapes: x (n, 40), y (n,) in 0 to 1.
    Reference: Agrawal et al. 1993, 'Database mining: a performance perspective'.

    >>> agrawal(Key(0)).client(3).x.shape
    (1000, 40)
    """

    return RiverGenerator(
        "Agrawal", {"perturbation": perturbation}, (40,), 2, examples_per_client, key, _agrawal_columns,
        chooses="classification_function", variant=_variant(variant, 10), variants=10,
    )  # fmt: skip


@sources.register("hyperplane")
def hyperplane(
    key: Key,
    features: Count = 10,
    drift_features: int = 2,
    change: Share = 0.0,
    noise: Share = 0.05,
    turn: Share = 0.1,
    examples_per_client: Count = 1000,
) -> RiverGenerator:
    """Return points of the unit cube on two sides of a hyperplane, the same for all clients at their first example.

    With *change* > 0 the weights of *drift_features* move by so much with each example that a client draws, turning
    back with chance *turn*: drift by count, whatever the virtual time. *noise* is the share of flipped labels.
    Shapes: x (n, features), y (n,) in 0 to 1.
    Reference: Hulten et al. 2001, 'Mining time-changing data streams'.
    """
    if not 0 <= drift_features <= features:
        raise ScenarioError(f"data.source.drift_features = {drift_features}: must be from 0 to features = {features}.")

    settings = {
        "n_features": features, "n_drift_features": drift_features, "mag_change": change, "noise_percentage": _drawn(noise),
        "sigma": _drawn(turn),
    }  # fmt: skip
    return RiverGenerator("Hyperplane", settings, (features,), 2, examples_per_client, key, luck="_rng")


@sources.register("random_rbf_drift")
def random_rbf_drift(
    key: Key,
    outputs: Count = 2,
    features: Count = 10,
    centroids: Count = 50,
    drift_centroids: int = 50,
    change: NonNegative = 0.0,
    examples_per_client: Count = 1000,
) -> RiverGenerator:
    """Return clouds around *centroids*, each of a class, the same for all clients at their first example.

    With *change* > 0 *drift_centroids* of them move by so much with each example that a client draws: drift by count,
    whatever the virtual time. Shapes: x (n, features), y (n,) in 0 to outputs - 1.
    Reference: Bifet et al. 2009, 'New ensemble methods for evolving data streams'.
    """
    if not 0 <= drift_centroids <= centroids:
        raise ScenarioError(f"data.source.drift_centroids = {drift_centroids}: must be from 0 to centroids = {centroids}.")

    settings = {
        "n_classes": outputs, "n_features": features, "n_centroids": centroids, "change_speed": change,
        "n_drift_centroids": drift_centroids,
    }  # fmt: skip
    return RiverGenerator("RandomRBFDrift", settings, (features,), outputs, examples_per_client, key, luck="seed_sample")


@sources.register("led")
def led(key: Key, variant: int = 0, noise: Share = 0.1, examples_per_client: Count = 1000) -> RiverGenerator:
    """Return digits of a seven-segment display among 17 lamps that mean nothing, *noise* the share of segments that lie.

    In *variant* k (0 to 7) k of the segments have changed places with k of the other lamps (drift: 'variants').
    Shapes: x (n, 24) of 0 and 1, y (n,) in 0 to 9.
    Reference: Breiman et al. 1984, 'Classification and regression trees'; river's LEDDrift.
    """

    settings = {"noise_percentage": _drawn(noise), "irrelevant_features": True}
    return RiverGenerator(
        "LEDDrift", settings, (24,), 10, examples_per_client, key, luck="_rng",
        chooses="n_drift_features", variant=_variant(variant, 8), variants=8,
    )  # fmt: skip


def _drawn(chance: float) -> float:
    """Return what river is to be told for something to happen with *chance*, up to 0.99: it adds 0.01 to what it draws."""
    return min(1.0, chance + 0.01) if chance else 0.0


def _variant(variant: int, variants: int) -> int:
    if not 0 <= variant < variants:
        raise ScenarioError(f"data.source.variant = {variant}: must be from 0 to {variants - 1}.")
    return variant


def _stagger_columns(x: FloatArray) -> Array:
    return np.concatenate([_one_hot(x[:, feature], 3) for feature in range(3)], axis=1)


_AGRAWAL_MOST = np.array([150e3, 85e3, 80.0, 1.2e6, 30.0, 500e3])
"""The most that salary, commission, age, house value, years of ownership and loan can be."""


def _agrawal_columns(x: FloatArray) -> Array:
    salary, commission, age, education, car, postcode, house, years, loan = x.T
    numbers = np.stack([salary, commission, age, house, years, loan], axis=1) / _AGRAWAL_MOST
    words = [_one_hot(education, 5), _one_hot(car - 1, 20), _one_hot(postcode, 9)]
    return np.concatenate([numbers, *words], axis=1)


def _one_hot(values: FloatArray, count: int) -> FloatArray:
    return (values[:, None] == np.arange(count)).astype(np.float64)
