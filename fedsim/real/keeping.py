"""Where a node keeps what its client carries on: in Flower's own state while that is small, in files of its own beyond. Knows no task.

A file is written whole or not at all, by a name of its own each time, and the state then names it: whoever is killed at any moment
leaves what was there before, or what is there now.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from flwr.app import ConfigRecord, Context

from fedsim.client.kept import Kept
from fedsim.core.errors import RunError
from fedsim.flower import records

SMALL_BYTES = 2**20
"""What Flower's own state of a client holds at most: it travels between SuperNode and process with every message."""
_NAME = "fedsim-kept"
_STATES = 2
"""How many states of a client lie there: the one that Flower knows of, and the one that it may not know of yet."""


def written(path: Path, content: bytes) -> None:
    """Write *content* to *path*, so that a reader sees the file of before or the new one, whatever ends us, and it outlives the machine."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
        with suppress(OSError):  # Not every system lets a folder be opened.
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise


@dataclass(frozen=True, slots=True)
class FileKeeping:
    """Keeps it in files of *folder*, named by *run* and *client*: all of it where the node names the folder (*always*), else what is large.

    A node that is started again, and that Flower knows nothing of, finds the newest of its run and client there.
    """

    folder: Path
    run: int
    client: int
    always: bool

    def kept(self, context: Context) -> Kept:
        """Return what is kept. Raises RunError where what Flower's state names is gone, or another."""
        said: Any = context.state.config_records.get(_NAME)
        if said is not None:
            return self._read(cast(Mapping[str, Any], said))
        kept = records.kept_of(context.state)
        return self._newest() if kept == Kept() else kept

    def keep(self, context: Context, kept: Kept) -> None:
        """Keep it. Raises RunError where the disk does not take it."""
        packed = kept.packed()
        if not self.always and len(packed) <= SMALL_BYTES:
            records.keep(context.state, kept)
            context.state.pop(_NAME, None)
            self._clear(but=0)
            return
        path = self.folder / f"{self._stem}{kept.trained + kept.evaluated:09d}.kept"
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            written(path, packed)
        except OSError as error:
            raise RunError(f"{error.filename or path}: what client {self.client} keeps cannot be written ({error.strerror}).") from None
        records.forget(context.state)
        context.state[_NAME] = ConfigRecord({"file": path.name, "hash": _hash(packed)})
        self._clear(but=_STATES)

    def forget(self) -> None:
        """Take all of it away, where nobody asked for the files: the run is over."""
        if not self.always:
            self._clear(but=0)

    @property
    def _stem(self) -> str:
        return f"{self.run}-{self.client}-"

    @property
    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self._stem}*.kept"))

    def _clear(self, but: int) -> None:
        for path in self._files[: -but or None]:
            with suppress(OSError):
                path.unlink()

    def _read(self, said: Mapping[str, Any]) -> Kept:
        path = self.folder / str(said["file"])
        try:
            packed = path.read_bytes()
        except OSError as error:
            raise RunError(f"{path}: what client {self.client} keeps cannot be read ({error.strerror}).") from None
        if _hash(packed) != said["hash"]:
            raise RunError(f"{path}: is not what client {self.client} kept: another process wrote it, or it is damaged.")
        return Kept.unpacked(packed)

    def _newest(self) -> Kept:
        """Return the newest state that is whole, of a run that Flower's state knows nothing of; nothing where there is none."""
        for path in reversed(self._files):
            with suppress(OSError, RunError):
                return Kept.unpacked(path.read_bytes())
        return Kept()


def _hash(packed: bytes) -> str:
    return hashlib.blake2b(packed, digest_size=16).hexdigest()
