"""The README holds: no placeholder is left, and its own plug-in example runs as it stands there."""

import re
from pathlib import Path
from typing import Any

import fedsim
from fedsim.scenario.kinds import slots

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
    assert "mine.py" in run.manifest["code"]


def test_the_table_of_online_learning_names_every_kind() -> None:
    """Each row of the README's table lists exactly the kinds that are registered, the default first."""
    rows = dict(re.findall(r"^\| `([a-z_.]+)`[^|]*\|[^|]*\|([^|]*)\|$", README.read_text(), re.M))
    registered = {slot.key: set(slot.registry.names()) for slot in slots().values()}
    named = {key: re.findall(r"`([a-z_+]+)`", cells.split(", each with")[0]) for key, cells in rows.items()}
    change = registered["stream.drift.schedule"] | registered["stream.drift.onset"]

    assert change == set(named.pop("stream.drift.schedule"))
    assert {key: registered[key] for key in named if key in registered} == {
        key: set(names) for key, names in named.items() if key in registered
    }
    assert 9 == len([key for key in named if key in registered])
    assert ["at_start", "as_is", "at_once", "arrival", "none", "er", "none"] == [
        named[key][0]
        for key in (
            "stream.arrivals",
            "stream.order",
            "stream.labels",
            "stream.trigger",
            "clients.replay",
            "training.rehearsal",
            "clients.detector",
        )
    ]
