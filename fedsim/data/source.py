"""What a source of data is: examples that all sit in one pool, or examples made for each client when asked for.

Knows how a file is found and fingerprinted. Knows no clients and no partition.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from gzip import GzipFile
from io import BufferedReader
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fedsim.core.errors import ScenarioError
from fedsim.core.registry import Registry
from fedsim.core.types import Array, FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Examples:
    """Features and targets, row by row. Shapes: x (n, ...) float32 or whole numbers, images channel first; y (n,) int64."""

    x: Array
    y: Array

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, slots=True)
class Pool:
    """Examples kept once, for a partition to share out.

    *outputs* is the number of classes. *test* is the source's own test part, where it has one. *groups* names the
    natural client of each training example, 0 to g - 1. *times_s* is when each came, in seconds from the first of all,
    where the source says. *files* maps each file read to its SHA-256. *classes* and *clients* are the source's own names
    of the classes and of the groups, in the order of their numbers, where it has some.
    """

    train: Examples
    outputs: int
    test: Examples | None = None
    groups: IntArray | None = None
    files: dict[str, str] = field(default_factory=dict[str, str])
    times_s: FloatArray | None = None
    classes: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()


def as_taken(pool: Pool, takes: Callable[[Array], bool]) -> Pool:
    """Return *pool* with whole features as the model wants them: int64 where it *takes* a few such rows, else float32.

    Tokens and categories must stay what they are; pixels and counts are numbers like any other. Features that are no
    whole numbers stay as they are.
    """
    if pool.train.x.dtype.kind not in "iu":
        return pool
    kept = bool(takes(pool.train.x[:2].astype(np.int64)))
    made = np.int64 if kept else np.float32

    def cast(part: Examples) -> Examples:
        return Examples(part.x.astype(made), part.y)

    return replace(pool, train=cast(pool.train), test=None if pool.test is None else cast(pool.test))


def check_pool(pool: Pool, at: str, classes: bool) -> None:
    """Refuse a reader's own *pool* that is not what a Pool says it is; *classes*: targets are classes, below ``outputs``.

    Raises ScenarioError that begins with *at* and names part, row and value.
    """
    if type(pool.outputs) is not int and not isinstance(pool.outputs, np.integer) or pool.outputs < 1:
        raise ScenarioError(f"{at}: its outputs are {pool.outputs!r}, expected a whole number from 1.")
    for part, examples in (("train", pool.train), ("test", pool.test)):
        if examples is not None or part == "train":
            check_examples(examples, pool.outputs, f"{at}: {part}", classes)
    if pool.test is not None and pool.test.x.shape[1:] != pool.train.x.shape[1:]:
        raise ScenarioError(f"{at}: test.x has rows of shape {pool.test.x.shape[1:]}, expected {pool.train.x.shape[1:]} as in train.")
    for name in ("groups", "times_s"):
        beside: Any = getattr(pool, name)
        if beside is not None and np.shape(beside) != (len(pool.train),):
            raise ScenarioError(f"{at}: {name} has shape {np.shape(beside)}, expected ({len(pool.train)},), one per training example.")


def check_generator(made: Generator, at: str, classes: bool) -> None:
    """Refuse a reader's own generator whose first client is not what it says. Raises ScenarioError that begins with *at*."""
    first, size = made.client(0), int(made.sizes(np.arange(1))[0])
    check_examples(first, made.outputs, f"{at}: client(0)", classes)
    if len(first) != size or first.x.shape[1:] != tuple(made.shape):
        raise ScenarioError(f"{at}: client(0) has x of shape {first.x.shape}, expected {(size, *made.shape)} as sizes and shape say.")


def check_examples(given: object, outputs: int, at: str, classes: bool) -> None:
    """Refuse *given* where it is not Examples with as many x as y, finite features, and classes within range."""
    if not isinstance(given, Examples):
        raise ScenarioError(f"{at} is a {type(given).__name__}, expected Examples(x, y).")
    for name, kinds, what in (("x", "biuf", "numbers"), ("y", "biu" if classes else "biuf", "whole numbers: classes from 0" if classes else "numbers")):
        values: object = getattr(given, name)
        if not isinstance(values, np.ndarray):
            raise ScenarioError(f"{at}.{name} is a {type(values).__name__}, expected a numpy array.")
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


class Generator(Protocol):
    """Examples made for one client at a time, each client's a function of (key, client) alone."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one example's features."""
        ...

    @property
    def outputs(self) -> int:
        """Return the number of classes."""
        ...

    def sizes(self, clients: IntArray) -> IntArray:
        """Return how many examples each of *clients* holds. Shapes: (n,) -> (n,)."""
        ...

    def client(self, client: int) -> Examples:
        """Return the examples of *client*."""
        ...


@runtime_checkable
class Varied(Generator, Protocol):
    """A generator of which there are variants that differ in concept, and share their draws."""

    @property
    def variant(self) -> int:
        """Return the variant that ``client`` follows."""
        ...

    @property
    def variants(self) -> int:
        """Return how many variants there are, counted from 0."""
        ...

    def variant_of(self, client: int, variant: int) -> Examples:
        """Return the examples of *client* as *variant* has them, as many as ``client`` returns."""
        ...


Find = Callable[[str], Path]
"""Turns a path of the scenario into one on disk, or raises ScenarioError."""

sources: Registry[Callable[..., Pool | Generator]] = Registry("source", given=["find", "key"])
"""Functions that return a Pool or a Generator. Given: ``find`` (Find), ``key`` (Key)."""

DATA_VARIABLE = "FEDSIM_DATA"


def finder(beside: Path, at: str = "data.source.path") -> Find:
    """Return the rule by which every file is looked up: as it is, beside the scenario, under $FEDSIM_DATA.

    *at* is the key of the scenario that names the file.
    """

    def find(path: str) -> Path:
        places = [beside / path]  # An absolute path swallows the folder before it.
        if root := os.environ.get(DATA_VARIABLE):
            places.append(Path(root) / path)
        for place in places:
            if place.is_file() or place.is_dir():
                return place
            if place.exists():  # A device or a pipe: it may never end, or wait for ever.
                raise ScenarioError(f"{at} = {path!r}: {place} is neither a file nor a folder.")
        tried = " and ".join(str(place) for place in dict.fromkeys(places))
        hint = "" if root or Path(path).is_absolute() else f" Set {DATA_VARIABLE} to the folder that holds your data."
        raise ScenarioError(f"{at} = {path!r}: not found. Looked at {tried}.{hint}")

    return find


def wrong(path: str, what: str) -> ScenarioError:
    """Return the error that says *what* is wrong with the file or folder that a scenario calls *path*."""
    return ScenarioError(f"data.source.path = {path!r}: {what}.")


def opened(file: Path) -> GzipFile | BufferedReader:
    """Return *file* opened for its bytes, unpacked where its name ends in ``.gz``."""
    return GzipFile(file) if file.suffix == ".gz" else file.open("rb")


def as_float32(x: Array) -> Array:
    """Return *x* as float32. What lies beyond it becomes infinite, for whoever looks to refuse as that."""
    with np.errstate(over="ignore"):
        return x.astype(np.float32)


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def changed(files: dict[str, str]) -> list[str]:
    """Return those of *files* whose bytes are no longer what their fingerprint says, or which are gone."""
    return [name for name, mark in files.items() if not Path(name).exists() or fingerprint(Path(name)) != mark]
