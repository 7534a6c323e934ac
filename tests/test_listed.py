"""``fedsim runs``: a line for each run in a folder, whatever became of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.core.errors import RunError
from fedsim.record import manifest
from fedsim.record.listed import listed

COMMAND = str(Path(sys.executable).with_name("fedsim"))


def said(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, "runs", *map(str, words)], capture_output=True, text=True, check=False)


@pytest.fixture
def folder(go: Callable[..., fedsim.Run], tmp_path: Path) -> Path:
    """A folder with a run that is done, one deeper that was killed, one that failed, and one that nobody can read."""
    place, run = tmp_path / "many", go()
    about: dict[str, Any] = manifest.read(run.path)
    gone = {**about["process"], "pid": 2**22 + 1}
    for name, changes in {
        "done": {"started": "2026-01-01T10:00:00+0000"}, "deep.compare/one": {"status": "running", "process": gone},
        "failed": {"status": "failed", "error": "round 2: [it] broke", "started": "2026-01-02T10:00:00+0000"},
    }.items():  # fmt: skip
        (place / name).mkdir(parents=True)
        (place / name / manifest.FILE).write_text(json.dumps({**about, **changes}))
    (place / "done/export/csv").mkdir(parents=True)  # What a run was exported to has its manifest, and is no other run.
    (place / "done/export/csv" / manifest.FILE).write_text(json.dumps(about))
    (place / "torn").mkdir()
    (place / "torn" / manifest.FILE).write_text('{"status": "do')
    (place / "no run").mkdir()
    return place


def test_each_run_is_told_as_it_stands(folder: Path, go: Callable[..., fedsim.Run]) -> None:
    """The newest first; killed, failed and unreadable ones say so; what is no run is none."""
    found, run = listed(folder), go()

    assert ["deep.compare/one", "failed", "done", "torn"] == [each.folder for each in found]
    assert ["killed", "failed", "done", "unreadable"] == [each.status for each in found]
    assert found[2].scores == pytest.approx({name: value for name, value in run.final.items() if name != "rounds"})
    assert (run.final["rounds"], run.manifest["virtual_s"]) == (found[2].round, found[2].virtual_s)
    assert "cannot be read" in found[3].error
    with pytest.raises(RunError, match="is no folder"):
        listed(folder / "nowhere")


def test_an_export_is_no_run(tmp_path: Path, cli: Callable[..., Any]) -> None:
    """Tables that were written beside runs are neither listed nor offered as the newest run, though a manifest lies among them."""
    recorded = Path(__file__).parent / "recorded" / "quickstart"
    shutil.copytree(recorded, tmp_path / "run")
    fedsim.export(tmp_path / "run", "csv", tmp_path / "tables")
    assert (tmp_path / "tables" / "manifest.json").is_file()

    assert ["run"] == [each.folder for each in listed(tmp_path)]
    said = cli("show", tmp_path / "nowhere").err
    assert f"The newest there: {tmp_path / 'run'}." in said, said


def test_the_command(folder: Path) -> None:
    """A table of 80 columns that says why a run broke, one line of JSON, and a line for what is no folder or holds nothing."""
    shown, line = said(folder), json.loads(said(folder, "--json").stdout)

    assert 0 == shown.returncode and max(map(len, shown.stdout.splitlines()[:5])) <= 80
    assert "failed: round 2: [it] broke" in shown.stdout and "deep.compare/one killed" in shown.stdout
    assert ["killed", "failed", "done", "unreadable"] == [each["status"] for each in line["runs"]]
    assert "holds no runs" in said(folder / "no run").stdout
    wrong = said(folder / "nowhere")
    assert (2, "") == (wrong.returncode, wrong.stdout) and "is no folder" in wrong.stderr


def test_a_long_name_is_never_broken(go: Callable[..., fedsim.Run], tmp_path: Path) -> None:
    """A folder whose name fills the terminal stands on one line, to be copied, and its figures beside it, none of them cut."""
    name = f"{'long-' * 12}names.size/10-clients-2s-7"
    go(out=tmp_path / name)
    heading, row = said(tmp_path).stdout.splitlines()

    assert row.startswith(f"{name} ") and "…" not in heading + row
    assert len(row.rstrip()) == len(heading.rstrip()) > 80
