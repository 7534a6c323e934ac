"""The errors a reader of scenario files meets, and how their one line is put together."""

import inspect
import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from difflib import get_close_matches

LONGEST_WORD, LONGEST_LINE, LISTED = 400, 2000, 400
"""Characters of a word, of a line, and of a list of choices that a terminal is asked to show at most. Paths may be long."""


class FedsimError(Exception):
    """Root of every error that fedsim raises on purpose. What it says is bounded, whatever a file or a stranger said."""

    def __init__(self, *words: object) -> None:
        super().__init__(*(bounded(word) if isinstance(word, str) else word for word in words))


class ScenarioError(FedsimError):
    """The scenario or the arguments are wrong: one line that names the dotted key, the value, and what would work."""


class RunError(FedsimError):
    """A run broke: the line says what, when and for whom; what was recorded before stays readable."""


def bounded(line: str) -> str:
    """Return *line* with words that go on and on cut short, and the whole as well.

    >>> bounded("model.kind = " + "x" * 100_000 + ": no such model.")[13:]
    'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...: no such model.'
    """
    if len(line) > LONGEST_WORD:
        line = re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda word: f"{word[0][:60]}...{re.search(r'[^A-Za-z0-9]{0,3}$', word[0])[0]}", line)  # pyright: ignore[reportOptionalSubscript]
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 3]}..."


def must(holds: bool, words: str) -> None:
    """Raise RunError with *words* unless what must always be true *holds*: a mistake of ours, told under ``python -O`` too."""
    if not holds:
        raise RunError(f"fedsim contradicts itself: {words}. This is a defect of fedsim; nothing of this run can be trusted.")


def reason(error: BaseException) -> str:
    """Return a stranger's error on one line: its type and the first line of what it says.

    >>> reason(KeyError("weights"))
    "KeyError: 'weights'"
    """
    try:
        said = str(error).strip().splitlines()
    except Exception:  # A stranger's __str__ may raise, too.
        said = ["(it cannot be put into words)"]
    if asked := re.search(r"(?:can't|not enough memory).*tried to allocate (\d+) bytes", " ".join(said[:2])):  # torch, of a full memory.
        return f"MemoryError: {int(asked[1]) / 1e9:,.1f} GB were asked for at once"
    return f"{type(error).__name__}: {said[0][:160]}" if said else type(error).__name__


@contextmanager
def door(at: str, doing: str = "raised", *, wrong: type[FedsimError] = ScenarioError) -> Generator[None]:
    """Turn whatever a stranger's code raises inside into one line of type *wrong*: "*at*: *doing* Type: words.".

    The one door between us and what a reader brings (models, objectives, sources, strategies, files): SystemExit, a
    MemoryError and other BaseExceptions are let through as little as a ValueError is; only Ctrl-C, our own errors and
    the end of a generator are. *at* is the reader's word for the thing, with its value: ``model.kind = 'mine:Net'``.

    >>> with door("model.kind = 'mine:Net'", "its forward raised"):
    ...     raise KeyError("weights")
    Traceback (most recent call last):
    fedsim.core.errors.ScenarioError: model.kind = 'mine:Net': its forward raised KeyError: 'weights'.
    """
    try:
        yield
    except (FedsimError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if isinstance(error, GeneratorExit) and _closing(error):
            raise
        raise wrong(f"{at}: {doing} {reason(error).rstrip('.')}.") from error


def _closing(error: BaseException) -> bool:
    """Return whether *error* is the end of a generator, which comes out of its yield, and not something that somebody raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is None or bool(trace.tb_frame.f_code.co_flags & inspect.CO_GENERATOR)


def choices(value: str, options: Iterable[str]) -> str:
    """Return the second half of an error line: the nearest of *options*, or all of them.

    >>> choices("FedAvgg", ["FedAvg", "FedAdam"])
    "Did you mean 'FedAvg'? It takes: FedAdam, FedAvg."
    >>> choices("x", ["ring", "fifo"])
    'It takes: fifo, ring.'
    >>> choices("x", map(str, range(10_000)))[-30:]
    '58, 1059, ... (10,000 in all).'
    """
    names = sorted(options)
    folded = {name.casefold(): name for name in reversed(names)}
    near = get_close_matches(value.casefold()[:200], list(folded), n=1, cutoff=0.6)
    hint = f"Did you mean {folded[near[0]]!r}? " if near else ""
    listed = ", ".join(names)
    if len(listed) > LISTED:
        listed = f"{listed[:LISTED].rpartition(', ')[0] or names[0]}, ... ({len(names):,} in all)"
    return f"{hint}It takes: {listed or 'nothing'}."
