"""Runs the notebooks, and stores each with its output, an image beside every figure: so they render where plotly's own type does not.

Run as ``python -m analysis.render [NAME...]`` (``make notebooks``). The images are made by plotly's own library, which comes with plotly,
in a headless Chromium, which must be on the path. What is of the moment is left out of what is stored.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
PLOTLY, PNG = "application/vnd.plotly.v1+json", "image/png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH, HEIGHT, SCALE = 760, 360, 1.5
"""Of an image, in pixels of the page, and how many dots each is."""
WAIT_S = 120
SIZE = 700_000
"""Bytes of a stored notebook at most."""


def executed(path: Path) -> Any:
    """Return the notebook *path*, run from start to end in a kernel and a folder of its own, with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory(prefix="fedsim-notebooks-") as folder, surroundings():
        NotebookClient(notebook, timeout=WAIT_S, resources={"metadata": {"path": str(laid(Path(folder)))}}).execute()
    settle(notebook)
    return notebook


def laid(root: Path) -> Path:
    """Lay a copy of what notebooks read below *root*, and return the folder that they are run in."""
    shutil.copytree(HERE.parent / "scenarios", root / "scenarios")
    (root / "analysis").mkdir()
    return root / "analysis"


class surroundings:
    """While it is entered, kernels find fedsim where it is here, and draw figures as plotly's own type alone."""

    def __enter__(self) -> None:
        self._before = dict(os.environ)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"

    def __exit__(self, *_: object) -> None:
        os.environ.clear()
        os.environ.update(self._before)


def settle(notebook: Any) -> None:
    """Take from the outputs of *notebook* what is of this moment, or nothing: times of execution, and lines of progress that are gone."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if not _empty(out)]
            for out in cell.outputs:
                if out.get("data", {}).get(PLOTLY):
                    out.data.pop("text/html", None)
                out.pop("transient", None)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"},
    }  # fmt: skip


def _empty(out: Any) -> bool:
    return out.output_type == "display_data" and not any(out.data.values())


def figures(notebook: Any) -> Iterator[Any]:
    """Yield the data of each output of *notebook* that is a figure of plotly's."""
    for cell in notebook.cells:
        for out in cell.get("outputs", []):
            if PLOTLY in out.get("data", {}):
                yield out.data


def drawn(notebook: Any) -> None:
    """Put an image beside each figure in the outputs of *notebook*."""
    found = list(figures(notebook))
    for data, image in zip(found, images([dict(data[PLOTLY]) for data in found]), strict=True):
        data[PNG] = image


def images(wanted: list[dict[str, Any]]) -> list[str]:
    """Return each of plotly's figures *wanted* as a PNG, in base64: drawn by a browser, on white, so that it reads on dark pages too."""
    import plotly

    if not wanted:
        return []
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"render: needs a browser that draws, one of {', '.join(BROWSERS)} on the path.")
    library = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    with tempfile.TemporaryDirectory(prefix="fedsim-images-") as folder:
        page = Path(folder) / "page.html"
        said = json.dumps(wanted).replace("<", "\\u003c")
        page.write_text(PAGE % (library.as_uri(), said, WIDTH, HEIGHT, SCALE), encoding="utf-8")
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile", "--virtual-time-budget=60000",
            "--allow-file-access-from-files", "--dump-dom", page.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    told = re.search(r'<pre id="images">(.*?)</pre>', done.stdout, re.S)
    made = json.loads(html.unescape(told[1])) if told and told[1] else []
    if len(made) != len(wanted):
        sys.exit(f"render: {browser} drew {len(made)} of {len(wanted)} figures.\n{done.stderr[-2000:]}")
    return [image.partition("base64,")[2] for image in made]


PAGE = """<!doctype html><meta charset="utf-8"><script src="%s"></script><pre id="images"></pre><script>
(async () => {
  const made = [];
  for (const figure of %s) {
    const layout = {...figure.layout, width: %d, height: figure.layout.height || %d, paper_bgcolor: "#fff"};
    made.push(await Plotly.toImage({data: figure.data, layout}, {format: "png", width: layout.width, height: layout.height, scale: %g}));
  }
  document.getElementById("images").textContent = JSON.stringify(made);
})();
</script>
"""


def main() -> None:
    """Run and store the notebooks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("name", nargs="*", help="a notebook, such as quickstart; all unless given")
    names = parser.parse_args().name
    for path in sorted(HERE.glob("*.ipynb")):
        if names and path.stem not in names:
            continue
        notebook = executed(path)
        drawn(notebook)
        text = nbformat.writes(notebook) + "\n"
        if len(text) > SIZE:
            sys.exit(f"render: {path.name} would be {len(text):,} bytes, more than {SIZE:,}.")
        path.write_text(text, encoding="utf-8")
        print(f"{path.name}: {len(text):,} bytes, {len(list(figures(notebook)))} figures")


if __name__ == "__main__":
    main()
