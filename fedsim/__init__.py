"""fedsim: a federated and online learning simulator. Virtual time, real training, reproducible bit for bit.

Importing it is cheap: torch and Flower come in when the first run needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedsim.core.errors import FedsimError, RunError, ScenarioError
from fedsim.core.warned import spare_dependencies

if TYPE_CHECKING:
    from fedsim import laws, plot
    from fedsim.advising import advise
    from fedsim.comparing import compare
    from fedsim.core.keys import Key
    from fedsim.exporting import export
    from fedsim.foreign.session import run_app
    from fedsim.live.following import watch
    from fedsim.real import calibrate, deploy, retrace, validate
    from fedsim.running import run
    from fedsim.score.run import Run, load
    from fedsim.sizing import size
    from fedsim.studies import study
    from fedsim.sweeping import sweep

__all__ = [
    "FedsimError", "Key", "Run", "RunError", "ScenarioError", "advise", "calibrate", "compare", "deploy", "export", "laws", "load",
    "plot", "retrace", "run", "run_app", "size", "study", "sweep", "validate", "watch",
]  # fmt: skip

_LATE = {
    "Key": "fedsim.core.keys", "Run": "fedsim.score.run", "advise": "fedsim.advising", "calibrate": "fedsim.real",
    "compare": "fedsim.comparing", "deploy": "fedsim.real", "export": "fedsim.exporting", "laws": "fedsim.laws", "plot": "fedsim.plot",
    "retrace": "fedsim.real", "validate": "fedsim.real",
    "load": "fedsim.score.run", "run": "fedsim.running", "run_app": "fedsim.foreign.session", "size": "fedsim.sizing",
    "study": "fedsim.studies", "sweep": "fedsim.sweeping", "watch": "fedsim.live.following",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
    import warnings
    from importlib import import_module

    with warnings.catch_warnings():
        spare_dependencies()
        module = import_module(_LATE[name])
        value = module if name in ("laws", "plot") else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
