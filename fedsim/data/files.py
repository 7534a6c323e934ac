"""Sources that are files: MNIST's idx format, numpy archives, and tables of comma-separated values.

Checks every byte that it relies on, at the door: a damaged file is one line that names it, never a wrong run. Knows no
clients but those that a file names itself.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from csv import Error as CsvError
from csv import reader
from dataclasses import dataclass
from decimal import Decimal
from gzip import GzipFile
from io import BufferedReader, TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np

from fedsim.core.errors import ScenarioError, choices
from fedsim.core.machine import memory
from fedsim.core.types import Array, IntArray
from fedsim.data.source import Examples, Find, Pool, fingerprint, sources

UNSIGNED_BYTE = 0x08  # The third byte of an idx file: its type code.
EXACT = 2.0**53
"""Below it, a float holds every whole number."""
GZIP_MARK = b"\x1f\x8b"
MARKERS = frozenset({"", "?", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NAN", "-nan", "null", "NULL", "None"})
"""What tables write where there is nothing: the list of pandas, and the question mark of UCI's."""
BEYOND = 2**20
"""Bytes that are read beyond what a header promises, to tell a file that is too long."""
LINE = 2**26
"""Characters of a line of a table at most."""
Missing = Literal["refuse", "drop", "mean"]


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
    groups, names = None, ()
    if "client" in arrays:
        if arrays["client"].shape != train.y.shape:
            raise _wrong(path, f"client has shape {arrays['client'].shape}, expected {train.y.shape}, one per example")
        if arrays["client"].dtype.kind not in "biuSU":
            raise _wrong(path, f"client is {arrays['client'].dtype}, expected whole numbers or words")
        found, groups = np.unique(arrays["client"], return_inverse=True)
        groups, names = groups.astype(np.int64), tuple(map(str, found.tolist()))
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
    classes, y = table.classes(path)
    return Pool(Examples(table.x, y), len(classes), None, table.groups(), table.files, classes=tuple(classes), clients=table.clients())


@dataclass(frozen=True, slots=True)
class Form:
    """How a table is written, and what becomes of its columns. The names are the settings of source 'csv'."""

    ignore: Sequence[str] = ()
    categories: Sequence[str] = ()
    missing: Missing = "refuse"
    separator: str | None = None
    decimal: str = "."
    thousands: str = ""

    def number(self, cell: str) -> float:
        """Return what *cell* says, NaN where it is missing; raises ValueError where it is no number of this form.

        >>> Form(decimal=",", thousands=".").number("1.234,5")
        1234.5
        """
        cell = cell.strip()
        if cell in MARKERS:
            return math.nan
        if self.thousands and self.thousands in cell:
            whole, point, rest = cell.partition(self.decimal)
            if not re.fullmatch(rf"[+-]?[0-9]{{1,3}}({re.escape(self.thousands)}[0-9]{{3}})+", whole):
                raise ValueError(cell)
            cell = whole.replace(self.thousands, "") + point + rest
        if self.decimal != ".":
            if "." in cell:
                raise ValueError(cell)
            cell = cell.replace(self.decimal, ".")
        if "_" in cell:  # Python's own way of writing 11 is 1_1.
            raise ValueError(cell)
        return float(cell)


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

    def clients(self) -> tuple[str, ...]:
        """Return the names of the natural clients, in the order of their numbers."""
        return tuple(sorted(set(self.words.get("client", ()))))

    def classes(self, path: str) -> tuple[list[str], IntArray]:
        """Return the names of the classes and the class of each row. Raises ScenarioError for a quantity instead of a class."""
        names, y = encode(self.words["label"])
        values = [_exact(name) for name in names]
        if len(names) > max(2, min(20, len(y) // 2)) and not any(map(math.isnan, map(_float, names))):
            if not all(value.is_integer() for value in values):
                raise ScenarioError(
                    f"data.source.label: has {len(names):,} values in the {len(y):,} rows of {path!r}, such as {names[0][:40]}: a quantity"
                    f" to regress on, not a class. Cut it into classes, or write a source and an objective of your own for regression."
                )
        return names, y


def read_table(path: str, file: Path, named: Mapping[str, str | None], form: Form) -> Table:
    """Return the table in *file*. *named* gives the column of each setting ('label' is one), *form* the rest.

    Raises ScenarioError naming line and column of what does not fit.
    """
    try:
        with _open(file) as raw, TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
            asked = {setting: name for setting, name in named.items() if name is not None}
            x, words, lines = _table(path, text, asked, form)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, CsvError) as error:
        written = "gzipped UTF-8 csv" if file.suffix == ".gz" else "UTF-8 csv"
        raise _wrong(path, f"cannot be read as {written} ({error})") from None
    return Table(x, words, lines, {str(file): fingerprint(file)})


def encode(words: Sequence[str]) -> tuple[list[str], IntArray]:
    """Return the distinct *words*, sorted, and the rank of each word among them.

    By value where every word is a plain number that a float holds exactly; as text otherwise, so that no two are merged.

    >>> classes, ranks = encode(["10", "9", "10"])
    >>> classes, ranks.tolist()
    (['9', '10'], [1, 0, 1])
    >>> encode(["9007199254740993", "9007199254740992"])[1].tolist(), encode(["1_1", "11"])[1].tolist()
    ([1, 0], [1, 0])
    """
    names = sorted(set(words))
    values = {name: _exact(name) for name in names}
    if all(math.isfinite(value) for value in values.values()):
        # By value: "1" and "1.0" are one class, called by the first of its names.
        first = {values[name]: name for name in reversed(names)}
        names = [first[value] for value in sorted(first)]
        ranks = {value: rank for rank, value in enumerate(sorted(first))}
        return names, np.array([ranks[values[word]] for word in words], dtype=np.int64)
    place = {name: rank for rank, name in enumerate(names)}
    return names, np.array([place[word] for word in words], dtype=np.int64)


def _float(word: str) -> float:
    """Return the number that *word* plainly says; NaN for another word, a long one too."""
    return float(word) if len(word) <= 40 and re.fullmatch(r"[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]{1,3})?", word) else math.nan


def _exact(word: str) -> float:
    """Return the number that *word* plainly says where a float holds it exactly, a decimal fraction by its shortest form."""
    value = _float(word)
    return value if math.isfinite(value) and Decimal(word) == Decimal(repr(value)) and abs(value) <= EXACT else math.nan


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
    head = 4 + 4 * dimensions
    try:
        with _open(file) as raw:
            content = raw.read(head)
            said = math.prod(struct.unpack(f">{dimensions}I", content[4:])) if len(content) == head else 0
            # What the header says and a little more, never all that a small file may unpack to.
            content += raw.read(min(said, memory()) + BEYOND)
    except (OSError, EOFError, zlib.error) as error:
        raise _wrong(path, f"{file.name} cannot be read ({error})") from None
    except MemoryError:
        raise _wrong(path, f"{file.name} says that it holds more than this machine's memory") from None
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
        more = "more than " if len(content) - head == math.prod(shape) + BEYOND else ""
        raise _wrong(path, f"{file.name} is {state}: {more}{len(content) - head} bytes after its header, expected {expected}")
    return np.frombuffer(content, dtype=np.uint8, offset=head).reshape(shape)


def load_archive(path: str, file: Path) -> dict[str, Array]:
    """Return the arrays of a numpy archive, or raise ScenarioError in one line."""
    try:
        with file.open("rb") as raw:  # Opened here: numpy leaves a file that is no archive open.
            if is_zipfile(raw) and (size := sum(entry.file_size for entry in ZipFile(raw).infolist())) > memory():
                raise _wrong(path, f"unpacks to {size / 1e9:,.1f} GB, more than the {memory() / 1e9:,.1f} GB of this machine")
            raw.seek(0)
            archive = np.load(raw, allow_pickle=False)  # Never pickles: a data file must not run code.
            if isinstance(archive, np.ndarray):
                raise _wrong(path, "is a single array. 'npz' wants an archive: numpy.savez(file, x=..., y=...)")
            arrays = cast(dict[str, Any], dict(archive))
    except (MemoryError, OverflowError):
        raise _wrong(path, "cannot be read as a numpy archive (an array says that it holds more than this machine's memory)") from None
    except (OSError, EOFError, ValueError, TypeError, SyntaxError, RuntimeError, BadZipFile, zlib.error) as error:
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


def _table(path: str, text: TextIOWrapper, asked: Mapping[str, str], form: Form) -> tuple[Array, dict[str, list[str]], Sequence[int]]:
    """Return the features, the cells of each *asked* column, and the line of each row."""
    all_lines = _lines(path, text)
    line, skipped = next(all_lines, ""), 0
    while line and not line.strip():
        line, skipped = next(all_lines, ""), skipped + 1
    separator = form.separator or ("," if "," in line else next((mark for mark in ";\t|" if mark in line), ","))
    if len(separator) != 1 or separator in "\r\n\"":
        raise ScenarioError(f"data.source.separator = {separator!r}: must be one character, such as ',', ';' or a tab.")
    if separator == form.decimal or form.thousands == form.decimal:
        raise ScenarioError(f"data.source.decimal = {form.decimal!r}: parts cells, or thousands, already. Set separator or thousands to another.")
    rows = reader(chain([line], all_lines), delimiter=separator, skipinitialspace=True, strict=True)
    header = [name.strip() for name in next(rows, cast(list[str], []))]
    if len(set(header)) < len(header):
        raise _wrong(path, f"has two columns {next(n for n in header if header.count(n) > 1)!r}")
    told = [(key, name) for key in ("ignore", "categories") for name in getattr(form, key)]
    for key, name in (*asked.items(), *told):
        if name not in header:
            hint = f" One column only: set data.source.separator where cells are not parted by {separator!r}." if len(header) == 1 else ""
            raise ScenarioError(f"data.source.{key} = {name!r}: no such column in {path!r}. {choices(name, header)}{hint}")
    apart = [*asked.values(), *form.ignore, *form.categories]
    if twice := next((name for name in apart if apart.count(name) > 1), None):
        key, value = (("label", asked["label"]) if list(asked.values()).count(twice) > 1 else next((k, list(getattr(form, k))) for k, n in told if n == twice))
        raise ScenarioError(f"data.source.{key} = {value!r}: names column {twice!r} of {path!r} a second time, which leaves it no feature. Name it once.")
    columns = [i for i, name in enumerate(header) if name not in apart]
    if not columns and not form.categories:
        raise ScenarioError(f"data.source.label = {asked['label']!r}: leaves no feature. {path!r} has: {', '.join(header)}.")
    named = [header.index(name) for name in (*asked.values(), *form.categories)]
    words: list[list[str]] = [[] for _ in named]
    numbers, lines = array("d"), array("q")  # 8 bytes a cell; a list of floats takes 32.
    plain = form.decimal == "." and not form.thousands
    whole, most = True, memory() / 3  # As floats, as float32, and as what they are read from.
    for cells in rows:
        if not cells:  # A blank line.
            continue
        at = rows.line_num + skipped
        if len(cells) != len(header):
            raise _wrong(
                path,
                f"line {at} has {len(cells)} cells, expected {len(header)} as in the header; cells are parted by {separator!r}, as"
                f" data.source.separator says",
            )
        for column, list_of_words in zip(named, words, strict=True):
            word = cells[column].strip()
            if word in MARKERS:
                what = f"is {word!r}, which stands for nothing" if word else "is empty"
                raise _wrong(path, f"line {at}, column {header[column]!r}: {what}, expected a name")
            list_of_words.append(word)
        for column in columns:
            cell = cells[column]
            try:
                value = float(cell) if plain and "_" not in cell else form.number(cell)
            except ValueError:
                value = math.nan if cell.strip() in MARKERS else _refuse(path, at, header[column], cell, form)
            if value != value and form.missing == "refuse":
                raise _wrong(
                    path,
                    f"line {at}, column {header[column]!r}: {cell.strip()!r} stands for nothing. Set data.source.missing = 'drop' to"
                    f" leave such rows out, or 'mean'; or name the column in data.source.ignore",
                )
            numbers.append(value)
            whole = whole and (value != value or cell.strip().lstrip("+-").isdecimal())
        lines.append(at)
        if 8 * len(numbers) > most:
            raise _wrong(path, f"holds more than {len(lines):,} rows of {len(columns)} numbers, more than fits in this machine's memory")
    if not lines:
        raise _wrong(path, "has no rows below its header")
    exact = np.frombuffer(numbers, dtype=np.float64).reshape(len(lines), len(columns))
    names = [header[column] for column in columns]
    if names and not names[0] and columns[0] == 0 and np.array_equal(exact[:, 0] - exact[0, 0], np.arange(len(lines))):
        exact, names = exact[:, 1:], names[1:]  # An index, as pandas writes one: it numbers the rows.
    elif "" in names:
        raise _wrong(path, f"column {header.index('') + 1} has no name in the header. Give it one, or name '' in data.source.ignore")
    exact, kept, filled = _filled(path, exact, names, form)
    whole = whole and not filled
    words, lines = [[cells[i] for i in kept] for cells in words], [lines[i] for i in kept]
    tables = [exact] + [
        (np.array(cells)[:, None] == np.unique(cells)).astype(np.float64) for cells in words[len(asked) :]
    ]
    exact = np.concatenate(tables, axis=1)
    if not exact.shape[1]:
        raise ScenarioError(f"data.source.label = {asked['label']!r}: leaves no feature. {path!r} has: {', '.join(header)}.")
    given = dict(zip(asked, words, strict=False))
    if whole and np.abs(exact).max() < EXACT:
        return exact.astype(np.int64), given, lines
    x = _float32(exact)
    if not np.isfinite(x).all():
        row, column = cast(list[int], np.argwhere(~np.isfinite(x))[0].tolist())
        raise _wrong(path, f"line {lines[row]}, column {names[column]!r}: {exact[row, column]} is no finite float32")
    return x, given, lines


def _lines(path: str, text: TextIOWrapper) -> Iterator[str]:
    """Yield the lines of *text*, and refuse one that never ends before it fills the memory."""
    while line := text.readline(LINE):
        if len(line) == LINE and not line.endswith("\n"):
            raise _wrong(path, f"has a line of more than {LINE:,} characters")
        yield line


def _refuse(path: str, line: int, column: str, cell: str, form: Form) -> float:
    """Raise ScenarioError for a *cell* that is no number, and say which setting would take it."""
    hint = f"Name it in data.source.ignore, or in data.source.categories = [{column!r}] where its words are kinds"
    if re.fullmatch(r"[+-]?[0-9]{1,3}(,[0-9]{3})+([.][0-9]+)?", cell.strip()) and form.decimal == ".":
        hint = "Set data.source.thousands = ',', or data.source.decimal = ',' where it is a decimal comma"
    elif re.fullmatch(r"[+-]?[0-9]+,[0-9]+", cell.strip()) and form.decimal == ".":
        hint = "Set data.source.decimal = ',', with data.source.separator where cells are not parted by ','"
    raise _wrong(path, f"line {line}, column {column!r}: {cell[:60]!r} is not a number. {hint}")


def _filled(path: str, x: Array, names: Sequence[str], form: Form) -> tuple[Array, list[int], bool]:
    """Return *x* with what is missing dropped or filled, the rows that stayed, and whether a mean was put anywhere."""
    gaps = np.isnan(x)
    if not gaps.any():
        return x, list(range(len(x))), False
    if form.missing == "drop":
        kept = np.flatnonzero(~gaps.any(axis=1))
        if not len(kept):
            raise _wrong(path, "has no row without a missing cell. Set data.source.missing = 'mean', or ignore columns")
        return x[kept], kept.tolist(), False
    if gaps.all(axis=0).any():
        raise _wrong(path, f"column {names[int(gaps.all(axis=0).argmax())]!r}: holds nothing. Name it in data.source.ignore")
    return np.where(gaps, np.nanmean(x, axis=0), x), list(range(len(x))), True
