"""A scenario on real Flower clients: the app that a SuperLink runs, and what starts one here. Knows no virtual time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.real.calibration import Calibration
    from fedsim.real.validation import Validation
    from fedsim.scenario.schema import Scenario
    from fedsim.score.run import Run
    from fedsim.session import Watch


def deploy(
    scenario: str | Path | Mapping[str, Any] | Scenario,
    nodes: int | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    tls: bool = False,
    port: int | None = None,
    time_scale: float = 1.0,
    watch: Watch | None = None,
) -> Run:
    """Run *scenario* on a SuperLink and SuperNodes of this machine and return the run, read from its folder.

    *nodes* takes the place of ``clients.count``, 16 at most; *overrides*, *seed*, *out* and *watch* are as in ``fedsim.run``. With *tls*
    all is encrypted, and only the nodes of this deployment are let in. *port* is the SuperLink's, a free one unless given. Streams run
    on wall time, *time_scale* of their seconds in a real one.

    The run folder is that of a simulation, with wall times and the bits of its parameters. Whatever happens, everything that was
    started has ended when this returns or raises. Raises ScenarioError before anything is started, RunError when the run breaks.
    """
    from fedsim.real.asked import Asked, words_of
    from fedsim.real.local import deployed
    from fedsim.scenario.load import load

    counted = {**(overrides or {}), **({} if nodes is None else {"clients.count": nodes})}
    loaded = load(scenario, counted, seed)
    file = Path(scenario) if isinstance(scenario, str | Path) else None
    settings = words_of(overrides or {}) if file is not None else ()
    return deployed(Asked(loaded, file, settings, seed if file is not None else None, out, port, tls, time_scale), watch)


def calibrate(run: str | Path, *more: str | Path) -> Calibration:
    """Fit devices, links and Flower's transport to the deployed runs in the folders *run* and *more*; ``.plain()`` is the fleet.

    Runs of the same nodes that differ in local work, and in batch size, tell what is fixed from what grows. Raises RunError.
    """
    from fedsim.real.calibration import calibrated

    return calibrated(run, *more)


def retrace(run: str | Path, out: str | Path) -> Run:
    """Run the scenario of the deployed *run* in simulation, in the folder *out*, at the moments at which everything really happened.

    Its parameters, and what its clients predicted, are those of *run*, to the bit. Raises RunError where the simulation goes another
    way, or *run* does not say enough.
    """
    from fedsim.real.retracing import retraced

    return retraced(run, out)


def validate(
    scenario: str | Path | Mapping[str, Any] | Scenario,
    nodes: int | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
) -> Validation:
    """Simulate and deploy *scenario* with *nodes* nodes, and return whether they agree; arguments as in ``fedsim.deploy``.

    All runs stand in *out*, ``runs/NAME.validate`` unless given. Raises ScenarioError before anything is started, RunError when one breaks.
    """
    from fedsim.real.asked import Asked
    from fedsim.real.validation import validated
    from fedsim.scenario.load import load

    loaded = load(scenario, {**(overrides or {}), **({} if nodes is None else {"clients.count": nodes})}, seed)
    return validated(Asked(loaded), Path(out) if out is not None else Path("runs") / f"{loaded.scenario.name}.validate")
