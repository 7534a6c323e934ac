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
from typing import Protocol, runtime_checkable

import numpy as np

from fedsim.core import answers
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

sources: Registry[Callable[..., Pool | Generator]] = Registry(
    "source", given=["find", "key"], key="data.source",
    gives=answers.Gives("a Pool or a Generator", ("sizes", "client", "shape", "outputs")),
)  # fmt: skip
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
            try:
                if place.is_file() or place.is_dir():
                    return place
                there = place.exists()
            except OSError as error:  # A name that is too long for any file.
                raise ScenarioError(f"{at} = {path[:60]!r}{'...' * (len(path) > 60)}: {error.strerror}.") from None
            if there:  # A device or a pipe: it may never end, or wait for ever.
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
