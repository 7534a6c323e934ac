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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    """Every cell of a notebook runs without an error, started in analysis/, and leaves the runs it tells of."""
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT / "analysis")}})
    client.execute()
    runs = sorted(path.parent.name for path in tmp_path.rglob("manifest.json"))
    failed = [out for cell in notebook.cells for out in cell.get("outputs", []) if out.output_type == "error"]

    assert ([], RUNS[path.stem]) == (failed, runs)


def test_a_broken_cell_is_noticed(tmp_path: Path) -> None:
    """Started in a root folder, where scenarios/ lies, the first cell runs until the wrong assertion that we put behind it."""
    shutil.copytree(ROOT / "scenarios", tmp_path / "scenarios")
    notebook = nbformat.read(ROOT / "analysis/quickstart.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code[0].source += "\nassert run.final['rounds'] == 13, f'{run.final}'"
    notebook.cells = code[:1]

    with pytest.raises(nbclient.exceptions.CellExecutionError, match="'rounds': 12"):
        nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_stored_without_output(path: Path) -> None:
    """No stored notebook holds an output or an execution count: those are the reader's."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]

    assert [] == [cell.id for cell in cells if cell.outputs or cell.execution_count is not None]
