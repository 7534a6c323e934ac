"""Apps that are no folder of the reader's: a bundle as ``flwr build`` makes it, and what ``flwr install`` left."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.install import install_from_fab

import fedsim
from fedsim.foreign.app import find
from fedsim.report.page import toml

Make = Callable[..., Path]
Table = Callable[..., dict[str, Any]]
APP = Path(__file__).parent / "apps" / "quickstart-numpy"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a Flower home of this test's own."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flower"))
    return tmp_path / "flower"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Return a bundle of an app of ours, under a name of the reader's own."""
    (tmp_path / "mine.fab").write_bytes(build_fab_from_disk(APP))
    return tmp_path / "mine.fab"


def repacked(bundle: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """Return a bundle with each file changed, or left out where *change* gives None."""
    out = io.BytesIO()
    with zipfile.ZipFile(bundle) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            if (content := change(info.filename, old.read(info))) is not None:
                new.writestr(info, content)
    bundle.write_bytes(out.getvalue())
    return bundle


def test_a_bundle_runs_as_its_folder_does(
    bundle: Path, home: Path, cli: Callable[..., Any], fleet: Table, tmp_path: Path, run: Callable[..., fedsim.Run]
) -> None:
    """``fedsim run FILE.fab --fleet F --json`` has the digest of the folder it was made of, prints one line, and can be verified."""
    words = ("--run-config", "num-server-rounds=1", "--out", tmp_path / "run", "--json")
    file = tmp_path / "fleet.toml"
    file.write_text(toml(fleet()) + "\n")
    answer = cli("run", bundle, "--fleet", file, *words)
    by_folder = run("quickstart-numpy", run_config=["num-server-rounds=1"])
    done = fedsim.load(tmp_path / "run")

    assert (0, 1) == (answer.code, len(answer.out.splitlines())), answer
    assert by_folder.digest == json.loads(answer.out)["digest"]
    assert Path(done.manifest["app"]["folder"]).is_relative_to(home / "apps")
    assert 0 == cli("verify", done.path, "--quiet").code


def test_an_installed_app_is_found_by_its_name(bundle: Path, home: Path, app_of: Make) -> None:
    """By publisher and name, with the sign that Flower puts before it and without; by version too; of several, the one installed last."""
    one = install_from_fab(bundle.read_bytes())
    folder = app_of("newer")
    text = (folder / "pyproject.toml").read_text()
    name, version = find(APP).name, find(APP).version
    publisher = text.partition('publisher = "')[2].partition('"')[0]
    (folder / "pyproject.toml").write_text(text.replace(f'version = "{version}"', 'version = "7.0.1"'))
    assert find(f"@{publisher}/{name}").folder == one.resolve()
    two = install_from_fab(build_fab_from_disk(folder))

    assert one != two
    assert find(f"@{publisher}/{name}=={version}").folder == find(f"{publisher}/{name}=={version}").folder == one.resolve()
    assert find(f"@{publisher}/{name}==7.0.1").folder == two.resolve()
    assert "7.0.1" == find(f"{publisher}/{name}").version
    with pytest.raises(fedsim.ScenarioError, match=r"another version is installed in .*: .*7\.0\.1"):
        find(f"@{publisher}/{name}==3.0.0")
    with pytest.raises(fedsim.ScenarioError, match=r"no app of that name is installed"):
        find(f"@{publisher}/{name}-plus")


def test_an_installed_app_runs(bundle: Path, home: Path, run: Callable[..., fedsim.Run], fleet: Table, tmp_path: Path) -> None:
    """It gives the digest of the folder that it was made of."""
    installed = install_from_fab(bundle.read_bytes())
    publisher, name = installed.name.split(".")[:2]
    done = fedsim.run_app(f"@{publisher}/{name}", fleet(), out=tmp_path / "installed", run_config={"num-server-rounds": 1})

    assert run("quickstart-numpy", run_config={"num-server-rounds": 1}).digest == done.digest


@pytest.mark.parametrize(("change", "said"), [
    (lambda name, content: content + b"# more\n" if name.endswith("task.py") else content, "file hashes couldn't be verified"),
    (lambda name, content: None if name.endswith("task.py") else content, "file hashes couldn't be verified"),
    (lambda name, content: None if name.startswith(".info") else content, "FAB file has incorrect format"),
    (lambda name, content: b"nonsense\n" if name.endswith("CONTENT") else content, "not a bundle of a Flower app"),
])  # fmt: skip
def test_a_bundle_that_was_changed_is_refused(
    change: Callable[[str, bytes], bytes | None], said: str, bundle: Path, home: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    """A file that is another one, or gone, or a list of hashes that is none: exit 2, one line, and nothing is installed."""
    answer = cli("run", repacked(bundle, change), "--fleet", "scenarios/fleets/phones.toml", "--out", tmp_path / "run")

    assert (2, 1) == (answer.code, len(answer.err.splitlines())), answer
    assert said.lower() in answer.err.lower() and "mine.fab: " in answer.err
    assert not list((home / "apps").glob("*")) and not (tmp_path / "run").exists()


def test_what_is_no_bundle_is_told(home: Path, cli: Callable[..., Any], tmp_path: Path, bundle: Path) -> None:
    """A file that is no zip, one that is not there, a name that is none, no fleet: exit 2, one line that says what would have worked."""
    (tmp_path / "text.fab").write_text("no zip")
    shutil.copy(bundle, tmp_path / "mine.zip")
    for words, said in (
        ((tmp_path / "text.fab", "--fleet", "f.toml"), "not a bundle of a Flower app"),
        ((tmp_path / "none.fab", "--fleet", "f.toml"), "there is no such file. 'flwr build' makes"),
        ((tmp_path / "mine.zip", "--fleet", "f.toml"), "it is a file. An app is a folder with a pyproject.toml, a .fab file, or @"),
        (("@nobody/nothing", "--fleet", "f.toml"), "no app of that name is installed"),
        (("@nobody", "--fleet", "f.toml"), "@nobody: "),
        (("@nobody/nothing==x", "--fleet", "f.toml"), "Invalid app version"),
        ((bundle,), "is a Flower app; say on which clients: --fleet"),
        (("@nobody/nothing",), "is a Flower app; say on which clients: --fleet"),
    ):
        answer = cli("run", *words)
        assert (2, 1) == (answer.code, len(answer.err.splitlines())), (words, answer)
        assert said in answer.err, (words, answer.err)
