"""Run folders of an earlier version stay readable: recorded once, never written again (``tests/recorded``)."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.record import journal, manifest
from fedsim.report.page import write_report
from fedsim.session import verify

RECORDED = Path(__file__).with_name("recorded")
FINAL = {"quickstart": (0.6016713091922006, 4), "split-digits": (0.8746518105849582, 16), "own": (0.2590529247910863, 3)}
"""Final accuracy and rounds, as they were printed when the folders were recorded."""


@pytest.fixture(params=FINAL)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a recorded folder."""
    return Path(shutil.copytree(RECORDED / request.param, tmp_path / request.param))


def test_an_old_run_is_loaded(old: Path) -> None:
    """Scores, frames and parameters of a folder that an earlier version wrote are what they were."""
    run = fedsim.load(old)

    assert FINAL[old.name] == (run.final["accuracy"], run.final["rounds"])
    assert len(run.tasks) and len(run.rounds) and len(run.metrics)
    assert list(run.params()) == run.manifest["model"]["arrays"]
    assert (len(run.tested) > 0) == (old.name == "split-digits")


FRAMES = ("tasks", "rounds", "metrics", "tested", "alarms", "drifts")


def test_a_table_is_read_once(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a run is asked for its frames and scores, each table of its journal is read once; another run reads again."""
    read: list[str] = []
    whole = journal.read
    monkeypatch.setattr(journal, "read", lambda folder, table: (read.append(table), whole(folder, table))[1])
    for times in (1, 2):
        run = fedsim.load(old)
        _ = [getattr(run, name) for name in FRAMES for _ in range(2)], run.freshness(), run.weights(), run.series("accuracy")
        assert times * ["edges", "metrics", "rounds", "settled", "tasks", "tested", "versions"] == [*sorted(read[:7]), *sorted(read[7:])]


def spoils(read: Callable[[], Any]) -> bool:
    """Return whether changing the frame that *read* hands out, in every way in place, changes the next one."""
    before, frame = read().copy(), read()
    frame["client"] = -7
    frame.iloc[:, 0] = frame.iloc[::-1, 0].to_numpy()
    frame.rename(columns={frame.columns[1]: "mine"}, inplace=True)
    frame.drop(frame.index, inplace=True)
    return not before.equals(read())


@pytest.mark.parametrize("name", FRAMES)
def test_a_callers_frame_is_the_callers(name: str) -> None:
    """Whatever a caller does to a frame, the run hands out the next one as it was; one that handed out its own would not."""
    run = fedsim.load(RECORDED / "split-digits")
    kept = getattr(run, name)

    assert not spoils(lambda: getattr(run, name))
    assert spoils(lambda: kept)


def test_an_old_run_is_shown_and_reported(old: Path) -> None:
    """``fedsim show`` and ``report`` go on working on it."""
    fedsim_command = str(Path(sys.executable).with_name("fedsim"))
    shown = subprocess.run([fedsim_command, "show", str(old)], capture_output=True, text=True, check=False)

    assert 0 == shown.returncode, shown.stderr
    assert f"{FINAL[old.name][0]:.4f}" in shown.stdout
    assert write_report(fedsim.load(old)).stat().st_size > 10_000


def test_an_old_run_is_verified(old: Path, tmp_path: Path) -> None:
    """``verify`` runs it again, with the digest that it had, on a machine like the one it was recorded on."""
    about = manifest.read(old)
    if (about["machine"], about["versions"]) != (manifest.machine(), manifest.versions()):
        pytest.skip(f"recorded on {about['machine']} with {about['versions']}")
    # Where it was recorded is no longer there: the scenario of a run with code of its own lies beside the folders now.
    code = {str(RECORDED / "own_code" / Path(file).name): mark for file, mark in about["code"].items()}
    manifest.write(old, {**about, "folder": str(RECORDED / "own_code"), "code": code})

    assert verify(old, tmp_path / "again", trust=True) is None


def test_an_old_model_is_read(old: Path) -> None:
    """The trained model of an earlier version is a module with the parameters on record."""
    about = manifest.read(old)
    code = {str(RECORDED / "own_code" / Path(file).name): mark for file, mark in about["code"].items()}
    manifest.write(old, {**about, "folder": str(RECORDED / "own_code"), "code": code})
    run = fedsim.load(old)

    assert list(run.params()) == [name for name, _ in run.model(trust=True).named_parameters()]


def test_what_readme_imports_is_there() -> None:
    """The names that README uses are public: another name or signature is a change that users notice."""
    assert {"Run", "RunError", "ScenarioError", "load", "run"} <= set(fedsim.__all__)
    methods = (
        "tasks", "rounds", "metrics", "tested", "alarms", "drifts", "model", "params", "series", "prequential",
        "prequential_curve", "accuracy_matrix", "detection", "recovery", "freshness", "weights", "status", "digest",
    )  # fmt: skip
    assert all(hasattr(fedsim.Run, name) for name in methods)
