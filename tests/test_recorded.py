"""Sources recorded over time: rows keep their order, time stamps go up, and what does not fit is one line."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.data import river as rivers
from fedsim.data.federation import split
from fedsim.data.partition import natural
from fedsim.data.recorded import csv_stream, windows
from fedsim.data.river import RiverGenerator, agrawal, hyperplane, led, random_rbf_drift, river, sea, stagger
from fedsim.data.source import Varied, finder

KEY = Key(2)
CSV = "when,user,temp,wet,y\n{}"
ROWS = ["2024-01-01T00:00:00,b,1.5,0,no", "2024-01-01T00:30:00,a,2.5,1,yes", "2024-01-01T01:00:00+00:00,b,3.5,0,no"]


def refuses(call: Callable[[], object], begins: str, *words: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        call()
    line = str(caught.value)
    assert line.startswith(begins) and "\n" not in line, line
    assert [] == [word for word in words if word not in line], line


def written(folder: Path, *rows: str) -> Any:
    (folder / "t.csv").write_text(CSV.format("\n".join(rows)))
    return finder(folder)


def test_rows_and_stamps_keep_their_order(tmp_path: Path) -> None:
    """A recorded table keeps its rows' order, turns dates into seconds from the first, and leaves out what it is told."""
    pool = csv_stream("t.csv", "y", written(tmp_path, *ROWS), time="when", client="user", ignore=["wet"])

    assert [[1.5], [2.5], [3.5]] == pool.train.x.tolist()
    assert ([0, 1, 0], [1, 0, 1], 2) == (pool.train.y.tolist(), pool.groups.tolist(), pool.outputs)  # type: ignore[union-attr]
    assert [0.0, 1800.0, 3600.0] == pool.times_s.tolist()  # type: ignore[union-attr]
    assert 1 == len(pool.files)


def test_numbers_are_stamps_in_their_unit(tmp_path: Path) -> None:
    """Stamps that are numbers count from the earliest, in units of time_unit_s; .gz is read too."""
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"t,x,y\n10,1,0\n10,2,1\n12.5,3,0\n"))

    assert [0.0, 0.0, 150.0] == csv_stream("t.csv.gz", "y", finder(tmp_path), time="t", time_unit_s=60.0).times_s.tolist()  # type: ignore[union-attr]


def test_stamps_are_numbers_in_the_form_of_the_table(tmp_path: Path) -> None:
    """Where a comma is the decimal mark and a point parts thousands, they do in the column of time too."""
    (tmp_path / "t.csv").write_text("t;x;y\n999,5;1;0\n1.000;2;1\n1.002,5;3;0\n")
    pool = csv_stream("t.csv", "y", finder(tmp_path), time="t", separator=";", decimal=",", thousands=".")

    assert [0.0, 0.5, 3.0] == pool.times_s.tolist()  # type: ignore[union-attr]


def test_what_is_out_of_order_is_named(tmp_path: Path) -> None:
    """A stream out of time order, a stamp that is none, an empty stream, an unknown column: one line each."""
    find = written(tmp_path, *ROWS[::-1])
    refuses(lambda: csv_stream("t.csv", "y", find, time="when", ignore=["user"]), "data.source.path = 't.csv': line 3", "earlier")
    refuses(lambda: csv_stream("t.csv", "y", find, time="when", client="user"), "data.source.path = 't.csv': line 4", "of its client")
    refuses(lambda: csv_stream("t.csv", "y", find, time="user", ignore=["when"]), "data.source.path = 't.csv': line 2", "'b'", "ISO 8601")
    refuses(lambda: csv_stream("t.csv", "y", find, time="wen"), "data.source.time = 'wen': no such column", "'when'")
    refuses(lambda: csv_stream("t.csv", "y", find, ignore=["wett"]), "data.source.ignore = 'wett': no such column", "'wet'")
    refuses(lambda: csv_stream("t.csv", "y", find), "data.source.path = 't.csv': line 2", "not a number")
    refuses(lambda: csv_stream("t.csv", "y", written(tmp_path), ignore=["when", "user"]), "data.source.path = 't.csv'", "no rows")


def test_elec2_is_whole_and_in_order(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elec2 has its 45,312 rows in their order: 'as the last one' is right for 85.3303 % of them."""
    if not (data_folder / "streams" / "elec.csv.gz").exists():
        pytest.skip("needs streams/elec.csv.gz")
    train, test, kept = split(csv_stream("streams/elec.csv.gz", "class", finder(Path.cwd())), 0, KEY)
    y = train.y

    assert ((45312, 6), [26075, 19237]) == (train.x.shape, np.bincount(y).tolist())
    assert test is train and np.array_equal(kept, np.arange(45312))
    assert 0.853303 == round(float(np.mean(y[1:] == y[:-1])), 6)


# Windows.


def segments(folder: Path, **changed: Any) -> Any:
    arrays: dict[str, Any] = {
        "signal": np.arange(40, dtype=np.int16).reshape(20, 2), "start": np.array([0, 8, 11]), "length": np.array([8, 3, 9]),
        "activity": np.array([5, 2, 3]), "subject": np.array([30, 9, 9]), "scale": np.array([1.0, 0.5]), **changed,
    }  # fmt: skip
    np.savez(folder / "s.npz", **{name: array for name, array in arrays.items() if array is not None})
    return finder(folder)


def test_windows_stay_inside_their_segments(tmp_path: Path) -> None:
    """Windows of 4 every 2 samples lie inside a segment, scaled, channel first, one client per subject."""
    pool = windows("s.npz", segments(tmp_path), window=4, step=2)

    assert (6, 2, 4) == pool.train.x.shape
    assert [0, 4, 8, 22, 26, 30] == pool.train.x[:, 0, 0].tolist()
    assert [0.5, 1.5, 2.5, 3.5] == pool.train.x[0, 1].tolist()
    assert ([1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0], 2) == (pool.train.y.tolist(), pool.groups.tolist(), pool.outputs)  # type: ignore[union-attr]
    assert [3] == np.bincount(windows("s.npz", segments(tmp_path), window=4, step=2, keep=[5]).train.y).tolist()


def test_bad_windows_are_named(tmp_path: Path) -> None:
    """What a windowed archive lacks, or says of samples that are not there, is one line."""
    at = "data.source.path = 's.npz': "
    for changed, words in (
        ({"signal": None}, ["no array 'signal'"]),
        ({"signal": np.zeros(20)}, ["signal is float64", "(n, channels)"]),
        ({"length": np.array([8, 3, 10])}, ["segment 2", "reaches out of a signal of 20"]),
        ({"start": np.array([-1, 8, 11])}, ["segment 0"]),
        ({"subject": np.array([1, 2])}, ["subject is", "expected 3 whole numbers"]),
        ({"scale": np.ones(3)}, ["scale is", "2 numbers"]),
        ({"scale": np.array([np.nan, 1.0])}, ["no finite float32"]),
    ):
        refuses(partial(windows, "s.npz", segments(tmp_path, **changed), window=4, step=2), at, *words)
    find = segments(tmp_path)
    refuses(lambda: windows("s.npz", find, window=10), "data.source.window = 10: no segment", "At most 9")
    refuses(lambda: windows("s.npz", find, label="activty"), "data.source.label = 'activty': no such array", "'activity'")
    refuses(lambda: windows("s.npz", find, window=4, keep=[7]), "data.source.keep = [7]: ", "2, 3, 5")


def test_activity_by_subject(data_folder: Path) -> None:
    """The smartphone set gives 10,411 windows of six activities by 30 people."""
    path = "har-smartphone/har_segments.npz"
    if not (data_folder / path).exists():
        pytest.skip(f"needs {path}")
    pool = windows(path, finder(Path.cwd()), keep=[1, 2, 3, 4, 5, 6])

    assert ((10411, 6, 128), 6) == (pool.train.x.shape, pool.outputs)
    assert 30 == len(natural(pool.groups, 30).sizes)


# River.


def test_river_s_own_streams_are_all_there() -> None:
    """Phishing and Bananas come whole and in order, with their classes, and a set that is not bundled is one line."""
    phishing, bananas = river("Phishing"), river("Bananas")

    assert ((1250, 9), 2) == (phishing.train.x.shape, phishing.outputs)
    assert ((5300, 2), [1.617466, -0.919233]) == (bananas.train.x.shape, np.round(bananas.train.x[0].astype(float), 6).tolist())
    assert 1 == len(phishing.files)
    for name in ("Elec2", "TrumpApproval", "Yeast", "Phising"):
        refuses(partial(river, name), f"data.source.name = {name!r}: ", "Phishing")


MADE = [sea(KEY), stagger(KEY), agrawal(KEY), hyperplane(KEY), random_rbf_drift(KEY, outputs=3), led(KEY)]


@pytest.mark.parametrize("source", MADE, ids=lambda source: source.kind)
def test_generated_clients_are_their_own(source: RiverGenerator) -> None:
    """A client's examples are a function of the key and its number; two clients share no draws, and fit the shape."""
    one, again, other = source.client(3), source.client(3), source.client(4)

    assert isinstance(source, Varied) and (1000, *source.shape) == one.x.shape
    assert np.array_equal(one.x, again.x) and np.array_equal(one.y, again.y)
    assert not np.array_equal(one.x, other.x)
    assert set(range(source.outputs)) == set(one.y.tolist()) | set(other.y.tolist())
    assert np.isfinite(one.x).all() and one.x.dtype == np.float32 and one.y.dtype == np.int64


def test_sea_is_what_the_book_says() -> None:
    """SEA's label is 1 where its first two features sum to more than 8, 9, 7 or 9.5, and noise flips its share."""
    for variant, threshold in enumerate((8.0, 9.0, 7.0, 9.5)):
        examples = sea(KEY, variant=variant).client(0)
        assert np.array_equal(examples.y, examples.x[:, :2].sum(axis=1) > threshold)
    flipped = sea(KEY, noise=0.1, examples_per_client=4000).client(0)

    assert abs(np.mean(flipped.y != (flipped.x[:, :2].sum(axis=1) > 8.0)) - 0.1) < 4.0 * np.sqrt(0.09 / 4000)


def same_concept(source: RiverGenerator) -> bool:
    """Whether a nearest neighbour from one client tells the labels of another, clearly better than by chance."""
    one, other = source.client(0), source.client(1)
    near = np.argmin(((other.x[:300, None] - one.x[None]) ** 2).sum(axis=2), axis=1)
    return float(np.mean(one.y[near] == other.y[:300])) > 0.7


def test_clients_share_one_concept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hyperplane and clouds are the same for all clients; with a seed of the client's own for all of it they are not."""
    assert same_concept(hyperplane(KEY, features=2, noise=0.0)) and same_concept(random_rbf_drift(KEY, outputs=5))

    wrong = random_rbf_drift(KEY, outputs=5)
    monkeypatch.setattr(
        rivers.RiverGenerator,
        "_begun",
        lambda self, client, variant: __import__("river.datasets.synth").datasets.synth.RandomRBF(client, client, 5),
    )
    assert not same_concept(wrong)


def test_led_changes_places_with_its_variant() -> None:
    """In LED's variant 0 the first seven lamps tell the digit; in variant 7 they are noise."""
    clean = np.array(sorted({(int(y), *map(int, x[:7])) for x, y in zip(*astuple(led(KEY, noise=0.0).client(0)), strict=True)}))
    for noise in (0.01, 0.1, 0.3):  # river's own draw is short by 0.01: a share of nothing for 0.01.
        drawn = led(KEY, noise=noise, examples_per_client=4000).client(0)
        wrong = (drawn.x[:, :7] != clean[drawn.y, 1:]).mean()
        assert abs(wrong - noise) < 4 * np.sqrt(noise / drawn.x[:, :7].size)
    digits = {tuple(row) for row in led(KEY, noise=0.0).client(0).x[:, :7].tolist()}
    moved = {tuple(row) for row in led(KEY, noise=0.0, variant=7).client(0).x[:, :7].tolist()}

    assert (10, True) == (len(digits), len(moved) > 50)


def test_a_variant_that_is_not_there_is_refused() -> None:
    """A variant, or a number of drifting parts, beyond what there is: one line."""
    refuses(lambda: sea(KEY, variant=4), "data.source.variant = 4: must be from 0 to 3")
    refuses(lambda: hyperplane(KEY, features=3, drift_features=4), "data.source.drift_features = 4: ", "3")
    refuses(lambda: random_rbf_drift(KEY, centroids=3), "data.source.drift_centroids = 50: ", "3")
