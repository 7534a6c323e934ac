"""Sources that are files: MNIST's idx format, numpy archives, and tables of comma-separated values.

Checks every byte that it relies on, at the door: a damaged file is one line that names it, never a wrong run. Knows no
clients but those that a file names itself.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np

from fedsim.core.errors import choices
from fedsim.core.machine import memory
from fedsim.core.types import Array
from fedsim.data.source import Examples, Find, Pool, as_float32, fingerprint, opened, sources, wrong
from fedsim.data.table import Form, Missing, read_table

UNSIGNED_BYTE = 0x08  # The third byte of an idx file: its type code.
GZIP_MARK = b"\x1f\x8b"
BEYOND = 2**20
"""Bytes that are read beyond what a header promises, to tell a file that is too long."""


@sources.register("idx")
def idx(path: str, find: Find) -> Pool:
    """Return the images and labels of a folder of MNIST-format files: MNIST, Fashion-MNIST, KMNIST.

    The folder holds ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``, and the same of ``t10k`` where the
    data have a test part; each plain or with ``.gz``.
    Shapes: x (n, 1, height, width) in [0, 1]; y (n,). Raises ScenarioError on any file that is not what it says.
    Reference: LeCun et al. 1998; the format is described with the MNIST database.
    """
    folder = find(path)
    if not folder.is_dir():
        raise wrong(path, "is a file. 'idx' wants the folder that holds train-images-idx3-ubyte and the others")
    files: dict[str, str] = {}
    train = _idx_pair(path, folder, "train", files)
    if train is None:
        raise wrong(path, "holds no train-images-idx3-ubyte, plain or .gz")
    test = _idx_pair(path, folder, "t10k", files)
    if test is not None and test.x.shape[1:] != train.x.shape[1:]:
        raise wrong(path, f"t10k images are {_by(test.x.shape[2:])}, expected {_by(train.x.shape[2:])} as in train")
    return Pool(train, _outputs(path, train, test), test, files=files)


@sources.register("npz")
def npz(path: str, find: Find) -> Pool:
    """Return the arrays of a numpy archive: ``x`` and ``y``; where there, ``x_test``, ``y_test`` and ``client``.

    Labels are whole numbers from 0; the number of classes is the largest plus one. ``client`` holds a natural client
    per training example, whole numbers or words. Features are taken as they are: scale them before saving.
    Shapes: x (n, ...), float32, or whole numbers where they are (``source.as_taken``); y (n,). Raises ScenarioError on a damaged
    archive, or a value that is no number.
    """
    file = find(path)
    arrays = load_archive(path, file)
    train, test = _arrays(path, arrays, "x", "y"), None
    if "x_test" in arrays or "y_test" in arrays:
        test = _arrays(path, arrays, "x_test", "y_test")
        if test.x.shape[1:] != train.x.shape[1:]:
            raise wrong(path, f"x_test has rows of shape {_by(test.x.shape[1:])}, expected {_by(train.x.shape[1:])}")
    groups, names = None, ()
    if "client" in arrays:
        if arrays["client"].shape != train.y.shape:
            raise wrong(path, f"client has shape {arrays['client'].shape}, expected {train.y.shape}, one per example")
        if arrays["client"].dtype.kind not in "biuSU":
            raise wrong(path, f"client is {arrays['client'].dtype}, expected whole numbers or words")
        found, groups = np.unique(arrays["client"], return_inverse=True)
        words = (name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in found.tolist())
        groups, names = groups.astype(np.int64), tuple(words)
    return Pool(train, _outputs(path, train, test), test, groups, {str(file): fingerprint(file)}, clients=names)


@sources.register("csv")
def csv(
    path: str,
    label: str,
    find: Find,
    client: str | None = None,
    ignore: Sequence[str] = (),
    categories: Sequence[str] = (),
    missing: Missing = "refuse",
    separator: str | None = None,
    decimal: Literal[".", ","] = ".",
    thousands: Literal["", ",", ".", " ", "'"] = "",
) -> Pool:
    """Return the rows of a table with a header, plain or ``.gz``: column *label* is the target, the others features.

    Labels may be any words: classes are numbered in sorted order, by value where all are plain numbers that a float
    holds exactly. *client* names a column of natural clients, numbered in order of sorted name. Columns in *ignore* are
    left out, those in *categories* become one column of 0 and 1 per word, in sorted order; every other column holds
    finite numbers, written with *decimal* and *thousands*. Cells are parted by *separator*; without it, by a comma, or
    by the semicolon, tab or bar that a header without commas has. A feature that is empty or a marker (``?``, NA, nan
    and the like) is refused; *missing* drops its row instead, or puts the mean of its column there. A first column
    without a name that counts the rows is no feature.
    Shapes: x (n, columns), float32, or int64 where every cell is a whole number (``source.as_taken``); y (n,). Raises
    ScenarioError naming line and column of what does not fit.
    """
    form = Form(ignore, categories, missing, separator, decimal, thousands)
    table = read_table(path, find(path), {"label": label, "client": client}, form)
    classes, y = table.classes(label)
    return Pool(Examples(table.x, y), len(classes), None, table.groups(), table.files, classes=tuple(classes), clients=table.clients())


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _outputs(path: str, train: Examples, test: Examples | None) -> int:
    """Return the number of classes: the largest label plus one. Raises ScenarioError where labels lie far beyond the examples."""
    largest, rows = max(int(part.y.max()) for part in (train, test) if part is not None), len(train.y)
    if largest >= max(1000, 10 * rows):
        raise wrong(
            path,
            f"has {rows:,} examples and the label {largest:,}; a model would have {largest + 1:,} outputs. Number the classes"
            f" from 0 (numpy.unique(y, return_inverse=True) does)",
        )
    return largest + 1


def _idx_pair(path: str, folder: Path, part: str, files: dict[str, str]) -> Examples | None:
    """Return the examples of 'train' or 't10k', and enter both files in *files*; None when neither is there."""
    names = [f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"]
    found = [next((f for f in (folder / name, folder / f"{name}.gz") if f.exists()), None) for name in names]
    images, labels = found
    if images is None and labels is None:
        return None
    if images is None or labels is None:
        raise wrong(path, f"{names[0 if images is None else 1]}, plain or .gz, is missing beside its partner")
    pixels, y = _idx_array(path, images, 3), _idx_array(path, labels, 1)
    if len(pixels) != len(y):
        raise wrong(path, f"{images.name} holds {len(pixels)} images, but {labels.name} holds {len(y)} labels")
    files.update({str(file): fingerprint(file) for file in (images, labels)})
    x = pixels[:, None].astype(np.float32)
    x /= 255.0  # In place: 60,000 images are 188 MB as float32.
    return Examples(x, y.astype(np.int64))


def _idx_array(path: str, file: Path, dimensions: int) -> Array:
    """Return the array of unsigned bytes in an idx file that must have so many dimensions."""
    head = 4 + 4 * dimensions
    try:
        with opened(file) as raw:
            content = raw.read(head)
            said = math.prod(struct.unpack(f">{dimensions}I", content[4:])) if len(content) == head else 0
            # What the header says and a little more, never all that a small file may unpack to.
            content += raw.read(min(said, memory()) + BEYOND)
    except (OSError, EOFError, zlib.error) as error:
        raise wrong(path, f"{file.name} cannot be read ({error})") from None
    except MemoryError:
        raise wrong(path, f"{file.name} says that it holds more than this machine's memory") from None
    if content[:2] == GZIP_MARK:
        raise wrong(path, f"{file.name} is gzipped. Name it {file.name}.gz")
    if len(content) < 4 or content[:2] != b"\0\0":
        expected = f"0x{UNSIGNED_BYTE << 8 | dimensions:08x}"
        raise wrong(path, f"{file.name} begins with 0x{content[:4].hex()}, expected {expected}")
    if content[2] != UNSIGNED_BYTE:
        raise wrong(path, f"{file.name} has type 0x{content[2]:02x}, expected 0x{UNSIGNED_BYTE:02x}, unsigned bytes")
    if content[3] != dimensions:
        raise wrong(path, f"{file.name} has {content[3]} dimensions, expected {dimensions}: images have 3, labels 1")
    if len(content) < head:
        raise wrong(path, f"{file.name} holds {len(content)} bytes, expected a header of {head}")
    shape: tuple[int, ...] = struct.unpack(f">{dimensions}I", content[4:head])
    if 0 in shape:
        raise wrong(path, f"{file.name} says that it holds {_by(shape)} bytes, which is nothing")
    if len(content) - head != math.prod(shape):
        state = "cut short" if len(content) - head < math.prod(shape) else "too long"
        expected = f"{math.prod(shape)} ({_by(shape)})"
        more = "more than " if len(content) - head == math.prod(shape) + BEYOND else ""
        raise wrong(path, f"{file.name} is {state}: {more}{len(content) - head} bytes after its header, expected {expected}")
    return np.frombuffer(content, dtype=np.uint8, offset=head).reshape(shape)


def load_archive(path: str, file: Path) -> dict[str, Array]:
    """Return the arrays of a numpy archive, or raise ScenarioError in one line."""
    try:
        with file.open("rb") as raw:  # Opened here: numpy leaves a file that is no archive open.
            if is_zipfile(raw) and (size := sum(entry.file_size for entry in ZipFile(raw).infolist())) > memory():
                raise wrong(path, f"unpacks to {size / 1e9:,.1f} GB, more than the {memory() / 1e9:,.1f} GB of this machine")
            raw.seek(0)
            archive = np.load(raw, allow_pickle=False)  # Never pickles: a data file must not run code.
            if isinstance(archive, np.ndarray):
                raise wrong(path, "is a single array. 'npz' wants an archive: numpy.savez(file, x=..., y=...)")
            arrays = cast(dict[str, Any], dict(archive))
    except (MemoryError, OverflowError):
        raise wrong(path, "cannot be read as a numpy archive (an array says that it holds more than this machine's memory)") from None
    except (OSError, EOFError, ValueError, TypeError, SyntaxError, RuntimeError, BadZipFile, zlib.error) as error:
        reason = "it is none, or holds Python objects" if "pickle" in str(error) else str(error) or "it is cut short"
        raise wrong(path, f"cannot be read as a numpy archive ({reason})") from None
    return {name: value for name, value in arrays.items() if not isinstance(value, bytes)}  # Bytes: no array.


def _arrays(path: str, arrays: Mapping[str, Array], features: str, target: str) -> Examples:
    for name in (features, target):
        if name not in arrays:
            raise wrong(path, f"has no array {name!r}. {choices(name, arrays)[:-1]}")
    x, y = arrays[features], arrays[target]
    if x.ndim < 2 or x.dtype.kind not in "biuf":
        raise wrong(path, f"{features} is {x.dtype} of shape {x.shape}, expected numbers of shape (n, ...)")
    if y.ndim != 1 or y.dtype.kind not in "biu":
        raise wrong(path, f"{target} is {y.dtype} of shape {y.shape}, expected whole numbers of shape (n,)")
    if len(x) != len(y) or len(y) == 0:
        raise wrong(path, f"{features} has {len(x)} rows and {target} has {len(y)}, expected as many, and some")
    if y.min() < 0:
        raise wrong(path, f"{target}[{int(y.argmin())}] = {y.min()}, expected labels from 0")
    if int(y.max()) >= 2**63:  # It would wrap to a negative one.
        raise wrong(path, f"{target}[{int(y.argmax())}] = {y.max()}, expected labels below the number of classes")
    if x.dtype.kind in "iu":
        return Examples(x, y.astype(np.int64))
    x = as_float32(x)
    if not np.isfinite(x).all():
        where = np.argwhere(~np.isfinite(x))[0].tolist()
        raise wrong(path, f"{features}{where} = {arrays[features][tuple(where)]}, expected a finite float32")
    return Examples(x, y.astype(np.int64))
