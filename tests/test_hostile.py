"""Scenario files and own code that mean ill, or are out of bounds: one bounded line, the right exit code, and never a silent end."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from conftest import tiny_table
from fedsim.core.errors import LONGEST_LINE, choices
from fedsim.scenario.load import load, parse_overrides

NINES = "9" * 4301
FILES = {
    "digits": (f"seed = {NINES}", "holds a whole number of thousands of digits"),
    "more than 64 bits": (f"seed = {'9' * 30}", "seed = 1e+30: is more than 64 bits hold"),
    "lists in lists": (f"x = {'[' * 1500}{']' * 1500}", "is nested too deep"),
    "tables in tables": (f"x = {'{a=' * 1500}1{'}' * 1500}", "is nested too deep"),
    "a key of a thousand parts": (f"{'.'.join('a' * 1000)} = 1", "is nested deeper than 50 tables"),
    "a name without end": (f"name = '{'x' * 100_000}'", "must be text of at most 200 characters"),
    "a NUL byte": ("\0", "not valid TOML"),
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_is_too_much_is_one_line(what: str, tmp_path: Path, cli: Callable[..., Any]) -> None:
    """Exit 2, one line of a size that a terminal shows."""
    text, said = FILES[what]
    (tmp_path / "it.toml").write_text(text)
    answer = cli("check", tmp_path / "it.toml")

    assert (2, 1) == (answer.code, len(answer.err.splitlines())), answer.err[:500]
    assert said in answer.err and len(answer.err) < LONGEST_LINE


def test_what_is_no_file_is_not_read(tmp_path: Path, cli: Callable[..., Any]) -> None:
    """A device, a pipe that nobody writes to, a folder and a name that no system takes are refused at once."""
    os.mkfifo(tmp_path / "pipe.toml")
    for path in ("/dev/zero", "/dev/null", tmp_path / "pipe.toml", tmp_path, "x" * 5000):
        answer = cli("check", path)
        assert (2, 1) == (answer.code, len(answer.err.splitlines())), answer.err[:500]


def test_a_word_of_set_is_bounded_too() -> None:
    """--set reads TOML as well."""
    with pytest.raises(fedsim.ScenarioError, match="--set seed: holds a whole number"):
        parse_overrides([f"seed={NINES}"])
    with pytest.raises(fedsim.ScenarioError, match=r"^x{60}\.\.\.: no such key") as raised:
        load(tiny_table(), {"x" * 100_000: 1})
    assert len(str(raised.value)) < LONGEST_LINE
    with pytest.raises(fedsim.ScenarioError, match="--set a: is nested too deep"):
        parse_overrides([f"a={'[' * 5000}{']' * 5000}"])


def test_a_model_that_no_machine_holds_is_counted_first(tiny: Callable[..., Any], go: Callable[..., fedsim.Run]) -> None:
    """The parameters are counted before memory is asked for."""
    with pytest.raises(fedsim.ScenarioError, match=r"these settings make 75,000,000,000,010 parameters, .* and this machine has"):
        go({"model": {"kind": "mlp", "hidden": [1_000_000_000_000]}})


def test_a_table_without_end_is_refused() -> None:
    """In Python a table may hold itself."""
    table: dict[str, Any] = {}
    table["x"] = table
    with pytest.raises(fedsim.ScenarioError, match="nested deeper than 50"):
        load(table)


def test_choices_fit_a_line() -> None:
    """Whatever there is to choose from, and whatever was asked for."""
    said = choices("y" * 100_000, [f"name{i}" for i in range(100_000)])

    assert len(said) < 500 and said.endswith("(100,000 in all).")


OWN = """
import sys
from torch import nn
class End(BaseException): pass
class Silent(Exception):
    def __str__(self): raise RuntimeError("no words")
calls = [0]
class Late(nn.Module):
    def __init__(self, shape, outputs, how: str = "exit"):
        super().__init__()
        self.line, self.how = nn.Linear(64, outputs), how
    def forward(self, x):
        calls[0] += self.training
        if calls[0] > 30:
            raise {"exit": SystemExit(0), "base": End("the end"), "silent": Silent()}[self.how]
        return self.line(x.flatten(1)) * float(x.sum() > -1e9)
"""
WORDS = {"exit": "SystemExit: 0", "base": "End: the end", "silent": "Silent: (it cannot be put into words)"}


@pytest.mark.parametrize(("how", "workers"), [("exit", 1), ("base", 1), ("silent", 1), ("exit", 2)])
def test_own_code_that_ends_the_process_does_not(
    how: str, workers: int, tmp_path: Path, cli: Callable[..., Any], scenario_file: Callable[..., Path]
) -> None:
    """SystemExit of a model in mid-training is a run that failed: exit 1, a line with its place, and not a silent 0."""
    (tmp_path / "mine.py").write_text(OWN)
    file = scenario_file({"model": {"kind": "mine:Late", "how": how}, "engine.workers": workers, "server.rounds": 30})
    answer = cli("run", file, "--out", tmp_path / "run", "--quiet")

    assert 1 == answer.code and 1 == len(answer.err.splitlines()), answer.err
    assert re.search(rf"{re.escape(WORDS[how])} \(mine.py, line 15\)" if workers == 1 else re.escape(WORDS[how]), answer.err), answer.err
    assert "failed" == fedsim.load(tmp_path / "run").status


@pytest.mark.parametrize("label", [10**7, 2**62, 2**64 - 1])
def test_a_label_far_beyond_the_rows_is_refused(label: int, tmp_path: Path, go: Callable[..., fedsim.Run]) -> None:
    """Sixty examples make no model of ten million outputs, and no label wraps."""
    y = np.array([*range(59), label], dtype=np.uint64)
    np.savez(tmp_path / "far.npz", x=np.ones((60, 4), dtype=np.float32), y=y)
    with pytest.raises(fedsim.ScenarioError, match=f"the label {label:,};|= {label}, expected labels below"):
        go({"data.source": {"kind": "npz", "path": str(tmp_path / "far.npz")}})
