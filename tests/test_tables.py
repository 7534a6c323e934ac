"""Tables as people have them: labels as they are written, what is missing, other separators, dates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.core.errors import ScenarioError
from fedsim.data.files import csv
from fedsim.data.recorded import csv_stream
from fedsim.data.source import Pool, finder
from fedsim.data.table import MARKERS


def table(folder: Path, text: str, stream: bool = False, **more: Any) -> Pool:
    """Return *text*, read as a table whose label is the column ``y``."""
    (folder / "t.csv").write_text(text, newline="")
    return (csv_stream if stream else csv)("t.csv", "y", finder(folder), **more)


@pytest.mark.parametrize(
    ("words", "ranks"),
    [
        (["9007199254740993", "9007199254740992"], [1, 0]),  # As floats they are one.
        (["1_1", "11"], [1, 0]),  # Python reads both as eleven.
        (["10", "9", "9.0"], [1, 0, 0]),
        (["1e3", "1000"], [0, 0]),
        (["١", "1"], [1, 0]),  # noqa: RUF001  # An Arabic one is text.
        (["inf", "1"], [1, 0]),
    ],
)
def test_labels_are_text_unless_all_are_plain_numbers(words: list[str], ranks: list[int], tmp_path: Path) -> None:
    assert ranks == table(tmp_path, "x,y\n" + "".join(f"0,{word}\n" for word in words)).train.y.tolist()


@pytest.mark.parametrize("marker", sorted(MARKERS))
def test_what_is_missing_is_refused_dropped_or_filled(marker: str, tmp_path: Path) -> None:
    """In a label it is refused; in a feature it is what the setting says, and the setting is named."""
    text = f"a,b,y\n1,1,0\n{marker},2,1\n5,3,1\n"
    with pytest.raises(ScenarioError, match=r"line 3, column 'a': .*data\.source\.missing = 'drop'"):
        table(tmp_path, text)
    dropped, filled = table(tmp_path, text, missing="drop"), table(tmp_path, text, missing="mean")
    assert ([[1, 1], [5, 3]], [0, 1]) == (dropped.train.x.tolist(), dropped.train.y.tolist())
    assert [[1, 1], [3, 2], [5, 3]] == filled.train.x.tolist() and np.float32 == filled.train.x.dtype
    with pytest.raises(ScenarioError, match="line 3, column 'y': is .*expected a name"):
        table(tmp_path, f"a,y\n1,0\n2,{marker}\n", missing="drop")
    with pytest.raises(ScenarioError, match="column 'a': holds nothing|has no row"):
        table(tmp_path, f"a,b,y\n{marker},1,0\n{marker},2,1\n", missing="mean")
    with pytest.raises(ScenarioError, match=r"line 3, column 'a': 1e\+308 is no finite float32"):  # Not the cell that its mean fills.
        table(tmp_path, f"a,b,y\n{marker},1,0\n1e308,2,1\n", missing="mean")


PLAIN = [[1.5, 2000.0], [2.5, 3000.25]]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("a,b,y\n1.5,2000,u\n2.5,3000.25,v\n", {}),
        ("\n  \na,b,y\n1.5,2000,u\n2.5,3000.25,v\n", {}),
        ("a;b;y\n1.5;2000;u\n2.5;3000.25;v\n", {}),
        ("a\tb\ty\n1.5\t2000\tu\n2.5\t3000.25\tv\n", {}),
        ("a:b:y\n1.5:2000:u\n2.5:3000.25:v\n", {"separator": ":"}),
        ("a;b;y\n1,5;2000;u\n2,5;3000,25;v\n", {"decimal": ","}),
        ("a;b;y\n1,5;2.000;u\n2,5;3.000,25;v\n", {"decimal": ",", "thousands": "."}),
        ('a,b,y\n1.5,"2,000",u\n2.5,"3,000.25",v\n', {"thousands": ","}),
        (",a,b,y\n0,1.5,2000,u\n1,2.5,3000.25,v\n", {}),  # pandas' index.
        ('a,b,y\r\n1.5,2000,"u\r\nu"\r\n2.5,3000.25,v\r\n', {}),
    ],
)
def test_a_table_is_read_however_it_is_written(text: str, form: Mapping[str, Any], tmp_path: Path) -> None:
    pool = table(tmp_path, text, **form)
    assert (PLAIN, [0, 1]) == (pool.train.x.tolist(), pool.train.y.tolist())


@pytest.mark.parametrize(
    ("text", "form", "said"),
    [
        ("a,b,y\nbus,1,0\n", {}, r"data\.source\.ignore, or in data\.source\.categories = \['a'\]"),
        ("a;y\n1,5;0\n", {}, r"data\.source\.decimal = ','"),
        ('a,y\n"1,500",0\n', {}, r"data\.source\.thousands = ','"),
        ("a:y\n1:0\n", {}, r"data\.source\.label = 'y': no such column.*data\.source\.separator"),
        ("a,y\n1;0\n", {}, r"line 2 has 1 cells.*data\.source\.separator"),
        ("a,y\n1_1,0\n", {}, "line 2, column 'a': '1_1' is not a number"),
        ("a;y\n1.23.4;0\n", {"decimal": ",", "thousands": "."}, "is not a number"),
        (",a,y\n7,1,0\n3,1,1\n", {}, "column 1 has no name"),
        ("a,y\n1,0\n", {"separator": "ab"}, "must be one character"),
        ("a,y\n1,0\n", {"decimal": ","}, r"data\.source\.decimal = ','"),
        ("a,y\n1,0\n", {"ignore": ["a"], "categories": ["a"]}, "names column 'a' of 't.csv' a second time"),
        ("a,y\n" + "".join(f"1,{i / 7:.4f}\n" for i in range(50)), {}, "a quantity to regress on"),
    ],
)
def test_what_does_not_fit_names_the_setting_that_would_take_it(text: str, form: Mapping[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=said) as refused:
        table(tmp_path, text, **form)
    assert "\n" not in str(refused.value)


def test_categories_are_one_column_a_word(tmp_path: Path) -> None:
    pool = table(tmp_path, "mode,a,y\nbus,1,0\ncar,2,1\nbus,3,1\nfoot,4,0\n", categories=["mode"])
    assert [[1, 1, 0, 0], [2, 0, 1, 0], [3, 1, 0, 0], [4, 0, 0, 1]] == pool.train.x.tolist()
    assert [[1, 0], [0, 1]] == table(tmp_path, "mode,y\nbus,0\ncar,1\n", categories=["mode"]).train.x.tolist()


@pytest.mark.parametrize("marker", sorted(MARKERS))
def test_a_category_that_is_missing_is_no_category(marker: str, tmp_path: Path) -> None:
    """Dropped with its row where that is asked; words have no mean, so anything else is refused with what would take it."""
    text = f"mode,a,y\nbus,1,0\n{marker},2,1\ncar,3,1\n"
    dropped = table(tmp_path, text, categories=["mode"], missing="drop").train
    assert ([[1, 1, 0], [3, 0, 1]], [0, 1]) == (dropped.x.tolist(), dropped.y.tolist())
    for setting in ("refuse", "mean"):
        with pytest.raises(ScenarioError, match=r"line 3, column 'mode': .*Words have no mean: set data\.source\.missing = 'drop'"):
            table(tmp_path, text, categories=["mode"], missing=setting)


def test_ids_are_classes_however_large(tmp_path: Path) -> None:
    """Thirty labels that no float tells apart are whole numbers all the same: classes, each its own."""
    pool = table(tmp_path, "a,y\n" + "".join(f"{i},{2**53 + i}\n" for i in range(30)))
    assert 30 == pool.outputs and list(range(30)) == pool.train.y.tolist()


def test_stars_and_halves_are_classes(tmp_path: Path) -> None:
    """Ratings are few values on many rows: no quantity."""
    pool = table(tmp_path, "a,y\n" + "".join(f"{i},{1 + i % 9 / 2}\n" for i in range(60)))
    assert 9 == pool.outputs and [0, 1, 2] == pool.train.y[:3].tolist()


def times(folder: Path, words: list[str], unit_s: float = 60.0) -> list[float]:
    """Return the seconds of the rows whose time stamps are *words*."""
    pool = table(folder, "t,a,y\n" + "".join(f"{word},1,{i % 2}\n" for i, word in enumerate(words)), True, time="t", time_unit_s=unit_s)
    assert pool.times_s is not None
    return pool.times_s.tolist()


def test_the_unit_is_of_plain_numbers(tmp_path: Path) -> None:
    """A date has a unit of its own; a date that looks like a number is not a number of seconds, nor are both in one column."""
    assert [0, 60, 180] == times(tmp_path, ["5", "6", "8"])
    assert [0, 3600] == times(tmp_path, ["2024-01-31T10:00:00", "2024-01-31T11:00:00"])
    with pytest.raises(ScenarioError, match="'20240131' reads as a date"):
        times(tmp_path, ["20240131", "20240201"])
    with pytest.raises(ScenarioError, match="expected numbers alone or dates alone"):
        times(tmp_path, ["5", "2024-01-31"])
    assert [0, 60] == times(tmp_path, ["20240199", "20240200"])  # No dates.


def _bomb(folder: Path, kind: str) -> Path:
    """Return a small file that asks for far more than the machine has, or never ends."""
    import gzip
    import os
    import zipfile

    file = folder / {"npz": "t.npz", "claim": "t.npz", "fifo": "t.csv"}.get(kind, "t.csv.gz")
    if kind == "line":  # 256 MB of a line without an end, in a quarter of one.
        with gzip.open(file, "wb", compresslevel=1) as out:
            out.write(b"a,y\n")
            for _ in range(256):
                out.write(b"1" * 2**20)
    elif kind == "claim":
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000, 1), }"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    elif kind == "npz":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as out:
            for _ in range(64):
                out.write(bytes(2**20))
    elif kind == "fifo":
        os.mkfifo(file)
    return file


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("line", "a line of more than 67,108,864 characters"),
        ("claim", "an array says that it holds more than this machine's memory"),
        ("npz", "unpacks to 0.1 GB, more than the 0.0 GB of this machine"),
        ("fifo", "is neither a file nor a folder"),
        ("null", "is neither a file nor a folder"),
    ],
)
def test_a_small_file_that_asks_for_everything_is_one_line(kind: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsim.data import files

    name = "/dev/null" if kind == "null" else _bomb(tmp_path, kind).name
    if kind == "npz":
        monkeypatch.setattr(files, "memory", lambda: 2**24)
    with pytest.raises(ScenarioError, match=said) as refused:
        files.npz(name, finder(tmp_path)) if name.endswith("npz") else csv(name, "y", finder(tmp_path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("seed", range(6))
def test_natural_clients_are_those_of_the_file_whatever_the_seed(seed: int, tmp_path: Path) -> None:
    """Two examples a client, a fifth held out: with some seeds a client would lose both, and others its number."""
    import json

    import fedsim
    from conftest import tiny_table

    rows = [f"{i % 7 / 7:.3f},{'no' if i % 3 else 'yes'},w{i // 2:02d}" for i in range(60)]
    (tmp_path / "nat.csv").write_text("a,y,who\n" + "\n".join(rows) + "\n")
    source = {"kind": "csv", "path": str(tmp_path / "nat.csv"), "label": "y", "client": "who"}
    run = fedsim.run(
        tiny_table({"seed": seed, "data": {"source": source, "partition": {"kind": "natural"}}, "clients.count": 30, "server.rounds": 1}),
        out=tmp_path / "run",
    )
    about = json.loads((run.path / "manifest.json").read_text())
    assert ([f"w{i:02d}" for i in range(30)], ["no", "yes"]) == (about["natural_clients"], about["classes"])


OWN = """
import numpy as np
from fedsim.data.source import Examples, Pool


def made():
    x, y = np.zeros((40, 3), "float32"), np.arange(40) % 2
    test, groups, outputs = None, None, 2
    CHANGE
    return Pool(Examples(x, y), outputs, test, groups)
"""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("y = y[:-1]", r"train.x has 40 rows and train.y has 39"),
        ("x[3, 1] = np.nan", r"train.x\[3, 1\] = nan: features must be finite"),
        ("x = x.astype('float64') + 1e300", r"train.x\[0, 0\] = .*: features must be finite float32"),
        ("x = x.astype(object)", "train.x is object"),
        ("x = x.tolist()", "train.x is a list"),
        ("y[7] = 2", r"train.y\[7\] = 2, expected a class from 0 to 1"),
        ("y[7] = -1", r"train.y\[7\] = -1"),
        ("y = y.astype(float)", "train.y is float64 .*classes from 0"),
        ("outputs = 2.0", "outputs are 2.0"),
        ("test = Examples(np.zeros((5, 4), 'float32'), np.zeros(5, int))", "test.x has rows of shape"),
        ("test = Examples(np.zeros((5, 3), 'float32'), np.full(5, 9))", r"test.y\[0\] = 9"),
        ("groups = np.zeros(7, int)", "groups has shape"),
        ("test = (x, y)", "test is a tuple, expected Examples"),
    ],
)
def test_a_source_of_ones_own_is_what_it_says(change: str, said: str, tmp_path: Path) -> None:
    """One line that names part, row and value; a NaN is a feature's fault and not the learning rate's."""
    import tomli_w

    import fedsim
    from conftest import tiny_table
    from fedsim.scenario.build import build
    from fedsim.scenario.load import load

    (tmp_path / "mine.py").write_text(OWN.replace("CHANGE", change))
    (tmp_path / "s.toml").write_bytes(tomli_w.dumps(tiny_table({"data.source": {"kind": "mine:made"}})).encode())
    with pytest.raises(fedsim.FedsimError, match=said) as refused:
        build(load(tmp_path / "s.toml"))
    assert "\n" not in str(refused.value) and "data.source.kind = 'mine:made'" in str(refused.value)


MADE = """
import numpy as np
from fedsim.data.source import Examples


class Mine:
    shape, outputs, variant, variants = (3,), 2, 0, 2

    def sizes(self, clients):
        return np.full(len(clients), 8)

    def client(self, client):
        x, y = np.ones((8, 3), "float32"), np.arange(8) % 2
        if client == WRONG:
            CHANGE
        return Examples(x, y)

    def variant_of(self, client, variant):
        return self.client(client)


def made():
    return Mine()
"""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("x[3, 1] = np.nan", r"client\({}\)\.x\[3, 1\] = nan: features must be finite"),
        ("y[4] = 5", r"client\({}\)\.y\[4\] = 5, expected a class from 0 to 1"),
        ("x, y = x[:5], y[:5]", r"client\({}\) has x of shape \(5, 3\), expected \(8, 3\)"),
        ("x = x[:, :2]", r"client\({}\) has x of shape \(8, 2\)"),
        ("raise ValueError('gone')", r"client\({}\) raised ValueError: gone"),
        ("return 1", r"client\({}\) is a int, expected Examples"),
    ],
)
def test_every_client_that_ones_own_source_makes_is_what_it_says(change: str, said: str, tmp_path: Path, hands: None) -> None:
    """While the world is built, and as late as a worker makes it: one line, and never a run on other examples than were said."""
    import tomli_w

    import fedsim
    from conftest import tiny_table

    late = [(119, 2)] if change.startswith(("x[3", "raise")) else []  # Workers answer all alike: two kinds will do.
    for wrong, workers in ((7, 1), (119, 1), *late):
        folder = tmp_path / f"{wrong}-{workers}"
        folder.mkdir()
        (folder / "mine.py").write_text(MADE.replace("CHANGE", change).replace("WRONG", str(wrong)))
        own = {"data": {"source": {"kind": "mine:made"}}, "clients.count": 120, "engine.workers": workers, "server.rounds": 1}
        (folder / "s.toml").write_bytes(tomli_w.dumps(tiny_table(own)).encode())
        with pytest.raises(fedsim.FedsimError, match=said.replace("{}", str(wrong))) as refused:
            fedsim.run(folder / "s.toml", out=folder / "run")
        assert "\n" not in str(refused.value) and "data.source.kind = 'mine:made'" in str(refused.value)
