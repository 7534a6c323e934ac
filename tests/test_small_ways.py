"""Ways that are taken seldom: a track that is free again, an export that cannot take its place, a run that has no rows yet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fedsim import exporting
from fedsim.exporting.as_perfetto import LANES, _lanes
from fedsim.live import following
from fedsim.record import looking

NOTHING = looking.News([], 0, 0, 0, 0.0)


def tasks(*spans: tuple[int, float, float]) -> pd.DataFrame:
    """Return tasks of clients, each sent at a time, and back at another."""
    return pd.DataFrame([
        {"client": client, "sent_s": sent_s, "received_s": sent_s, "started_s": sent_s, "computed_s": back_s, "arrived_s": back_s,
         "outcome": "arrived", "kind": "train"} for client, sent_s, back_s in spans
    ])  # fmt: skip


def test_a_track_is_taken_again_once_it_is_free() -> None:
    """Of all tracks that are free when a task begins it takes the first, however many have become so; another client begins anew."""
    found = _lanes(tasks((0, 0, 10), (0, 1, 2.5), (0, 1.5, 2), (0, 3, 4), (0, 4, 5), (0, 4.5, 5), (1, 0, 1)), 10.0)

    assert ([0, 1, 2, 1, 1, 2, 0], 0) == found
    many = [(0, float(i), 1000.0) for i in range(LANES + 2)]
    assert ([*range(LANES), -1, -1, 0], 2) == _lanes(tasks(*many, (0, 1000.0, 1001.0)), 2000.0)


def test_an_export_that_cannot_take_its_place_leaves_that_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the new one cannot be renamed, the old one is back in its place, whole, and nothing else lies about."""
    draft, place, rename = tmp_path / "draft", tmp_path / "place", os.rename
    for folder, words in ((draft, "new"), (place, "old")):
        folder.mkdir()
        (folder / "it").write_text(words)

    def broken(source: Path, target: Path) -> None:
        if source == draft:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(exporting.os, "rename", broken)
    with pytest.raises(OSError, match="No space left"):
        exporting._moved(draft, place)

    assert "old" == (place / "it").read_text() and {"draft", "place"} == {path.name for path in tmp_path.iterdir()}
    monkeypatch.setattr(exporting.os, "rename", rename)
    exporting._moved(draft, place)
    assert "new" == (place / "it").read_text() and ["place"] == [path.name for path in tmp_path.iterdir()]


def test_a_run_without_scored_rows_is_told_by_its_manifest() -> None:
    """Where no evaluation is among the rows, the scores, and the round that they are of, are the manifest's; time and bytes too."""
    about: dict[str, Any] = {
        "scenario": {"server": {"rounds": 9}}, "final": {"accuracy": 0.5, "loss": 1.0, "rounds": 7, "scored_round": 6},
        "virtual_s": 12.0, "bytes_down": 30, "bytes_up": 20,
    }  # fmt: skip
    [now] = following._told(about, NOTHING, None)

    assert ({"accuracy": 0.5, "loss": 1.0}, 6, 7, 9) == (now.scores, now.scored, now.round, now.rounds)
    assert (12.0, 30, 20) == (now.now_s, now.down_bytes, now.up_bytes)
    [begun] = following._told({**about, "final": {}}, NOTHING, None)
    assert ({}, 0) == (begun.scores, begun.round)
