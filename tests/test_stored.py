"""Compiled steps on disk: a second start traces nothing and gives the same bits; what is torn, stale or a stranger's is made anew."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.learn.engine import step, steps, stored
from fedsim.learn.engine.frozen import Frozen
from fedsim.learn.flops import Flops

MLP = {"model": {"kind": "mlp", "hidden": [8], "dropout": 0.2}, "training.batch_size": 7}
CODE = """
import json, sys
import fedsim
run = fedsim.run(json.loads(sys.argv[1]), out=sys.argv[2])
print(run.digest, run.metrics_digest, "torch._dynamo" in sys.modules)
"""


def test_a_second_start_traces_nothing_and_has_the_same_digests(tiny: Callable[..., Any], tmp_path: Path) -> None:
    """Of two processes the first keeps its steps and the second finds them; both have the digests of this one, which keeps none."""
    told: list[list[str]] = []
    for number in range(2):
        given = [sys.executable, "-c", CODE, json.dumps(tiny(MLP)), str(tmp_path / f"run-{number}")]
        environment = {**os.environ, stored.FOLDER: str(tmp_path / "cache"), "PYTHONHASHSEED": str(number)}
        told.append(subprocess.run(given, stdout=subprocess.PIPE, text=True, env=environment, timeout=240, check=True).stdout.split())
    here = fedsim.run(tiny(MLP), out=tmp_path / "here")

    assert ["True", "False"] == [each[2] for each in told]
    assert [here.digest, here.metrics_digest] == told[0][:2] == told[1][:2]


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count what is compiled; steps are kept below *tmp_path*."""
    found, compile_step = list[int](), step.compile_step
    monkeypatch.setattr(steps, "compile_step", lambda *a, **more: (found.append(1), compile_step(*a, **more))[1])
    monkeypatch.setattr(stored, "place", lambda: tmp_path / "cache")
    return found


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "steps").iterdir())


def test_what_cannot_be_right_is_made_anew(
    go: Callable[..., fedsim.Run], compiled: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another batch, seed, torch or code takes steps of its own; a torn file, or one of something else, is compiled again and mended."""
    first = go(MLP)
    files = {path: path.read_bytes() for path in kept(tmp_path)}
    steps = len(compiled)
    assert len(files) == steps + 1 > 1  # And what it costs.
    for spoil in (lambda whole: whole[: len(whole) // 2], lambda _: b"", lambda _: pickle.dumps("a step")):
        for path, whole in files.items():
            path.write_bytes(spoil(whole))
        compiled.clear()
        assert first.digest == go(MLP).digest and steps == len(compiled)
        assert {Frozen, Flops} == {type(pickle.loads(path.read_bytes())) for path in files}
    compiled.clear()
    assert first.digest == go(MLP).digest and not compiled
    for other in ({"training.batch_size": 8}, {"model.hidden": [9]}):
        compiled.clear()
        assert go({**MLP, **other}).digest != first.digest and compiled
    monkeypatch.setattr(stored, "_surroundings", lambda: b"another torch")
    compiled.clear()
    assert first.digest == go(MLP).digest and steps == len(compiled)


def test_the_cache_costs_no_run_and_no_disk(
    go: Callable[..., fedsim.Run], compiled: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be written the run goes on without; beyond so many steps the oldest go; nothing half is left."""
    monkeypatch.setattr(stored, "MOST", 1)
    alone = go(MLP)
    go({**MLP, "training.batch_size": 8})
    assert len(compiled) > 1 and 1 == len(kept(tmp_path))
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(stored, "place", lambda: tmp_path / "file")
    assert alone.digest == go(MLP).digest


def test_the_variable_says_where(tmp_path: Path) -> None:
    """FEDSIM_CACHE names the folder, or says off; else it is the user's own for caches."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value, place in ((stored.FOLDER, "off", None), (stored.FOLDER, str(tmp_path), tmp_path)):
            patch.setenv(name, value)
            assert place == stored_place()
        patch.delenv(stored.FOLDER)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
        assert tmp_path / "mine" / "fedsim" == stored_place()


stored_place = stored.place
