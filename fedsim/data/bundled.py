"""Sources that need no file of the reader's: data that come with scikit-learn, or that it fetches from OpenML."""

from __future__ import annotations

from gzip import GzipFile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np

from fedsim.core.errors import ScenarioError, choices
from fedsim.core.types import Array, Count, FloatArray
from fedsim.data.source import Examples, Pool, sources
from fedsim.data.table import encode

DIGITS_MAX = 16.0  # Each pixel counts the set bits in a block of 4 x 4.


@sources.register("digits")
def digits() -> Pool:
    """Return the 1797 handwritten digits of scikit-learn: 8 x 8 images in [0, 1], 10 classes, no test part.

    Shapes: x (1797, 1, 8, 8); y (1797,).
    Reference: Alpaydin and Kaynak 1998, UCI 'Optical Recognition of Handwritten Digits', its test set.

    >>> digits().train.x.shape
    (1797, 1, 8, 8)
    """
    rows = _digits()
    x = (rows[:, :-1] / DIGITS_MAX).astype(np.float32).reshape(-1, 1, 8, 8)
    return Pool(Examples(x, rows[:, -1].astype(np.int64)), outputs=10)


def _digits() -> FloatArray:
    """Return the digits' 64 pixels and label row by row, from the file that scikit-learn brings: to import that takes a second."""
    found = find_spec("sklearn")
    for place in () if found is None else found.submodule_search_locations or ():
        if (file := Path(place) / "datasets" / "data" / "digits.csv.gz").is_file():
            with GzipFile(file) as opened:
                return np.loadtxt(opened, delimiter=",")
    from sklearn.datasets import load_digits  # pyright: ignore[reportMissingTypeStubs]  # It has none.

    bunch = cast(Any, load_digits())  # Another version may keep them elsewhere.
    return np.column_stack([bunch.data, bunch.target])


@sources.register("openml")
def openml(name: str, version: Count = 1, target: str | None = None) -> Pool:
    """Return a data set of openml.org by its name and version, fetched once and then kept by scikit-learn.

    *target* names the column of labels, where the set's own choice will not do. Labels are numbered in sorted order,
    by value where all are numbers; every feature is a finite number, taken as it is. scikit-learn checks the MD5 of
    what it fetches, so no file is entered in the pool.
    Shapes: x (n, features) float32; y (n,). Raises ScenarioError when offline, unknown, or not numeric.
    Reference: Vanschoren et al. 2014, arXiv:1407.7722.
    """
    from sklearn import datasets  # pyright: ignore[reportMissingTypeStubs]  # It has none.

    column = "default-target" if target is None else target
    fetch = cast(Any, datasets).fetch_openml
    try:
        bunch = fetch(name, version=version, target_column=column, as_frame=False, n_retries=1)
    except KeyError:  # Raised for the target alone; the name was found by then.
        raise ScenarioError(f"data.source.target = {target!r}: OpenML's {name!r} has no such column.") from None
    except OSError as error:  # URLError and HTTPError are OSErrors.
        raise _wrong(name, f"cannot fetch it from openml.org ({error}). Offline, use 'digits' or a file") from None
    except ValueError as error:  # OpenMLError is one: no such name or version, or an answer that cannot be read.
        raise _wrong(name, f"version {version} cannot be had from openml.org ({error})") from None
    if bunch.target is None or bunch.target.ndim != 1:
        columns = [*bunch.feature_names, *bunch.target_names]
        raise ScenarioError(f"data.source.target = {target!r}: {name!r} has no single target. {choices('', columns)}")
    labels = bunch.target.tolist()
    if any(label is None or label != label for label in labels):  # NaN alone differs from itself.
        raise _wrong(name, "some examples have no label")
    if any(isinstance(label, float) and not label.is_integer() for label in labels):
        raise _wrong(name, f"its target {bunch.target_names[0]!r} is a number to predict, expected classes")
    classes, y = encode([str(label) for label in labels])
    return Pool(Examples(_numbers(name, bunch), y), len(classes))


def _numbers(name: str, bunch: Any) -> Array:
    """Return the features as float32, or raise ScenarioError naming the first feature that is not all numbers."""
    table: Array = bunch.data
    if type(table) is not np.ndarray:  # A scipy matrix, where the set is stored sparse.
        raise _wrong(name, "its features are sparse, expected a dense table")
    x = np.empty(table.shape, dtype=np.float32)
    for index, feature in enumerate(bunch.feature_names):
        try:
            with np.errstate(over="ignore"):  # Beyond float32 becomes infinite, and is refused as that.
                x[:, index] = table[:, index]
        except (TypeError, ValueError):
            raise _wrong(name, f"feature {feature!r} is not numeric") from None
        if not np.isfinite(x[:, index]).all():
            raise _wrong(name, f"feature {feature!r} has missing or infinite values")
    return x


def _wrong(name: str, what: str) -> ScenarioError:
    return ScenarioError(f"data.source.name = {name!r}: {' '.join(what.split())}.")
