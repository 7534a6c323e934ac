"""Executors: whoever computes, the digest is that of this process; a reader's own is asked, named where it is wrong, and closed."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_digest import RAGGED

import fedsim
from fedsim.client.kept import Kept
from fedsim.client.offline import Offline
from fedsim.client.program import Order
from fedsim.learn.engine.executors import Site, executors
from fedsim.learn.work import Start
from fedsim.preview import preview
from fedsim.scenario.build import build, opened
from fedsim.scenario.load import load

OWN = """
import pickle
from dataclasses import replace
from torch import nn
from fedsim.learn.work import Result

said = []

def net(shape, outputs):
    said.append("a model is built")
    return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))

class Elsewhere:
    "Another engine of the same site, to which everything goes as bytes; each task by itself, the last one first."
    def __init__(self, workers, loud: bool = False):
        self.loud = loud
        said.append(f"opened with {workers}")
    def serve(self, site):
        self.engine = pickle.loads(pickle.dumps(site)).engine
        assert self.engine is not site.engine
    def run(self, tasks):
        said.append("asked")
        back = [pickle.dumps(self.engine.run([pickle.loads(pickle.dumps(task))])[0]) for task in reversed(tasks)]
        return [pickle.loads(each) for each in reversed(back)]
    def batch_sums(self, start, batches):
        said.append("scored")
        return [self.engine.batch_sums(pickle.loads(pickle.dumps(start)), batch) for batch in range(batches)]
    def close(self):
        said.append("closed")

class Hasty(Elsewhere):
    def run(self, tasks):
        return super().run([replace(task, job=replace(task.job, lr=task.job.lr * 1.01)) for task in tasks])

class Unclosed(Elsewhere):
    def close(self):
        super().close()
        raise OSError("the line is dead")

class Half:
    def run(self, tasks): return []

WRONG = {
    "none": lambda found, tasks: None, "fewer": lambda found, tasks: found[:-1], "more": lambda found, tasks: [*found, found[0]],
    "another order": lambda found, tasks: found[::-1], "text": lambda found, tasks: ["done"] * len(found),
    "of no task": lambda found, tasks: [Result(r.metrics, r.params) for r in found],
    "half a model": lambda found, tasks: [Result(r.metrics, dict(list(r.params.items())[1:]), mark=r.mark) for r in found],
    "sorted in place": lambda found, tasks: tasks.sort(key=lambda task: -task.client) or found,
}

class Wrong(Elsewhere):
    def __init__(self, workers, method: str, answer: str):
        super().__init__(workers)
        self.method, self.answer = method, answer
    def serve(self, site):
        if self.method == "serve": raise ConnectionError("nobody is there")
        super().serve(site)
    def run(self, tasks):
        return self.other("run", super().run(tasks), tasks)
    def batch_sums(self, start, batches):
        return self.other("batch_sums", super().batch_sums(start, batches), [])
    def other(self, method, found, tasks):
        if method != self.method: return found
        if self.answer == "raises": raise KeyError("boo")
        return WRONG[self.answer](found, tasks)
"""
NET = {"model": {"kind": "mine:net"}}


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Write the reader's module where scenarios find it; return what tells what was asked of it."""
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)

    def told() -> list[str]:
        modules = [module for name, module in sys.modules.items() if name.endswith(".mine") and str(tmp_path) in str(module.__file__)]
        found = list(modules[-1].said) if modules else []
        for module in modules:
            module.said.clear()
        return found

    return told


def own(kind: str, **settings: Any) -> dict[str, Any]:
    """Return the override that names the reader's *kind*."""
    return {"engine.executor": {"kind": f"mine:{kind}", **settings}}


# The same bits.


CASES: dict[str, dict[str, Any]] = {
    "ragged": {**RAGGED, "evaluate.federated_fraction": 1.0},
    "chained and late": {
        "stream": {"arrivals": {"kind": "constant", "per_s": 1.0}, "trigger": {"kind": "count", "examples": 5}, "predict": "local"},
        "clients.compute": {"kind": "lognormal", "gflops": 5.0, "sigma": 1.0, "overhead_s": 2.0},
        "server.rounds": 3, "server.round_timeout_s": 9.0,
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", [*executors.names(), "mine:Elsewhere"])
def test_whoever_computes_the_digest_is_that_of_this_process(case: str, kind: str, go: Any, said: Callable[[], list[str]]) -> None:
    """Every executor that is registered, and a reader's own, which is really asked and told how many workers there are."""
    here = go(CASES[case])
    there = go({**CASES[case], "engine.executor": {"kind": kind}})
    told = said()

    assert (here.digest, here.metrics_digest) == (there.digest, there.metrics_digest)
    assert ("local", kind) == (here.manifest["executor"]["kind"], there.manifest["executor"]["kind"])
    if kind.startswith("mine"):
        assert ("opened with 1", "scored", "closed") == (told[0], told[1], told[-1]) and "asked" in told


def test_what_computes_other_numbers_is_seen(go: Any, said: Callable[[], list[str]]) -> None:
    """Teeth: an executor that trains at a rate of its own answers in the right form, and moves the digest."""
    assert go(own("Elsewhere")).digest != go(own("Hasty")).digest


ELSEWHERE = """
import pickle, sys
site, tasks = pickle.load(sys.stdin.buffer)
sys.stdout.buffer.write(pickle.dumps(site.engine.run(tasks)))
"""


def test_a_site_is_found_by_a_process_that_knows_nothing(tiny: Any, said: Callable[[], list[str]], tmp_path: Path) -> None:
    """Site and tasks go as bytes to a new Python in another folder, which finds the reader's own model, and gives the same digests."""
    parts = build(load(tiny(NET)))
    order = Order(parts.job, Start(parts.first))
    tasks = [Offline(client, parts.federation, parts.key).plan(order, Kept())[0] for client in range(3)]
    (tmp_path / "other").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], input=pickle.dumps((parts.engine.site, tasks)), capture_output=True, cwd=tmp_path / "other",
        env={"PYTHONPATH": str(Path(fedsim.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert not done.returncode, done.stderr.decode()

    assert [result.digest for result in parts.engine.run(tasks)] == [result.digest for result in pickle.loads(done.stdout)]


# What is wrong is named.


@pytest.mark.parametrize(
    ("method", "answer", "words"),
    [
        ("run", "raises", "its run() raised KeyError: 'boo'."), ("run", "none", "its run() gives a NoneType, expected a list of results."),
        ("run", "fewer", "its run() gives 5 results, expected 6."), ("run", "more", "its run() gives 7 results, expected 6."),
        ("run", "another order", "its run() gives the result of client 5, task 0 (train) at [0], expected that of client 0, task 0"),
        ("run", "text", "its run() gives a str at [0], expected a Result."),
        ("run", "of no task", "its run() gives the result of no task at [0], expected that of client 0, task 0"),
        ("run", "half a model", "its run() gives the result of client 0, task 0 without "),
        ("run", "sorted in place", "its run() raised AttributeError: 'tuple' object has no attribute 'sort'."),
        ("batch_sums", "none", "its batch_sums() gives a NoneType, expected a list of sums, one of each batch."),
        ("batch_sums", "fewer", "its batch_sums() gives 1 sums, one of each batch, expected 2."),
        ("batch_sums", "text", "its batch_sums() gives 'done' at [0], expected numbers by name."),
        ("serve", "raises", "its serve() raised ConnectionError: nobody is there."),
    ],
)  # fmt: skip
def test_a_wrong_answer_is_named(method: str, answer: str, words: str, go: Any, said: Callable[[], list[str]]) -> None:
    """One line with the kind and the method; the executor is closed."""
    with pytest.raises(fedsim.FedsimError) as raised:
        go({"server.rounds": 1, **own("Wrong", method=method, answer=answer)})

    assert f"engine.executor.kind = 'mine:Wrong': {words}" in str(raised.value)
    assert 1 == len(str(raised.value).splitlines()) and "closed" == said()[-1]


def test_an_error_in_training_is_what_it_is_here(go: Any, said: Callable[[], list[str]], tmp_path: Path) -> None:
    """A run that diverges ends in the same words, whoever computed."""
    lines: list[str] = []
    diverges = {"training.optimizer.lr": 1e30, "model": {"kind": "mlp", "hidden": [8]}, "training.epochs": 4}
    for name, executor in (("here", {}), ("there", own("Elsewhere"))):
        with pytest.raises(fedsim.RunError) as raised:
            go({**diverges, **executor}, out=tmp_path / name)
        lines.append(str(raised.value).replace(name, "somewhere"))

    assert lines[0] == lines[1] and "closed" == said()[-1]


# Opened first, closed whatever happens.


def test_it_is_opened_before_anything_is_built_and_closed_when_that_fails(tiny: Any, said: Callable[[], list[str]]) -> None:
    """What takes long to start may start meanwhile; a scenario that cannot be built leaves nothing open."""
    with pytest.raises(fedsim.ScenarioError):
        fedsim.run(tiny({**NET, "stop": {"metric": "beauty", "at_least": 1.0}, "engine.workers": 3, **own("Elsewhere")}))
    told = said()

    assert ("opened with 3", "a model is built", "closed") == (told[0], told[1], told[-1]) and "asked" not in told


def test_what_went_wrong_first_is_told(go: Any, tiny: Any, said: Callable[[], list[str]]) -> None:
    """An executor that cannot be closed does not hide why a run ended; where nothing else went wrong, that is told."""
    with pytest.raises(ZeroDivisionError), opened(load(tiny(own("Unclosed")))):
        _ = 1 / 0
    words = r"engine.executor.kind = 'mine:Unclosed': its close\(\) raised OSError: the line is dead\."
    with pytest.raises(fedsim.ScenarioError, match=words), opened(load(tiny(own("Unclosed")))):
        pass
    assert ["opened with 1", "closed"] * 2 == said()


def test_a_check_opens_nothing_and_sees_what_is_wrong(tiny: Any, said: Callable[[], list[str]]) -> None:
    """``fedsim check`` refuses kinds and settings that there are not, and otherwise computes nothing."""
    preview(load(tiny({**own("Elsewhere", loud=True), "server.rounds": 1})))
    assert "opened with 1" not in said()

    refused = {
        "no such executor. Did you mean 'local'?": {"engine.executor": {"kind": "locale"}},
        "engine.executor.loudness: 'mine:Elsewhere' has no such setting.": own("Elsewhere", loudness=1),
        "engine.executor.kind: missing.": {"engine.executor": {}},
        "engine.workers = 2: engine.executor.kind = 'local' is this process alone.": {
            "engine.workers": 2, "engine.executor": {"kind": "local"}
        },
        "engine.executor.kind = 'mine:Elsewhere': trains on the CPU only": {**own("Elsewhere"), "engine.device": "cuda"},
    }  # fmt: skip
    for words, overrides in refused.items():
        with pytest.raises(fedsim.ScenarioError) as raised:
            preview(load(tiny(overrides)))
        assert words in str(raised.value)


def test_what_is_no_executor_is_refused(go: Any, said: Callable[[], list[str]]) -> None:
    """A class without the methods is named before anything is built."""
    with pytest.raises(fedsim.ScenarioError, match=r"engine.executor.kind = 'mine:Half': returned a Half, not an Executor\."):
        go(own("Half"))


def test_a_site_has_one_engine(tiny: Any) -> None:
    """Here it is the one that was built, so that nothing is compiled twice; a copy makes its own, once."""
    engine = build(load(tiny())).engine
    copy: Site = pickle.loads(pickle.dumps(engine.site))

    assert engine is engine.site.engine
    assert copy.engine is copy.engine is not engine
