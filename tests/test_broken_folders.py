"""Run folders that are cut short, flipped, edited or foreign: one line that names the file, whoever reads, and never a traceback."""

import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedsim
from conftest import tiny_table
from fedsim import show
from fedsim.core.errors import FedsimError, RunError
from fedsim.record import journal, manifest
from fedsim.report.page import write_report
from fedsim.score.compare import difference
from fedsim.session import verify

TABLE = {
    "stream": {"arrivals": {"kind": "poisson", "per_s": 0.5}, "items": 8}, "clients.count": 3, "server.rounds": 2,
    "clients.detector": {"kind": "ddm"}, "server.strategy": {"kind": "FedAvg"},
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small run on streams."""
    return fedsim.run(tiny_table(TABLE), out=tmp_path_factory.mktemp("whole") / "run").path


@pytest.fixture(scope="module")
def again(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that ``verify`` compares with."""
    folder = tmp_path_factory.mktemp("again") / "run"
    assert verify(whole, folder) is None
    return folder


def reads(folder: Path) -> None:
    """Read all of *folder* that a reader may ask for."""
    run = fedsim.load(folder)
    _ = show.summary_line(run), run.tasks, run.rounds, run.metrics, run.prequential(), run.freshness(), run.detection()
    show.summary(run)
    write_report(run)
    run.model()


READERS: dict[str, Callable[[Path], Any]] = {
    "show": lambda folder: show.summary(fedsim.load(folder)), "line": lambda folder: show.summary_line(fedsim.load(folder)),
    "report": lambda folder: write_report(fedsim.load(folder)), "model": lambda folder: fedsim.load(folder).model(),
    "tested": lambda folder: fedsim.load(folder).prequential(), "rounds": lambda folder: fedsim.load(folder).rounds,
}  # fmt: skip


def test_verify_reads_before_it_runs(whole: Path, tmp_path: Path) -> None:
    """A run without rows cannot be verified, which is told before it is run a second time."""
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / journal.FILE).unlink()

    with pytest.raises(RunError, match=r"there is no journal\.sqlite"):
        verify(folder, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_whole_folder_is_read(whole: Path) -> None:
    """Nothing of a sound folder is refused."""
    reads(whole)


def test_a_flipped_bit_of_the_model_is_seen(whole: Path, tmp_path: Path) -> None:
    """Parameters that are not those that the run wrote are refused by name, though the file reads well."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    broken = bytearray((whole / "model.safetensors").read_bytes())
    broken[-5] ^= 0x40
    (folder / "model.safetensors").write_bytes(bytes(broken))

    with pytest.raises(FedsimError, match=r"model.safetensors: is not the model that this run wrote"):
        fedsim.load(folder).model()


@pytest.mark.parametrize("file", [manifest.FILE, journal.FILE, "model.safetensors"])
@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_file_is_one_line(whole: Path, tmp_path: Path, file: str, reader: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut at any place, or with bits flipped, a file is read, or refused in one line."""
    draw = random.Random(f"{file} {reader}")
    content = (whole / file).read_bytes()
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    for number in range(12):
        broken = bytearray(content)
        if number % 3 == 0:
            broken = broken[: draw.randrange(len(broken))]
        else:
            for _ in range(1 if number % 3 == 1 else 40):
                broken[draw.randrange(len(broken))] ^= 1 << draw.randrange(8)
        (folder / file).write_bytes(bytes(broken))
        try:
            READERS[reader](folder)
        except FedsimError as error:
            assert 1 == len(str(error).splitlines()) and str(folder) in str(error)


def edited(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Have *change* edit the manifest in *folder*."""
    about = json.loads((folder / manifest.FILE).read_text())
    change(about)
    (folder / manifest.FILE).write_text(json.dumps(about))
    return folder


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no scenario": lambda about: about.pop("scenario"),
    "status unknown": lambda about: about.update(status="paused"),
    "more bytes than there are": lambda about: about.update(bytes_down=10**400),
    "bytes as text": lambda about: about.update(bytes_up="many"),
    "a model without shape": lambda about: about["model"].pop("shape"),
    "no clients": lambda about: about["scenario"]["clients"].update(count=None),
    "final is a list": lambda about: about.update(final=[0.9]),
    "a digest that is none": lambda about: about.update(digest="x" * 64),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_manifest_names_what_is_wrong(whole: Path, tmp_path: Path, wrong: str) -> None:
    """Whatever a reader leans on is looked at before: the line names the file, and the key in it."""
    shutil.copytree(whole, folder := tmp_path / "run")
    with pytest.raises(RunError, match="manifest.json: is no manifest that this version can read"):
        fedsim.load(edited(folder, WRONG[wrong]))


def test_a_key_of_another_version_is_said_and_kept(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``show`` says which key of the scenario it does not know, the manifest has it as it is, and ``verify`` does not guess."""
    shutil.copytree(whole, folder := tmp_path / "run")
    edited(folder, lambda about: about["scenario"]["clients"].update(batteries={"kind": "small"}))
    show.summary(fedsim.load(folder))

    assert "does not know clients.batteries" in " ".join(capsys.readouterr().out.split())
    assert {"kind": "small"} == fedsim.load(folder).manifest["scenario"]["clients"]["batteries"]
    with pytest.raises(RunError, match="does not know clients.batteries"):
        verify(folder, tmp_path / "again")


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "final.accuracy": lambda about: about["final"].update(accuracy=0.99), "virtual_s": lambda about: about.update(virtual_s=1.0),
    "bytes_up": lambda about: about.update(bytes_up=1), "digest": lambda about: about.update(digest="0" * 64),
    "hindsight": lambda about: about.update(hindsight=True),
    "final.f1": lambda about: about["final"].update(f1=1.0), "seed": lambda about: about.update(seed=99),
    "model.parameters": lambda about: about["model"].update(parameters=9),
    "privacy.noise_std": lambda about: about.update(privacy={"noise_std": 2.0}),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_verify_checks_what_show_prints(whole: Path, again: Path, tmp_path: Path, edit: str) -> None:
    """An edited score, time, byte count, size or digest of the manifest is named, with what comes out."""
    shutil.copytree(whole, folder := tmp_path / "run")
    found = difference(fedsim.load(edited(folder, EDITS[edit])), fedsim.load(again))

    assert found is not None and found.startswith(f"{edit} in manifest.json was")


def test_a_sound_folder_verifies(whole: Path, again: Path) -> None:
    """All figures of a run that nobody touched come out again."""
    assert difference(fedsim.load(whole), fedsim.load(again)) is None


def test_a_journal_of_another_version_is_said(whole: Path, tmp_path: Path) -> None:
    """A table without a column, and a cell of the wrong type, are named."""
    shutil.copytree(whole, folder := tmp_path / "run")
    with sqlite3.connect(folder / journal.FILE) as file:
        file.execute("UPDATE tasks SET examples = 'many' WHERE rowid = 2")
    with pytest.raises(RunError, match="table tasks is damaged in row 2"):
        _ = fedsim.load(folder).tasks
    with sqlite3.connect(folder / journal.FILE) as file:
        file.execute("ALTER TABLE tasks DROP COLUMN examples")
    with pytest.raises(RunError, match="table tasks has no examples"):
        _ = fedsim.load(folder).tasks
