"""README and documentation hold: no placeholder is left, the plug-in example runs as it stands there, tables name what there is."""

import re
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.listing import sections
from fedsim.scenario.kinds import slots

HOUSE = Path(__file__).parents[1]
GUIDES = HOUSE / "docs" / "guides"
TABLES = "\n".join((GUIDES / name).read_text("utf-8") for name in ("streams.md", "mini-batches.md"))
"""The pages that have a table of keys."""


def test_no_placeholder_is_left() -> None:
    """No document has a placeholder in it."""
    documents = [*HOUSE.glob("*.md"), *(HOUSE / "docs").rglob("*.md")]

    assert 20 < len(documents) and [] == [path.name for path in documents if re.search(r"@@|TODO|FIXME", path.read_text())]


def test_the_plugin_example_runs(tmp_path: Path, scenario_file: Any) -> None:
    """The model, the source and the strategy of the guide's example train together, from beside the scenario."""
    guide = (GUIDES / "own-parts.md").read_text("utf-8")
    example = next(block for block in re.findall(r"```python\n(.*?)```", guide, re.S) if "# mine.py" in block)
    path = scenario_file({
        "data.source": {"kind": "mine:blobs", "classes": 4}, "data.test_fraction": 0.2,
        "model": {"kind": "mine:Net", "width": 8}, "server.strategy": {"kind": "mine:Patient", "fraction_train": 0.5},
    })  # fmt: skip
    (path.parent / "mine.py").write_text(example)
    run = fedsim.run(path, out=tmp_path / "run")

    assert "done" == run.status
    assert "mine.py" in run.manifest["code"]


def test_tables_name_keys_that_there_are() -> None:
    """Each key that begins a row of the guides' tables is one, and those after it are of its section."""
    rows = re.findall(r"^\| `([a-z_.]+)`((?:, `\.[a-z_]+`)*) \|", TABLES, re.M)
    wanted = [(key.rpartition(".")[0], name) for key, more in rows if not key.endswith(".toml")
              for name in (key.rpartition(".")[2], *re.findall(r"`\.([a-z_]+)`", more))]  # fmt: skip
    known = {place: set(section.model_fields) for place, section in sections().items()}

    assert len(wanted) > 30 and [] == [f"{above}.{name}" for above, name in wanted if name not in known.get(above, ())]


@pytest.mark.parametrize("given", [
    {"training.sampling": "replacement"}, {"training.drop_last": True}, {"training.accumulate": 2},
    {"training.mix": {"by": "label"}}, {"training.mix": {"by": "difficulty", "shares": [1, 1, 2]}},
    {"training.curriculum": {"begin": 0.3, "over": 20}}, {"training.scale_with_batch": {"base": 32, "rule": "linear"}},
    {"training.schedule": {"kind": "cosine", "over": 20, "warmup": 2}}, {"training.clipping": {"kind": "norm", "bound": 1.0}},
    {"training.objective": {"kind": "classification", "label_smoothing": 0.1}}, {"training.checkpointing": True},
    {"engine.precision": "bfloat16"}, {"clients.ram": {"kind": "constant", "mib": 64.0}, "training.too_large": "smaller_batch"},
    {"clients.loading": {"kind": "prefetch", "examples_per_s": 100.0}}, {"monitor": {}, "stop": {"noise_floor": 5}},
    {"training.batch_policy": {"kind": "growing", "every": 1}}, {"stop": {"metric": "loss", "plateau": 5}},
], ids=lambda given: "+".join(given))  # fmt: skip
def test_what_the_table_of_mini_batches_says_runs(go: Any, given: dict[str, Any]) -> None:
    """Each key of the table, as it is shown there, trains."""
    assert "done" == go(given).status


def test_the_tables_name_every_kind() -> None:
    """Each row of the guides' tables lists exactly the kinds that are registered, the default first."""
    rows = dict(re.findall(r"^\| `([a-z_.]+)`[^|]*\|[^|]*\|([^|]*)\|$", TABLES, re.M))
    registered = {slot.key: set(slot.registry.names()) for slot in slots().values()}
    named = {key: re.findall(r"`([a-z_+]+)`", re.split(r", (?:each )?with", cells)[0]) for key, cells in rows.items()}
    change = registered["stream.drift.schedule"] | registered["stream.drift.onset"]

    assert change == set(named.pop("stream.drift.schedule"))
    assert {key: registered[key] for key in named if key in registered} == {
        key: set(names) for key, names in named.items() if key in registered
    }
    assert 15 == len([key for key in named if key in registered])
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
