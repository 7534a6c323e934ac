"""Own code: found beside the scenario, by path and content; what is recorded is what ran; a stranger's folder runs nothing."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

import fedsim
from conftest import tiny_table
from fedsim.core import own
from fedsim.core.errors import ScenarioError
from fedsim.data.source import fingerprint
from fedsim.session import verify

NET = """
import math
import torch
from torch import nn
from scale import SCALE


class Net(nn.Module):
    def __init__(self, shape, outputs):
        super().__init__()
        self.l = nn.Linear(math.prod(shape), outputs)
        nn.init.constant_(self.l.weight, FILL)

    def forward(self, x):
        from late import shift
        return SCALE * self.l(x.flatten(1)) + shift()
"""
OTHERS = """
import numpy as np
from flwr.serverapp.strategy import FedAvg
from fedsim.data.source import Examples, Pool
from fedsim.learn.objectives import Classification


def blobs(key):
    draw = key.numpy()
    y = draw.integers(0, 3, 60)
    return Pool(Examples((draw.normal(size=(60, 2)) + y[:, None]).astype("float32"), y), outputs=3)


class Mine(FedAvg):
    pass


def objective():
    return Classification()
"""


def scenario(folder: Path, fill: float = 0.0, module: str = "net", **more: Any) -> Path:
    """Return a scenario in *folder* whose model, ``net.py`` there, imports two modules beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(NET.replace("FILL", str(fill)))
    (folder / "scale.py").write_text("SCALE = 1.0\n")
    (folder / "late.py").write_text("def shift():\n    return 0.0\n")
    table = tiny_table({"model": {"kind": f"{module}:Net"}, "server.rounds": 1, "training.steps": 1, "training.optimizer.lr": 1e-9, **more})
    (folder / "s.toml").write_bytes(tomli_w.dumps(table).encode())
    return folder / "s.toml"


def filled(run: fedsim.Run) -> float:
    """Return what the weights of a run began with."""
    return round(float(np.mean(run.params()["l.weight"])), 4)


def test_two_folders_have_a_module_of_one_name(tmp_path: Path) -> None:
    """Of two scenarios with a ``net.py`` each, run in one process in turn, each trains its own."""
    one, two = scenario(tmp_path / "a", 0.25), scenario(tmp_path / "b", 0.5)
    found = [filled(fedsim.run(path, out=tmp_path / f"run{i}")) for i, path in enumerate((one, two, one))]

    assert [0.25, 0.5, 0.25] == found


def test_an_edited_module_is_what_runs_and_what_is_recorded(tmp_path: Path) -> None:
    """A file edited between two runs of a session trains as it is then, and its hash is that of what ran."""
    path = scenario(tmp_path / "a", 0.25)
    first = fedsim.run(path, out=tmp_path / "1")
    scenario(tmp_path / "a", 0.75)
    second = fedsim.run(path, out=tmp_path / "2")

    assert (0.25, 0.75) == (filled(first), filled(second))
    assert first.manifest["code"]["net.py"] != second.manifest["code"]["net.py"] == fingerprint(tmp_path / "a/net.py")


def test_a_helper_that_was_edited_counts(tmp_path: Path) -> None:
    """What own code imports beside it is recorded with it, imported at the top or while it runs, and loaded anew when edited."""
    path = scenario(tmp_path / "a", 0.25)
    run = fedsim.run(path, out=tmp_path / "1")
    (tmp_path / "a/scale.py").write_text("SCALE = 3.0\n")
    edited = fedsim.run(path, out=tmp_path / "2")

    assert {"late.py", "net.py", "scale.py"} == set(run.manifest["code"])
    assert run.metrics.value.tolist() != edited.metrics.value.tolist()


def test_a_change_while_a_run_goes_is_not_what_ran(tmp_path: Path) -> None:
    """The hash on record is of the code that was loaded, whatever the file has become by the end."""
    path = scenario(tmp_path / "a", 0.25)
    before = fingerprint(tmp_path / "a/net.py")
    run = fedsim.run(path, out=tmp_path / "1", watch=lambda _: scenario(tmp_path / "a", 0.5) and None)

    assert before == run.manifest["code"]["net.py"] != fingerprint(tmp_path / "a/net.py")


def test_a_checkout_of_fedsim_beside_the_scenario_is_not_a_second_fedsim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a clone of the project, own code that imports fedsim gets the one that runs: its Pool is a Pool."""
    monkeypatch.chdir(Path(fedsim.__file__).parent.parent)
    file = scenario(tmp_path / "a", **{"data.source": {"kind": "others:blobs"}})
    (tmp_path / "a" / "others.py").write_text(OTHERS)
    (tmp_path / "a" / "fedsim").symlink_to(Path(fedsim.__file__).parent)

    assert "done" == fedsim.run(file, out=tmp_path / "run").status


@pytest.mark.parametrize("module", ["test", "random", "queue", "json"])
def test_a_file_beside_the_scenario_may_be_called_like_pythons(module: str, tmp_path: Path) -> None:
    """A model in ``test.py`` is that file's, whatever Python has by the name; and Python's own stay where they were."""
    run = fedsim.run(scenario(tmp_path / "a", 0.25, module), out=tmp_path / "run")

    assert 0.25 == filled(run) and not str(getattr(sys.modules.get(module), "__file__", "")).startswith(str(tmp_path))


def test_every_noun_is_recorded(tmp_path: Path) -> None:
    """Sources, objectives and strategies of a reader's own are on record like models."""
    kinds = {
        "data": {"source": {"kind": "others:blobs"}, "partition": {"kind": "iid"}}, "training.objective": {"kind": "others:objective"},
        "server.strategy": {"kind": "others:Mine"},
    }  # fmt: skip
    path = scenario(tmp_path / "a", **kinds)
    (tmp_path / "a/others.py").write_text(OTHERS)
    run = fedsim.run(path, out=tmp_path / "run")

    assert {"late.py", "net.py", "others.py", "scale.py"} == set(run.manifest["code"])


def test_a_package_with_relative_imports(tmp_path: Path) -> None:
    """``kind = "nets.small:Net"`` finds a package beside the scenario, which may import within itself."""
    path = scenario(tmp_path / "a", model={"kind": "nets.small:Net"})
    (tmp_path / "a/nets").mkdir()
    (tmp_path / "a/nets/__init__.py").write_text("")
    (tmp_path / "a/nets/base.py").write_text("SCALE = 1.0\n")
    (tmp_path / "a/nets/small.py").write_text(NET.replace("FILL", "0.5").replace("from scale import", "from .base import"))
    run = fedsim.run(path, out=tmp_path / "run")

    assert 0.5 == filled(run)
    assert {"late.py", "nets/__init__.py", "nets/base.py", "nets/small.py"} == set(run.manifest["code"])


def test_workers_train_own_code(tmp_path: Path, hands: None) -> None:
    """Two workers load the same own code, helpers included, and give the digest of one; what earlier runs loaded may have changed."""
    path = scenario(tmp_path / "a", 0.75)
    fedsim.run(path, out=tmp_path / "earlier")
    scenario(tmp_path / "a", 0.25)
    one, two = (fedsim.run(path, overrides={"engine.workers": n, "server.rounds": 2}, out=tmp_path / str(n)) for n in (1, 2))

    assert one.digest == two.digest


def test_a_worker_loads_what_its_parent_loaded_or_nothing(tmp_path: Path) -> None:
    """A file that changed between the two processes is named when it is loaded; one that is gone and not asked for is no matter."""
    (tmp_path / "net.py").write_text("FILL = 1\n")
    world = f"{own.ROOT}elsewhere_0"
    own.settle({world: (str(tmp_path), {str(tmp_path / "net.py"): "of another content", str(tmp_path / "gone.py"): "0"})})

    with pytest.raises(ScenarioError, match="net.py: was changed while the run began"):
        importlib.import_module(f"{world}.net")


def elsewhere(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Return what a fresh Python in *folder* makes of *command*."""
    environment = {**os.environ, "PYTHONPATH": str(Path(fedsim.__file__).parents[1])}
    return subprocess.run([sys.executable, "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_run_is_read_and_verified_from_any_folder(tmp_path: Path) -> None:
    """From another folder and process, ``model()`` and ``verify`` find the code beside the scenario."""
    run = fedsim.run(scenario(tmp_path / "a", 0.25), out=tmp_path / "run")
    (tmp_path / "else").mkdir()
    said = elsewhere(
        f"import fedsim; from fedsim.session import verify; r = fedsim.load({str(run.path)!r});"
        f"print(type(r.model()).__name__, verify(r.path, 'again'))", tmp_path / "else",
    )  # fmt: skip

    assert "Net None\n" == said.stdout, said.stderr


def test_changed_code_is_named(tmp_path: Path) -> None:
    """Code that changed since a run is one line that names the file, for ``model()`` and for ``verify``."""
    run = fedsim.run(scenario(tmp_path / "a", 0.25), out=tmp_path / "run")
    (tmp_path / "a/scale.py").write_text("SCALE = 2.0\n")

    for act in (run.model, lambda: verify(run.path, tmp_path / "again")):
        with pytest.raises(fedsim.RunError, match=r"changed since.*scale\.py"):
            act()


def test_a_folder_from_elsewhere_runs_nothing_unasked(tmp_path: Path) -> None:
    """A run folder that another recorded runs its code for ``verify`` and ``model()`` only when trusted; reading runs none."""
    run = fedsim.run(scenario(tmp_path / "a", 0.25), out=tmp_path / "run")
    about = json.loads((run.path / "manifest.json").read_text())
    (run.path / "manifest.json").write_text(json.dumps({**about, "origin": "0" * 64}))
    foreign = fedsim.load(run.path)

    assert len(foreign.tasks) and foreign.params()
    for act in (foreign.model, lambda: verify(foreign.path, tmp_path / "again")):
        with pytest.raises(fedsim.RunError, match=r"net:Net.*net\.py.*--trust"):
            act()
    assert foreign.model(trust=True) is not None and verify(foreign.path, tmp_path / "again", trust=True) is None


@pytest.mark.parametrize(
    "kind",
    [
        "subprocess:getoutput",
        "builtins:dict",
        "numpy:array",
        "fedsim:run",
        "os:getcwd",
        "torch:ones",
        "flwr.app:Message",
        "sklearn.svm:SVC",
    ],
)
@pytest.mark.parametrize("key", ["model", "data.source", "server.strategy", "training.objective"])
def test_what_is_no_code_of_the_readers_is_refused(kind: str, key: str, go: Any) -> None:
    """Functions of Python's, of fedsim's and of what it stands on are no kinds, for any noun: naming one would run it."""
    with pytest.raises(ScenarioError, match=rf"^{key}.kind = '{kind}': '\w+' is part of .*, not code of yours"):
        go({key: {"kind": kind}})


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise SystemExit(3)", "SystemExit"), ("raise BaseException('no')", "BaseException: no"),
        ("import nothing_of_this_name", "nothing_of_this_name"),
        ("class Odd(Exception):\n    def __str__(self):\n        raise ValueError\nraise Odd()", "Odd"), ("def f(:", "SyntaxError"),
        ("x = '\\0' * 10 + 1", "TypeError"),
    ],
)  # fmt: skip
def test_a_module_that_breaks_is_one_line(code: str, words: str, tmp_path: Path) -> None:
    """Whatever a module raises while it loads is one line that names the kind."""
    path = scenario(tmp_path / "a", model={"kind": "bad:Net"})
    (tmp_path / "a/bad.py").write_text(code)

    with pytest.raises(ScenarioError, match=rf"^model.kind = 'bad:Net': cannot import 'bad': .*{words}"):
        fedsim.run(path, out=tmp_path / "run")


def test_names_on_record_do_not_say_whose_home_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are on record as seen from the scenario, or from the folder of data."""
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data/a.npz", x=np.random.default_rng(0).normal(size=(30, 3)), y=np.arange(30) % 2)
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "data"))
    path = scenario(tmp_path / "a", 0.25, data={"source": {"kind": "npz", "path": "a.npz"}, "partition": {"kind": "iid"}})
    run = fedsim.run(path, out=tmp_path / "run")

    assert ["$FEDSIM_DATA/a.npz"] == list(run.manifest["files"]) and "../a" == run.manifest["folder"]
    assert str(tmp_path) not in (run.path / "manifest.json").read_text()
    assert verify(run.path, tmp_path / "again") is None


def test_files_follow_the_umask(tmp_path: Path) -> None:
    """What a run leaves may be read by whom the umask lets."""
    before = os.umask(0o027)
    try:
        run = fedsim.run(scenario(tmp_path / "a", 0.25), out=tmp_path / "run")
    finally:
        os.umask(before)

    assert {0o640} == {path.stat().st_mode & 0o777 for path in run.path.iterdir()}


def test_worlds_are_found_by_name_only_here() -> None:
    """The names of worlds are no modules that anybody could import by chance."""
    assert all(name.startswith(own.ROOT) for name in own.worlds())


def test_a_copied_scenario_still_runs(tmp_path: Path) -> None:
    """A folder that was copied is a world of its own."""
    scenario(tmp_path / "a", 0.25)
    shutil.copytree(tmp_path / "a", tmp_path / "b")

    assert 0.25 == filled(fedsim.run(tmp_path / "b/s.toml", out=tmp_path / "run"))


def test_what_torch_warns_of_is_a_note(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A library's warning is told once, in the run's notes, and not between the lines of the terminal."""
    file = scenario(tmp_path / "a")
    (tmp_path / "a" / "net.py").write_text(
        "import warnings\n" + NET.replace("FILL", "0.0") + "\nwarnings.warn('one thing\\nand another', stacklevel=1)\n"
    )
    run = fedsim.run(file, out=tmp_path / "run")

    assert (
        1 == sum("one thing and another (net.py, line" in note for note in run.manifest["notes"])
        and "one thing" not in capfd.readouterr().err
    )


NOISY = """
import logging, math, warnings
from torch import nn


class Net(nn.Module):
    def __init__(self, shape, outputs):
        super().__init__()
        self.l, self.calls = nn.Linear(math.prod(shape), outputs), 0
        warnings.warn("made")
        logging.getLogger("torch._dynamo.mine").setLevel("DEBUG")

    def forward(self, x):
        self.calls += 1
        warnings.warn("always")
        if self.calls > 5 and float(x.sum()) < 1e9:
            warnings.warn(f"call {self.calls}")
            logging.getLogger("torch._dynamo.mine").warning("of %d", self.calls)
            logging.getLogger("torch._dynamo.mine").debug("nothing")
        return self.l(x.flatten(1)) if float(x.sum()) < 1e9 else x
"""


def test_what_is_said_while_training_is_kept_from_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, hands: None
) -> None:
    """Warnings are one note for each place, with how often; torch's log is a file of the run; who asks for TORCH_LOGS gets his."""
    file = scenario(tmp_path / "a", **{"server.rounds": 4})
    (tmp_path / "a" / "net.py").write_text(NOISY)
    run = fedsim.run(file, out=tmp_path / "run")
    said = [note for note in run.manifest["notes"] if note.startswith("Warned")]
    log = (tmp_path / "run" / "torch.log").read_text().splitlines()

    assert 3 == len(said) and "Warned while the scenario was built: made (net.py, line 10)" == said[0]
    assert "always" in said[1] and said[2].startswith("Warned while it ran: call 6 (net.py, line 17, ") and said[2].endswith(" times)")
    assert log[0] == "WARNING : of 6" and len(log) == int(said[2].split()[-2])
    assert "" == capfd.readouterr().err

    two = fedsim.run(file, overrides={"engine.workers": 2}, out=tmp_path / "two")
    assert two.digest == run.digest and "" == capfd.readouterr().err
    heard = [note.split(": ")[1].split()[0] for note in two.manifest["notes"] if note.startswith("Warned")]
    assert ["made", "always", "call"] == heard

    monkeypatch.setenv("TORCH_LOGS", "dynamo")
    fedsim.run(file, out=tmp_path / "again")
    assert not (tmp_path / "again" / "torch.log").exists()
