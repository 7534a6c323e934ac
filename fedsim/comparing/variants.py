"""What is to be compared: scenarios, variants of one, or runs that are there; each a side with a name of its own. Runs nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedsim.core.errors import RunError, ScenarioError
from fedsim.record import manifest
from fedsim.scenario.load import Loaded, load, parse_overrides
from fedsim.scenario.schema import Scenario
from fedsim.score.run import Run

LONGEST_NAME = 60
What = str | Path | Mapping[str, Any] | Scenario | Run
"""A scenario's file or table, or a run, or its folder."""


@dataclass(frozen=True)
class Side:
    """One of what is compared: its *name*, its *scenario* as a plain table, and how to get its runs: there by seed, or *loaded*."""

    name: str
    scenario: Mapping[str, Any]
    loaded: Loaded | None = None
    runs: Mapping[int, Run] = field(default_factory=dict[int, Run])

    def of(self, seed: int) -> Loaded:
        """Return its scenario with *seed*."""
        assert self.loaded is not None
        return replace(load(self.loaded.scenario.plain(), None, seed), folder=self.loaded.folder)

    @property
    def stem(self) -> str:
        """Return what the folders of its runs begin with."""
        return re.sub(r"[^A-Za-z0-9._=-]+", "-", self.name).strip("-.") or "variant"


def sides(
    what: Sequence[What], variants: Sequence[str | Mapping[str, Any]], overrides: Mapping[str, Any] | None, seed: int | None
) -> list[Side]:
    """Return the sides that *what* amounts to, the first being what the others are held against. Raises ScenarioError for none.

    *variants* are overrides of the one scenario, each of several keys: words of ``--with``, or a table.
    """
    if not what:
        raise ScenarioError("compare: give a scenario and --with 'key=value', or two scenarios, or the folders of runs.")
    there = [_runs(each) for each in what]
    if all(runs is not None for runs in there):
        if variants or overrides or seed is not None:
            raise ScenarioError("--with, --set and --seed: go with a scenario; these runs are done.")
        return _of_runs([run for runs in there for run in runs or ()])
    if any(runs is not None for runs in there):
        given = [str(each) for each, runs in zip(what, there, strict=True) if runs is not None]
        raise ScenarioError(f"compare {given[0]}: is a run, and others are scenarios. Compare runs with runs, or scenarios with scenarios.")
    scenarios = [load(each, overrides, seed) for each in what if not isinstance(each, Run)]
    if variants and len(scenarios) > 1:
        raise ScenarioError(f"--with: makes variants of one scenario, and here are {len(scenarios)}. Name one, or leave --with out.")
    for words in variants:
        changes = parsed(words) if isinstance(words, str) else words
        if "seed" in changes:
            raise ScenarioError("--with seed: every variant runs with the same seeds. --seed says the first, --seeds how many.")
        try:
            base = scenarios[0]
            scenarios.append(replace(load(base.scenario.plain(), changes), folder=base.folder))
        except ScenarioError as error:
            raise ScenarioError(f"--with: {error}") from None
    if len(scenarios) == 1:
        raise ScenarioError(
            f"compare {scenarios[0].scenario.name}: with what? --with 'training.optimizer.lr=0.1' makes a variant of it; another scenario"
            " works too."
        )
    scenarios = [replace(each, scenario=each.scenario.model_copy(update={"seed": scenarios[0].scenario.seed})) for each in scenarios]
    tables = [each.scenario.plain() for each in scenarios]
    return [Side(name, table, each) for name, table, each in zip(names(tables), tables, scenarios, strict=True)]


def parsed(words: str) -> dict[str, Any]:
    """Return the overrides in *words* of ``--with``: ``key=value`` with commas between, values in TOML.

    >>> parsed('server.strategy={kind="FedProx",proximal_mu=0.1}, training.epochs=2')
    {'server.strategy': {'kind': 'FedProx', 'proximal_mu': 0.1}, 'training.epochs': 2}
    """
    parts, depth, quote, begun = list[str](), 0, "", 0
    for i, letter in enumerate(words):
        if quote:
            quote = "" if letter == quote and words[i - 1] != "\\" else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "{[":
            depth += 1
        elif letter in "}]":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(words[begun:i])
            begun = i + 1
    parts.append(words[begun:])
    for part in parts:
        key, sign, _ = part.partition("=")
        if not sign or not all(each.strip() for each in key.split(".")):
            raise ScenarioError(f"--with {part.strip()!r}: must look like training.optimizer.lr=0.05, with a comma before the next key.")
    return parse_overrides(parts)


def names(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a name for each of *tables*, no two alike: the scenarios' own, or where these are equal what differs.

    A kind stands for its table, with those of its settings by which two of that kind differ.

    >>> base = {"name": "q", "seed": 1, "server": {"strategy": {"kind": "FedAvg"}, "rounds": 3}}
    >>> names([base, {**base, "server": {"strategy": {"kind": "FedProx", "mu": 0.1}, "rounds": 3}}])
    ['FedAvg', 'FedProx']
    >>> names([base, {**base, "server": {"strategy": {"kind": "FedAvg"}, "rounds": 5}}])
    ['rounds=3', 'rounds=5']
    """
    own = [str(table["name"]) for table in tables]
    found = own if len(set(own)) == len(own) else [", ".join(words) for words in _differing(tables, "")]
    if not all(found):  # What has nothing of its own is the scenario as it stands.
        found = [name or scenario for name, scenario in zip(found, own, strict=True)]
    found = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..." for name in found]
    return [name if found.index(name) == i else f"{name} ({found[: i + 1].count(name)})" for i, name in enumerate(found)]


def _differing(tables: Sequence[Mapping[str, Any] | None], key: str) -> list[list[str]]:
    """Return for each of *tables*, which stand at *key*, words for what the others do not all have."""
    words: list[list[str]] = [[] for _ in tables]
    for name in dict.fromkeys(name for table in tables for name in table or ()):
        values = [None if table is None else table.get(name) for table in tables]
        if (name in ("name", "seed") and not key) or all(value == values[0] for value in values):
            continue
        if all(isinstance(value, Mapping) or value is None for value in values):
            found = _differing(values, f"{key}.{name}")
            kinds = [str(value["kind"]) if isinstance(value, Mapping) and "kind" in value else "" for value in values]
            if any(kinds):
                found = [_kind(i, kinds, values) if kinds[i] else (each or [f"no {name}"]) for i, each in enumerate(found)]
            for i, each in enumerate(found):
                words[i] += each
        else:
            for i, value in enumerate(values):
                words[i] += [f"no {name}"] if value is None else [f"{name}={_short(value)}"]
    return words


def _kind(i: int, kinds: Sequence[str], tables: Sequence[Any]) -> list[str]:
    """Return the kind of table *i*, where it is not all the tables', and the settings by which it differs from its like."""
    alike = [table for kind, table in zip(kinds, tables, strict=True) if kind == kinds[i]]
    settings = [
        f"{name}={_short(value)}" for name, value in tables[i].items() if name != "kind" and any(each.get(name) != value for each in alike)
    ]
    kind = kinds[i].rpartition(":")[2]
    shown = [] if len(set(kinds)) == 1 and settings else [kind]
    return [" ".join([*shown, *settings])]


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        kind = value.get("kind")  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        return f"{kind}" if kind else "{...}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _runs(what: What) -> list[Run] | None:
    """Return the runs that *what* is or holds; None where it is a scenario. Raises ScenarioError for a folder without a run."""
    if isinstance(what, Run):
        return [what]
    if not isinstance(what, str | Path):
        return None
    folder = Path(what)
    try:
        if not folder.is_dir():
            if folder.suffix == ".toml" or folder.exists():
                return None
            raise ScenarioError(f"{folder}: no such file or folder. compare takes scenario files (.toml) and run folders.")
        if (folder / manifest.FILE).is_file():
            return [Run(folder)]
        inside = sorted(each.parent for each in folder.glob(f"*/{manifest.FILE}") if not each.parent.name.startswith("."))
    except OSError as error:
        raise ScenarioError(f"{str(folder)[:60]}: {error.strerror}.") from None
    if not inside:
        raise ScenarioError(f"{folder}: not a run folder (it has no {manifest.FILE}), and it holds none.")
    return [Run(each) for each in inside]


def _of_runs(runs: Sequence[Run]) -> list[Side]:
    """Return a side for each scenario that *runs* are of, seeds apart, in order of appearance."""
    found: list[tuple[Mapping[str, Any], dict[int, Run]]] = []
    for run in dict.fromkeys(runs):
        status = run.status
        if status != "done":
            hint = "Wait for it, or leave it out" if status == "running" else "Run it again, or leave it out"
            raise ScenarioError(f"{run.path}: is {status}; only runs that are done can be compared. {hint}.")
        about = run.manifest
        seedless = {name: value for name, value in about["scenario"].items() if name != "seed"} | {"seed": 0}
        group = next((by_seed for table, by_seed in found if table == seedless), None)
        if group is None:
            found.append((seedless, group := {}))
        if (before := group.get(about["seed"])) is not None and before.digest != run.digest:
            raise ScenarioError(
                f"{run.path}: is another result of the scenario and seed of {before.path} (other versions, or another machine)."
                " Leave one out."
            )
        group.setdefault(about["seed"], run)
    if len(found) < 2:
        those = f"all {len(runs)} runs are" if len(runs) > 1 else "the one run is"
        raise ScenarioError(f"compare: {those} of one scenario ({runs[0].name}); name runs of another one as well.")
    return [Side(name, table, runs=dict(sorted(group.items()))) for name, (table, group) in
            zip(names([table for table, _ in found]), found, strict=True)]  # fmt: skip


def readable(run: Run) -> None:
    """Raise RunError, which names the folder, where a table of *run* that is compared cannot be read."""
    for name in ("metrics", "tasks", "rounds"):
        frame = getattr(run, name)
        if name == "metrics" and frame[frame.scope == "central"].empty:
            raise RunError(f"{run.path}: has no scores of the server's (table metrics), so that there is nothing to compare.")
