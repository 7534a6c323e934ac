"""Notebooks: they run from start to end, from either folder a reader would start them in, and are stored without output."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbformat: pip install 'fedsim-online[test]'")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient: pip install 'fedsim-online[test]'")

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "analysis").glob("*.ipynb"))


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the kernel find fedsim where this process does, and put its runs where pytest clears up."""
    kernels = pytest.importorskip("jupyter_client.kernelspec", reason="needs jupyter_client").find_kernel_specs()
    if "python3" not in kernels:
        pytest.skip("no Jupyter kernel 'python3': pip install ipykernel")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


RUNS = {"quickstart": ["first", "smaller"], "online": ["ddm", "hddm_a", "memory", "page_hinkley", "without"]}
"""The runs that each notebook leaves."""
ROUNDS = {"quickstart": 12, "online": 40}
"""How many rounds the one has that each calls ``run`` in the end."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    """Every cell of a notebook runs without an error, and leaves the runs it tells of; a wrong assertion behind them is noticed.

    The first is started in analysis/, the second in a root folder, where scenarios/ lies.
    """
    place = tmp_path / "root" if path == NOTEBOOKS[1] else ROOT / "analysis"
    if place != ROOT / "analysis":
        shutil.copytree(ROOT / "scenarios", place / "scenarios")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("assert len(run.rounds) == 13, f'{len(run.rounds)} rounds'"))
    with pytest.raises(nbclient.exceptions.CellExecutionError, match=f"{ROUNDS[path.stem]} rounds"):
        nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(place)}}).execute()
    runs = sorted(path.parent.name for path in tmp_path.rglob("manifest.json"))
    failed = [cell.id for cell in notebook.cells for out in cell.get("outputs", []) if out.output_type == "error"]

    assert ([notebook.cells[-1].id], RUNS[path.stem]) == (failed, runs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_stored_without_output(path: Path) -> None:
    """No stored notebook holds an output or an execution count: those are the reader's."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]

    assert [] == [cell.id for cell in cells if cell.outputs or cell.execution_count is not None]
