"""Notebooks: they run from start to end, from either folder a reader starts them in, and say what is stored; what is stored renders."""

from __future__ import annotations

import base64
import copy
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbformat: pip install 'fedsim-online[test]'")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient: pip install 'fedsim-online[test]'")
render = pytest.importorskip("analysis.render")

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "analysis").glob("*.ipynb"))
RUNS = {"batch-size": 8, "compare-strategies": 12, "online": 5, "own-model-and-strategy": 2, "quickstart": 2}
"""How many runs each leaves at least."""
EXACT, WORDS = "exact", "words"
"""Tags of a cell: what it says is the same on every machine; its very words go by what was measured. Of others, all but numbers is."""
NUMBER = re.compile(r"(?<![A-Za-z_])-?(\d[\d,]*(\.\d*)?(e[+-]?\d+)?|NaN|inf)(?![A-Za-z_])")


@pytest.fixture(scope="module")
def kernel() -> Iterator[Any]:
    """A kernel that is cleared before each notebook: to start one, and import torch, takes longer than most of them do."""
    kernels = pytest.importorskip("jupyter_client.kernelspec", reason="needs jupyter_client").find_kernel_specs()
    if "python3" not in kernels:
        pytest.skip("no Jupyter kernel 'python3': pip install ipykernel")
    with render.surroundings():
        first = nbclient.NotebookClient(nbformat.v4.new_notebook())
        first.create_kernel_manager()
        first.start_new_kernel()
        first.start_new_kernel_client()
        yield first
        first._cleanup_kernel()


def ran(notebook: Any, place: Path, kernel: Any, *, settled: bool = True) -> Any:
    """Return a copy of *notebook* with the outputs that it has when run in *place*, *settled* as they are stored."""
    found = copy.deepcopy(notebook)
    found.cells.insert(0, nbformat.v4.new_code_cell(f"%reset -f\nimport os\nos.chdir({str(place)!r})\ndel os"))
    client = nbclient.NotebookClient(found, km=kernel.km, timeout=render.WAIT_S)
    client.kc = kernel.kc
    client.execute()
    found.cells.pop(0)
    if settled:
        render.settle(found)
    return found


def told(cell: Any) -> list[Any]:
    """Return what a cell's outputs say, as far as that is the same everywhere: words, the form of tables, lines and axes of figures."""
    tags = cell.metadata.get("tags", [])
    said: list[Any] = []
    for out in cell.outputs:
        if figure := out.get("data", {}).get(render.PLOTLY):
            axes = {name: axis.get("title") for name, axis in figure["layout"].items() if name.startswith(("xaxis", "yaxis"))}
            said.append([[(trace["type"], trace.get("name")) for trace in figure["data"]], axes])
            continue
        text = out.get("text") or out.get("data", {}).get("text/plain", "")
        said.append(text if EXACT in tags else out.output_type if WORDS in tags else " ".join(NUMBER.sub("#", text).split()))
    return said


def others(stored: Any, found: Any) -> list[str]:
    """Return the cells of *stored* that say something else in *found*."""
    both = zip(stored.cells, found.cells, strict=True)
    return [one.id for one, two in both if one.cell_type == "code" and told(one) != told(two)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_says_what_is_stored(path: Path, kernel: Any, tmp_path: Path) -> None:
    """Every cell of a notebook runs without an error, says what is stored of it, and the runs that it tells of are there.

    Every second one is started in analysis/, the others where scenarios/ lies.
    """
    place = render.laid(tmp_path / "clone")
    place = place if NOTEBOOKS.index(path) % 2 else place.parent
    stored = nbformat.read(path, as_version=4)
    found = ran(stored, place, kernel)
    runs = [manifest.parent for manifest in (place / "runs").rglob("manifest.json")]

    assert [] == others(stored, found)
    assert len(runs) >= RUNS[path.stem]


def test_what_is_not_as_stored_is_noticed(kernel: Any, tmp_path: Path) -> None:
    """Another number where all is exact, another column where numbers are not, a line that a figure lacks, a cell that breaks: each is."""
    cells = [nbformat.v4.new_code_cell(source, id=name, metadata={"tags": tags}) for name, source, tags in (
        ("number", "print('0.53 of', 12)", [EXACT]), ("column", "print('loss  0.123')", []), ("same", "print('x   1.5')", []),
        ("figure", "import plotly.graph_objects as go\ngo.Figure(go.Scatter(y=[1, 2], name='a')).show()", []),
    )]  # fmt: skip
    stored = ran(nbformat.v4.new_notebook(cells=cells), tmp_path, kernel)
    changed = copy.deepcopy(stored)
    for cell, (old, new) in zip(
        changed.cells, [("0.53", "0.54"), ("loss", "accuracy"), ("x   1.5", "x 27.25"), ("'a'", "'b'")], strict=True
    ):
        cell.source = cell.source.replace(old, new)

    assert ["number", "column", "figure"] == others(stored, ran(changed, tmp_path, kernel))
    changed.cells[0].source = "assert 1 == 2"
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="1 == 2"):
        ran(changed, tmp_path, kernel)


def test_a_kernel_shows_how_far_a_run_is(kernel: Any, tmp_path: Path) -> None:
    """In a kernel a run has a line, of which nothing is left in the end; what is stored of it is nothing."""
    words = f"import fedsim\n_ = fedsim.run({str(ROOT / 'scenarios/quickstart.toml')!r}, overrides={{'server.rounds': 1}})"
    (cell,) = ran(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(words)]), tmp_path, kernel, settled=False).cells

    assert [("display_data", {"text/plain": "", "text/html": ""})] == [(out.output_type, dict(out.data)) for out in cell.outputs]
    render.settle(nbformat.v4.new_notebook(cells=[cell]))
    assert [] == cell.outputs


def faults(text: str) -> list[str]:
    """Return what is wrong with a stored notebook."""
    notebook = nbformat.reads(text, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [cell for cell in cells if cell.outputs]
    outputs = [out for cell in cells for out in cell.outputs]
    words = json.dumps([out.get("text") or {k: v for k, v in out.get("data", {}).items() if k != render.PNG} for out in outputs])
    found = ["large"] * (len(text) > render.SIZE) + ["without output"] * (len(shown) < len(cells) / 2)
    found += ["not run in order"] * ([cell.execution_count for cell in cells] != [*range(1, len(cells) + 1)])
    found += ["error or warning"] * any(out.output_type == "error" or out.get("name") == "stderr" for out in outputs)
    found += ["a place of somebody's"] * bool(re.search(r"/(tmp|home|root|work|Users)\b", words))
    found += ["a library inside"] * bool(re.search(r"<script|plotly\.js|cdn\.", words))
    found += ["not installed by a line"] * ("pip install 'fedsim-online[jupyter]'" not in notebook.cells[0].source)
    for data in render.figures(notebook):
        image = base64.b64decode(data.get(render.PNG, ""))
        if not image.startswith(b"\x89PNG"):
            found.append("figure without an image")
            continue
        wide, high = struct.unpack(">II", image[16:24])
        wanted = [render.SCALE * render.WIDTH, render.SCALE * data[render.PLOTLY]["layout"].get("height", render.HEIGHT)]
        if [wide, high] != wanted or len(image) < 3000:
            found.append("image of something else")
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_stored_renders_everywhere(path: Path) -> None:
    """A stored notebook was run in order, holds what it said, an image beside each figure, and nothing of who ran it."""
    text = path.read_text("utf-8")

    assert [] == faults(text)
    assert list(render.figures(nbformat.reads(text, as_version=4)))


def test_a_badly_stored_notebook_is_noticed() -> None:
    """An image that is missing, or of another figure's size, cleared outputs, a path, a warning, a library: each has its words."""
    text = (ROOT / "analysis" / "quickstart.ipynb").read_text("utf-8")

    def after(change: Any) -> list[str]:
        notebook = nbformat.reads(text, as_version=4)
        change(notebook)
        return faults(nbformat.writes(notebook))

    def of_first(notebook: Any) -> Any:
        return next(render.figures(notebook))

    def mixed(notebook: Any) -> None:
        small, *_, tall = render.figures(notebook)
        small[render.PNG] = tall[render.PNG]

    stream = nbformat.v4.new_output("stream", name="stderr", text="a warning")
    assert ["figure without an image"] == after(lambda notebook: of_first(notebook).pop(render.PNG))
    assert ["image of something else"] == after(mixed)
    assert ["without output"] == after(lambda notebook: [cell.update(outputs=[]) for cell in notebook.cells if "outputs" in cell])
    assert ["not run in order"] == after(lambda notebook: notebook.cells[1].update(execution_count=9))
    assert ["error or warning"] == after(lambda notebook: notebook.cells[1].outputs.append(stream))
    assert ["a place of somebody's"] == after(lambda notebook: of_first(notebook).update({"text/plain": "/home/me/runs"}))
    assert ["a library inside"] == after(lambda notebook: of_first(notebook).update({"text/html": "<script>"}))
    assert ["large"] == after(lambda notebook: of_first(notebook).update({"text/plain": "x" * render.SIZE}))
