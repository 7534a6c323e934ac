"""Running a foreign ServerApp on a virtual grid: its clocks, its draws, and what is heard of its strategies meanwhile.

Knows Flower's servers; writes no folder.
"""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import Strategy

from fedsim.core.errors import FedsimError, RunError, reason
from fedsim.core.keys import Key
from fedsim.core.types import Params
from fedsim.flower import compat, compat_app, records
from fedsim.foreign.app import SERVER, App
from fedsim.foreign.clock import Clock, virtual_clock
from fedsim.foreign.grid import AppGrid
from fedsim.foreign.loading import loaded, seed_globals, where

HOSTS = frozenset({"fedsim", "numpy", "scipy", "torch", "sklearn", "joblib", "pandas", "simpy", "rich", "tqdm"})
"""Libraries that read clocks for their own purposes, Python's own apart."""


class Ears(Protocol):
    """Hears what a server tells of its rounds."""

    def metric(self, server_round: int, scope: str, name: str, value: float) -> None:
        """Hear a score."""
        ...

    def over(self, server_round: int) -> None:
        """Hear that a round's steps are done."""
        ...


@dataclass
class Served:
    """What a server leaves: the arrays that it *ended* with, where it said so, what its strategies are called, and its *clock*."""

    ended: Params | None = None
    strategies: list[str] = field(default_factory=list[str])
    clock: Clock | None = None


def serve(app: App, grid: AppGrid, key: Key, ears: Ears, served: Served) -> None:
    """Load the ServerApp of *app*, run it on *grid* to its end, and write into *served*. Raises ScenarioError, RunError where it breaks."""
    inner = grid.inner

    def heard(step: str, server_round: int, result: Any) -> None:
        with clock.host():
            _heard(ears, grid, step, server_round, result)

    def ended(arrays: Any) -> None:
        served.ended = params_of(arrays)

    def scored(server_round: int, found: MetricRecord) -> None:
        with clock.host():
            _tell(ears, server_round, "central", found)

    def around(strategy: Strategy, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        if (kind := type(strategy).__name__) not in served.strategies:
            served.strategies.append(kind)
        return _agreeing(strategy, step) if name == "aggregate_train" else step

    with ExitStack() as stack:
        stack.enter_context(_modules_of(app.folder))
        stack.enter_context(compat.virtual_sleep(inner.wait_for_others))
        stack.enter_context(compat_app.heard_strategies(key, heard, around, scored, ended))
        stack.enter_context(compat_app.legacy_server(key, heard, ended, inner.wait_for_others))
        clock = stack.enter_context(virtual_clock(lambda: inner.now, grid.sleep, keeps_the_hosts_clock))
        served.clock = clock
        seed_globals(key.fold("server", "load").seed64())
        server = loaded(SERVER, app.server, app.folder, ServerApp)
        seed_globals(key.fold("server").seed64())
        context = Context(run_id=1, node_id=compat.SERVER_NODE, node_config={}, state=RecordDict(), run_config=dict(app.run_config))
        try:
            server(grid, context)
        except (FedsimError, KeyboardInterrupt):
            raise
        except BaseException as error:  # SystemExit too: a server that leaves so has not come to its end.
            place = where(error, app.folder)
            raise RunError(f"the ServerApp raised {reason(error).rstrip('.')}{f' ({place})' if place else ''}.") from error


def params_of(arrays: Any) -> Params | None:
    """Return *arrays*, a record or a legacy server's parameters, as numpy's; None where they are of another kind."""
    try:
        if isinstance(arrays, ArrayRecord):
            return records.params_of(arrays)
        return {str(i): np.load(io.BytesIO(tensor), allow_pickle=False) for i, tensor in enumerate(arrays.tensors)}
    except Exception:  # A serialisation of the app's own.
        return None


@functools.cache
def keeps_the_hosts_clock(module: str) -> bool:
    """Return whether what *module* does takes the host's time: Python's own, ours, and libraries of numbers; not Flower's strategies."""
    top = module.partition(".")[0]
    return top in sys.stdlib_module_names or top in HOSTS


def _heard(ears: Ears, grid: AppGrid, step: str, server_round: int, result: Any) -> None:
    inner = grid.inner
    match step:
        case "aggregate_train" | "aggregate_fit":
            inner.aggregated(made=result[0] is not None)
            _tell(ears, server_round, "training", result[1])
        case "aggregate_evaluate" if isinstance(result, tuple):  # The legacy one: loss and metrics.
            _tell(ears, server_round, "federated", {"loss": result[0], **(result[1] or {})})
        case "aggregate_evaluate":
            _tell(ears, server_round, "federated", result)
            ears.over(server_round)
        case "evaluate":
            if result is not None:
                _tell(ears, server_round, "central", {"loss": result[0], **(result[1] or {})})
            ears.over(server_round)
        case _:
            pass


def _tell(ears: Ears, server_round: int, scope: str, found: Any) -> None:
    if not isinstance(found, Mapping):
        return
    for name, value in found.items():  # pyright: ignore[reportUnknownVariableType]
        if isinstance(value, int | float) and not isinstance(value, bool):
            ears.metric(server_round, scope, str(name), float(value))


def _agreeing(strategy: Strategy, step: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``aggregate_train``, which says whose arrays are other ones where it cannot take them, or would not see it."""

    @functools.wraps(step)
    def call(server_round: int, *args: Any, **kwargs: Any) -> Any:
        replies: list[Message] = list(args[0] if args else kwargs["replies"])
        stock = type(strategy).aggregate_train.__module__.partition(".")[0] == "flwr"
        if stock and (odd := odd_reply(replies)):
            raise RunError(f"round {server_round}: {odd}")
        try:
            return step(server_round, replies)
        except (FedsimError, KeyboardInterrupt):
            raise
        except Exception as error:
            if odd := odd_reply(replies):
                raise RunError(f"round {server_round}: {odd} {type(strategy).__name__} raised {reason(error).rstrip('.')}.") from error
            raise

    return call


def odd_reply(replies: list[Message]) -> str:
    """Return which client replied with other arrays than the first one, and how they differ; empty where none did."""
    first: tuple[int, dict[str, tuple[str, tuple[int, ...]]]] | None = None
    for reply in replies:
        if reply.has_error():
            continue
        client = records.client_of(reply.metadata.src_node_id)
        forms = {f"{name}": form for record in reply.content.array_records.values() for name, form in records.forms_of(record).items()}
        if first is None:
            first = client, forms
            continue
        for name in [*first[1], *forms]:
            mine, theirs = forms.get(name), first[1].get(name)
            if (mine and mine[1]) != (theirs and theirs[1]):
                return (
                    f"client {client} replied with other arrays than client {first[0]}: {name!r} is {_form(mine)}, there {_form(theirs)}."
                )
    return ""


def _form(form: tuple[str, tuple[int, ...]] | None) -> str:
    return "missing" if form is None else f"{form[0]} of shape {form[1]}"


@contextmanager
def _modules_of(folder: Path) -> Generator[None]:
    """Within, modules may be loaded from *folder*; afterwards they are gone, so that another app finds its own of the same names."""
    path = list(sys.path)
    with _apart(folder):
        try:
            yield
        finally:
            sys.path[:] = path


@contextmanager
def _apart(folder: Path) -> Generator[None]:
    """Put aside what was loaded from *folder* before, and within."""
    before = _take(folder)
    try:
        yield
    finally:
        _take(folder)
        sys.modules.update(before)


def _take(folder: Path) -> dict[str, ModuleType]:
    """Take the modules that lie in *folder*, but not ours, nor those of libraries in an environment there, out of Python's table."""
    found: dict[str, ModuleType] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name == "__main__" or not file or keeps_the_hosts_clock(name) or "site-packages" in file:
            continue
        if Path(file).is_relative_to(folder):
            found[name] = sys.modules.pop(name)
    return found
