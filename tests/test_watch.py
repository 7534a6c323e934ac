"""``fedsim watch``: a run followed by what its folder says, while it goes and when it has ended, however that was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.live.following import looks, teller_of
from fedsim.record import going, journal, manifest
from fedsim.session import Progress

Go = Callable[..., fedsim.Run]
Cli = Callable[..., Any]


def test_a_run_is_followed_by_what_its_folder_says(go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at after each round, the folder tells what the run itself tells; looked at late, it tells every evaluation in order."""
    monkeypatch.setattr(journal, "MOST_ROWS", 0)
    monkeypatch.setattr(going, "MANIFEST_WALL_S", 3600.0)  # The first one stays: what is newer is in the rows.
    told: list[Progress] = []
    folder = tmp_path / "followed"

    def look(where: Progress) -> None:
        if where.round == 0:
            return
        news = next(looks(folder))
        told.append(where)
        assert (where.round, where.now_s, where.scores) == (news[-1].round, news[-1].now_s, news[-1].scores)
        assert (where.down_bytes, where.up_bytes, where.tasks) == (news[-1].down_bytes, news[-1].up_bytes, news[-1].tasks)
        assert list(range(where.round + 1)) == [each.scored for each in news]

    run = go({"server.rounds": 4}, out=folder, watch=look)
    assert [1, 2, 3, 4] == [where.round for where in told]

    late: list[Progress] = []
    assert "done" == fedsim.watch(run.path, late.append).status
    central = run.metrics.query("scope == 'central' and name == 'accuracy'")
    assert central.value.tolist() == [where.scores["accuracy"] for where in late]
    assert (4, run.manifest["virtual_s"], run.manifest["bytes_up"]) == (late[-1].round, late[-1].now_s, late[-1].up_bytes)


def test_what_is_no_news_takes_nothing_back(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that finds no new row does not fall back to a manifest that is older than the rows."""
    run = go({"server.rounds": 3})
    about = {**run.manifest, "status": "running", "final": {"rounds": 1, "accuracy": 0.0}, "virtual_s": 0.0, "bytes_down": 0}
    manifest.write(run.path, about | {"process": manifest.process()})
    monkeypatch.setattr("fedsim.live.following.LOOK_S", 0.0)
    found = looks(run.path)
    first, again = next(found)[-1], next(found)[-1]

    assert first == again and 3 == again.round and run.final["accuracy"] == again.scores["accuracy"]
    assert run.final["accuracy"] > 0.0


@pytest.mark.parametrize(
    ("ends", "code", "says"),
    [
        ({}, 0, ""),
        ({"status": "running"}, 1, "was killed after round 2"),
        ({"status": "failed", "error": "round 3: it broke."}, 1, "failed: round 3: it broke."),
        ({"status": "interrupted", "error": "interrupted after round 2"}, 130, "interrupted after round 2"),
    ],
)
def test_how_it_ended_is_said(go: Go, cli: Cli, ends: dict[str, Any], code: int, says: str) -> None:
    """Of a run that has ended the summary comes at once; the exit code is the run's own, and a line says what became of it."""
    run = go()
    about = dict(run.manifest) | ends
    if ends:  # Of a process that there never was.
        about["process"] = {**manifest.process(), "began": "never"}
    manifest.write(run.path, about)
    answer, line = cli("watch", run.path), cli("watch", run.path, "--json")

    assert (code, code) == (answer.code, line.code) and says in answer.err and bool(says) == bool(answer.err)
    assert "accuracy" in answer.out and 1 == len(line.out.splitlines())
    assert json.loads(line.out) == json.loads(cli("show", run.path, "--json").out)


def test_what_is_not_there_is_told(cli: Cli, go: Go) -> None:
    """A folder that is not there is told beside those that are, and one that holds no run; both are the arguments' fault."""
    run = go()
    gone, empty = cli("watch", run.path.with_name("run-9")), cli("watch", run.path.parent)

    assert 2 == gone.code and "a run has no folder before its world is built" in gone.err and str(run.path) in gone.err
    assert 2 == empty.code and "not a run folder" in empty.err and f"The newest in it: {run.path}" in empty.err
    for command in ("show", "report", "verify"):
        told = cli(command, run.path.with_name("run-9"))
        assert 2 == told.code and f"is not there. The newest there: {run.path}" in told.err, command


def test_a_run_of_no_known_length_is_told_from_when_it_began(go: Go) -> None:
    """What tells of another's run counts wall time from its own beginning; of an app it names no last round."""
    about = dict(go().manifest)
    teller = teller_of({**about, "started": "2026-01-01T00:00:00+0000", "app": {}})
    teller.take(Progress(3, 0, 1.0, 1, 1, {"accuracy": 0.5}))

    assert teller.standing.wall_s > 86_400 and 0 == teller.standing.rounds and teller.standing.left_s is None
