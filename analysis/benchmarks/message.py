"""What a message costs a real node beyond its training: CPU seconds of the process that Flower starts for it, phase by phase.

    python -m analysis.benchmarks.message scenarios/quickstart.toml [--nodes 3] [--turns 7]

Each turn is a fresh process that imports what Flower's ``flwr-clientapp`` does, loads the app, and answers one training message; once
with the client's kit on disk, as in any run, and once without, so that it builds the whole scenario first. Medians over turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

APP = Path(__file__).parents[2]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", type=Path)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--turns", type=int, default=7)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        words = {"scenario": str(asked.scenario.resolve()), "nodes": asked.nodes, "state": scratch}
        begun = _turn({**words, "kind": "begin"})
        found = {kind: [_turn({**words, "kind": kind}) for _ in range(asked.turns)] for kind in ("kit", "whole", "end")}
    print(f"| CPU s, {asked.scenario.stem} | {' | '.join(begun)} |")
    print(f"|---|{'---|' * len(begun)}")
    for kind, turns in {"the run begins": [begun], "a message, built anew": found["whole"], "a message, with its kit": found["kit"],
                        "the run ends": found["end"]}.items():  # fmt: skip
        print(f"| {kind} | {' | '.join(f'{median(turn[phase] for turn in turns):.2f}' for phase in begun)} |")


def _turn(words: dict[str, Any]) -> dict[str, float]:
    said = subprocess.run(
        [sys.executable, "-m", "analysis.benchmarks.message", "--child", json.dumps(words)], cwd=APP, check=True, capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}, text=True,
    )  # fmt: skip
    return json.loads(said.stdout.splitlines()[-1])


def child(words: dict[str, Any]) -> None:
    """Be the process of one message, and say what it took."""
    phases: dict[str, float] = {}

    def mark(phase: str) -> None:
        phases[phase] = time.process_time() - sum(phases.values())

    import flwr.supernode.runtime.run_clientapp  # noqa: F401  # pyright: ignore[reportUnusedImport]
    from flwr.app import ConfigRecord, Context, Message, RecordDict

    mark("Flower")
    from fedsim.flower import compat
    from fedsim.real import diary
    from fedsim.real.apps import client_app

    compat.set_identity()
    app = client_app(APP)
    config = {"scenario": words["scenario"], "nodes": words["nodes"]}
    context = Context(7, 9, {"partition-id": 0, "state-dir": words["state"]}, RecordDict(), config)
    kept = Path(words["state"]) / "context.json"
    if kept.is_file() and words["kind"] != "whole":
        diary.enter_run(context.state, diary.Begin(**json.loads(kept.read_text(encoding="utf-8"))))
    if words["kind"] == "end":
        content, kind = RecordDict({diary.RECORD: ConfigRecord({"ask": diary.END})}), diary.QUERY
        app(Message(content, 9, kind), context)
        mark("torch")
        mark("the rest")
        print(json.dumps({**phases, "together": sum(phases.values())}))
        return
    if words["kind"] != "begin":
        import numpy as np

        with np.load(kept.with_name("first.npz")) as file:
            arrays = compat.array_record(dict(file))
    import torch  # noqa: F401  # pyright: ignore[reportUnusedImport]

    mark("torch")
    if words["kind"] == "begin":
        _begin(app, context, words, kept)
    else:
        reply = app(Message(RecordDict({"arrays": arrays, "config": ConfigRecord({})}), 9, "train"), context)
        assert not reply.has_error(), reply.error
    mark("the rest")
    print(json.dumps({**phases, "together": sum(phases.values())}))


def _begin(app: Any, context: Any, words: dict[str, Any], kept: Path) -> None:
    """Ask the node who it is, and leave what the other turns read."""
    import numpy as np
    from flwr.app import ConfigRecord, Message, RecordDict

    from fedsim.real import diary
    from fedsim.real.outfit import built
    from fedsim.real.words import RunWords

    loaded, parts = built(RunWords.of(context.run_config, APP))
    begin = diary.Begin(time.time(), 1.0, words["nodes"], loaded.scenario.digest)
    said = ConfigRecord({"ask": diary.BEGIN, **diary.record_of(begin)})
    reply = app(Message(RecordDict({diary.RECORD: said}), 9, diary.QUERY), context)
    assert not reply.has_error(), reply.error
    kept.write_text(json.dumps({name: getattr(begin, name) for name in begin.__slots__}), encoding="utf-8")
    np.savez(kept.with_name("first.npz"), **parts.first)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(json.loads(sys.argv[2]))
    else:
        main()
