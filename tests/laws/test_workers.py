"""Workers: the same bits from any number of processes, errors as they would be without, and nothing left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_digest import MODELS, RAGGED
from torch import nn

import fedsim
from fedsim.core.keys import Key
from fedsim.learn.engine import shared
from fedsim.learn.engine.executors import processes as module
from fedsim.learn.engine.executors.processes import Workers, deal
from fedsim.learn.engine.executors.wire import Train
from fedsim.learn.job import Job
from fedsim.learn.work import Start, Task

Go = Callable[..., fedsim.Run]

LONG = {"engine.workers": 2, "training.epochs": 100_000, "server.rounds": 3}
"""A first round that takes minutes, with six clients in two units."""
LEAF = {"data": {"source": {"kind": "leaf_synthetic", "max_examples": 70}}, "clients.count": 9}


@pytest.fixture
def quick(go: Go, hands: None) -> Go:
    """Return ``go``, its workers those that serve all tests."""
    return go


def digests(runs: list[fedsim.Run]) -> set[tuple[str, str]]:
    return {(run.digest, run.metrics_digest) for run in runs}


# The same bits.


CASES: dict[str, dict[str, Any]] = {
    **{name: {**RAGGED, **MODELS[name]} for name in ("mlp", "cnn", "momentum and weight decay", "QFedAvg")},
    "made client by client": LEAF,
    "products of bfloat16": {**RAGGED, "engine.precision": "bfloat16", "training.checkpointing": True},
    "scored by clients": {**RAGGED, "evaluate.federated_fraction": 1.0, "server.strategy": {"kind": "FedAvg"}},
    "late ones": {
        **RAGGED, "server.round_timeout_s": 2.0,
        "clients.compute": {"kind": "lognormal", "gflops": 0.0001, "sigma": 1.0, "overhead_s": 1.0},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_workers_move_no_bit(name: str, quick: Go) -> None:
    """One client after the other here, or in units by two processes or three: the digests are the same."""
    crews = (2, 3) if name == "mlp" else (2,)
    runs = [quick({**CASES[name], **more}) for more in ({"engine.chunk": 1}, *({"engine.workers": n} for n in crews))]

    assert 1 == len(digests(runs))


def test_chunks_and_workers_move_no_bit(quick: Go) -> None:
    """Two workers with chunks of one, of three, or all give the same digests."""
    runs = [quick({**RAGGED, "engine.workers": 2, "engine.chunk": chunk}) for chunk in (1, 3, 64)]

    assert 1 == len(digests(runs))


def test_results_that_go_to_the_wrong_task_are_seen(
    quick: Go, crews: Callable[[int], Workers | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teeth: a crew that returns results in the order in which they came moves the digest."""
    right = quick({**RAGGED, "engine.workers": 2})
    crew = crews(2)
    assert crew
    honest = crew.run
    monkeypatch.setattr(crew, "run", lambda tasks: list(reversed(honest(tasks))))
    wrong = quick({**RAGGED, "engine.workers": 2})

    assert right.digest != wrong.digest


def test_a_unit_is_whole_and_every_hand_gets_as_much() -> None:
    """Every task is dealt once; no unit is above the chunk or mixes jobs; in each turn hands differ by one task."""
    sizes = np.random.default_rng(0).integers(1, 200, 103)
    jobs = [Job(epochs=1, batch_size=10), Job(epochs=2, batch_size=10)]
    tasks = [Task(c, 0, jobs[c % 7 == 0], Start({}), np.arange(n), Key(0)) for c, n in enumerate(sizes)]
    for chunk, hands in ((1, 2), (10, 2), (10, 3), (256, 4), (7, 64)):
        units = deal(tasks, chunk, hands)

        assert list(range(103)) == sorted(place for unit in units for place in unit)
        assert max(map(len, units)) <= chunk
        assert {1} == {len({tasks[i].job for i in unit}) for unit in units}
        for job in jobs:
            lengths = [len(unit) for unit in units if tasks[unit[0]].job == job]
            assert min(hands, sum(lengths)) <= len(lengths)
            turns = [lengths[i : i + hands] for i in range(0, len(lengths), hands)]
            assert all(max(turn) - min(turn) <= 1 for turn in turns)


def test_arrays_cross_memory_as_they_are() -> None:
    """What is written into a block is read from it: types, shapes, empty arrays, and arrays that are not contiguous."""
    arrays = {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4).T, "b": np.array(7, dtype=np.int64),
        "c": np.zeros((0, 3)), "d": np.array([True, False]),
    }  # fmt: skip
    block = shared.blank()
    layout, end = shared.write(block, arrays, at=5)
    found = shared.views(shared.mapped(block), layout)
    os.close(block)

    assert end == max(at for _, _, at in layout.values()) + 2
    for name, array in arrays.items():
        assert (array.dtype, array.shape) == (found[name].dtype, found[name].shape)
        assert array.tobytes() == found[name].tobytes()


# Errors.


def line_of(go: Go, overrides: dict[str, Any], workers: int, folder: Path) -> tuple[type[Exception], str]:
    with pytest.raises(fedsim.FedsimError) as caught:
        go({**overrides, "engine.workers": workers}, out=folder / f"with-{workers}")
    return caught.type, str(caught.value).replace(f"with-{workers}", "with-n")


PLUGIN = """
import numpy as np
from torch import nn
from fedsim.data.source import Examples

class Broken:
    shape, outputs = (3,), 2
    def sizes(self, clients): return np.full(len(clients), 10)
    def client(self, client):
        if client == 104: raise ValueError(f"client {client} has no data today")
        return Examples(np.ones((10, 3), np.float32) * client, np.arange(10) % 2)

def broken(): return Broken()

class Held(Broken):
    def __init__(self): self.make = lambda: None

def local(shape, outputs):
    class Local(nn.Sequential): pass
    return Local(nn.Flatten(), nn.Linear(64, outputs))
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module of the reader's own, found where the tests run."""
    (tmp_path / "workers_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "workers_plugin", raising=False)
    return "workers_plugin"


def test_an_error_in_a_worker_is_the_error_it_would_be_here(quick: Go, plugin: str, tmp_path: Path) -> None:
    """Training that diverges, and a generator of the reader's own that raises, end a run in the same words."""
    diverged = {"training.optimizer.lr": 1e30, "model": {"kind": "mlp", "hidden": [8]}, "training.epochs": 4}
    raises = {"data": {"source": {"kind": f"{plugin}:broken"}}, "clients.count": 105}
    for name, overrides in (("diverged", diverged), ("raises", raises)):
        lines = [line_of(quick, overrides, n, tmp_path / name) for n in (1, 2)]

        assert lines[0] == lines[1]
    assert "client 104 has no data today" in lines[0][1]
    story = (tmp_path / "raises" / "with-2" / "traceback.txt").read_text()
    assert "workers_plugin.py" in story


def test_a_crew_is_of_use_after_an_error(quick: Go, plugin: str, tmp_path: Path) -> None:
    """What other workers were at when one task broke does not come back as the answer to a later question."""
    raises = {"data": {"source": {"kind": f"{plugin}:broken"}}, "clients.count": 105, "engine.chunk": 1}
    line_of(quick, raises, 3, tmp_path)

    assert 1 == len(digests([quick(RAGGED), quick({**RAGGED, "engine.workers": 3})]))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model": {"kind": "PLUGIN:local"}}, "engine.workers = 2: what model.kind names cannot be sent"),
        (
            {"data": {"source": {"kind": "PLUGIN:Held"}}, "clients.count": 4},
            "engine.workers = 2: what data.source.kind names cannot be sent",
        ),
    ],
)
def test_what_cannot_be_sent_is_refused(
    overrides: dict[str, Any], words: str, quick: Go, plugin: str, tmp_path: Path
) -> None:
    """A model or a generator that cannot be pickled is a ScenarioError of one line, before there is a run folder."""
    text = {key: eval(repr(value).replace("PLUGIN", plugin)) for key, value in overrides.items()}
    kind, line = line_of(quick, text, 2, tmp_path / "none")

    assert (fedsim.ScenarioError, 1) == (kind, len(line.splitlines()))
    assert words in line and "leave engine.workers at 1" in line
    assert not (tmp_path / "none").exists()


def test_what_a_worker_cannot_load_is_refused(quick: Go, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A model of a module that only this process knows, as of a notebook, is a ScenarioError; the next run is none the worse."""
    here = types.ModuleType("only_here")
    here.Net = type("Net", (nn.Sequential,), {"__module__": "only_here"})  # pyright: ignore
    here.make = lambda shape, outputs: here.Net(nn.Flatten(), nn.Linear(64, outputs))  # pyright: ignore
    monkeypatch.setitem(sys.modules, "only_here", here)
    kind, line = line_of(quick, {"model": {"kind": "only_here:make"}}, 2, tmp_path)

    assert fedsim.ScenarioError is kind
    assert "engine.workers: what model.kind names cannot be loaded in a worker (ModuleNotFoundError" in line
    assert "done" == quick({"engine.workers": 2}).status  # The same crew, of use to the next.


# Nothing is left behind.


def children() -> set[int]:
    listed = Path("/proc/self/task").glob("*/children")
    return {int(child) for tasks in listed for child in tasks.read_text().split()}


def left_behind() -> tuple[set[str], int, str]:
    """Return what is in /dev/shm, how many descriptors this process holds, and what it maps of ours."""
    gc.collect()
    ours = "".join(line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:fedsim" in line)
    return set(os.listdir("/dev/shm")), len(os.listdir("/proc/self/fd")), ours


pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks at processes through /proc")


def in_mid_round(monkeypatch: pytest.MonkeyPatch, act: Callable[[Workers], None]) -> list[Workers]:
    """Have *act* happen to the next crew as soon as all of its workers have tasks."""
    met: list[Workers] = []

    def wait(crew: Workers) -> None:
        while not all(worker.unit and isinstance(worker.unit[1], Train) for worker in crew._workers):  # pyright: ignore
            time.sleep(0.01)
        time.sleep(0.3)
        act(crew)

    class Watched(Workers):
        def __init__(self, workers: int) -> None:
            super().__init__(workers)
            met.append(self)
            threading.Thread(target=wait, args=[self], daemon=True).start()

    monkeypatch.setattr(module, "Workers", Watched)
    return met


@pytest.mark.parametrize("how", ["a worker is killed", "Ctrl-C"])
def test_a_round_cut_short_leaves_nothing_but_its_folder(
    how: str, go: Go, crews: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A worker killed in mid-round is a RunError that names it and its tasks; Ctrl-C is itself. Either way the folder
    is readable, and neither processes nor memory stay."""
    go(), crews(2)  # What a first run leaves for good, and the process that workers come from here.
    before, processes = left_behind(), children()
    ended = {
        "a worker is killed": lambda crew: os.kill(crew.processes[1], signal.SIGKILL),
        "Ctrl-C": lambda _: os.kill(os.getpid(), signal.SIGINT),
    }
    met = in_mid_round(monkeypatch, ended[how])
    begun = time.monotonic()
    with pytest.raises((fedsim.RunError, KeyboardInterrupt)) as caught:
        go(LONG, out=tmp_path / "run")
    line, run = str(caught.value), fedsim.load(tmp_path / "run")
    caught.value.__traceback__ = None

    if how == "Ctrl-C":
        assert issubclass(caught.type, KeyboardInterrupt)
        assert ("interrupted", "interrupted after round 0") == (run.status, run.manifest["error"])
    else:
        assert fedsim.RunError is caught.type
        assert line.startswith("worker 2 (process ") and "was killed by SIGKILL while it had client" in line
        assert 3 == line.count(", task 0") and 1 == len(line.splitlines())
        assert ("failed", line) == (run.status, run.manifest["error"])
    assert 6 == len(run.tasks) and 0 < len(run.metrics)
    assert time.monotonic() - begun < 60
    assert processes == children() and [] == met[0].processes
    del caught
    assert before == left_behind()


def test_a_check_starts_no_process(
    cli: Callable[..., Any], scenario_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``fedsim check`` of a scenario with workers foretells its cost without any."""
    for starts in (subprocess, module.subprocess):
        monkeypatch.setattr(starts, "Popen", lambda *_, **__: pytest.fail("a process was started"))

    assert 0 == cli("check", scenario_file({"engine.workers": 2}), "--json").code


UNGUARDED = """
import sys, json, os, fedsim
run = fedsim.run(json.loads(sys.argv[1]), overrides={"engine.workers": 2}, out=sys.argv[2])
print(run.digest, json.load(open(sys.argv[2] + "/manifest.json"))["executor"]["workers"])
print([entry for entry in os.listdir("/proc/self/task") for child in open(f"/proc/self/task/{entry}/children").read().split()])
"""


def test_a_script_without_a_guard_runs_and_leaves_nothing(go: Go, tiny: Callable[..., Any], tmp_path: Path) -> None:
    """``python -c`` with a run on two workers at its top level ends by itself, with the digest of one process."""
    import json

    said = subprocess.run(
        [sys.executable, "-c", UNGUARDED, json.dumps(tiny()), str(tmp_path / "script")],
        capture_output=True, text=True, timeout=120, cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip

    assert [f"{go().digest} 2", "[]"] == said.stdout.splitlines(), said.stderr
    assert "" == said.stderr


def test_workers_end_when_their_parent_is_killed(tiny: Callable[..., Any], tmp_path: Path) -> None:
    """A parent that gets SIGKILL in mid-round takes its workers with it within seconds."""
    import json

    code = "import sys, json, fedsim; fedsim.run(json.loads(sys.argv[1]), out=sys.argv[2])"
    parent = subprocess.Popen([sys.executable, "-c", code, json.dumps(tiny(LONG)), str(tmp_path / "run")])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / "manifest.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        workers = [int(p) for t in Path(f"/proc/{parent.pid}/task").glob("*/children") for p in t.read_text().split()]
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 5
    while any(_alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)

    assert 2 == len(workers)
    assert [] == [worker for worker in workers if _alive(worker)]
    assert "killed" == fedsim.load(tmp_path / "run").status


def _alive(process: int) -> bool:
    """Return whether a process runs; one that waits for a parent to fetch its exit code does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
