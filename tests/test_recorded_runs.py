"""Run folders of an earlier version stay readable: recorded once, never written again (``tests/recorded``)."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fedsim
from fedsim.record import manifest
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
