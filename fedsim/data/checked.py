"""What a reader's own source hands out, checked: part, row and value are named where it is not what it says.

Knows no file and no client but the one that is made.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.core.errors import ScenarioError
from fedsim.data.source import Examples, Generator, Pool, as_float32


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
