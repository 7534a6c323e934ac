"""A run's folder while the run goes, and as it is left, whatever happens. Knows no run: that tells what it is and where it stands."""

from __future__ import annotations

import sqlite3
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fedsim.core import own
from fedsim.core.errors import FedsimError, RunError, reason
from fedsim.core.types import Params
from fedsim.learn.work import digest_of
from fedsim.record import manifest
from fedsim.record.journal import FILE as JOURNAL
from fedsim.record.journal import Journal
from fedsim.record.leaving import Interrupted, Patience, Pruned, Spent, Steps, spoken
from fedsim.record.model import MODEL_FILE, save_model
from fedsim.record.place import take_place

MANIFEST_WALL_S = 2.0
"""How stale the manifest of a run that is going may be."""


class Goes(Protocol):
    """A run, as far as its folder is concerned."""

    round: int
    """The last round that is over."""

    def drive(self) -> None:
        """Run to the end; the folder and its journal are there."""
        ...

    def where(self) -> str:
        """Return where the run is, to be said before what broke there; empty where that says nothing."""
        ...

    def settle(self) -> None:
        """Settle what was under way when the run broke."""
        ...

    def last(self) -> tuple[Params, Mapping[str, Any]]:
        """Return the arrays that the run came to, and what a seal adds to them; none where it came to none."""
        ...

    def tidy(self) -> None:
        """Put in order what else lies in the folder."""
        ...

    def manifest(self, status: str, error: str = "") -> dict[str, Any]:
        """Return what the manifest says."""
        ...


@dataclass
class Going:
    """The folder of *run*, from its first manifest to its last; *opened* is its journal, once there is a folder.

    *late*: what is wrong with a reader's words may only show while the run goes, and stays a ScenarioError then.
    """

    run: Goes
    late: bool = False
    folder: Path = Path()
    opened: Journal | None = None
    _told: float = field(default=0.0, init=False)

    @property
    def journal(self) -> Journal:
        """Return the run's journal. Raises RunError before there is one."""
        if self.opened is None:
            raise RunError("something was to be recorded before there was a run folder. This is a defect of fedsim.")
        return self.opened

    def go(self, name: str, seed: int, out: str | Path | None) -> None:
        """Run to the end, and leave a folder that is readable whatever happens.

        Raises RunError where the run breaks, Interrupted after Ctrl-C or a budget, Pruned where whoever watches has seen enough; a run's
        own FedsimError goes through as it is.
        """
        status, error = "failed", ""
        patience = Patience()
        with patience.watching():
            self.folder = take_place(name, seed, out, self._first)
            try:
                self.opened = Journal(self.folder)
                self.run.drive()
                status = "done"
            except Pruned as enough:
                status, error = "pruned", f"pruned after round {self.run.round}: {enough}"
                raise Pruned(error) from None
            except KeyboardInterrupt as stopped:
                spent = f", at the end of {stopped}" if isinstance(stopped, Spent) else ""
                status, error = "interrupted", f"interrupted after round {self.run.round}{spent}"
                raise Interrupted(f"{error}; what was recorded until then is safe in {self.folder}.") from None
            except BaseException as broken:  # A strategy, a model, a plug-in, a disk, even SystemExit: not ours to foresee, ours to report.
                error = self._said(broken)
                if isinstance(broken, FedsimError) and broken.__cause__ is None:  # Ours throughout.
                    raise
                if isinstance(broken, OSError | sqlite3.Error):  # A disk: no story but what was recorded.
                    raise RunError(f"{error} What was recorded until then is in {self.folder}.") from broken
                kind = type(broken) if self.late and isinstance(broken, FedsimError) else RunError
                raise kind(f"{error}{self._story()}") from broken
            finally:
                patience.leaving = True
                self._leave(status, error)
        if patience.kept and status == "done":
            raise Interrupted(f"interrupted; the run is done, and safe in {self.folder}.")

    def tell(self) -> None:
        """Write the manifest now and then, so that a run that is killed has said how far it came."""
        if time.monotonic() - self._told > MANIFEST_WALL_S:
            with suppress(OSError):  # Next time, or at the end: that is told then.
                manifest.write(self.folder, self.run.manifest("running"))
            self._told = time.monotonic()

    def close(self) -> None:
        """Let go of the run, which holds this."""
        del self.run

    def _first(self, folder: Path) -> None:
        """Write the first manifest in *folder*, which may not have the run's name yet."""
        self.folder = folder
        manifest.write(folder, self.run.manifest("running"))

    def _said(self, broken: BaseException) -> str:
        if isinstance(broken, FedsimError):
            return str(broken)
        at = f"{where}: " if (where := self.run.where()) else ""
        if isinstance(broken, sqlite3.Error):
            return f"{at}{self.folder / JOURNAL}: cannot be written ({broken})."
        if isinstance(broken, OSError) and broken.filename:
            return f"{at}{broken.filename}: {spoken(broken)}."
        place = own.where(broken)
        return f"{at}{reason(broken)}{f' ({place})' if place else ''}"

    def _story(self) -> str:
        """Write the traceback into the folder, where that can be, and return the words that name it."""
        file = self.folder / "traceback.txt"
        told = Steps().take("", lambda: manifest.whole(file, traceback.format_exc()))
        return f" (the whole story is in {file})" if told else ""

    def _leave(self, status: str, error: str) -> None:
        """Leave the folder as readable as can be: each step by itself, what a reader needs first, tidying last."""
        steps, journal, run = Steps(), self.opened, self.run
        if status != "done":
            steps.take("what was under way could not be settled", run.settle)
        arrays, extras = run.last()
        if journal is not None:
            journal.seal(arrays, extras)
            if not steps.take(f"{self.folder / JOURNAL}: its last rows could not be written", journal.flush) and status == "done":
                status, error = "failed", steps.lost[-1]
        if journal is not None and status == "done" and not (self.folder / JOURNAL).is_file():
            status, error = "failed", f"{self.folder / JOURNAL}: is gone: the run folder was moved or emptied while the run went."
            steps.lost.append(error)
        saved = bool(arrays) and steps.take(
            f"{self.folder / MODEL_FILE}: the model could not be written; all else is in the run folder",
            lambda: save_model(self.folder, arrays),
        )
        steps.take("", run.tidy)
        about = run.manifest(status, error)
        about["model"] |= {"content": digest_of(arrays)} if saved else {}
        last = {**about, "notes": [*about["notes"], *steps.lost]}
        written = steps.take(f"{self.folder / manifest.FILE}: could not be written", lambda: manifest.write(self.folder, last))
        if journal is not None:
            steps.take("", journal.close)
        if not written:
            kept = f" What was recorded is safe in {self.folder}." if self.folder.is_dir() else " The folder is gone, and the run with it."
            raise RunError(f"{next(said for said in steps.lost if manifest.FILE in said)}{kept}")
        if status == "failed" and error in steps.lost:
            raise RunError(error)
