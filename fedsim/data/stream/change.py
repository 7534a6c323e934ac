"""Changes: what a new concept does, to which examples come or to the examples themselves.

Functions of (key, client, concepts). Knows no clock: when a concept holds is drift.py's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np

from fedsim.core import answers
from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.core.registry import Registry
from fedsim.core.types import Array, FloatArray, IntArray, NonNegative, Positive, Share
from fedsim.data.source import Examples, Generator, Pool, Varied
from fedsim.data.stream.order import check_classes

AT = "stream.drift.change"


class Selects(Protocol):
    """A change of which examples come: label shift. Positions stay places in the data, and nothing is copied."""

    @property
    def concepts(self) -> int:
        """Return how many concepts there are, the one before any drift included; 0 for any number."""
        ...

    def pick(self, client: int, labels: IntArray, concepts: IntArray) -> tuple[IntArray, IntArray]:
        """Return (which example each arrival brings, an index into *labels* or -1 for none, its true concept).

        *labels* are those of the client's examples in the order they would come. Shapes: (m,), (n,) -> (n,), (n,).
        """
        ...


class Alters(Protocol):
    """A change of the examples themselves: of features (covariate drift) or of what they mean (real drift)."""

    @property
    def concepts(self) -> int:
        """Return how many concepts there are, the one before any drift included; 0 for any number."""
        ...

    @property
    def whole(self) -> bool:
        """Return whether the change knows no fractions of a concept."""
        ...

    def alter(self, client: int, places: IntArray, examples: Examples, amounts: FloatArray) -> Examples:
        """Return *examples* of *client*, row by row as they are under the concept in *amounts*; the given stay as they are.

        *places* are where they stood in the client's own data. At 0 an example is what it is before any drift, and
        *client* is then not looked at. Shapes: n rows -> n rows.
        """
        ...


def _picked(given: Any, _client: int, labels: Array, concepts: Array) -> tuple[Array, Array]:
    which, true = answers.pair(given)
    return answers.whole(which, len(concepts), least=-1, most=len(labels) - 1), answers.whole(true, len(concepts))


def _altered(given: Any, _client: int, _places: Array, examples: Any, _amounts: Array) -> Any:
    for name in ("x", "y"):
        new, old = getattr(given, name, None), getattr(examples, name)
        if not isinstance(new, np.ndarray) or new.shape != old.shape:  # pyright: ignore[reportUnknownMemberType]
            raise ValueError(f"{name} of shape {np.shape(new)}, expected {old.shape} as given")  # pyright: ignore[reportArgumentType, reportCallIssue]
    return given


def _either(made: Any, _given: Any) -> None:
    if not hasattr(made, "pick") and not (hasattr(made, "alter") and hasattr(made, "whole")):
        raise ValueError(f"returned a {type(made).__name__}, which has neither pick nor alter and whole")


changes: Registry[Callable[..., Selects | Alters]] = Registry(
    "change", given=["key", "outputs", "shape", "source"], key="stream.drift.change",
    gives=answers.Gives(
        "a change that selects (pick) or alters (alter)", ("concepts",),
        {"pick": _picked, "alter": _altered, "concepts": answers.count(0), "whole": answers.truth}, looked=_either,
    ),
)  # fmt: skip
"""Functions that return Selects or Alters. Given: ``key``, ``outputs``, ``shape`` of an example, ``source``."""


@dataclass(frozen=True, slots=True)
class Relabel:
    """Labels that change places. See ``swap_labels``. *tables* (concepts, outputs): the label that each one becomes."""

    tables: IntArray
    whole: bool = True

    @property
    def concepts(self) -> int:
        """Return the number of tables."""
        return len(self.tables)

    def alter(self, client: int, places: IntArray, examples: Examples, amounts: FloatArray) -> Examples:
        """Return the examples with the labels of their concept."""
        return Examples(examples.x, self.tables[amounts.astype(np.int64), examples.y])


@dataclass(frozen=True, slots=True)
class Boundary:
    """Labels by a threshold that moves. See ``boundary``."""

    thresholds: FloatArray
    features: IntArray
    whole: bool = False

    @property
    def concepts(self) -> int:
        """Return the number of thresholds."""
        return len(self.thresholds)

    def alter(self, client: int, places: IntArray, examples: Examples, amounts: FloatArray) -> Examples:
        """Return the examples labelled by the threshold of their concept, on the way between two where it is."""
        sums = examples.x.reshape(len(examples), -1)[:, self.features].astype(np.float64).sum(axis=1)
        threshold = np.interp(amounts, np.arange(self.concepts), self.thresholds)
        return Examples(examples.x, (sums > threshold).astype(np.int64))


@dataclass(frozen=True, slots=True)
class Rotate:
    """Images that turn. See ``rotate``."""

    degrees: float
    concepts: int = 0
    whole: bool = False

    def alter(self, client: int, places: IntArray, examples: Examples, amounts: FloatArray) -> Examples:
        """Return the images, turned by as many times the angle as their concept says."""
        # Imported here: few scenarios need it.
        from scipy.ndimage import rotate  # pyright: ignore[reportMissingTypeStubs]  # It has none.

        x = examples.x.copy()
        for amount in np.unique(amounts[amounts != 0.0]).tolist():
            rows = np.flatnonzero(amounts == amount)
            turned = rotate(examples.x[rows], amount * self.degrees, axes=(3, 2), reshape=False, order=1)
            x[rows] = cast(Array, turned)
        return Examples(x, examples.y)


@dataclass(frozen=True, slots=True)
class Scale:
    """Features that grow or shrink. See ``scale``. *features* are places in a flat example."""

    factor: float
    features: IntArray
    concepts: int = 0
    whole: bool = False

    def alter(self, client: int, places: IntArray, examples: Examples, amounts: FloatArray) -> Examples:
        """Return the examples, their features times the factor to the power of the concept."""
        x = examples.x.reshape(len(examples), -1).copy()
        x[:, self.features] *= (self.factor**amounts).astype(np.float32)[:, None]
        return Examples(x.reshape(examples.x.shape), examples.y)


@dataclass(frozen=True, slots=True)
class Permute:
    """Features that change places. See ``permute_features``."""

    share: float
    key: Key
    concepts: int = 0
    whole: bool = True

    def alter(self, client: int, places: IntArray, examples: Examples, amounts: FloatArray) -> Examples:
        """Return the examples, their features in the order of their concept."""
        x = examples.x.reshape(len(examples), -1).copy()
        for concept in np.unique(amounts[amounts != 0.0]).astype(np.int64).tolist():
            rows = np.flatnonzero(amounts == concept)
            x[rows] = x[rows][:, self.order(concept, x.shape[1])]
        return Examples(x.reshape(examples.x.shape), examples.y)

    def order(self, concept: int, features: int) -> IntArray:
        """Return where each feature is read from under *concept*: the same for all clients."""
        draws, order = self.key.fold("concept", concept).numpy(), np.arange(features, dtype=np.int64)
        moved = np.sort(draws.choice(features, round(self.share * features), replace=False))
        order[moved] = draws.permutation(moved)
        return order


@dataclass(frozen=True, slots=True)
class Noise:
    """Features that get noisy. See ``noise``."""

    sigma: float
    key: Key
    concepts: int = 0
    whole: bool = False

    def alter(self, client: int, places: IntArray, examples: Examples, amounts: FloatArray) -> Examples:
        """Return the examples, with noise of as many times sigma as their concept says."""
        if not amounts.any():
            return examples
        noise = self.key.fold("client", client).numpy().standard_normal(examples.x.shape, dtype=np.float32)
        strength = (self.sigma * amounts).astype(np.float32).reshape(-1, *[1] * (examples.x.ndim - 1))
        return Examples(examples.x + strength * noise, examples.y)


@dataclass(frozen=True, slots=True)
class Switch:
    """Examples from another variant of the source. See ``variants``."""

    of: Sequence[int]
    source: Varied
    whole: bool = True

    @property
    def concepts(self) -> int:
        """Return the number of variants."""
        return len(self.of)

    def alter(self, client: int, places: IntArray, examples: Examples, amounts: FloatArray) -> Examples:
        """Return the examples that the variant of their concept has in the same places."""
        x, y = examples.x.copy(), examples.y.copy()
        for concept in np.unique(amounts[amounts != 0.0]).astype(np.int64).tolist():
            rows, made = np.flatnonzero(amounts == concept), self.source.variant_of(client, self.of[concept])
            x[rows], y[rows] = made.x[places[rows]], made.y[places[rows]]
        return Examples(x, y)


@changes.register("swap_labels")
def swap_labels(outputs: int, *, pairs: list[list[int]]) -> Relabel:
    """Return the change under which concept k swaps the labels of the k-th of *pairs*; concept 0 swaps none.

    [0, 1] makes a 0 of each 1 and a 1 of each 0; [0, 1, 2, 3] swaps 2 and 3 as well. Real drift: the same features mean
    something else.
    Reference: Jothimurugesan et al. 2023 (FedDrift), arXiv:2206.00799, its label-swap drifts of MNIST.

    >>> swap_labels(3, pairs=[[0, 2]]).tables.tolist()
    [[0, 1, 2], [2, 1, 0]]
    """
    tables = np.tile(np.arange(outputs, dtype=np.int64), (len(pairs) + 1, 1))
    for number, pair in enumerate(pairs):
        at = f"{AT}.pairs.{number}"
        check_classes(at, pair, outputs)
        if len(pair) % 2 or len(set(pair)) < len(pair):
            raise ScenarioError(f"{at} = {pair}: must be two labels, or more pairs of two, none of them twice.")
        firsts, seconds = pair[::2], pair[1::2]
        tables[number + 1, firsts], tables[number + 1, seconds] = seconds, firsts
    return Relabel(tables)


@changes.register("boundary")
def boundary(outputs: int, shape: tuple[int, ...], *, thresholds: list[float], features: list[int] | None = None) -> Boundary:
    """Return the change that labels anew: 1 where the sum of *features* is above the concept's threshold, else 0.

    The first of *thresholds* labels what comes before any drift, and what the server tests on. *features* are places
    in an example, counted flat; all by default. Under 'incremental' the threshold moves bit by bit.
    Reference: Street and Kim 2001 (SEA): features [0, 1], thresholds [8, 9, 7, 9.5].

    >>> x = Examples(np.array([[1.0], [3.0]], dtype=np.float32), np.zeros(2, dtype=np.int64))
    >>> boundary(2, (1,), thresholds=[0.0, 2.0]).alter(0, np.arange(2), x, np.array([0.5, 1.0])).y.tolist()
    [0, 1]
    """
    if outputs < 2:
        raise ScenarioError(f"{AT}.kind = 'boundary': makes labels 0 and 1, and the data have only {outputs} class.")
    if len(thresholds) < 2:
        raise ScenarioError(f"{AT}.thresholds = {thresholds}: must be at least two, one per concept.")
    return Boundary(np.array(thresholds, dtype=np.float64), _features(features, shape))


@changes.register("rotate")
def rotate(shape: tuple[int, ...], *, degrees: float) -> Rotate:
    """Return the change that turns images by *degrees*, counter-clockwise, once more with each concept.

    Bilinear, about the middle; what comes in from outside is 0. Multiples of 90 degrees are exact.
    Reference: Ghosh et al. 2020 (IFCA), arXiv:2006.04088: rotated MNIST.
    """
    if len(shape) != 3:
        raise ScenarioError(f"{AT}.kind = 'rotate': turns images of shape (channels, height, width), and these are {shape}.")
    return Rotate(degrees)


@changes.register("scale")
def scale(shape: tuple[int, ...], *, factor: Positive, features: list[int] | None = None) -> Scale:
    """Return the change that multiplies *features* (all by default, counted flat) by *factor*, once more per concept."""
    return Scale(factor, _features(features, shape))


@changes.register("permute_features")
def permute_features(key: Key, *, share: Share = 1.0) -> Permute:
    """Return the change that puts a *share* of the features into a new random order with each concept, alike for all.

    Reference: Goodfellow et al. 2013, arXiv:1312.6211: permuted MNIST.
    """
    return Permute(share, key)


@changes.register("noise")
def noise(key: Key, *, sigma: NonNegative) -> Noise:
    """Return the change that adds normal noise of standard deviation *sigma*, twice that in concept 2, and so on."""
    return Noise(sigma, key)


@changes.register("variants")
def variants(source: Pool | Generator, *, of: list[int]) -> Switch:
    """Return the change under which concept k follows variant ``of[k]`` of the source: sea, stagger, agrawal, led.

    Each example keeps its features where the variants share them, and its label follows the concept. ``of[0]`` must be
    the source's own variant, by which the server's test part is labelled.
    """
    if not isinstance(source, Varied) or source.variants < 2:
        raise ScenarioError(f"{AT}.kind = 'variants': this source has no variants; 'sea', 'stagger', 'agrawal' and 'led' have.")
    for variant in of:
        if not 0 <= variant < source.variants:
            raise ScenarioError(f"{AT}.of = {of}: there is no variant {variant}. The source has 0 to {source.variants - 1}.")
    if of[0] != source.variant or len(of) < 2:
        raise ScenarioError(f"{AT}.of = {of}: must begin with the source's own variant, {source.variant}, and name another.")
    return Switch(of, source)


def _features(features: list[int] | None, shape: tuple[int, ...]) -> IntArray:
    size = int(np.prod(shape))
    if features is None:
        return np.arange(size, dtype=np.int64)
    for feature in features:
        if not 0 <= feature < size:
            raise ScenarioError(f"{AT}.features = {features}: there is no feature {feature}. An example has 0 to {size - 1}.")
    return np.array(features, dtype=np.int64)
