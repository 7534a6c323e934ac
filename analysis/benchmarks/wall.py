"""Does ``fedsim check`` foretell how long a run takes here? Foretold beside taken, each by the command itself, start to end.

``python -m analysis.benchmarks.wall`` (3 minutes, MNIST in FEDSIM_DATA; it wants a quiet core) prints a table.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCENARIOS = Path(__file__).parents[2] / "scenarios"
RUNS: dict[str, list[str]] = {
    "quickstart": [], "stragglers": [], "mcmahan-2nn-iid": ["--set", "server.rounds=3"], "split-digits": [],
}  # fmt: skip
"""Scenarios, and what is set."""


def main() -> None:
    """Foretell and run each scenario, and print the table."""
    print("| scenario | foretold, s | taken, s | foretold / taken | check itself, s |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for name, words in RUNS.items():
            line, check_s = fedsim("check", name, *words)
            _, taken_s = fedsim("run", name, *words, "--out", str(Path(scratch) / name))
            told_s = json.loads(line)["wall_s"]
            print(f"| {name} | {told_s:.1f} | {taken_s:.1f} | {told_s / taken_s:.2f} | {check_s:.1f} |", flush=True)


def fedsim(command: str, name: str, *words: str) -> tuple[str, float]:
    """Return what the command prints of a scenario, and how long it takes, in seconds."""
    began_s = time.perf_counter()
    told = subprocess.run(
        [sys.executable, "-m", "fedsim", command, str(SCENARIOS / f"{name}.toml"), *words, "--json"],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return told.stdout, time.perf_counter() - began_s


if __name__ == "__main__":
    main()
