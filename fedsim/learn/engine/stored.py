"""Compiled steps, and what they cost, kept on disk, each by all that it follows from: a second start of a scenario imports no tracer.

A step follows from model, objective and the batches that it is probed on, by value (``lent.key``), from the code of ``fedsim.learn`` and
the version of torch, and from the processor and the variables by which kernels are chosen. What is read back does the same operations in
the same order (``frozen``), and so gives the same bits. A file that cannot be read, or written, costs no run.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fedsim.learn
from fedsim.core import pinned
from fedsim.core.machine import processor
from fedsim.learn.engine import lent
from fedsim.learn.engine.frozen import Frozen
from fedsim.learn.engine.step import Step
from fedsim.learn.flops import Flops, count
from fedsim.learn.objectives import Objective

FOLDER = "FEDSIM_CACHE"
"""The variable that says where steps are kept, ``off`` for nowhere; else it is ``fedsim`` in the user's folder for caches."""
MOST = 500
"""Files that are kept; the oldest go first. A step takes some 5 to 50 kB."""
CHOOSING = (*pinned.FIXED, *pinned.DROPPED)
"""Variables by which torch's libraries choose their kernels: those that are pinned, or left out, where bits are to be the same anywhere."""


def step(compile_step: Callable[..., Step], model: nn.Module, objective: Objective, x: Tensor, y: Tensor, **settings: Any) -> Step:
    """Return what *compile_step* makes of all that is given, or what it made of the very same before, in this process or another."""
    return lent.step(partial(_stored, compile_step), model, objective, x, y, **settings)


def flops(model: nn.Module, objective: Objective, x: Tensor, y: Tensor) -> Flops:
    """Return what ``flops.count`` counts, or what it counted of the very same before: counting, too, imports the tracer. Raises as it."""

    path = _path(lent.key(model, objective, x, y, {"templates": None}), b"flops") if place() and x.device.type == "cpu" else None
    if path is not None and isinstance(found := _read(path), Flops):
        return found
    made = count(model, objective, x, y)
    if path is not None:
        _keep(path, made)
    return made


def _stored(compile_step: Callable[..., Step], model: nn.Module, objective: Objective, x: Tensor, y: Tensor, **settings: Any) -> Step:
    path = _path(lent.key(model, objective, x, y, settings), b"step") if place() and x.device.type == "cpu" else None
    if path is not None and isinstance(found := _read(path), Frozen):
        return found.thawed()
    made = compile_step(model, objective, x, y, **settings)
    if path is not None and not made.note and (told := Frozen.of(made)) is not None:
        _keep(path, told)
    return made


def _path(key: bytes | None, kind: bytes) -> Path | None:
    """Return where what follows from *key* lies; None where it is kept nowhere."""
    folder = place()
    if folder is None or key is None:
        return None
    return folder / "steps" / hashlib.blake2b(key + kind + _surroundings(), digest_size=16).hexdigest()


def _read(path: Path) -> object:
    with suppress(Exception):  # Torn, of another user, or full of something else: then it is made anew.
        found = pickle.loads(path.read_bytes())
        os.utime(path)
        return found
    return None


def place() -> Path | None:
    """Return the folder in which steps are kept; None for nowhere."""
    said = os.environ.get(FOLDER, "")
    if said.lower() == "off":
        return None
    if said:
        return Path(said)
    with suppress(RuntimeError):  # Nobody's home.
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedsim"
    return None


def _keep(path: Path, told: object) -> None:
    with suppress(OSError, pickle.PicklingError):
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            whole.write_bytes(pickle.dumps(told))
            whole.replace(path)  # At once: another process may be reading.
        finally:
            whole.unlink(missing_ok=True)
        there = sorted(path.parent.iterdir(), key=lambda each: each.stat().st_mtime)
        for old in there[:-MOST]:
            old.unlink(missing_ok=True)


@functools.cache
def _surroundings() -> bytes:
    """Return what stands for all else that a step follows from."""
    mark = hashlib.blake2b(digest_size=32)
    for root in fedsim.learn.__path__:
        for path in sorted(Path(root).rglob("*.py")):
            mark.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    about = (torch.__version__, sys.version, processor(), torch.backends.cpu.get_cpu_capability(), [os.environ.get(n) for n in CHOOSING])
    mark.update(repr(about).encode())
    return mark.digest()
