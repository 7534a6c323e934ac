"""The errors a reader of scenario files meets, and how their one line is put together."""

from collections.abc import Iterable
from difflib import get_close_matches


class FedsimError(Exception):
    """Root of every error that fedsim raises on purpose."""


class ScenarioError(FedsimError):
    """The scenario or the arguments are wrong: one line that names the dotted key, the value, and what would work."""


class RunError(FedsimError):
    """A run broke: the line says what, when and for whom; what was recorded before stays readable."""


def reason(error: BaseException) -> str:
    """Return a stranger's error on one line: its type and the first line of what it says.

    >>> reason(KeyError("weights"))
    "KeyError: 'weights'"
    """
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0][:160]}" if said else type(error).__name__


def choices(value: str, options: Iterable[str]) -> str:
    """Return the second half of an error line: the nearest of *options*, or all of them.

    >>> choices("FedAvgg", ["FedAvg", "FedAdam"])
    "Did you mean 'FedAvg'? It takes: FedAdam, FedAvg."
    >>> choices("x", ["ring", "fifo"])
    'It takes: fifo, ring.'
    """
    names = sorted(options)
    folded = {name.casefold(): name for name in reversed(names)}
    near = get_close_matches(value.casefold(), list(folded), n=1, cutoff=0.6)
    hint = f"Did you mean {folded[near[0]]!r}? " if near else ""
    return f"{hint}It takes: {', '.join(names) if names else 'nothing'}."
