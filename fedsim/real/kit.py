"""A kit: all that one client needs to answer a message, on disk, so that a process that answers one need build nothing.

Made when a run begins (``outfit``), and read by each process that Flower starts for a message. Knows no scenario.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.core import own
from fedsim.real.keeping import written

if TYPE_CHECKING:
    from fedsim.client.program import Program
    from fedsim.codec import Coding
    from fedsim.flower.apps import Mod
    from fedsim.learn.arithmetic import Arithmetic
    from fedsim.learn.engine.cohort import CohortEngine
    from fedsim.learn.engine.frozen import Frozen
    from fedsim.learn.flops import Flops
    from fedsim.learn.job import Job
    from fedsim.learn.monitor import Monitor
    from fedsim.learn.objectives import Objective
    from fedsim.learn.store import Store

APART_BYTES = 2**20
"""The size from which an array lies in a file of its own, of which no more is read than is looked at."""
_KIT, _STEPS = "kit.pickle", "steps.pickle"


@dataclass(frozen=True)
class Kit:
    """A client's program and order, an engine's parts, and what its replies go through. *mark* says of which run, node and versions.

    *sized* says that its batch sizes are a policy's, *monitor* what is watched of its training. *steps* are those that were compiled
    before, by the kind of batches.
    """

    mark: str
    client: int
    program: Program
    job: Job
    parts: tuple[Any, Objective, Store, int, bool, Arithmetic]
    mods: Sequence[Mod]
    coding: Coding | None
    flops: Flops
    sized: bool
    monitor: Monitor | None = None
    steps: Mapping[Any, Frozen] = field(default_factory=dict[Any, Any])

    def engine(self) -> CohortEngine:
        """Return an engine of these parts, that knows the steps which were compiled before."""
        from fedsim.learn.engine.cohort import CohortEngine

        model, objective, store, chunk, many_sizes, arithmetic = self.parts
        engine = CohortEngine(model, objective, store, chunk=chunk, many_sizes=many_sizes, arithmetic=arithmetic)
        engine.knows({kind: step.thawed() for kind, step in self.steps.items()})
        return engine


class _Packer(pickle.Pickler):
    """Pickles a kit; large arrays go into files of the *folder*."""

    def __init__(self, file: Any, folder: Path) -> None:
        super().__init__(file, protocol=5)
        self._folder, self._known = folder, dict[int, tuple[int, Any]]()

    def persistent_id(self, obj: Any) -> int | None:
        if type(obj) is not np.ndarray or obj.dtype.hasobject or obj.nbytes < APART_BYTES:
            return None
        if id(obj) not in self._known:
            self._known[id(obj)] = len(self._known), obj
            np.save(self._folder / f"array-{len(self._known) - 1}.npy", obj)
        return self._known[id(obj)][0]


class _Unpacker(pickle.Unpickler):
    """Reads what ``_Packer`` wrote; large arrays are mapped, and written to by nobody but us."""

    def __init__(self, file: Any, folder: Path) -> None:
        super().__init__(file)
        self._folder = folder

    def persistent_load(self, pid: Any) -> Any:
        return np.load(self._folder / f"array-{int(pid)}.npy", mmap_mode="c")


def put(kit: Kit, place: Path) -> str:
    """Write *kit* at *place*, in the place of what is there, and return why that could not be; empty where it could."""
    draft = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True, mode=0o700)
        inside = BytesIO()
        _Packer(inside, draft).dump(dataclasses.replace(kit, steps={}))
        (draft / _KIT).write_bytes(pickle.dumps((list(sys.path), dict(own.worlds()), inside.getvalue())))
        (draft / _STEPS).write_bytes(pickle.dumps(dict(kit.steps)))
        shutil.rmtree(place, ignore_errors=True)
        os.replace(draft, place)
    except Exception as error:  # A reader's own object that cannot be pickled, a full disk: then each message builds it anew.
        shutil.rmtree(draft, ignore_errors=True)
        return f"{type(error).__name__}: {error}"
    return ""


def get(place: Path, mark: str) -> Kit | None:
    """Return the kit at *place*; None where there is none, or one of another *mark*."""
    if not (place / _KIT).is_file():
        return None
    path, worlds, inside = pickle.loads((place / _KIT).read_bytes())
    sys.path += [entry for entry in path if entry not in sys.path]
    own.settle(worlds)
    kit = _Unpacker(BytesIO(inside), place).load()
    if kit.mark != mark:
        return None
    return dataclasses.replace(kit, steps=pickle.loads((place / _STEPS).read_bytes()))


def learn(place: Path, kit: Kit, engine: CohortEngine) -> None:
    """Add to the kit at *place* the steps that *engine* has compiled since."""
    from fedsim.learn.engine.frozen import frozen

    fresh = frozen({kind: step for kind, step in engine.compiled.items() if kind not in kit.steps})
    if fresh and place.is_dir():
        written(place / _STEPS, pickle.dumps({**kit.steps, **fresh}))


def drop(place: Path) -> None:
    """Take the kit at *place* away."""
    shutil.rmtree(place, ignore_errors=True)
