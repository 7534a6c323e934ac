"""Canaries for ``flower/compat_app``: where this flwr has moved what running a stranger's app takes, a test fails, not a run."""

from __future__ import annotations

import importlib.util
import inspect
import random
import threading
from pathlib import Path
from typing import Any

import flwr.server.compat.app
import flwr.server.server
import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.common import FitIns, Parameters
from flwr.server.client_manager import SimpleClientManager
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy

from fedsim.core.keys import Key
from fedsim.flower import compat, compat_app


class Echo(Grid):
    """Answers each message by an error, and knows who was asked together."""

    def __init__(self, nodes: list[int]) -> None:
        self.nodes, self.pushes = nodes, list[list[int]]()
        self._run = compat_app.empty_run()

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        return self._run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return self.nodes

    def push_messages(self, messages: Any) -> list[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Any) -> list[Message]:
        raise NotImplementedError

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        asked = list(messages)
        self.pushes.append([message.metadata.dst_node_id for message in asked])
        return [Message(RecordDict(), reply_to=message) for message in asked]


def test_the_legacy_server_is_where_we_stand_around_it() -> None:
    """The functions that are replaced exist, take what ours take, and are found under the names by which the server calls them."""
    server = flwr.server.server
    assert ["client_instructions", "max_workers", "timeout", "group_id"] == list(inspect.signature(server.fit_clients).parameters)
    assert ["client_instructions", "max_workers", "timeout", "group_id"] == list(inspect.signature(server.evaluate_clients).parameters)
    assert "fit_clients(" in inspect.getsource(server.Server.fit_round)
    assert "evaluate_clients(" in inspect.getsource(server.Server.evaluate_round)
    assert "start_update_client_manager_thread(" in inspect.getsource(flwr.server.compat.app.start_grid)
    assert "self.wait_for(" in inspect.getsource(SimpleClientManager.sample)
    assert {"strategy", "parameters"} <= set(vars(server.Server(client_manager=SimpleClientManager())))


def test_legacy_clients_are_asked_in_one_push_and_in_one_thread() -> None:
    """A round of the legacy server is one push; its manager finds nodes without a thread, and answers that are none are failures."""
    compat.set_identity()
    grid, before = Echo([1003, 1001, 1002]), threading.active_count()
    with compat_app.legacy_server(Key(1), lambda *_: None, lambda _: None, lambda _: None):
        manager = SimpleClientManager()
        thread, _, done = flwr.server.compat.app.start_update_client_manager_thread(grid, manager)
        thread.join()
        proxies = manager.sample(3)
        asked: Any = [(proxy, FitIns(Parameters([b"x"], "numpy"), {})) for proxy in proxies]
        results, failures = flwr.server.server.fit_clients(asked, None, None, 1)

        assert done.is_set() and before == threading.active_count()
    assert [{1001, 1002, 1003}] == [set(push) for push in grid.pushes]
    assert (0, 3) == (len(results), len(failures))
    assert all(isinstance(proxy, GridClientProxy) and proxy.grid is grid for proxy in proxies)


def test_a_strategy_that_starts_is_heard_and_left_as_it_was() -> None:
    """Its steps are told by name with named draws, whatever the state of the global generator; afterwards nothing stands around them."""
    compat.set_identity()
    drawn: list[list[int]] = []
    heard: list[str] = []
    scored: list[int] = []
    for state in (1, 2):
        random.seed(state)
        grid, strategy = Echo([1000, 1001, 1002, 1003, 1004, 1005]), FedAvg(fraction_train=0.5, fraction_evaluate=0.0)
        with compat_app.heard_strategies(
            Key(1), lambda step, *_: heard.append(step), lambda _s, _n, step: step, lambda number, _: scored.append(number), lambda _: None
        ):
            with pytest.raises(Exception):  # noqa: B017  # Echo's replies hold nothing: whatever FedAvg says of that.
                strategy.start(grid, compat.array_record({}), num_rounds=1, evaluate_fn=lambda *_: MetricRecord({"x": 1.0}))
        drawn.append(grid.pushes[0])
        assert "configure_train" not in vars(strategy)
    assert drawn[0] == drawn[1] and [0, 0] == scored
    assert "configure_train" == heard[0]
    assert "start" in vars(Strategy)


def test_where_supernodes_find_a_superlink() -> None:
    """Where this flwr's SuperNode asks which transport to speak, its SuperLink listens for it apart, at an address that it takes."""
    from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode as words

    link = importlib.util.find_spec("flwr.superlink.cli.flower_superlink")
    assert compat_app.nodes_apart() == ("--grpc-rere" in words().format_help())
    assert link is not None and "--fleet-api-address" in Path(str(link.origin)).read_text()


def test_a_bundle_is_installed_by_flower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Specs of apps are read as Flower reads them, apps lie in its home, and what is no bundle is a ValueError."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    (tmp_path / "x.fab").write_bytes(b"PK")

    assert tmp_path / "apps" == compat_app.installed()
    assert (("a/b", "1.0.0"), ("a/b", None)) == (compat_app.app_spec("@a/b==1.0.0"), compat_app.app_spec("a/b"))
    with pytest.raises(ValueError, match="version"):
        compat_app.app_spec("@a/b==x")
    with pytest.raises(ValueError, match="zip"):
        compat_app.install(tmp_path / "x.fab")


def test_apps_are_read_and_loaded_as_flower_does(tmp_path: Path) -> None:
    """The loader takes 'module:attribute' from a folder, a missing attribute is Unloadable, and run configs merge by known keys."""
    (tmp_path / "canary_component.py").write_text("class inner:\n    app = 7\n")
    import sys

    before = list(sys.path)
    try:
        assert 7 == compat_app.component("canary_component:inner.app", tmp_path)
        with pytest.raises(compat_app.Unloadable):
            compat_app.component("canary_component:inner.apq", tmp_path)
    finally:
        sys.path[:] = before
        sys.modules.pop("canary_component", None)
    assert {"a.b": 2, "c": "x"} == compat_app.run_config({"a": {"b": 1}, "c": "x"}, ["a.b=2"])
    with pytest.raises(ValueError, match="'d'"):
        compat_app.run_config({"c": 1}, ["d=1"])
    assert compat_app.faults({}) and not compat_app.faults({
        "project": {"name": "x", "version": "1"},
        "tool": {"flwr": {"app": {"publisher": "p", "components": {"serverapp": "a:b", "clientapp": "c:d"}}}},
    })  # fmt: skip
    assert (1, 2, 5, 8) == (compat_app.LOADING, compat_app.RAISED, compat_app.UNAVAILABLE, compat_app.CRASHED)
    assert 1 == compat_app.empty_run().run_id
