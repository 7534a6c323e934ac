"""Tables of comma-separated values as people write them: what a cell says, what is missing, which word is which class.

Checks every cell that it relies on, and names line and column of what does not fit. Knows no source and no setting's
default.
"""

from __future__ import annotations

import math
import re
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from csv import Error as CsvError
from csv import reader
from dataclasses import dataclass
from decimal import Decimal
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import Literal, cast

import numpy as np

from fedsim.core.errors import ScenarioError, choices
from fedsim.core.machine import memory
from fedsim.core.types import Array, IntArray
from fedsim.data.source import as_float32, fingerprint, opened, wrong

EXACT = 2.0**53
"""Below it, a float holds every whole number."""
MARKERS = frozenset("""
    ? NA N/A n/a #N/A #NA <NA> NaN nan NAN Nan -nan -NaN +nan +NaN null NULL None 1.#IND 1.#QNAN -1.#IND -1.#QNAN
""".split()) | {"", "#N/A N/A"}
"""What tables write where there is nothing: the list of pandas, other spellings of NaN, and the question mark of UCI's."""
LINE = 2**26
"""Characters of a line of a table at most."""
Missing = Literal["refuse", "drop", "mean"]


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

    def plain(self, word: str) -> float:
        """Return the number that *word* plainly says in this form; NaN for any other word, as a date is.

        >>> Form(decimal=",", thousands=".").plain("1.000,5"), Form(decimal=",").plain("2024-01-31")
        (1000.5, nan)
        """
        if self.decimal == "." and not self.thousands:
            return plain_number(word)
        try:
            return plain_number(repr(self.number(word)))
        except ValueError:
            return math.nan


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

    def classes(self, column: str) -> tuple[list[str], IntArray]:
        """Return the names of the classes in *column* and the class of each row. Raises ScenarioError for a quantity."""
        names, y = encode(self.words["label"])
        values = [plain_number(name) for name in names]
        # Ids are whole numbers, however large; a word among numbers makes classes of all.
        if (
            len(names) > max(2, min(20, len(y) // 2))
            and not any(map(math.isnan, values))
            and not all(value.is_integer() for value in values)
        ):
            raise ScenarioError(
                f"data.source.label = {column!r}: has {len(names):,} values in {len(y):,} rows, such as {names[0][:40]}: a quantity"
                f" to regress on, not a class. Cut it into classes, or write a source and an objective of your own for regression."
            )
        return names, y


def read_table(path: str, file: Path, named: Mapping[str, str | None], form: Form) -> Table:
    """Return the table in *file*. *named* gives the column of each setting ('label' is one), *form* the rest.

    Raises ScenarioError naming line and column of what does not fit.
    """
    try:
        with opened(file) as raw, TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
            asked = {setting: name for setting, name in named.items() if name is not None}
            x, words, at_line = _table(path, text, asked, form)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, CsvError) as error:
        raise wrong(path, f"cannot be read as {written(file)} ({error})") from None
    return Table(x, words, at_line, {str(file): fingerprint(file)})


def lines(text: TextIOWrapper) -> Iterator[str]:
    """Yield the lines of *text*. Raises csv.Error on one that never ends, before it fills the memory."""
    while line := text.readline(LINE):
        if len(line) == LINE and not line.endswith("\n"):
            raise CsvError(f"it has a line of more than {LINE:,} characters")
        yield line


def written(file: Path) -> str:
    """Return what *file* should be, by its name."""
    return "gzipped UTF-8 csv" if file.suffix == ".gz" else "UTF-8 csv"


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


def plain_number(word: str) -> float:
    """Return the number that *word* plainly says; NaN for any other word, a long one too.

    >>> plain_number("1.5e3"), plain_number("1_1"), plain_number("inf")
    (1500.0, nan, nan)
    """
    return float(word) if len(word) <= 40 and re.fullmatch(r"[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]{1,3})?", word) else math.nan


def _exact(word: str) -> float:
    """Return the number that *word* plainly says where a float holds it exactly, a decimal fraction by its shortest form."""
    value = plain_number(word)
    return value if math.isfinite(value) and Decimal(word) == Decimal(repr(value)) and abs(value) <= EXACT else math.nan


def _table(path: str, text: TextIOWrapper, asked: Mapping[str, str], form: Form) -> tuple[Array, dict[str, list[str]], Sequence[int]]:
    """Return the features, the cells of each *asked* column, and the line of each row."""
    all_lines = lines(text)
    line, skipped = next(all_lines, ""), 0
    while line and not line.strip():
        line, skipped = next(all_lines, ""), skipped + 1
    if not line.strip():
        raise wrong(path, "is empty: it has no header, and no rows below it")
    separator = _separator(line, form)
    rows = reader(chain([line], all_lines), delimiter=separator, skipinitialspace=True, strict=True)
    header = [name.strip() for name in next(rows, cast(list[str], []))]
    columns, named = _columns(path, header, separator, asked, form)
    words: list[list[str]] = [[] for _ in named]
    numbers, at_line, incomplete = array("d"), array("q"), array("q")  # 8 bytes a cell; a list of floats takes 32.
    plain = form.decimal == "." and not form.thousands
    whole, most = True, memory() / 3  # As floats, as float32, and as what they are read from.
    for cells in rows:
        if not cells:  # A blank line.
            continue
        at = rows.line_num + skipped
        if len(cells) != len(header):
            raise wrong(
                path,
                f"line {at} has {len(cells)} cells, expected {len(header)} as in the header; cells are parted by {separator!r}, as"
                f" data.source.separator says",
            )
        for nth, (column, list_of_words) in enumerate(zip(named, words, strict=True)):
            word = cells[column].strip()
            if word in MARKERS:
                _nameless(path, at, header[column], word, nth >= len(asked), form)
                incomplete.append(len(at_line))
            list_of_words.append(word)
        for column in columns:
            cell = cells[column]
            try:
                value = float(cell) if plain and "_" not in cell else form.number(cell)
            except ValueError:
                value = math.nan if cell.strip() in MARKERS else _refuse(path, at, header[column], cell, form)
            if value != value and form.missing == "refuse":
                raise wrong(
                    path,
                    f"line {at}, column {header[column]!r}: {cell.strip()!r} stands for nothing. Set data.source.missing = 'drop' to"
                    f" leave such rows out, or 'mean'; or name the column in data.source.ignore",
                )
            numbers.append(value)
            whole = whole and (value != value or cell.strip().lstrip("+-").isdecimal())
        at_line.append(at)
        if 8 * len(numbers) > most:
            raise wrong(path, f"holds more than {len(at_line):,} rows of {len(columns)} numbers, more than fits in this machine's memory")
    if not at_line:
        raise wrong(path, "has no rows below its header")
    exact = np.frombuffer(numbers, dtype=np.float64).reshape(len(at_line), len(columns))
    names = [header[column] for column in columns]
    if names and not names[0] and columns[0] == 0 and np.array_equal(exact[:, 0] - exact[0, 0], np.arange(len(at_line))):
        exact, names = exact[:, 1:], names[1:]  # An index, as pandas writes one: it numbers the rows.
    elif "" in names:
        raise wrong(path, f"column {header.index('') + 1} has no name in the header. Give it one, or name '' in data.source.ignore")
    if form.missing == "mean":  # Or a mean of what no float32 holds would be blamed on the cell that it fills.
        _finite(path, exact, names, at_line)
    exact, kept, filled = _filled(path, exact, incomplete, names, form)
    whole = whole and not filled
    words, at_line = [[cells[i] for i in kept] for cells in words], [at_line[i] for i in kept]
    kinds = [(np.array(cells)[:, None] == np.unique(cells)).astype(np.float64) for cells in words[len(asked) :]]
    exact = np.concatenate([exact, *kinds], axis=1)
    if not exact.shape[1]:
        raise _featureless(path, header, asked)
    given = dict(zip(asked, words, strict=False))
    if whole and np.abs(exact).max() < EXACT:
        return exact.astype(np.int64), given, at_line
    return _finite(path, exact, names, at_line), given, at_line


def _finite(path: str, exact: Array, names: Sequence[str], at_line: Sequence[int]) -> Array:
    """Return *exact* as float32. Raises ScenarioError with the first number that is too large; what is missing passes."""
    x = as_float32(exact)
    if np.isinf(x).any():
        row, column = cast(list[int], np.argwhere(np.isinf(x))[0].tolist())
        raise wrong(path, f"line {at_line[row]}, column {names[column]!r}: {exact[row, column]} is no finite float32")
    return x


def _separator(header: str, form: Form) -> str:
    """Return what parts the cells: what *form* says, or what the *header* line shows."""
    separator = form.separator or ("," if "," in header else next((mark for mark in ";\t|" if mark in header), ","))
    if len(separator) != 1 or separator in "\r\n\"":
        raise ScenarioError(f"data.source.separator = {separator!r}: must be one character, such as ',', ';' or a tab.")
    if separator == form.decimal or form.thousands == form.decimal:
        raise ScenarioError(
            f"data.source.decimal = {form.decimal!r}: parts cells, or thousands, already. Set separator or thousands to another."
        )
    return separator


def _columns(path: str, header: Sequence[str], separator: str, asked: Mapping[str, str], form: Form) -> tuple[list[int], list[int]]:
    """Return the places of the numeric features, and those of the columns that hold words: *asked* ones, then categories."""
    if len(set(header)) < len(header):
        raise wrong(path, f"has two columns {next(n for n in header if header.count(n) > 1)!r}")
    told = [*asked.items(), *(("ignore", name) for name in form.ignore), *(("categories", name) for name in form.categories)]
    said: dict[str, str] = {}
    for key, name in told:
        if name not in header:
            hint = f" One column only: set data.source.separator where cells are not parted by {separator!r}." if len(header) == 1 else ""
            raise ScenarioError(f"data.source.{key} = {name!r}: no such column in {path!r}. {choices(name, header)}{hint}")
        if name in said:
            raise ScenarioError(
                f"data.source.{key} = {asked.get(key, getattr(form, key, None))!r}: names column {name!r} of {path!r} a second time"
                f" ({said[name]} is the first). Name it once."
            )
        said[name] = key
    columns = [i for i, name in enumerate(header) if name not in said]
    if not columns and not form.categories:
        raise _featureless(path, header, asked)
    return columns, [header.index(name) for name in (*asked.values(), *form.categories)]


def _featureless(path: str, header: Sequence[str], asked: Mapping[str, str]) -> ScenarioError:
    return ScenarioError(f"data.source.label = {asked['label']!r}: leaves no feature. {path!r} has: {', '.join(header)}.")


def _nameless(path: str, line: int, column: str, word: str, feature: bool, form: Form) -> None:
    """Raise ScenarioError where a cell of words says nothing, unless it is a *feature* whose row is dropped."""
    if feature and form.missing == "drop":
        return
    what = f"is {word!r}, which stands for nothing" if word else "is empty"
    hint = ". Words have no mean: set data.source.missing = 'drop' to leave such rows out, or name the column in data.source.ignore"
    raise wrong(path, f"line {line}, column {column!r}: {what}, expected a name{hint if feature else ''}")


def _refuse(path: str, line: int, column: str, cell: str, form: Form) -> float:
    """Raise ScenarioError for a *cell* that is no number, and say which setting would take it."""
    hint = f"Name it in data.source.ignore, or in data.source.categories = [{column!r}] where its words are kinds"
    if re.fullmatch(r"[+-]?[0-9]{1,3}(,[0-9]{3})+([.][0-9]+)?", cell.strip()) and form.decimal == ".":
        hint = "Set data.source.thousands = ',', or data.source.decimal = ',' where it is a decimal comma"
    elif re.fullmatch(r"[+-]?[0-9]+,[0-9]+", cell.strip()) and form.decimal == ".":
        hint = "Set data.source.decimal = ',', with data.source.separator where cells are not parted by ','"
    raise wrong(path, f"line {line}, column {column!r}: {cell[:60]!r} is not a number. {hint}")


def _filled(path: str, x: Array, incomplete: Sequence[int], names: Sequence[str], form: Form) -> tuple[Array, list[int], bool]:
    """Return *x* with what is missing dropped or filled, the rows that stayed, and whether a mean was put anywhere.

    *incomplete* are rows that miss a word.
    """
    gaps = np.isnan(x)
    if not gaps.any() and not len(incomplete):
        return x, list(range(len(x))), False
    if form.missing == "drop":
        full = np.ones(len(x), dtype=bool)
        full[gaps.any(axis=1)] = False
        full[incomplete] = False
        if not full.any():
            raise wrong(path, "has no row without a missing cell. Set data.source.missing = 'mean', or ignore columns")
        return x[full], np.flatnonzero(full).tolist(), False
    if gaps.all(axis=0).any():
        raise wrong(path, f"column {names[int(gaps.all(axis=0).argmax())]!r}: holds nothing. Name it in data.source.ignore")
    return np.where(gaps, np.nanmean(x, axis=0), x), list(range(len(x))), True
