"""Outfitting: from a run's and a node's words to the kit of one client. Builds the whole scenario once, and keeps one client's part."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedsim.core import own
from fedsim.core.errors import ScenarioError, door
from fedsim.core.machine import ALONE
from fedsim.core.registry import load_object
from fedsim.data.checked import check_pool
from fedsim.data.source import Examples, Pool
from fedsim.learn.engine.frozen import frozen
from fedsim.learn.objectives import Classification
from fedsim.real.kit import Kit
from fedsim.real.part import part_of, with_own
from fedsim.real.words import NodeWords, RunWords
from fedsim.scenario.build import Parts, build
from fedsim.scenario.load import Loaded


@lru_cache(maxsize=4)
def built(words: RunWords) -> tuple[Loaded, Parts]:
    """Return the scenario that *words* name, and its parts; made once per process. Raises ScenarioError."""
    loaded = words.loaded()
    with ALONE:
        return loaded, build(loaded)


def outfitted(words: RunWords, config: Mapping[str, Any], app: Path, mark: str) -> tuple[Kit, Loaded]:
    """Return the kit of the node that *config* configures, of the app in the folder *app*, and its scenario. Raises ScenarioError."""
    loaded = words.loaded()
    mine = NodeWords.of(config, loaded.scenario.clients.count)  # Before anything is built: it may be refused.
    loaded, parts = built(words)
    federation = parts.federation
    if mine.loader is not None:
        federation = with_own(federation, mine.client, _own(mine.loader, config, app, parts), f"loader = {mine.loader!r}")
    federation = part_of(federation, mine.client)
    model, objective, store, chunk, many_sizes, arithmetic = parts.engine.parts
    fleet = dataclasses.replace(parts.fleet, federation=federation)
    kit = Kit(
        mark, mine.client, fleet.client(mine.client), parts.job, (model, objective, store.of(federation), chunk, many_sizes, arithmetic),
        parts.strategy.mods, fleet.coding, fleet.flops, fleet.sizing is not None, fleet.monitor, frozen(parts.engine.compiled),
    )  # fmt: skip
    return kit, loaded


def _own(loader: str, config: Mapping[str, Any], app: Path, parts: Parts) -> Examples:
    """Return the node's own examples, by the function *loader*. Raises ScenarioError naming what of them is wrong."""
    at, federation = f"loader = {loader!r}", parts.federation
    with own.beside(app):
        function = load_object(loader, at="loader")
        with door(at, "raised"):
            given = function(dict(config))
    if not isinstance(given, tuple | list) or len(given) != 2:  # pyright: ignore[reportUnknownArgumentType]
        raise ScenarioError(f"{at}: returned a {type(given).__name__}, expected (x, y): features and targets, row by row.")  # pyright: ignore[reportUnknownArgumentType]
    x, y = given  # pyright: ignore[reportUnknownVariableType]
    with door(at, "returned what is no examples:"):
        pool = Pool(Examples(x, y), federation.outputs)  # pyright: ignore[reportUnknownArgumentType]
        examples = check_pool(pool, at, isinstance(parts.objective, Classification)).train
    if examples.x.shape[1:] != federation.shape:
        raise ScenarioError(f"{at}: x has rows of shape {examples.x.shape[1:]}, and the scenario's examples are {federation.shape}.")
    kind = federation.test.x.dtype
    return examples if examples.x.dtype == kind else Examples(examples.x.astype(kind), examples.y)
