"""A disk that is full, a folder that goes away, rights that are taken: every write of a run is made to fail, one at a time."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import fedsim
from conftest import tiny_table
from fedsim.core.errors import FedsimError, RunError
from fedsim.record import journal
from fedsim.record.leaving import Steps
from fedsim.session import Progress

ERRORS = (errno.ENOSPC, errno.EACCES, errno.ENOENT, errno.EROFS, errno.EIO)
LINE = re.compile(r"^fedsim: [^\n]+\n$")


@dataclass
class Disk:
    """What a run does to files below a folder, counted; the one numbered *broken* fails, and after it all where *stays*."""

    root: Path = Path()
    broken: int = 0
    stays: bool = False
    done: list[str] = field(default_factory=list[str])

    def use(self, what: str, path: object) -> None:
        """Count one use, or fail it."""
        name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""  # pyright: ignore[reportUnknownArgumentType]
        if self.broken < 0 or not Path(name).absolute().is_relative_to(self.root):
            return
        self.done.append(f"{what} {Path(name).name}")
        if len(self.done) == self.broken or (self.stays and 0 < self.broken < len(self.done)):
            code = ERRORS[self.broken % len(ERRORS)]
            if what == "sqlite":
                raise sqlite3.OperationalError("database or disk is full" if code == errno.ENOSPC else "disk I/O error")
            raise OSError(code, os.strerror(code), name)


_DISK = Disk(broken=-1)


def _heard(event: str, words: tuple[Any, ...]) -> None:
    """Listen to all that Python, and every library in it, asks of the system."""
    if _DISK.broken < 0:
        return
    if event == "open" and isinstance(words[2], int) and words[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        _DISK.use("open", words[0])
    elif event in ("os.mkdir", "os.rename"):
        _DISK.use(event, words[0])


@pytest.fixture(scope="module", autouse=True)
def listening() -> None:
    """Hooks cannot be taken away again; this one sleeps between tests."""
    sys.addaudithook(_heard)


class _Journal(sqlite3.Connection):
    """A journal on the same disk."""

    def execute(self, *words: Any) -> sqlite3.Cursor:
        _DISK.use("sqlite", self.where)
        return super().execute(*words)

    def executemany(self, *words: Any) -> sqlite3.Cursor:
        cursor = super().executemany(*words)  # The rows are there, and then the disk is full: the worst that can be.
        _DISK.use("sqlite", self.where)
        return cursor

    def commit(self) -> None:
        _DISK.use("sqlite", self.where)
        super().commit()

    where: str = ""


@contextmanager
def disk(root: Path, broken: int, monkeypatch: pytest.MonkeyPatch, *, stays: bool = False) -> Iterator[Disk]:
    """Within, the *broken*-th use of files below *root* fails; 0 is none."""

    def connect(path: Any, **more: Any) -> sqlite3.Connection:
        if more.get("uri"):
            return real(path, **more)
        _DISK.use("open", path)
        file = real(path, factory=_Journal, **more)
        file.where = str(path)
        return file

    def write_bytes(path: Path, content: bytes) -> int:
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])
            _DISK.use("write", path)
            return file.write(content[len(content) // 2 :])

    real = sqlite3.connect
    with monkeypatch.context() as patch:
        patch.setattr(journal.sqlite3, "connect", connect)
        patch.setattr(Path, "write_bytes", write_bytes)
        _DISK.root, _DISK.done, _DISK.stays, _DISK.broken = root.absolute(), [], stays, broken
        try:
            yield _DISK
        finally:
            _DISK.broken = -1


TABLE = {"server.rounds": 2, "clients.count": 2, "model.kind": "logreg", "data.test_fraction": 0.95}


def sound(folder: Path, code: int, said: str, digest: str) -> None:
    """Hold what a run left behind to what is promised of it: one line, and a folder that reads, or says why not."""
    assert (code == 0) == (said == "") and code in (0, 1, 2), (code, said)
    assert code == 0 or LINE.match(said), said
    if folder.exists():
        run = fedsim.load(folder)
        assert run.status == "done" or (code and run.status in ("failed", "running")), (run.status, code)
        if run.status == "done":  # Done is done: its scores, rows and digest are all there.
            assert (digest, 2, 4) == (run.digest, len(run.rounds), len(run.tasks.query("kind == 'train'")))
        else:
            with suppress(RunError):  # The journal may never have been begun: that is said in one line.
                assert len(run.tasks.drop_duplicates(["message"])) == len(run.tasks)


@pytest.fixture(scope="module")
def uses(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], str]:
    """Return all that a run does to its folder, and its digest."""
    root = tmp_path_factory.mktemp("uses")
    patch = pytest.MonkeyPatch()
    with disk(root, 0, patch) as counted:
        run = fedsim.run(tiny_table(TABLE), out=root / "run")
        from fedsim.report.page import write_report

        write_report(run)
    return counted.done, run.digest


def test_the_layer_sees_every_write(uses: tuple[list[str], str]) -> None:
    """Folder, manifest, journal, log, model and report are all among what can be made to fail."""
    words = " ".join(uses[0])

    for part in ("os.mkdir run", "manifest.json", "journal.sqlite", "flower.log", "model.safetensors", "report.html", "os.rename"):
        assert part in words or part.replace(" run", " .run") in words, uses[0]
    assert 25 < len(uses[0]) < 80


@pytest.mark.parametrize("stays", [False, True], ids=["once", "for-good"])
def test_every_write_may_fail(
    uses: tuple[list[str], str],
    stays: bool,
    tmp_path: Path,
    cli: Callable[..., Any],
    scenario_file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever fails, once or with all after it: one line with the right exit code, and a folder that is true as far as it goes."""
    file, digest = scenario_file(TABLE), uses[1]
    safe = 0
    for broken in range(1, len(uses[0]) + 1, 1 if not stays else 3):
        root = tmp_path / f"disk-{broken}"
        root.mkdir()
        with disk(root, broken, monkeypatch, stays=stays):
            answer = cli("run", file, "--out", root / "run", "--quiet")
        sound(root / "run", answer.code, answer.err, digest)
        drafts = [p.name for p in root.rglob(".*") if not stays]
        assert not drafts, (uses[0][broken - 1], drafts)
        safe += (root / "run").exists() and fedsim.load(root / "run").status == "done"
    assert stays or safe >= 4  # Tidying, the model and the report cost no run.


def test_a_step_that_is_not_guarded_is_found(
    uses: tuple[list[str], str],
    tmp_path: Path,
    cli: Callable[..., Any],
    scenario_file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where one step of leaving takes the others with it, the folder of a finished run is not what is promised."""

    def unguarded(self: Steps, what: str, step: Callable[[], Any]) -> bool:
        step()
        return True

    monkeypatch.setattr(Steps, "take", unguarded)
    broken = next(i for i, use in enumerate(uses[0], 1) if "model.safetensors" in use)
    with disk(tmp_path, broken, monkeypatch):
        answer = cli("run", scenario_file(TABLE), "--out", tmp_path / "run", "--quiet")
    assert "running" == fedsim.load(tmp_path / "run").status and answer.code == 1


def away(how: str, folder: Path) -> Callable[[Progress], None]:
    """Return what takes *folder* away after the first round."""

    def watch(told: Progress) -> None:
        if told.round == 1:
            if how == "deleted":
                shutil.rmtree(folder)
            elif how == "renamed":
                folder.rename(folder.with_name("elsewhere"))
            else:
                folder.chmod(0o500)

    return watch


@pytest.mark.parametrize("how", ["deleted", "renamed", "locked"])
def test_a_folder_that_goes_away_is_said(how: str, tmp_path: Path, go: Callable[..., fedsim.Run]) -> None:
    """The line names the folder and what is left of the run."""
    if how == "locked" and os.access("/", os.W_OK):
        pytest.skip("nothing is locked for root")
    folder = tmp_path / "run"
    with pytest.raises(FedsimError) as raised:
        go(TABLE, out=folder, watch=away(how, folder))

    said = str(raised.value)
    assert 1 == len(said.splitlines()) and str(folder) in said, said
    if how == "renamed":
        assert "running" == fedsim.load(tmp_path / "elsewhere").status


def test_a_report_that_cannot_be_written_loses_no_run(
    tmp_path: Path, cli: Callable[..., Any], scenario_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line says that the run is done, and where."""
    from fedsim.report import page

    def refuse(run: fedsim.Run) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", str(run.path / "report.html"))

    monkeypatch.setattr(page, "write_report", refuse)
    answer = cli("run", scenario_file(TABLE), "--out", tmp_path / "run", "--quiet")

    assert (1, "done") == (answer.code, fedsim.load(tmp_path / "run").status)
    assert LINE.match(answer.err) and "the run is done, and safe in" in answer.err
    assert "" == answer.out or "accuracy" not in answer.out


@pytest.mark.parametrize("where", ["long", "link", "file", "below a file", "no rights"])
def test_a_place_is_judged_before_anything_is_built(
    where: str, tmp_path: Path, cli: Callable[..., Any], scenario_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that cannot be is told at once, with exit 2; nothing has been built, and nothing is left."""
    monkeypatch.setattr("fedsim.session.build", lambda *_: pytest.fail("something was built"))
    monkeypatch.chdir(tmp_path)
    words: list[Any] = ["run", scenario_file({"name": "n" * 250} if where == "long" else {}), "--quiet"]
    if where == "link":
        (tmp_path / "runs").symlink_to(tmp_path / "nowhere")
    elif where == "file":
        (tmp_path / "runs").write_text("")
    elif where == "below a file":
        (tmp_path / "file").write_text("")
        words += ["--out", tmp_path / "file" / "below"]
    elif where == "no rights":
        (tmp_path / "shut").mkdir(mode=0o500)
        if os.access(tmp_path / "shut", os.W_OK):
            pytest.skip("nothing is shut for root")
        words += ["--out", tmp_path / "shut" / "run"]
    before = sorted(tmp_path.rglob("*"))
    answer = cli(*words)

    assert 2 == answer.code and LINE.match(answer.err), answer
    named = {
        "long": "name = 'nnnn",
        "link": "runs: is a link to",
        "file": "runs: is a file",
        "below a file": "file: is a file",
        "no rights": "shut: cannot be written",
    }
    assert named[where] in answer.err
    assert before == sorted(tmp_path.rglob("*"))
