"""What programs read: the keys of the one line that ``--json`` prints, command by command. Others rely on them: none goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import fedsim

Go = Callable[..., fedsim.Run]
Cli = Callable[..., Any]
SUMMARY = "bytes_down bytes_up digest final metrics_digest run status virtual_s wall_s"
KEYS = {"show": SUMMARY, "watch": SUMMARY, "report": "report run", "verify": "difference digest run verified"}


def test_the_keys_of_a_line_are_known(go: Go, cli: Cli) -> None:
    """Each command prints one line, and nothing else, with these very keys."""
    run = go({"server.rounds": 1})
    for command, keys in KEYS.items():
        answer = cli(command, run.path, "--json")

        assert (0, "", 1) == (answer.code, answer.err, len(answer.out.splitlines())), answer
        assert keys.split() == sorted(json.loads(answer.out)), command
    assert True is json.loads(cli("verify", run.path, "--json").out)["verified"]


def test_what_differs_is_in_the_line(go: Go, cli: Cli) -> None:
    """A run that does not come out again is told on the line, by what differs first, and by exit code 1."""
    run = go({"server.rounds": 1})
    about = run.path / "manifest.json"
    about.write_text(about.read_text().replace(run.digest, "0" * 64))
    answer = cli("verify", run.path, "--json")
    line = json.loads(answer.out)

    assert (1, False, "0" * 64) == (answer.code, line["verified"], line["digest"]) and line["difference"]
