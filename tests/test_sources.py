"""Sources: what they give is what the file holds, and a damaged file is one line that names what is wrong with it."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest

from fedsim.core.errors import ScenarioError
from fedsim.data.bundled import digits, openml
from fedsim.data.files import csv, idx, npz
from fedsim.data.source import DATA_VARIABLE, Pool, changed, finder
from fedsim.data.synthetic import DATA_SEED, LeafSynthetic, leaf_synthetic
from fedsim.data.table import encode

THIRTY = np.arange(30)


def refuses(call: Callable[[], object], key: str, *words: str) -> None:
    """Assert that *call* raises one line about *key* that holds every one of *words*."""
    with pytest.raises(ScenarioError) as caught:
        call()
    line = str(caught.value)
    assert line.startswith(f"{key} = ") and "\n" not in line
    assert [] == [word for word in words if word not in line], line


# Bundled.


def test_digits_are_the_1797_of_scikit_learn() -> None:
    """The bundled digits are 1797 images of 8 x 8 in [0, 1], one channel, ten classes, and read no file."""
    pool = digits()

    assert ((1797, 1, 8, 8), np.float32) == (pool.train.x.shape, pool.train.x.dtype)
    assert (0.0, 1.0) == (pool.train.x.min(), pool.train.x.max())
    assert [178, 182, 177, 183, 181, 182, 181, 179, 174, 180] == np.bincount(pool.train.y).tolist()
    assert (10, None, None, {}) == (pool.outputs, pool.test, pool.groups, pool.files)


def fetched(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[dict[str, Any]]:
    """Put *answer* (returned, or raised if it is an error) in the place of OpenML; return the calls it gets."""
    calls: list[dict[str, Any]] = []

    def fetch_openml(name: str, **settings: Any) -> Any:
        calls.append({"name": name, **settings})
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch_openml)
    return calls


def answer(data: Any, target: Any) -> SimpleNamespace:
    names = [f"f{i}" for i in range(data.shape[1])]
    return SimpleNamespace(data=data, target=target, feature_names=names, target_names=["class"])


def test_openml_numbers_labels_in_sorted_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenML's labels '10', '9' become classes 1 and 0, its features float32, and the asked version is fetched."""
    calls = fetched(monkeypatch, answer(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array(["10", "9"], dtype=object)))
    pool = openml("letter", version=3)

    assert [1, 0] == pool.train.y.tolist()
    assert (2, np.float32, [[1, 2], [3, 4]]) == (pool.outputs, pool.train.x.dtype, pool.train.x.tolist())
    assert ("letter", 3, "default-target") == tuple(calls[0][k] for k in ("name", "version", "target_column"))


@pytest.mark.parametrize(
    ("given", "key", "word"),
    [
        (URLError("no route to host"), "data.source.name", "no route to host"),
        (ValueError("Dataset x with\nversion 1 not found."), "data.source.name", "not found"),
        (KeyError("Could not find target_column='t'"), "data.source.target", "no such column"),
        (answer(np.array([["a"]], dtype=object), np.array(["1"])), "data.source.name", "'f0' is not numeric"),
        (answer(np.array([[np.nan]]), np.array(["1"])), "data.source.name", "'f0' has missing"),
        (answer(np.array([[1e300]]), np.array(["1"])), "data.source.name", "'f0' has missing or infinite"),
        (answer(np.array([[1.0]]), np.array([0.5])), "data.source.name", "number to predict"),
        (answer(np.array([[1.0]]), np.array([np.nan])), "data.source.name", "no label"),
        (answer(np.array([[1.0]]), None), "data.source.target", "f0"),
    ],
)
def test_openml_says_what_it_cannot_use(monkeypatch: pytest.MonkeyPatch, given: Any, key: str, word: str) -> None:
    """What OpenML does not have, cannot send, or sends in words is one line."""
    fetched(monkeypatch, given)

    refuses(lambda: openml("x", target="t"), key, word)


# Files: idx.


def idx_bytes(array: np.ndarray, kind: int = 0x08) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


IMAGES = np.arange(6 * 4 * 3).reshape(6, 4, 3)
LABELS = np.array([0, 1, 2, 2, 1, 0])
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def mnist_like(folder: Path, suffix: str = "") -> dict[str, bytes]:
    """Write a tiny data set of MNIST's form; return its uncompressed files."""
    files = {
        TRAIN_IMAGES: idx_bytes(IMAGES),
        TRAIN_LABELS: idx_bytes(LABELS),
        TEST_IMAGES: idx_bytes(255 - IMAGES[:2]),
        TEST_LABELS: idx_bytes(LABELS[:2] + 1),
    }
    for name, content in files.items():
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    return files


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_reads_plain_and_gzipped_files(tmp_path: Path, suffix: str) -> None:
    """The pixels of an idx folder are those written, divided by 255, with a channel; labels and test part follow."""
    mnist_like(tmp_path, suffix)
    pool = idx(".", finder(tmp_path))

    assert ((6, 1, 4, 3), np.float32, np.int64) == (pool.train.x.shape, pool.train.x.dtype, pool.train.y.dtype)
    assert np.array_equal(IMAGES.astype(np.float32) / np.float32(255), pool.train.x[:, 0])
    assert LABELS.tolist() == pool.train.y.tolist()
    assert pool.test is not None
    assert (1.0, [1, 2], 3) == (pool.test.x[0, 0, 0, 0], pool.test.y.tolist(), pool.outputs)


def test_idx_fingerprints_all_that_it_reads(tmp_path: Path) -> None:
    """Each file read is in the pool's files, and one whose bytes change is found out."""
    files = mnist_like(tmp_path)
    pool = idx(".", finder(tmp_path))
    assert sorted(files) == sorted(Path(name).name for name in pool.files)
    assert [] == changed(pool.files)

    (tmp_path / TEST_LABELS).write_bytes(b"other")
    assert [TEST_LABELS] == [Path(name).name for name in changed(pool.files)]


def test_idx_does_without_a_test_part(tmp_path: Path) -> None:
    """A folder without t10k files is a pool without a test part."""
    mnist_like(tmp_path)
    (tmp_path / TEST_IMAGES).unlink()
    (tmp_path / TEST_LABELS).unlink()

    assert None is idx(".", finder(tmp_path)).test


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (TRAIN_IMAGES, lambda b: b[:-1], ["cut short", "71 bytes", "72 (6 x 4 x 3)"]),
        (TRAIN_IMAGES, lambda b: b + b"\0", ["too long", "73 bytes", "72"]),
        (TRAIN_IMAGES, lambda b: b[:9], ["9 bytes", "header of 16"]),
        (TRAIN_IMAGES, lambda b: b"", ["begins with 0x,", "0x00000803"]),
        (TRAIN_IMAGES, lambda b: b"\x89PNG" + b, ["0x89504e47", "0x00000803"]),
        (TRAIN_IMAGES, lambda b: idx_bytes(IMAGES, kind=0x0D), ["type 0x0d", "0x08"]),
        (TRAIN_IMAGES, lambda b: idx_bytes(LABELS), ["1 dimensions", "expected 3"]),
        (TRAIN_IMAGES, lambda b: idx_bytes(IMAGES[:0]), ["0 x 4 x 3"]),
        (TRAIN_LABELS, lambda b: idx_bytes(IMAGES), ["3 dimensions", "expected 1"]),
        (TRAIN_LABELS, lambda b: idx_bytes(LABELS[:2]), ["6 images", "2 labels", TRAIN_IMAGES]),
        (TRAIN_LABELS, gzip.compress, ["gzipped", f"{TRAIN_LABELS}.gz"]),
        (TEST_LABELS, lambda b: idx_bytes(LABELS), ["2 images", "6 labels"]),
        (TEST_IMAGES, lambda b: idx_bytes(IMAGES[:2, :3]), ["t10k", "3 x 3", "4 x 3"]),
        (TEST_IMAGES, None, [TEST_IMAGES, "missing"]),
        (TRAIN_LABELS, None, [TRAIN_LABELS, "missing"]),
    ],
)
def test_a_damaged_idx_file_is_one_line(
    tmp_path: Path, name: str, content: Callable[[bytes], bytes] | None, words: list[str]
) -> None:
    """A damaged file is refused in one line that names it, what was found and what was expected."""
    good = mnist_like(tmp_path)[name]
    (tmp_path / name).write_bytes(content(good)) if content else (tmp_path / name).unlink()

    refuses(lambda: idx(".", finder(tmp_path)), "data.source.path", *words, "t10k" if "t10k" in words else name)


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:20] + b"\xff" * 9 + b[29:], lambda b: b"plain" + b])
def test_a_damaged_gzip_is_one_line(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """A gzip file that is cut, scribbled over, or no gzip at all is refused by name."""
    mnist_like(tmp_path, ".gz")
    file = tmp_path / f"{TRAIN_IMAGES}.gz"
    file.write_bytes(damage(file.read_bytes()))

    refuses(lambda: idx(".", finder(tmp_path)), "data.source.path", file.name, "cannot be read")


def test_idx_wants_a_folder_that_holds_images(tmp_path: Path) -> None:
    """A file, an empty folder and a path that is not there are three different lines."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "empty").mkdir()

    refuses(lambda: idx("file", finder(tmp_path)), "data.source.path", "wants the folder")
    refuses(lambda: idx("empty", finder(tmp_path)), "data.source.path", f"holds no {TRAIN_IMAGES}")
    refuses(lambda: idx("nowhere", finder(tmp_path)), "data.source.path", "not found")


def test_mnist_is_the_official_one() -> None:
    """The real MNIST has 60,000 and 10,000 images of 28 x 28, with the class counts and the mean that all report."""
    root = os.environ.get(DATA_VARIABLE)
    if root is None or not (Path(root) / "mnist").is_dir():
        pytest.skip(f"set {DATA_VARIABLE} to a folder that holds mnist/ to read the real files")
    pool = idx("mnist", finder(Path(root)))

    assert pool.test is not None
    assert ((60_000, 1, 28, 28), (10_000, 1, 28, 28), 10) == (pool.train.x.shape, pool.test.x.shape, pool.outputs)
    assert [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949] == np.bincount(pool.train.y).tolist()
    assert [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009] == np.bincount(pool.test.y).tolist()
    assert (0.1307, 0.3081) == (round(float(pool.train.x.mean(dtype=float)), 4), round(float(pool.train.x.std()), 4))


# Files: npz.


def archive(folder: Path, **arrays: Any) -> Callable[[], Pool]:
    np.savez(folder / "data.npz", **arrays)
    return lambda: npz("data.npz", finder(folder))


X, Y = np.arange(12.0).reshape(4, 3), np.array([0, 2, 1, 0])


def test_npz_gives_what_was_saved(tmp_path: Path) -> None:
    """An archive's arrays come back as float32 and int64, its clients numbered in sorted order, its test part kept."""
    pool = archive(tmp_path, x=X, y=Y.astype(np.uint8), x_test=X[:1], y_test=[3], client=["b", "a", "b", "c"])()

    assert (X.tolist(), Y.tolist()) == (pool.train.x.tolist(), pool.train.y.tolist())
    assert (np.float32, np.int64) == (pool.train.x.dtype, pool.train.y.dtype)
    assert pool.test is not None and pool.groups is not None
    assert ([[0, 1, 2]], [3], 4) == (pool.test.x.tolist(), pool.test.y.tolist(), pool.outputs)
    assert [1, 0, 1, 2] == pool.groups.tolist()
    assert [str(tmp_path / "data.npz")] == list(pool.files)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"X": X, "y": Y}, ["no array 'x'", "Did you mean 'X'?"]),
        ({"x": X}, ["no array 'y'"]),
        ({"x": X, "y": Y[:3]}, ["4 rows", "3"]),
        ({"x": X[:0], "y": Y[:0]}, ["0 rows"]),
        ({"x": X[:, 0], "y": Y}, ["x is float64 of shape (4,)"]),
        ({"x": X.astype(str), "y": Y}, ["x is <U", "expected numbers"]),
        ({"x": X, "y": Y + 0.5}, ["y is float64", "whole numbers"]),
        ({"x": X, "y": Y - 1}, ["y[0] = -1", "labels from 0"]),
        ({"x": np.where(X == 7, np.nan, X), "y": Y}, ["x[2, 1] = nan"]),
        ({"x": np.where(X == 7, 1e300, X), "y": Y}, ["x[2, 1] = 1e+300", "float32"]),
        ({"x": X, "y": Y, "x_test": X}, ["no array 'y_test'"]),
        ({"x": X, "y": Y, "x_test": X[:, :2], "y_test": Y}, ["x_test", "shape 2", "expected 3"]),
        ({"x": X, "y": Y, "client": [1]}, ["client has shape (1,)", "(4,)"]),
        ({"x": X, "y": Y, "client": X[:, 0]}, ["client is float64"]),
        ({"x": X, "y": np.array([None, 1, 2, 3])}, ["Python objects"]),
    ],
)
def test_a_wrong_npz_is_one_line(tmp_path: Path, arrays: dict[str, Any], words: list[str]) -> None:
    """An archive that lacks an array, or holds what cannot be trained on, is refused in one line."""
    refuses(archive(tmp_path, **arrays), "data.source.path", *words)


@pytest.mark.parametrize("damage", [lambda b: b[:-30], lambda b: b[:60] + b"\xff" * 60 + b[120:], lambda b: b"no"])
def test_a_damaged_npz_is_one_line(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """An archive that is cut, scribbled over, or no archive at all is refused in one line."""
    read = archive(tmp_path, x=X, y=Y)
    (tmp_path / "data.npz").write_bytes(damage((tmp_path / "data.npz").read_bytes()))

    refuses(read, "data.source.path", "cannot be read as a numpy archive")


def test_an_npy_is_no_npz(tmp_path: Path) -> None:
    """A single saved array is refused, with the call that saves two."""
    np.save(tmp_path / "data.npy", X)

    refuses(lambda: npz("data.npy", finder(tmp_path)), "data.source.path", "numpy.savez")


# Files: csv.


def sheet(folder: Path, text: str | bytes, label: str = "kind", client: str | None = None) -> Callable[[], Pool]:
    (folder / "data.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return lambda: csv("data.csv", label, finder(folder), client)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_csv_reads_a_table(tmp_path: Path, suffix: str) -> None:
    """Words become classes in sorted order, clients are numbered by sorted name, all other columns are features."""
    text = '\ufeffa, kind,who,b\n1,yes,"Zoë, A.",-2.5\n\n3e1,no,Al,4\n5,yes,Al,6\n'.encode()
    (tmp_path / f"t.csv{suffix}").write_bytes(gzip.compress(text) if suffix else text)
    pool = csv(f"t.csv{suffix}", "kind", finder(tmp_path), client="who")

    assert [[1.0, -2.5], [30.0, 4.0], [5.0, 6.0]] == pool.train.x.tolist()
    assert ([1, 0, 1], 2) == (pool.train.y.tolist(), pool.outputs)
    assert pool.groups is not None
    assert [1, 0, 0] == pool.groups.tolist()
    assert [str(tmp_path / f"t.csv{suffix}")] == list(pool.files)


def test_csv_without_clients_has_no_groups(tmp_path: Path) -> None:
    """A table read without a client column has no natural clients."""
    assert None is sheet(tmp_path, "a,kind\n1,x\n")().groups


@pytest.mark.parametrize(
    ("words", "classes", "ranks"),
    [
        (["10", "9", "-1"], ["-1", "9", "10"], [2, 1, 0]),
        (["10", "9", "x"], ["10", "9", "x"], [0, 1, 2]),
        (["1", "1.0", "0"], ["0", "1"], [1, 1, 0]),
        (["nan", "1"], ["1", "nan"], [1, 0]),
    ],
)
def test_labels_sort_by_value_where_all_are_numbers(words: list[str], classes: list[str], ranks: list[int]) -> None:
    """Labels that are all finite numbers sort by value; a single word among them and all sort as words."""
    names, places = encode(words)

    assert (classes, ranks) == (names, places.tolist())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,kind\n1,x\n?,y\n", ["line 3", "column 'a'", "'?'"]),
        ("a,kind\n1,x\n,y\n", ["line 3", "column 'a'", "''"]),
        ('a,kind\n1,"x\nx"\noops,y\n', ["line 4", "column 'a'", "'oops'"]),
        ("a,kind\n1,x\n\nnan,y\n", ["line 4", "column 'a'", "nan"]),
        ("b,a,kind\n1,1e39,x\n", ["line 2", "column 'a'", "1e+39"]),
        ("a,kind\n1,x\n1,\n", ["line 3", "column 'kind'", "empty"]),
        ("a,kind\n1,x\n1,x,3\n", ["line 3", "3 cells", "expected 2"]),
        ("a,kind,a\n1,x,3\n", ["two columns 'a'"]),
        ("a,kind\n", ["no rows"]),
        ("", ["is empty"]),
        ("\n\n", ["is empty"]),
        ('a,kind\n1,"x\n', ["cannot be read"]),
        (b"a,kind\n1,\xff\n", ["cannot be read", "UTF-8"]),
    ],
)
def test_a_wrong_csv_is_one_line(tmp_path: Path, text: str | bytes, words: list[str]) -> None:
    """A cell that does not fit is refused by line and column, a table that is none in one line."""
    refuses(sheet(tmp_path, text), "data.source.path", *words)


def test_a_damaged_gzipped_csv_is_one_line(tmp_path: Path) -> None:
    """A gzipped table that is cut short, or is not gzipped at all, is refused in one line."""
    for content in (gzip.compress(b"a,kind\n" + b"1,x\n" * 99)[:-9], b"a,kind\n1,x\n"):
        (tmp_path / "t.csv.gz").write_bytes(content)

        refuses(lambda: csv("t.csv.gz", "kind", finder(tmp_path)), "data.source.path", "gzipped UTF-8 csv")


def test_a_missing_column_is_answered_with_the_nearest(tmp_path: Path) -> None:
    """A label or client that is no column is refused by its own key, with the nearest column's name."""
    text = "a,kind,user\n1,x,u\n"

    refuses(sheet(tmp_path, text, "knd"), "data.source.label", "Did you mean 'kind'?")
    refuses(sheet(tmp_path, text, "kind", "usr"), "data.source.client", "Did you mean 'user'?")
    refuses(sheet(tmp_path, text, "kind", "kind"), "data.source.client", "a second time (label is the first)")
    refuses(sheet(tmp_path, "kind,user\nx,u\n", "kind", "user"), "data.source.label", "no feature")


# Generated.


def test_the_frozen_seed_lets_nobody_own_the_data() -> None:
    """With the published seed no one of 30 clients holds 30 % of the examples, and the sizes are those published."""
    sizes = leaf_synthetic().sizes(THIRTY)

    assert (5, 14534, 2908) == (DATA_SEED, int(sizes.sum()), int(sizes.max()))
    assert sizes.max() / sizes.sum() < 0.30


def test_another_client_leaves_the_others_bits() -> None:
    """A client's size and examples are the same in a fleet of 30 and of 100,000, in whatever order it is asked for."""
    small, large = leaf_synthetic(1.0, 1.0), leaf_synthetic(1.0, 1.0)
    large.client(99_999)
    one, two = small.client(7), large.client(7)

    assert (one.x.tobytes(), one.y.tobytes()) == (two.x.tobytes(), two.y.tobytes())
    assert small.sizes(THIRTY).tolist() == large.sizes(np.arange(100_000))[:30].tolist()
    assert small.sizes(THIRTY)[::-1].tolist() == small.sizes(THIRTY[::-1]).tolist()


def test_clients_hold_what_their_sizes_say() -> None:
    """Each client's examples are as many as sizes() says, float32 of 60 features, with labels 0 to 9."""
    fleet = leaf_synthetic()
    parts = [fleet.client(client) for client in range(30)]

    assert fleet.sizes(THIRTY).tolist() == [len(part) for part in parts]
    assert {(np.dtype(np.float32), np.dtype(np.int64))} == {(part.x.dtype, part.y.dtype) for part in parts}
    assert {(60,)} == {part.x.shape[1:] for part in parts}
    assert set(range(10)) == {label for part in parts for label in part.y.tolist()}


def test_sizes_are_log_normal() -> None:
    """The median of a million sizes is 50 + e**4, their log spread is 2, and no client holds more than the cap."""
    sizes = leaf_synthetic().sizes(np.arange(10**6))
    logs = np.log(leaf_synthetic(max_examples=10**12).sizes(np.arange(10**5)) - 49.5)

    assert abs(np.median(sizes) - (50 + np.exp(4.0))) < 1.5
    assert abs(np.std(logs[logs > 4]) / np.std(2 * np.abs(np.random.default_rng(0).standard_normal(10**5))) - 1) < 0.02
    assert (50, 10_000) == (sizes.min(), sizes.max())


def between(fleet: LeafSynthetic, clients: int = 400) -> float:
    """The standard deviation, over clients, of a client's mean feature."""
    return float(np.std([fleet.client(client).x.mean(dtype=float) for client in range(clients)]))


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_beta_moves_clients_apart(beta: float) -> None:
    """The mean feature of a client spreads by sqrt(beta**2 + 1/60): B_k, and the mean of 60 N(B_k, 1)."""
    expected = np.sqrt(beta**2 + 1 / 60)

    assert abs(between(leaf_synthetic(0.0, beta, max_examples=200)) / expected - 1) < 4 / np.sqrt(2 * 400)


def test_alpha_moves_no_label() -> None:
    """The original's u_k adds the same to the logit of every class, so alpha changes no label at all."""
    parts = [leaf_synthetic(alpha, 1.0).client(4) for alpha in (0.0, 1.0, 9.0)]

    assert parts[0].y.tolist() == parts[1].y.tolist() == parts[2].y.tolist()


def label_shares(fleet: LeafSynthetic) -> np.ndarray:
    return np.stack([np.bincount(fleet.client(c).y, minlength=10) / len(fleet.client(c)) for c in range(60)])


def test_labels_differ_between_clients_unless_iid() -> None:
    """A client's commonest class holds most of its examples at (0, 0) and at (1, 1); with iid, shares agree."""
    near, far, even = (leaf_synthetic(0.0, 0.0), leaf_synthetic(1.0, 1.0), leaf_synthetic(iid=True))
    spread = {name: label_shares(f) for name, f in (("near", near), ("far", far), ("even", even))}

    assert spread["near"].max(axis=1).mean() > 0.5
    assert spread["far"].max(axis=1).mean() > spread["near"].max(axis=1).mean()
    assert spread["even"].std(axis=0).max() < 0.08 < spread["near"].std(axis=0).min()


def test_the_classes_of_a_fleet_are_balanced() -> None:
    """No class is special: over 400 clients of equal weight each class holds a tenth, within four standard errors."""
    fleet = leaf_synthetic(max_examples=200)
    shares = np.stack([np.bincount(fleet.client(c).y, minlength=10) / len(fleet.client(c)) for c in range(400)])

    assert np.all(np.abs(shares.mean(axis=0) - 0.1) < 4 * shares.std(axis=0) / np.sqrt(400))


def test_another_data_seed_is_another_federation() -> None:
    """Two data seeds share no client."""
    assert leaf_synthetic(data_seed=1).client(0).x[0, 0] != leaf_synthetic(data_seed=2).client(0).x[0, 0]
