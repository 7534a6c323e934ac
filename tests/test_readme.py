"""The README holds: no placeholder is left, and its own plug-in example runs as it stands there."""

import re
from pathlib import Path
from typing import Any

import fedsim

README = Path(__file__).parents[1] / "README.md"


def test_no_placeholder_is_left() -> None:
    """No document has a placeholder in it."""
    assert [] == [path.name for path in README.parent.glob("*.md") if re.search(r"@@|TODO|FIXME", path.read_text())]


def test_the_plugin_example_runs(tmp_path: Path, scenario_file: Any) -> None:
    """The model, the source and the strategy of the README's example train together, from beside the scenario."""
    example = next(block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "# mine.py" in block)
    path = scenario_file({
        "data.source": {"kind": "mine:blobs", "classes": 4}, "data.test_fraction": 0.2,
        "model": {"kind": "mine:Net", "width": 8}, "server.strategy": {"kind": "mine:Patient", "fraction_train": 0.5},
    })  # fmt: skip
    (path.parent / "mine.py").write_text(example)
    run = fedsim.run(path, out=tmp_path / "run")

    assert "done" == run.status
    assert str(path.parent / "mine.py") in run.manifest["code"]
