"""What a node keeps: in Flower's state while it is small, in files beyond, and whole whatever ends the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from nodes_here import through_wire

import fedsim
from fedsim.client.kept import Kept
from fedsim.flower import records
from fedsim.real import keeping
from fedsim.real.keeping import FileKeeping, written


def context() -> Context:
    return Context(5, 9, {}, RecordDict(), {})


def of(trained: int, size: int = 4) -> Kept:
    return Kept(trained=trained, parts={"local": {"weight": np.full(size, float(trained))}})


def same(one: Kept, two: Kept) -> bool:
    return one.packed() == two.packed()


def test_what_is_small_stays_in_flowers_state(tmp_path: Path) -> None:
    """Up to 1 MiB nothing is written; beyond it a file is, the state names it, and it goes where it is small again."""
    keeps, there, large = FileKeeping(tmp_path / "a", 5, 2, always=False), context(), of(2, 200_000)
    keeps.keep(there, of(1))
    assert same(of(1), keeps.kept(there)) and not (tmp_path / "a").exists()
    keeps.keep(there, large)
    there.state = through_wire(there.state)
    assert same(large, keeps.kept(there)) and ["5-2-000000002.kept"] == [p.name for p in (tmp_path / "a").iterdir()]
    assert sum(record.count_bytes() for record in there.state.values()) < 200 and same(Kept(), records.kept_of(there.state))
    keeps.keep(there, of(3))
    assert same(of(3), keeps.kept(there)) and [] == list((tmp_path / "a").iterdir())


def test_with_a_folder_of_its_own_all_of_it_lies_there(tmp_path: Path) -> None:
    """Where state-dir is named a file holds it whatever its size: two at most, and a node that knows nothing finds the newest."""
    keeps, there = FileKeeping(tmp_path, 5, 2, always=True), context()
    for trained in (1, 2, 3):
        keeps.keep(there, of(trained))
    assert ["5-2-000000002.kept", "5-2-000000003.kept"] == sorted(p.name for p in tmp_path.iterdir())
    assert same(of(3), keeps.kept(context()))
    assert same(Kept(), FileKeeping(tmp_path, 6, 2, always=True).kept(context()))  # Another run.
    assert same(Kept(), FileKeeping(tmp_path, 5, 1, always=True).kept(context()))  # Another client.
    keeps.forget()
    assert 2 == len(list(tmp_path.iterdir()))


def test_what_flower_knows_of_counts(tmp_path: Path) -> None:
    """A state that was written, and that Flower never heard of, is not taken where Flower knows of one."""
    keeps, there = FileKeeping(tmp_path, 5, 2, always=True), context()
    keeps.keep(there, of(1))
    before = through_wire(there.state)
    keeps.keep(there, of(2))  # And then the process was killed.
    there.state = before
    assert same(of(1), keeps.kept(there))


def test_what_is_damaged_or_gone_is_said(tmp_path: Path) -> None:
    """A file that is not what was kept, or not there, is an error that names it; a restarted node takes the one before."""
    keeps, there = FileKeeping(tmp_path, 5, 2, always=True), context()
    keeps.keep(there, of(1))
    keeps.keep(there, of(2))
    path = tmp_path / "5-2-000000002.kept"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(fedsim.RunError, match=r"000000002\.kept: is not what client 2 kept"):
        keeps.kept(there)
    assert same(of(1), keeps.kept(context()))
    path.unlink()
    with pytest.raises(fedsim.RunError, match=r"000000002\.kept: what client 2 keeps cannot be read \(No such file"):
        keeps.kept(there)
    (tmp_path / "file").write_text("")
    with pytest.raises(fedsim.RunError, match="cannot be written"):
        FileKeeping(tmp_path / "file" / "below", 5, 2, always=True).keep(there, of(3))


_KILLED = """
import os, sys
import numpy as np
from pathlib import Path
from flwr.app import Context, RecordDict
from fedsim.client.kept import Kept
from fedsim.real import keeping
step, place = sys.argv[1], Path(sys.argv[2])
def of(trained):
    return Kept(trained=trained, parts={"local": {"weight": np.full(200_000, float(trained))}})
keeps, there = keeping.FileKeeping(place, 5, 2, always=True), Context(5, 9, {}, RecordDict(), {})
keeps.keep(there, of(1))
real = getattr(os, step)
def killed(*given):
    if step == "replace":
        os.kill(os.getpid(), 9)
    found = real(*given)
    os.kill(os.getpid(), 9)
setattr(os, step, killed)
if step == "write":
    real_open = Path.open
    def opened(self, *given, **more):
        file = real_open(self, *given, **more)
        file.write(of(2).packed()[:1000])
        file.flush()
        os.kill(os.getpid(), 9)
    Path.open = opened
keeps.keep(there, of(2))
"""


@pytest.mark.parametrize(("step", "left"), [("write", 1), ("fsync", 1), ("replace", 1), ("unlink", 2)])
def test_a_kill_in_the_middle_leaves_a_whole_state(step: str, left: int, tmp_path: Path) -> None:
    """Killed while it writes, before and after the file gets its name: a restarted node finds what was kept before, or now, whole."""
    if step == "unlink":
        for number in (7, 8):  # So that something is cleared away.
            (tmp_path / f"5-2-00000000{number}.kept").write_bytes(of(0).packed())
            (tmp_path / f"5-2-00000000{number}.kept").rename(tmp_path / f"5-2-00000000{number - 7}.kept")
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, step, str(tmp_path)], check=False, capture_output=True, text=True, env=dict(os.environ),
        cwd=Path(fedsim.__file__).parents[1],
    )  # fmt: skip
    assert -9 == killed.returncode, killed.stderr
    assert left == FileKeeping(tmp_path, 5, 2, always=True).kept(context()).trained


def test_a_full_disk_leaves_the_file_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing that fails leaves the old content, and no draft."""
    path = tmp_path / "a"
    written(path, b"old")

    def full(_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keeping.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        written(path, b"new")
    assert b"old" == path.read_bytes() and ["a"] == [p.name for p in tmp_path.iterdir()]
