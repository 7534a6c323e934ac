"""What the tests share: a small scenario, a short way to run it, and the folder of real data sets.

``tiny`` and ``go`` are functions handed over by fixtures::

    def test_it(tiny, go):
        table = tiny({"server.rounds": 3})                  # a scenario as a table, 30 examples per client
        run = go({"training.optimizer.lr": 0.5}, seed=3)    # the tiny scenario with overrides, run: about 0.1 s

``scenario_file`` writes the same as TOML, and ``cli`` is the command line in this process::

    def test_it_too(scenario_file, cli):
        answer = cli("check", scenario_file({"server.rounds": 0}))
        assert 2 == answer.code, answer.err
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import shared_steps
from drawn import unread
from warm import Processes, Warm

import fedsim
from fedsim.learn.engine import stored
from fedsim.learn.engine.executors import processes
from fedsim.learn.engine.executors.processes import Workers
from fedsim.report.drawing import Drawing
from fedsim.scenario.build import opened
from fedsim.scenario.load import Loaded, _set

Table = dict[str, Any]


def tiny_table(overrides: Mapping[str, Any] | None = None, /, **more: Any) -> Table:
    """Return six clients over the bundled digits, two rounds of FedAvg, *overrides* by dotted key applied.

    As with ``--set``, another ``kind`` drops the settings of the old one. Nothing is checked.
    """
    table: Table = {
        "name": "tiny",
        "seed": 7,
        "data": {"source": {"kind": "digits"}, "partition": {"kind": "iid"}, "test_fraction": 0.9},
        "clients": {
            "count": 6,
            "compute": {"kind": "lognormal", "gflops": 5.0, "sigma": 0.6, "overhead_s": 1.0},
            "network": {"kind": "lognormal", "down_mbps": 6.0, "up_mbps": 2.0, "sigma": 0.8, "latency_s": 0.06},
        },
        "model": {"kind": "logreg"},
        "training": {"epochs": 1, "batch_size": 10, "optimizer": {"kind": "sgd", "lr": 0.1}},
        "server": {"strategy": {"kind": "FedAvg"}, "rounds": 2},
    }
    for key, value in {**(overrides or {}), **more}.items():
        _set(table, key, value)
    return table


@pytest.fixture
def tiny() -> Callable[..., Table]:
    """Return ``tiny(overrides)``: a small scenario as a table. Overrides: a mapping by dotted key, or ``**mapping``."""
    return tiny_table


@pytest.fixture(autouse=True)
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Gather what a test's pages draw, and hold it to axes that can be read."""
    drawn, html = list[Any](), Drawing.html

    def seen(self: Drawing, figure: Any, height: int) -> str:
        made = html(self, figure, height)
        drawn.append(figure)
        return made

    monkeypatch.setattr(Drawing, "html", seen)
    yield drawn
    assert [] == [f"{unread(figure)} of {figure.layout.title.text or figure.data[0].name}" for figure in drawn if unread(figure)]


@pytest.fixture
def go(tmp_path: Path) -> Callable[..., fedsim.Run]:
    """Return ``go(overrides, seed=..., watch=...)``: run the tiny scenario in a new folder below tmp_path."""
    number = itertools.count(1)

    def run(overrides: Mapping[str, Any] | None = None, **settings: Any) -> fedsim.Run:
        settings.setdefault("out", tmp_path / f"run-{next(number)}")
        return fedsim.run(tiny_table(), overrides=overrides, **settings)

    return run


@pytest.fixture(scope="session", autouse=True)
def _sooner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let the runs of a session share compiled steps, and have their workers forked from one that is warm.

    Processes that tests start share them on disk; this one, whose code tests patch, keeps none there.
    """
    shared_steps.share()
    warm = Warm()
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(stored.FOLDER, str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "fedsim-cache"))
        patch.setattr(stored, "place", lambda: None)
        if hasattr(os, "pidfd_open"):
            patch.setattr(processes, "subprocess", Processes(warm))
        yield
    warm.close()


@pytest.fixture(scope="session")
def crews() -> Iterator[Callable[[int], Workers | None]]:
    """Return ``crews(n)``: n workers that serve many runs, None for one."""
    with ExitStack() as stack:
        yield functools.cache(lambda n: stack.enter_context(closing(Workers(n))) if n > 1 else None)


@pytest.fixture
def hands(crews: Callable[[int], Workers | None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs of this test have their workers from ``crews``."""

    def lent(loaded: Loaded) -> AbstractContextManager[Any]:
        crew = crews(loaded.scenario.engine.workers) if loaded.scenario.engine.executor is None else None
        return opened(loaded) if crew is None else nullcontext(crew)

    monkeypatch.setattr("fedsim.session.opened", lent)


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def scenario_file(tmp_path: Path) -> Callable[..., Path]:
    """Return ``scenario_file(overrides, without=["data"])``: the tiny scenario as a TOML file in tmp_path."""

    def write(overrides: Mapping[str, Any] | None = None, without: tuple[str, ...] = ()) -> Path:
        table = tiny_table(overrides)
        for key in without:
            *path, last = key.split(".")
            below = table
            for part in path:
                below = below[part]
            del below[last]
        path = tmp_path / "tiny.toml"
        path.write_text(_toml_file(table), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def tiny_toml() -> Callable[..., str]:
    """Return ``tiny_toml(overrides)``: the tiny scenario as the text of a scenario file, for fixtures of a wider scope."""
    return lambda overrides=None: _toml_file(tiny_table(overrides))


def _toml_file(table: Table) -> str:
    return "".join(f"{key} = {toml(value)}\n" for key, value in table.items())


def toml(value: Any) -> str:
    """Return *value* as TOML on one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # nan, inf, -inf: TOML writes them as Python does.
    return json.dumps(value)


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """Return ``cli("check", path, "--json")``: the ``fedsim`` command in this process, its exit code and its output."""
    from fedsim.cli import main

    def call(*words: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["fedsim", *map(str, words)])
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        said = capfd.readouterr()
        return Answer(code, said.out, said.err)

    return call


@pytest.fixture
def data_folder() -> Path:
    """Return the folder of real data sets that $FEDSIM_DATA names; without one the test is skipped."""
    root = os.environ.get("FEDSIM_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("needs real data sets: set FEDSIM_DATA to their folder (it may hold mnist/)")
    return Path(root)
