"""The house is tidy: ruff and pyright, with the rules that pyproject.toml says, find nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]
WHERE = ("fedsim", "tests", "analysis", "clients", "docs", "conftest.py")


def tool(*words: str, fed: str | None = None) -> subprocess.CompletedProcess[str]:
    """Return what a tool of this environment says, started in the house."""
    return subprocess.run([sys.executable, "-m", *words], cwd=HOUSE, input=fed, capture_output=True, text=True)


def test_ruff_finds_nothing() -> None:
    """Every file keeps the rules."""
    pytest.importorskip("ruff", reason="needs ruff: pip install 'fedsim-online[test]'")
    found = tool("ruff", "check", "--no-cache", "--output-format", "concise", *WHERE)

    assert 0 == found.returncode, found.stdout


def test_ruff_finds_what_is_wrong() -> None:
    """An import that nobody uses, in a file like ours, is found: the rules are read."""
    pytest.importorskip("ruff", reason="needs ruff: pip install 'fedsim-online[test]'")
    found = tool("ruff", "check", "--no-cache", "--stdin-filename", "fedsim/client/program.py", "-", fed="import os\n")

    assert 1 == found.returncode and "F401" in found.stdout


def test_pyright_finds_nothing(tmp_path: Path) -> None:
    """The package is typed, strictly; pyright fetches itself from npm's registry when it first runs."""
    pytest.importorskip("pyright", reason="needs pyright: pip install 'fedsim-online[test]'")
    if shutil.which("node") is None:
        pytest.skip("pyright needs node")
    found = tool("pyright", "--pythonpath", sys.executable)
    if "0 errors" not in found.stdout and "error:" not in found.stdout:
        pytest.skip(f"pyright does not start here: {(found.stderr or found.stdout).strip().splitlines()[-1:]}")

    assert 0 == found.returncode, found.stdout
