"""Sources that are files: MNIST's idx format, numpy archives, and tables of comma-separated values.

Checks every byte that it relies on, at the door: a damaged file is one line that names it, never a wrong run. Knows no
clients but those that a file names itself.
"""

from __future__ import annotations

import math
import struct
import zlib
from array import array
from collections.abc import Mapping, Sequence
from csv import Error as CsvError
from csv import reader
from dataclasses import dataclass
from gzip import GzipFile
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile

import numpy as np

from fedsim.core.errors import ScenarioError, choices
from fedsim.core.types import Array, IntArray
from fedsim.data.source import Examples, Find, Pool, fingerprint, sources

UNSIGNED_BYTE = 0x08  # The third byte of an idx file: its type code.
EXACT = 2.0**53
"""Below it, a float holds every whole number."""
GZIP_MARK = b"\x1f\x8b"


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
        raise _wrong(path, "is a file. 'idx' wants the folder that holds train-images-idx3-ubyte and the others")
    files: dict[str, str] = {}
    train = _idx_pair(path, folder, "train", files)
    if train is None:
        raise _wrong(path, "holds no train-images-idx3-ubyte, plain or .gz")
    test = _idx_pair(path, folder, "t10k", files)
    if test is not None and test.x.shape[1:] != train.x.shape[1:]:
        raise _wrong(path, f"t10k images are {_by(test.x.shape[2:])}, expected {_by(train.x.shape[2:])} as in train")
    return Pool(train, _outputs(path, train, test), test, files=files)


@sources.register("npz")
def npz(path: str, find: Find) -> Pool:
    """Return the arrays of a numpy archive: ``x`` and ``y``; where there, ``x_test``, ``y_test`` and ``client``.

    Labels are whole numbers from 0; the number of classes is the largest plus one. ``client`` holds a natural client
    per training example, whole numbers or words. Features are taken as they are: scale them before saving.
    Shapes: x (n, ...), float32, or whole numbers where they are (``source.as_taken``); y (n,). Raises ScenarioError on a damaged archive, or a value that is no number.
    """
    file = find(path)
    arrays = load_archive(path, file)
    train, test = _arrays(path, arrays, "x", "y"), None
    if "x_test" in arrays or "y_test" in arrays:
        test = _arrays(path, arrays, "x_test", "y_test")
        if test.x.shape[1:] != train.x.shape[1:]:
            raise _wrong(path, f"x_test has rows of shape {_by(test.x.shape[1:])}, expected {_by(train.x.shape[1:])}")
    groups = None
    if "client" in arrays:
        if arrays["client"].shape != train.y.shape:
            raise _wrong(path, f"client has shape {arrays['client'].shape}, expected {train.y.shape}, one per example")
        if arrays["client"].dtype.kind not in "biuSU":
            raise _wrong(path, f"client is {arrays['client'].dtype}, expected whole numbers or words")
        groups = np.unique(arrays["client"], return_inverse=True)[1].astype(np.int64)
    return Pool(train, _outputs(path, train, test), test, groups, {str(file): fingerprint(file)})


@sources.register("csv")
def csv(path: str, label: str, find: Find, client: str | None = None) -> Pool:
    """Return the rows of a table with a header, plain or ``.gz``: column *label* is the target, the others features.

    Labels may be any words: classes are numbered in sorted order, by value where all are numbers. *client* names a
    column of natural clients, numbered in order of sorted name. Every other column holds finite numbers.
    Shapes: x (n, columns), float32, or int64 where every cell is a whole number (``source.as_taken``); y (n,). Raises
    ScenarioError naming line and column of what does not fit.
    """
    table = read_table(path, find(path), {"label": label, "client": client})
    classes, y = encode(table.words["label"])
    return Pool(Examples(table.x, y), len(classes), None, table.groups(), table.files)


@dataclass(frozen=True, slots=True)
class Table:
    """A table read: *x* (n, columns) are its features, *words* the cells of its named columns, *lines* (n,) their lines."""

    x: Array
    words: Mapping[str, list[str]]
    lines: Sequence[int]
    files: dict[str, str]

    def groups(self) -> IntArray | None:
        """Return the natural client of each row, numbered in order of sorted name; None without such a column."""
        if "client" not in self.words:
            return None
        # By name, never by value: two clients called "1" and "1.0" are two.
        return np.unique(self.words["client"], return_inverse=True)[1].astype(np.int64)


def read_table(path: str, file: Path, named: Mapping[str, str | None], ignored: Sequence[str] = ()) -> Table:
    """Return the table in *file*. *named* gives the column of each setting ('label' is one), *ignored* what to leave out.

    Raises ScenarioError naming line and column of what does not fit.
    """
    try:
        with _open(file) as raw, TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
            asked = {setting: name for setting, name in named.items() if name is not None}
            x, words, lines = _table(path, text, asked, ignored)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, CsvError) as error:
        form = "gzipped UTF-8 csv" if file.suffix == ".gz" else "UTF-8 csv"
        raise _wrong(path, f"cannot be read as {form} ({error})") from None
    return Table(x, words, lines, {str(file): fingerprint(file)})


def encode(words: Sequence[str]) -> tuple[list[str], IntArray]:
    """Return the distinct *words*, sorted, and the rank of each word among them; by value where all are numbers.

    >>> classes, ranks = encode(["10", "9", "10"])
    >>> classes, ranks.tolist()
    (['9', '10'], [1, 0, 1])
    """
    names = sorted(set(words))
    values = {name: _number(name) for name in names}
    if all(math.isfinite(value) for value in values.values()):
        # By value: "1" and "1.0" are one class, called by the first of its names.
        first = {values[name]: name for name in reversed(names)}
        names = [first[value] for value in sorted(first)]
        ranks = {value: rank for rank, value in enumerate(sorted(first))}
        return names, np.array([ranks[values[word]] for word in words], dtype=np.int64)
    place = {name: rank for rank, name in enumerate(names)}
    return names, np.array([place[word] for word in words], dtype=np.int64)


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan


def _wrong(path: str, what: str) -> ScenarioError:
    return ScenarioError(f"data.source.path = {path!r}: {what}.")


def _open(file: Path) -> GzipFile | BufferedReader:
    return GzipFile(file) if file.suffix == ".gz" else file.open("rb")


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _outputs(path: str, train: Examples, test: Examples | None) -> int:
    """Return the number of classes: the largest label plus one. Raises ScenarioError where labels lie far beyond the examples."""
    largest, rows = max(int(part.y.max()) for part in (train, test) if part is not None), len(train.y)
    if largest >= max(1000, 10 * rows):
        raise _wrong(
            path,
            f"has {rows:,} examples and the label {largest:,}; a model would have {largest + 1:,} outputs. Number the classes"
            f" from 0 (numpy.unique(y, return_inverse=True) does)",
        )
    return largest + 1


def _float32(x: Array) -> Array:
    with np.errstate(over="ignore"):  # Beyond float32 becomes infinite, and is refused as that.
        return x.astype(np.float32)


def _idx_pair(path: str, folder: Path, part: str, files: dict[str, str]) -> Examples | None:
    """Return the examples of 'train' or 't10k', and enter both files in *files*; None when neither is there."""
    names = [f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"]
    found = [next((f for f in (folder / name, folder / f"{name}.gz") if f.exists()), None) for name in names]
    images, labels = found
    if images is None and labels is None:
        return None
    if images is None or labels is None:
        raise _wrong(path, f"{names[0 if images is None else 1]}, plain or .gz, is missing beside its partner")
    pixels, y = _idx_array(path, images, 3), _idx_array(path, labels, 1)
    if len(pixels) != len(y):
        raise _wrong(path, f"{images.name} holds {len(pixels)} images, but {labels.name} holds {len(y)} labels")
    files.update({str(file): fingerprint(file) for file in (images, labels)})
    x = pixels[:, None].astype(np.float32)
    x /= 255.0  # In place: 60,000 images are 188 MB as float32.
    return Examples(x, y.astype(np.int64))


def _idx_array(path: str, file: Path, dimensions: int) -> Array:
    """Return the array of unsigned bytes in an idx file that must have so many dimensions."""
    try:
        with _open(file) as raw:
            content = raw.read()
    except (OSError, EOFError, zlib.error) as error:
        raise _wrong(path, f"{file.name} cannot be read ({error})") from None
    head = 4 + 4 * dimensions
    if content[:2] == GZIP_MARK:
        raise _wrong(path, f"{file.name} is gzipped. Name it {file.name}.gz")
    if len(content) < 4 or content[:2] != b"\0\0":
        expected = f"0x{UNSIGNED_BYTE << 8 | dimensions:08x}"
        raise _wrong(path, f"{file.name} begins with 0x{content[:4].hex()}, expected {expected}")
    if content[2] != UNSIGNED_BYTE:
        raise _wrong(path, f"{file.name} has type 0x{content[2]:02x}, expected 0x{UNSIGNED_BYTE:02x}, unsigned bytes")
    if content[3] != dimensions:
        raise _wrong(path, f"{file.name} has {content[3]} dimensions, expected {dimensions}: images have 3, labels 1")
    if len(content) < head:
        raise _wrong(path, f"{file.name} holds {len(content)} bytes, expected a header of {head}")
    shape: tuple[int, ...] = struct.unpack(f">{dimensions}I", content[4:head])
    if 0 in shape:
        raise _wrong(path, f"{file.name} says that it holds {_by(shape)} bytes, which is nothing")
    if len(content) - head != math.prod(shape):
        state = "cut short" if len(content) - head < math.prod(shape) else "too long"
        expected = f"{math.prod(shape)} ({_by(shape)})"
        raise _wrong(path, f"{file.name} is {state}: {len(content) - head} bytes after its header, expected {expected}")
    return np.frombuffer(content, dtype=np.uint8, offset=head).reshape(shape)


def load_archive(path: str, file: Path) -> dict[str, Array]:
    """Return the arrays of a numpy archive, or raise ScenarioError in one line."""
    try:
        with file.open("rb") as raw:  # Opened here: numpy leaves a file that is no archive open.
            archive = np.load(raw, allow_pickle=False)  # Never pickles: a data file must not run code.
            if isinstance(archive, np.ndarray):
                raise _wrong(path, "is a single array. 'npz' wants an archive: numpy.savez(file, x=..., y=...)")
            arrays = cast(dict[str, Any], dict(archive))
    except (OSError, EOFError, ValueError, RuntimeError, BadZipFile, zlib.error) as error:
        reason = "it is none, or holds Python objects" if "pickle" in str(error) else str(error) or "it is cut short"
        raise _wrong(path, f"cannot be read as a numpy archive ({reason})") from None
    return {name: value for name, value in arrays.items() if not isinstance(value, bytes)}  # Bytes: no array.


def _arrays(path: str, arrays: Mapping[str, Array], features: str, target: str) -> Examples:
    for name in (features, target):
        if name not in arrays:
            raise _wrong(path, f"has no array {name!r}. {choices(name, arrays)[:-1]}")
    x, y = arrays[features], arrays[target]
    if x.ndim < 2 or x.dtype.kind not in "biuf":
        raise _wrong(path, f"{features} is {x.dtype} of shape {x.shape}, expected numbers of shape (n, ...)")
    if y.ndim != 1 or y.dtype.kind not in "biu":
        raise _wrong(path, f"{target} is {y.dtype} of shape {y.shape}, expected whole numbers of shape (n,)")
    if len(x) != len(y) or len(y) == 0:
        raise _wrong(path, f"{features} has {len(x)} rows and {target} has {len(y)}, expected as many, and some")
    if y.min() < 0:
        raise _wrong(path, f"{target}[{int(y.argmin())}] = {y.min()}, expected labels from 0")
    if int(y.max()) >= 2**63:  # It would wrap to a negative one.
        raise _wrong(path, f"{target}[{int(y.argmax())}] = {y.max()}, expected labels below the number of classes")
    if x.dtype.kind in "iu":
        return Examples(x, y.astype(np.int64))
    x = _float32(x)
    if not np.isfinite(x).all():
        where = np.argwhere(~np.isfinite(x))[0].tolist()
        raise _wrong(path, f"{features}{where} = {arrays[features][tuple(where)]}, expected a finite float32")
    return Examples(x, y.astype(np.int64))


def _table(
    path: str, text: TextIOWrapper, asked: Mapping[str, str], ignored: Sequence[str]
) -> tuple[Array, dict[str, list[str]], Sequence[int]]:
    """Return the features, the cells of each *asked* column, and the line of each row."""
    rows = reader(text, skipinitialspace=True, strict=True)
    header = [name.strip() for name in next(rows, cast(list[str], []))]
    if len(set(header)) < len(header):
        raise _wrong(path, f"has two columns {next(n for n in header if header.count(n) > 1)!r}")
    for key, name in (*asked.items(), *(("ignore", name) for name in ignored)):
        if name not in header:
            raise ScenarioError(f"data.source.{key} = {name!r}: no such column in {path!r}. {choices(name, header)}")
    columns = [i for i, name in enumerate(header) if name not in (*asked.values(), *ignored)]
    if len(set(asked.values())) < len(asked) or not columns:
        raise ScenarioError(f"data.source.label = {asked['label']!r}: leaves no feature. {path!r} has: {', '.join(header)}.")
    named = [header.index(name) for name in asked.values()]
    words: list[list[str]] = [[] for _ in named]
    numbers, lines = array("d"), array("q")  # 8 bytes a cell; a list of floats takes 32.
    whole = True
    for cells in rows:
        if not cells:  # A blank line.
            continue
        if len(cells) != len(header):
            raise _wrong(path, f"line {rows.line_num} has {len(cells)} cells, expected {len(header)} as in the header")
        for column, list_of_words in zip(named, words, strict=True):
            if not (word := cells[column].strip()):
                raise _wrong(path, f"line {rows.line_num}, column {header[column]!r}: is empty, expected a name")
            list_of_words.append(word)
        for column in columns:
            try:
                numbers.append(float(cells[column]))
                whole = whole and cells[column].strip().lstrip("+-").isdecimal()
            except ValueError:
                where = f"line {rows.line_num}, column {header[column]!r}"
                raise _wrong(path, f"{where}: {cells[column]!r} is not a number") from None
        lines.append(rows.line_num)
    if not lines:
        raise _wrong(path, "has no rows below its header")
    exact = np.frombuffer(numbers, dtype=np.float64).reshape(len(lines), len(columns))
    if whole and np.abs(exact).max() < EXACT:
        return exact.astype(np.int64), dict(zip(asked, words, strict=True)), lines
    x = _float32(exact)
    if not np.isfinite(x).all():
        row, column = cast(list[int], np.argwhere(~np.isfinite(x))[0].tolist())
        value = numbers[row * len(columns) + column]
        raise _wrong(path, f"line {lines[row]}, column {header[columns[column]]!r}: {value} is no finite float32")
    return x, dict(zip(asked, words, strict=True)), lines
