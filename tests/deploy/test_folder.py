"""The folder of an app: what init leaves, what it refuses, and that Flower takes it, a clone of this repository too."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from flwr.cli.build import build_fab_from_disk
from nodes_here import NodesHere

import fedsim
from fedsim.real import folder as folders
from fedsim.real.folder import data_paths, init_app, own_files, write_app
from fedsim.scenario.load import load

HOME = Path(__file__).parents[2]
FILES = ["README.md", "client_app.py", "loader.py", "pyproject.toml", "scenario.toml", "server_app.py"]


def unpacked(app: Path, into: Path) -> list[str]:
    """Build *app* as Flower does, unpack it, and return what is in it."""
    fab = build_fab_from_disk(app)
    assert len(fab) < folders.LARGEST_BYTES
    with zipfile.ZipFile(io.BytesIO(fab)) as file:
        file.extractall(into)
        return file.namelist()


def components(app: Path) -> dict[str, str]:
    return tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["components"]


def imported(app: Path) -> str:
    """Import the components of *app* in a fresh process that stands elsewhere, as Flower does, and say what they are."""
    said = "; ".join(
        f"import {ref.partition(':')[0]} as m; print(type(m.{ref.partition(':')[2]}).__name__)" for ref in components(app).values()
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(app)!r}); {said}; import fedsim; print(fedsim.__file__)"], check=False,
        capture_output=True, text=True, cwd="/",
    )  # fmt: skip
    return done.stdout + done.stderr


def test_init_leaves_an_app_that_flower_builds(cli: Any, tmp_path: Path) -> None:
    """``fedsim init --flower DIR`` leaves the quickstart as a Flower app; its components import, and its run is the simulation's."""
    app = tmp_path / "my-app"
    answer = cli("init", "--flower", app)
    assert 0 == answer.code and "README.md says how it is run" in answer.out
    assert FILES == sorted(p.name for p in app.iterdir())
    assert (HOME / "scenarios" / "quickstart.toml").read_text() == (app / "scenario.toml").read_text()
    assert {*FILES, ".info/CONTENT"} == {*unpacked(app, tmp_path / "fab")}
    assert imported(tmp_path / "fab").startswith("ServerApp\nClientApp\n")
    assert len((app / "README.md").read_text().splitlines()) <= 14

    said = {**_config(app), "set": '["server.rounds=2"]', "out": str(tmp_path / "real")}
    scope: dict[str, Any] = {"__file__": str(app / "client_app.py")}
    exec((app / "client_app.py").read_text(), scope)
    nodes = NodesHere(scope["app"], said, [{"partition-id": c, "state-dir": str(tmp_path / "s")} for c in range(3)])
    exec((app / "server_app.py").read_text(), scope | {"__file__": str(app / "server_app.py")}, scope)
    scope["app"](nodes, Context(5, 1, {}, RecordDict(), said))
    run = fedsim.run(app / "scenario.toml", overrides={"server.rounds": 2, "clients.count": 3}, out=tmp_path / "run")
    assert run.manifest["model"]["content"] == fedsim.load(tmp_path / "real").manifest["model"]["content"]


def _config(app: Path) -> dict[str, Any]:
    return tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["config"]


def test_a_scenario_with_code_and_data_of_its_own(scenario_file: Any, tmp_path: Path) -> None:
    """The code that a scenario names goes into the app, with what that imports; data stay, and are named where they are."""
    (tmp_path / "net.py").write_text(
        "import torch\nimport parts.layers\nfrom parts import more\n\n\nclass Net(torch.nn.Linear):\n    def __init__(self, outputs):\n"
        "        super().__init__(64, outputs)\n\n    def forward(self, x):\n        return super().forward(x.flatten(1))\n"
    )
    (tmp_path / "parts").mkdir()
    for name in ("__init__", "layers", "more", "idle"):
        (tmp_path / "parts" / f"{name}.py").write_text("from . import more\n" if name == "layers" else "")
    (tmp_path / "table.csv").write_text("a,b,label\n1,2,0\n3,4,1\n")
    source = {"kind": "csv", "path": "table.csv", "target": "label"}
    loaded = load(scenario_file({"model": {"kind": "net:Net"}, "data.source": source, "name": "my_scenario.2"}))

    assert ["net.py", "parts/__init__.py", "parts/layers.py", "parts/more.py"] == sorted(own_files(loaded))
    assert [("data.source.path", str(tmp_path / "table.csv"))] == data_paths(loaded)
    write_app(tmp_path / "app", loaded)
    about = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())
    assert "my-scenario-2" == about["project"]["name"] and {*FILES, "net.py", "parts"} == {p.name for p in (tmp_path / "app").iterdir()}
    again = load(tmp_path / "app" / "scenario.toml", {"data.source.path": str(tmp_path / "table.csv")})
    assert again.scenario.plain() == load(loaded.scenario, {"data.source.path": str(tmp_path / "table.csv")}).scenario.plain()
    from fedsim.real.words import RunWords

    assert str(tmp_path / "table.csv") == RunWords.of(_config(tmp_path / "app"), tmp_path / "app").loaded().scenario.data.source["path"]


def test_what_init_refuses(cli: Any, tmp_path: Path, scenario_file: Any) -> None:
    """A folder that holds something, a scenario that is wrong, no folder, a place where none can be: one line, and nothing left."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    (tmp_path / "bad.toml").write_text("seed = 'x'\n")
    for words, said in (
        (["--flower", tmp_path / "full"], "full: is there already and not empty. Name a new folder."),
        (["--flower", tmp_path / "full" / "thesis.tex"], "thesis.tex: is there already and not empty."),
        (["--flower", tmp_path / "full" / "thesis.tex" / "app"], "cannot be written"),
        (["--flower", tmp_path / "a", "--scenario", tmp_path / "bad.toml"], "name: missing"),
        (["--flower", tmp_path / "a", "--scenario", tmp_path / "none.toml"], "none.toml: no such file"),
        ([], "Missing option '--flower'"),
    ):
        answer = cli("init", *words)
        assert 2 == answer.code and said in answer.err and 1 == len(answer.err.splitlines()), (answer, said)
        assert "Traceback" not in answer.err
    assert not (tmp_path / "a").exists() and ["thesis.tex"] == [p.name for p in (tmp_path / "full").iterdir()]
    (tmp_path / "loader.py").write_text("def mlp():\n    pass\n")
    with pytest.raises(fedsim.ScenarioError, match=r"loader\.py: the app has a loader\.py of its own"):
        init_app(tmp_path / "a", scenario_file({"model": {"kind": "loader:mlp"}}))


def test_the_quickstart_is_the_quickstart() -> None:
    """What init takes where no scenario is named is the one in scenarios/."""
    assert (HOME / "scenarios" / "quickstart.toml").read_bytes() == folders.QUICKSTART.read_bytes()


def test_a_clone_of_this_repository_is_an_app(tmp_path: Path) -> None:
    """``flwr run .`` builds from a clean clone: it holds fedsim, both halves and the scenarios, and its components import from it."""
    if not (HOME / ".git").exists():
        pytest.skip("needs a git checkout, to clone it")
    clone = tmp_path / "fedsim"
    listed = subprocess.run(["git", "ls-files"], cwd=HOME, check=True, capture_output=True, text=True).stdout.splitlines()
    for name in listed:
        if (HOME / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(HOME / name, clone / name)
    names = unpacked(clone, tmp_path / "fab")

    assert {"scenarios/quickstart.toml", "clients/client_app.py", "fedsim/real/client.py", "pyproject.toml"} <= {*names}
    assert not [name for name in names if name.startswith(("tests/", "analysis/"))]
    assert f"ServerApp\nClientApp\n{tmp_path / 'fab' / 'fedsim' / '__init__.py'}\n" == imported(tmp_path / "fab")
    config = _config(tmp_path / "fab")
    assert (tmp_path / "fab" / config["scenario"]).is_file()
