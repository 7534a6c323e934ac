"""Every touch of Flower's private names that running a stranger's app takes; ``compat`` has the others. Canaries: ``tests/flower``.

Flower's loader of apps, and the hooks of strategies and of the legacy server.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from click import ClickException
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.cli.install import install_from_fab
from flwr.common.config import flatten_dict, fuse_dicts, parse_config_args, validate_fields_in_config
from flwr.common.constant import APP_DIR, ErrorCode
from flwr.server import client_manager
from flwr.server import server as legacy
from flwr.server.compat import app as legacy_app
from flwr.server.compat import app_utils as legacy_utils
from flwr.serverapp.grid import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.supercore.object_ref import load_app
from flwr.supercore.run import Run
from flwr.supercore.utils import get_flwr_home, parse_app_spec

from fedsim.core.keys import Key
from fedsim.flower.compat import replaced
from fedsim.flower.compat_steps import Heard, named_step

LOADING, RAISED, UNAVAILABLE, CRASHED = (
    ErrorCode.LOAD_CLIENT_APP_EXCEPTION, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, ErrorCode.NODE_UNAVAILABLE, ErrorCode.CLIENT_APP_CRASHED
)  # fmt: skip
"""Flower's codes of error replies."""


class Unloadable(Exception):
    """A component is not what its reference says."""


def faults(config: dict[str, Any]) -> list[str]:
    """Return what Flower finds wrong with the table of a pyproject.toml. Raises ValueError for a run config of other types."""
    return validate_fields_in_config(config)[1]


def run_config(defaults: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Return an app's flat run config: its *defaults*, with ``key=value`` *words* as ``flwr run --run-config`` takes them.

    Raises ValueError, or click's exception, in Flower's words.
    """
    return fuse_dicts(flatten_dict(defaults), parse_config_args(list(words)))


def component(reference: str, folder: Path) -> Any:
    """Return what *reference* (``module:attribute``) names, loaded as Flower loads it: *folder* comes first on ``sys.path``."""
    return load_app(reference, Unloadable, folder)


def installed() -> Path:
    """Return the folder in which Flower keeps apps that were installed."""
    return get_flwr_home() / APP_DIR


def install(bundle: Path) -> Path:
    """Return the folder of the app in the file *bundle*, installed as ``flwr install`` does it, which checks the hashes of its files.

    Raises ValueError, with what Flower finds wrong.
    """
    try:
        with redirect_stdout(io.StringIO()):
            return install_from_fab(bundle.read_bytes(), skip_prompt=True)
    except (ClickException, ValueError, BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise ValueError(error.message if isinstance(error, ClickException) else str(error)) from None


def app_spec(words: str) -> tuple[str, str | None]:
    """Return the publisher and name, and the version if any, of ``@publisher/name==version``. Raises ValueError in Flower's words."""
    name, version = parse_app_spec(words if words.startswith("@") else f"@{words}")
    return name.removeprefix("@"), version


@functools.cache
def nodes_apart() -> bool:
    """Return whether this flwr's SuperLink listens for SuperNodes at an address of their own: before they spoke HTTP it did."""
    return importlib.util.find_spec("flwr.supernode.fleet_http_connection") is None


def empty_run() -> Run:
    """Return a Run with nothing in it but its number: the legacy server asks its grid for that."""
    return Run.create_empty(1)


# -- strategies -------------------------------------------------------------------------------------------------------

STEPS = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate")
Around = Callable[[Strategy, str, Callable[..., Any]], Callable[..., Any]]
"""Stands around a step of a strategy, known by its name."""


@contextmanager
def heard_strategies(
    key: Key, heard: Heard, around: Around, scored: Callable[[int, MetricRecord], None], ended: Callable[[ArrayRecord], None]
) -> Generator[None]:
    """Within, any strategy that plays Flower's ``start`` draws by name, and is *heard*, also of what it *scored* and *ended* with.

    *around* stands around each of its steps.
    """
    plain = Strategy.start

    @functools.wraps(plain)
    def start(self: Strategy, *args: Any, **kwargs: Any) -> Result:
        mine: dict[str, Any] = vars(self)
        before = dict(mine)
        for step in STEPS:
            setattr(self, step, named_step(step, around(self, step, getattr(self, step)), key.fold("strategy", step), heard))
        names = ("grid", "initial_arrays", "num_rounds", "timeout", "train_config", "evaluate_config", "evaluate_fn")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if (score := given.get("evaluate_fn")) is not None:
            given["evaluate_fn"] = functools.partial(_scored, score, scored)
        try:
            result = plain(self, **given)
        finally:
            for step in STEPS:
                mine.pop(step, None)
                mine.update({step: before[step]} if step in before else {})
        if len(result.arrays):
            ended(result.arrays)
        return result

    with replaced(Strategy, "start", start):
        yield


def _scored(score: Any, told: Callable[[int, MetricRecord], None], server_round: int, arrays: ArrayRecord) -> Any:
    found = score(server_round, arrays)
    if found is not None:
        told(server_round, found)
    return found


# -- the legacy server ------------------------------------------------------------------------------------------------


@contextmanager
def legacy_server(key: Key, heard: Heard, ended: Callable[[Any], None], wait: Callable[[float], None]) -> Generator[None]:
    """Within, Flower's legacy server asks all clients of a round at one instant, from one thread, and waits for others on *wait*.

    It would start a thread per client, and one more that looks for nodes by the host's clock. Its strategy's steps draw by name and
    are *heard*; of the parameters it *ended* with somebody is told.
    """
    plain = legacy.Server.fit

    @functools.wraps(plain)
    def fit(self: Any, *args: Any, **kwargs: Any) -> Any:
        for step in ("configure_fit", "aggregate_fit", "configure_evaluate", "aggregate_evaluate", "evaluate"):
            inner = getattr(self.strategy, step)
            setattr(self.strategy, step, named_step(step, inner, key.fold("strategy", step), heard))
        found = plain(self, *args, **kwargs)
        ended(self.parameters)
        return found

    def wait_for(self: Any, num_clients: int, timeout: int = 86400) -> bool:
        while self.num_available() < num_clients:
            wait(1.0)
        return True

    with ExitStack() as stack:
        for place, name, value in (
            (legacy.Server, "fit", fit), (legacy, "fit_clients", _at_once("fit", legacy.fit_clients)),
            (legacy, "evaluate_clients", _at_once("evaluate", legacy.evaluate_clients)),
            (legacy_app, "start_update_client_manager_thread", _without_thread), (client_manager.SimpleClientManager, "wait_for", wait_for),
        ):  # fmt: skip
            stack.enter_context(replaced(place, name, value))
        yield


def _without_thread(grid: Grid, manager: Any) -> tuple[threading.Thread, threading.Event, threading.Event]:
    """Do what Flower's thread does before it first waits: from then on its manager looks for nodes whenever it is asked."""
    stop, done = threading.Event(), threading.Event()
    stop.set()
    legacy_utils._update_client_manager(grid, manager, stop, done)  # pyright: ignore[reportPrivateUsage]
    ended = threading.Thread(target=lambda: None)
    ended.start()
    return ended, stop, done


class _Asked(BaseException):
    """Carries the message that a proxy would have sent."""

    def __init__(self, message: Message) -> None:
        self.message = message


class _Asking:
    """A grid that sends nothing, and hands over what was to be sent."""

    def send_and_receive(self, messages: Iterable[Message], **_: Any) -> list[Message]:
        raise _Asked(next(iter(messages)))


class _Answering:
    """A grid on which the answer is there already."""

    def __init__(self, replies: list[Message]) -> None:
        self._replies = replies

    def send_and_receive(self, messages: Iterable[Message], **_: Any) -> list[Message]:
        return self._replies


def _at_once(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return Flower's *plain* function that asks clients from threads, made to ask those of our grid in one push."""

    @functools.wraps(plain)
    def ask(client_instructions: list[Any], max_workers: int | None, timeout: float | None, group_id: int) -> Any:
        proxies = [proxy for proxy, _ in client_instructions]
        if not proxies or not all(hasattr(proxy, "grid") for proxy in proxies):
            return plain(client_instructions, max_workers, timeout, group_id)
        grid, messages = proxies[0].grid, list[Message]()
        for proxy, instruction in client_instructions:
            messages.append(_question(proxy, lambda p=proxy, i=instruction: getattr(p, name)(i, timeout=timeout, group_id=group_id)))
        nodes = [message.metadata.dst_node_id for message in messages]
        replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(messages, timeout=timeout)}
        results: list[Any] = []
        failures: list[Any] = []
        order = sorted(range(len(nodes)), key=lambda i: nodes[i])  # By client: float sums depend on order.
        for proxy, instruction, node in ((*client_instructions[i], nodes[i]) for i in order):
            proxy.grid = _Answering([replies[node]] if node in replies else [])
            try:
                answer = getattr(proxy, name)(instruction, timeout=timeout, group_id=group_id)
                (results if answer.status.code.value == 0 else failures).append((proxy, answer))
            except Exception as error:  # As Flower does: a client that failed is a failure of its own.
                failures.append(error)
            finally:
                proxy.grid = grid
        return results, failures

    return ask


def _question(proxy: Any, ask: Callable[[], Any]) -> Message:
    grid, proxy.grid = proxy.grid, _Asking()
    try:
        ask()
    except _Asked as asked:
        return asked.message
    finally:
        proxy.grid = grid
    raise RuntimeError("a client proxy sent no message")
