"""The trained model in a run folder: written whole, and read back as arrays or as a module. Knows no row and no score."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.core.errors import RunError, door
from fedsim.core.machine import ALONE
from fedsim.core.types import Params
from fedsim.record import manifest

if TYPE_CHECKING:
    from torch import nn

MODEL_FILE = "model.safetensors"


def save_model(folder: Path, params: Params) -> None:
    """Write *params* as the model in *folder*, atomically. Raises whatever the system or safetensors raise."""
    import numpy as np
    from safetensors.numpy import save

    # safetensors writes the buffer as it lies: an array in Fortran order would read back scrambled.
    manifest.whole(folder / MODEL_FILE, save({name: np.asarray(a, order="C") for name, a in params.items()}))


def stored(folder: Path, about: Mapping[str, Any]) -> Params:
    """Return the parameters that *folder* holds, whoever wrote them, by the manifest *about*. Raises RunError where there are none."""
    from safetensors.numpy import load_file

    path = folder / MODEL_FILE
    if not path.is_file():
        raise RunError(f"{folder}: holds no model (the run is {manifest.status(about)}).")
    with door(f"{path}", "cannot be read:", wrong=RunError):
        found = load_file(path)
    if lacking := [name for name in about["model"]["arrays"] if name not in found]:
        raise RunError(f"{path}: is not the model of this run; it lacks {', '.join(lacking[:3])}.")
    return {name: found[name] for name in about["model"]["arrays"]}


def checked(folder: Path, about: Mapping[str, Any]) -> Params:
    """Return the parameters that the run wrote. Raises RunError where there are none, or others than those."""
    from fedsim.learn.work import digest_of

    params = stored(folder, about)
    content = about["model"].get("content")  # Earlier versions did not say, and a run under way does not.
    if content and digest_of(params) != content:
        raise RunError(f"{folder / MODEL_FILE}: is not the model that this run wrote: its content is not what {manifest.FILE} says.")
    return params


def module(folder: Path, about: Mapping[str, Any], *, trust: bool = False) -> nn.Module:
    """Return the trained model as a torch module, in evaluation mode.

    Raises RunError where the model is code of its own that was recorded elsewhere, and *trust* is not given; or that
    has changed since.
    """
    from fedsim.core import own
    from fedsim.core.keys import Key
    from fedsim.learn.models import build, load_params

    table = dict(about["scenario"]["model"])
    shape, outputs, key = tuple(about["model"]["shape"]), about["model"]["outputs"], Key(about["seed"]).fold("model")
    kind = table.pop("kind")
    beside = manifest.check_trust(about, folder, trust=trust) if ":" in kind else folder
    with door(f"{folder}: its model", "cannot be built:", wrong=RunError):
        with own.beside(beside):
            with ALONE:  # It borrows torch's global generator.
                made = build(kind, table, shape, outputs, key)
        if about["scenario"].get("engine", {}).get("dtype") == "float64":
            made = made.double()
        return load_params(made, checked(folder, about)).eval()
