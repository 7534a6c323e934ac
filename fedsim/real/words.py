"""The words that an app's configuration and a node's may say: read, checked, and what they amount to. Starts nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.core.errors import ScenarioError
from fedsim.scenario.load import Loaded, load, parse_overrides

RUN = {"scenario": "", "set": "", "seed": -1, "out": "", "nodes": 0, "time-scale": 1.0, "wait-s": 300.0}
"""The words of a run's configuration, each with what holds where it is not said."""
NODE = ("partition-id", "num-partitions", "loader", "state-dir")
"""Those of a node's."""


@dataclass(frozen=True, slots=True)
class RunWords:
    """What a run's configuration says: the *scenario* file and what is *set* in it, where the server's folder goes, how many
    nodes take part (0: as many as the scenario has clients), how many seconds of the scenario a real one is, and how long the
    server waits for its nodes.
    """

    scenario: Path
    settings: tuple[str, ...]
    seed: int | None
    out: str | None
    nodes: int
    time_scale: float
    wait_s: float

    @classmethod
    def of(cls, config: Mapping[str, Any], folder: Path) -> RunWords:
        """Return what *config* says; a relative path is seen from the app's *folder*. Raises ScenarioError naming the word."""
        said = {**RUN, **config}
        path = _typed(said, "scenario", str)
        if not path:
            raise ScenarioError("scenario: missing in the run's configuration; it names a scenario file, like 'scenarios/quickstart.toml'.")
        nodes, scale, wait_s = (_number(said, word) for word in ("nodes", "time-scale", "wait-s"))
        if nodes != int(nodes) or nodes < 0:
            raise ScenarioError(f"nodes = {said['nodes']!r}: must be a whole number, 0 for as many as the scenario has clients.")
        if not 0 < scale < math.inf:
            raise ScenarioError(f"time-scale = {said['time-scale']!r}: must be > 0: seconds of the scenario in a real one, like 1.0.")
        if not 0 < wait_s < math.inf:
            raise ScenarioError(f"wait-s = {said['wait-s']!r}: must be > 0: how many seconds the server waits for its nodes.")
        seed = _number(said, "seed")
        if seed != int(seed) or seed < -1:
            raise ScenarioError(f"seed = {said['seed']!r}: must be a whole number >= 0, or -1 for the scenario's own.")
        return cls(
            folder / path, _settings(said["set"]), None if seed == -1 else int(seed), _typed(said, "out", str) or None, int(nodes), scale,
            wait_s,
        )  # fmt: skip

    def loaded(self) -> Loaded:
        """Return the scenario as it is run: with what is set, and as many clients as nodes take part. Raises ScenarioError."""
        overrides = parse_overrides(self.settings)
        if self.nodes:
            overrides["clients.count"] = self.nodes
        return load(self.scenario, overrides, self.seed)


@dataclass(frozen=True, slots=True)
class NodeWords:
    """What a node's configuration says: which *client* of *count* it is, and where its data and what it keeps come from and go."""

    client: int
    loader: str | None
    state_dir: Path | None

    @classmethod
    def of(cls, config: Mapping[str, Any], count: int) -> NodeWords:
        """Return what *config* says, in a federation of *count* clients. Raises ScenarioError naming the word."""
        ids = f"0 to {count - 1}" if count > 1 else "0"
        if "partition-id" not in config:
            raise ScenarioError(f"partition-id: missing in the node's configuration; it says which client the node is, {ids}.")
        client = config["partition-id"]
        if isinstance(client, bool) or not isinstance(client, int) or not 0 <= client < count:
            raise ScenarioError(f"partition-id = {client!r}: the run has {count} clients; partition ids are {ids}.")
        partitions = config.get("num-partitions", count)
        if partitions != count:
            raise ScenarioError(f"num-partitions = {partitions!r}: the run has {count} clients. Say {count}, or leave it out.")
        loader = _typed(config, "loader", str)
        if loader and not all(loader.partition(":")[::2]):
            raise ScenarioError(f"loader = {loader!r}: must look like 'package.module:function'.")
        state_dir = _typed(config, "state-dir", str)
        return cls(client, loader or None, Path(state_dir).expanduser() if state_dir else None)


def _typed(said: Mapping[str, Any], word: str, kind: type[str]) -> str:
    value = said.get(word, "")
    if not isinstance(value, kind):
        raise ScenarioError(f"{word} = {value!r}: must be text in quotes.")
    return value


def _number(said: Mapping[str, Any], word: str) -> float:
    value = said[word]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ScenarioError(f"{word} = {value!r}: must be a number.")
    return float(value)


def _settings(said: object) -> tuple[str, ...]:
    """Return the KEY=VALUE words in *said*, a list of them as JSON."""
    wish = """set takes a list of KEY=VALUE words as JSON, like '["server.rounds=3", "training.batch_size=20"]'."""
    if not said:
        return ()
    try:
        words: Any = json.loads(said) if isinstance(said, str) else said
    except ValueError:
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):  # pyright: ignore[reportUnknownVariableType]
        raise ScenarioError(f"set = {said!r:.80}: {wish}")
    return tuple(words)  # pyright: ignore[reportUnknownArgumentType]
