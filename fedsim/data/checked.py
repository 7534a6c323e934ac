"""What a reader's own source hands out, checked: part, row and value are named where it is not what it says.

Knows no file and no client but the one that is made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedsim.core.errors import ScenarioError, door
from fedsim.core.types import Array, IntArray
from fedsim.data.source import Examples, Generator, Pool, Varied, as_float32


def plain(given: Examples, *, copy: bool = False) -> Examples:
    """Return *given*, or a *copy*, as the engine takes them: truths are numbers, classes int64, the byte order this machine's.

    >>> plain(Examples(np.array([[True]]), np.array([1], dtype=">i2"))).y.dtype
    dtype('int64')
    """
    x, y = np.asarray(given.x), np.asarray(given.y)
    wide = x.dtype.kind == "b" or (x.dtype.kind == "f" and x.dtype.itemsize not in (4, 8))  # float16, and more than double.
    made = np.dtype(np.float32) if wide else x.dtype.newbyteorder("=")
    kind = np.dtype(np.int64) if y.dtype.kind in "biu" else y.dtype.newbyteorder("=")
    return Examples(x.astype(made, order="C", copy=copy), y.astype(kind, order="C", copy=copy))


def check_pool(pool: Pool, at: str, classes: bool) -> Pool:
    """Return a reader's own *pool* as the engine takes it (see ``plain``); *classes*: targets are classes, below ``outputs``.

    Raises ScenarioError that begins with *at* and names part, row and value where it is not what a Pool says it is.
    """
    outputs = _outputs(pool.outputs, at)
    _check_names(pool, at)
    for part, examples in (("train", pool.train), ("test", pool.test)):
        if examples is not None or part == "train":
            check_examples(examples, pool.outputs, f"{at}: {part}", classes)
    if pool.test is not None and pool.test.x.shape[1:] != pool.train.x.shape[1:]:
        raise ScenarioError(f"{at}: test.x has rows of shape {pool.test.x.shape[1:]}, expected {pool.train.x.shape[1:]} as in train.")
    for name in ("groups", "times_s"):
        beside: Any = getattr(pool, name)
        if beside is not None and np.shape(beside) != (len(pool.train),):
            raise ScenarioError(f"{at}: {name} has shape {np.shape(beside)}, expected ({len(pool.train)},), one per training example.")
    if pool.groups is not None:
        _check_numbers(
            np.asarray(pool.groups),
            f"{at}: groups",
            "iu",
            "whole numbers from 0; np.unique(names, return_inverse=True)[1] makes them of names",
        )
    if pool.times_s is not None:
        _check_numbers(np.asarray(pool.times_s), f"{at}: times_s", "iuf", "finite seconds from the first of all, 0")
    train, test = plain(pool.train), None if pool.test is None else plain(pool.test)
    if test is not None and (train.x.dtype.kind == "f") != (test.x.dtype.kind == "f"):  # Numbers, then, in both.
        train, test = (Examples(as_float32(part.x), part.y) for part in (train, test))
    return replace(
        pool, outputs=outputs, train=train, test=test, groups=None if pool.groups is None else np.array(pool.groups, dtype=np.int64),
        times_s=None if pool.times_s is None else np.array(pool.times_s, dtype=np.float64),
    )  # fmt: skip


def _outputs(given: Any, at: str) -> int:
    if isinstance(given, bool) or not isinstance(given, int | np.integer) or given < 1:
        raise ScenarioError(f"{at}: its outputs are {given!r}, expected a whole number from 1.")
    return int(given)


def _check_names(pool: Pool, at: str) -> None:
    files: Any = pool.files
    if not isinstance(files, dict) or not all(isinstance(word, str) for item in files.items() for word in item):  # pyright: ignore[reportUnnecessaryIsInstance, reportUnknownVariableType]
        raise ScenarioError(f"{at}: files is {files!r:.80}, expected a dict of paths to their SHA-256.")
    for name in ("classes", "clients"):
        words: Any = getattr(pool, name)
        if not isinstance(words, tuple) or not all(isinstance(word, str) for word in words):  # pyright: ignore[reportUnknownVariableType]
            raise ScenarioError(f"{at}: {name} is {words!r:.80}, expected a tuple of names.")


def _check_numbers(beside: Array, at: str, kinds: str, what: str) -> None:
    if beside.dtype.kind not in kinds:
        raise ScenarioError(f"{at} is {beside.dtype}, expected {what}.")
    wrong = np.flatnonzero(~np.isfinite(beside) | (beside < 0))
    if len(wrong):
        raise ScenarioError(f"{at}[{wrong[0]}] = {beside[wrong[0]]}, expected {what}.")


def check_examples(given: object, outputs: int, at: str, classes: bool) -> None:
    """Refuse *given* where it is not Examples with as many x as y, finite features, and classes within range."""
    if not isinstance(given, Examples):
        raise ScenarioError(f"{at} is a {type(given).__name__}, expected Examples(x, y).")
    for name, kinds, what in (
        ("x", "biuf", "numbers"),
        ("y", "biu" if classes else "biuf", "whole numbers: classes from 0" if classes else "numbers"),
    ):
        values: object = getattr(given, name)
        if not isinstance(values, np.ndarray):
            raise ScenarioError(f"{at}.{name} is a {type(values).__name__}, expected a numpy array.")
        if isinstance(values, np.ma.MaskedArray):
            raise ScenarioError(f"{at}.{name} is a masked array, whose mask would be lost. Fill it (filled()), or leave such rows out.")
        if values.dtype.kind not in kinds or values.ndim < 1:
            raise ScenarioError(f"{at}.{name} is {values.dtype} of shape {values.shape}, expected {what}, a row per example.")
    if len(given.x) != len(given.y) or not len(given.y):
        raise ScenarioError(f"{at}.x has {len(given.x)} rows and {at.rpartition(' ')[2]}.y has {len(given.y)}, expected as many, and some.")
    x = as_float32(given.x) if given.x.dtype.kind == "f" else np.zeros(1, np.float32)
    if not np.isfinite(x).all():
        where = tuple(np.argwhere(~np.isfinite(x))[0].tolist())
        raise ScenarioError(f"{at}.x{list(where)} = {given.x[where]}: features must be finite float32 numbers.")
    if classes and (given.y.ndim != 1 or given.y.min() < 0 or given.y.max() >= outputs):
        bad = int(np.argmax((given.y < 0) | (given.y >= outputs))) if given.y.ndim == 1 else 0
        raise ScenarioError(f"{at}.y[{bad}] = {given.y[bad]}, expected a class from 0 to {outputs - 1}, as outputs = {outputs} says.")


@dataclass(frozen=True)
class Checked:
    """A reader's own generator, whose every client is checked as it is made. *at* is the reader's word for it.

    Raises ScenarioError that begins with *at* where a client is not what ``sizes``, ``shape`` and ``outputs`` say, or
    cannot be made. *classes*: targets are classes, below ``outputs``. *whole* features stay whole, else they become float32.
    """

    made: Generator
    at: str
    classes: bool
    whole: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one example's features."""
        given: Any = self.made.shape
        if not isinstance(given, tuple | list) or not all(isinstance(size, int | np.integer) and size > 0 for size in given):  # pyright: ignore[reportUnknownVariableType]
            raise ScenarioError(f"{self.at}: its shape is {given!r:.80}, expected whole numbers from 1, such as (28, 28).")
        return tuple(int(size) for size in given)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]

    @property
    def outputs(self) -> int:
        """Return the number of classes."""
        return _outputs(self.made.outputs, self.at)

    def sizes(self, clients: IntArray) -> IntArray:
        """Return how many examples each of *clients* holds. Shapes: (n,) -> (n,)."""
        with door(self.at, "its sizes raised"):
            sizes = np.asarray(self.made.sizes(clients))
        if sizes.shape != clients.shape or sizes.dtype.kind not in "iu" or (sizes < 1).any():
            raise ScenarioError(
                f"{self.at}: its sizes of {len(clients)} clients are {str(sizes)[:60]}, expected as many whole numbers from 1."
            )
        return sizes.astype(np.int64)

    def client(self, client: int) -> Examples:
        """Return the examples of *client*."""
        with door(self.at, f"client({client}) raised"):
            examples = self.made.client(client)
        return self._checked(examples, client, f"{self.at}: client({client})")

    def _checked(self, examples: Examples, client: int, at: str) -> Examples:
        check_examples(examples, self.outputs, at, self.classes)
        expected = int(self.sizes(np.array([client]))[0]), *self.shape
        if examples.x.shape != expected:
            raise ScenarioError(f"{at} has x of shape {examples.x.shape}, expected {expected} as sizes and shape say.")
        own = plain(examples, copy=True)  # It may fill one buffer again and again.
        if own.x.dtype.kind == "f":
            return own
        return Examples(own.x.astype(np.int64) if self.whole else as_float32(own.x), own.y)


class CheckedVaried(Checked):
    """The same, of a generator that has variants."""

    made: Varied

    @property
    def variant(self) -> int:
        """Return the variant that ``client`` follows."""
        return self.made.variant

    @property
    def variants(self) -> int:
        """Return how many variants there are, counted from 0."""
        return self.made.variants

    def variant_of(self, client: int, variant: int) -> Examples:
        """Return the examples of *client* as *variant* has them."""
        with door(self.at, f"variant_of({client}, {variant}) raised"):
            examples = self.made.variant_of(client, variant)
        return self._checked(examples, client, f"{self.at}: variant_of({client}, {variant})")


def checked(made: Generator, at: str, classes: bool) -> Generator:
    """Return a reader's own *made*, checked from now on. See ``Checked``.

    Raises ScenarioError where a client that is made twice is not the same: who is made when, and in which process, would matter.
    """
    found = (CheckedVaried if isinstance(made, Varied) else Checked)(made, at, classes)
    one, two = found.client(0), found.client(0)
    if not (np.array_equal(one.x, two.x) and np.array_equal(one.y, two.y)):
        raise ScenarioError(
            f"{at}: client(0) gives other examples when it is asked again. Each client's must follow from (key, client) alone: draw from"
            f" key.fold(client).numpy(), made anew in client()."
        )
    return found
