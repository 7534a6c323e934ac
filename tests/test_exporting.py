"""Exports: each form read back by another reader, against the run; whole or not at all; what is missing is a line."""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
import sqlite3
import struct
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import fedsim
from conftest import tiny_table
from fedsim.exporting import exporters
from fedsim.exporting.as_perfetto import CLIENTS, FILE, perfetto, traced
from fedsim.exporting.columns import OWN, SHARED, TABLES
from fedsim.exporting.curves import began_s, curves
from fedsim.exporting.exporters import Exporter
from fedsim.exporting.track_event import Event, Track, write
from fedsim.record import manifest
from fedsim.report.figures import Seen
from fedsim.scenario.load import load as load_scenario

RECORDED = Path(__file__).with_name("recorded")
FREE = ("csv", "perfetto", "ro-crate")
"""The forms that take nothing besides."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> fedsim.Run:
    """A run with late clients, federated evaluations, and watched steps."""
    more = {
        "clients.compute": {"kind": "lognormal", "gflops": 0.0001, "sigma": 1.0, "overhead_s": 1.0}, "server.round_timeout_s": 1.5,
        "server.rounds": 3, "evaluate.federated_fraction": 1.0, "evaluate.client_test_fraction": 0.3, "monitor": {"every": 1},
    }  # fmt: skip
    return fedsim.run(tiny_table(), overrides=more, out=tmp_path_factory.mktemp("exporting") / "run")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of a recorded run on streams, of before some tables."""
    return Path(shutil.copytree(RECORDED / "split-digits", tmp_path / "run"))


# Tables.


def test_csv_reads_back(run: fedsim.Run, tmp_path: Path) -> None:
    """Every table that has rows is a file, every number in it reads back to the last bit, and every column has a unit and a meaning."""
    found = fedsim.export(run, "csv", tmp_path / "out")
    columns = json.loads((found.folder / "columns.json").read_text(encoding="utf-8"))
    full = {name: table(run) for name, table in TABLES.items() if len(table(run))}

    assert {f"{name}.csv" for name in full} | {"columns.json", "manifest.json"} == {path.name for path in found.files}
    assert {"tasks", "clients", "devices", "steps", "noise"} <= full.keys() == columns.keys()
    for name, frame in full.items():
        again = pd.read_csv(found.folder / f"{name}.csv", float_precision="round_trip", keep_default_na=True)
        numbers = frame.select_dtypes("number")
        pd.testing.assert_frame_equal(numbers, again[numbers.columns], check_dtype=False, check_exact=True)
        assert (len(frame), list(frame.columns)) == (columns[name]["rows"], list(columns[name]["columns"]))
        unsaid = [column for column in frame.columns if column not in {**SHARED, **OWN.get(name, {})}]
        assert [] == unsaid and all(each["meaning"] for each in columns[name]["columns"].values())
    merged = pd.read_csv(found.folder / "versions.csv", keep_default_na=False).merged
    assert [" ".join(map(str, each)) for each in run.versions.merged] == merged.astype(str).tolist()


def test_parquet_reads_back(run: fedsim.Run, tmp_path: Path) -> None:
    """Every table reads back as the frame that it was, by Arrow's own reader; its fields say their units."""
    pytest.importorskip("pyarrow", reason="the extra [parquet] is not installed")
    import pyarrow.parquet as pq

    found = fedsim.export(run, "parquet", tmp_path / "out")
    for name in ("tasks", "clients", "metrics", "devices", "versions"):
        frame, table = TABLES[name](run), pq.read_table(found.folder / f"{name}.parquet")
        again = table.to_pandas()
        if name == "versions":
            assert [each.tolist() for each in frame.pop("merged")] == [each.tolist() for each in again.pop("merged")]
        pd.testing.assert_frame_equal(frame, again, check_dtype=False, check_exact=True, check_categorical=False)
    assert b"s (virtual, since the run began)" == pq.read_schema(found.folder / "tasks.parquet").field("sent_s").metadata[b"unit"]


# Curves.


def test_curves_are_the_scores(run: fedsim.Run) -> None:
    """Every score is a point; costs and the spread of clients' scores come with it, by round."""
    points = [*curves(run)]
    metrics = run.metrics
    scores = points[: len(metrics)]
    told = run.clients.dropna(subset=["accuracy"])
    worst = {point.round: point.value for point in points if (point.scope, point.name) == ("clients", "accuracy worst tenth")}
    last = metrics.groupby("round").down_bytes.last()

    assert [*zip(metrics.scope, metrics.name, metrics["round"], metrics.now_s, metrics.value, strict=True)] == [
        (point.scope, point.name, point.round, point.now_s, point.value) for point in scores
    ]
    assert dict(told.groupby("round").accuracy.min()) == worst and len(worst) == 3  # A tenth of six clients is one.
    assert last.tolist() == [point.value for point in points if (point.scope, point.name) == ("cost", "down_bytes")]


def test_tensorboard_reads_it(run: fedsim.Run, tmp_path: Path) -> None:
    """TensorBoard's own reader finds the scores, by round, at the run's start plus virtual time."""
    pytest.importorskip("tensorboard", reason="the extra [tensorboard] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = fedsim.export(run, "tensorboard", tmp_path / "out")
    for scope, name in (("central", "accuracy"), ("federated", "loss"), ("training", "train_loss")):
        reader = EventAccumulator(str(found.folder / scope))
        reader.Reload()
        series = run.series(name, scope)
        scalars = reader.Scalars(name)

        assert series["round"].tolist() == [each.step for each in scalars]
        assert series["value"].astype(np.float32).tolist() == [each.value for each in scalars]
        assert np.allclose(series.now_s + began_s(run), [each.wall_time for each in scalars], rtol=0, atol=1e-6)


def test_mlflow_reads_it(run: fedsim.Run, tmp_path: Path) -> None:
    """MLflow's own client finds the run where the export was moved to: its scenario, its scores, its digest, and that it finished."""
    pytest.importorskip("mlflow", reason="the extra [mlflow] is not installed")
    from mlflow.tracking import MlflowClient

    from fedsim.exporting.exporters import surrounded

    found = fedsim.export(run, "mlflow", tmp_path / "out")
    with surrounded(MLFLOW_ALLOW_FILE_STORE="true"):
        client = MlflowClient(tracking_uri=found.folder.as_uri())
        (one,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
        history = client.get_metric_history(one.info.run_id, "central/accuracy")
        artifacts = [each.path for each in client.list_artifacts(one.info.run_id)]
    series = run.series("accuracy")

    assert ("FINISHED", run.digest, "3", "FedAvg") == (
        one.info.status, one.data.tags["digest"], one.data.params["server.rounds"], one.data.params["server.strategy.kind"],
    )  # fmt: skip
    assert [*zip(series["round"], series["value"], strict=True)] == sorted((each.step, each.value) for each in history)
    assert round((began_s(run) + series.now_s.iloc[-1]) * 1000) == history[-1].timestamp and ["manifest.json"] == artifacts


def logged(data: bytes) -> Iterator[bytes]:
    """Yield the records of a log as LevelDB writes it, in blocks of 32 KiB, after W&B's seven bytes."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # The whole, or its last piece.
            yield whole
            whole = b""


def test_wandb_wrote_it(run: fedsim.Run, tmp_path: Path) -> None:
    """The offline run holds a record for each round, with its scores, where the export was moved to."""
    pytest.importorskip("wandb", reason="the extra [wandb] is not installed")
    from wandb.proto import wandb_internal_pb2

    found = fedsim.export(run, "wandb-offline", tmp_path / "out")
    (file,) = found.folder.rglob("*.wandb")
    rows = list[dict[str, Any]]()
    for data in logged(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            rows.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item})
    series = run.series("accuracy")

    assert [*zip(series["round"], series["value"], strict=True)] == [(row["round"], row["central/accuracy"]) for row in rows]


# The trace.


def fields(data: bytes) -> dict[int, list[Any]]:
    """Return the fields of a protobuf message by number: the wire format, read by hand."""
    found, at = defaultdict[int, list[Any]](list), 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(data):
        tag = varint()
        if tag & 7 == 0:
            found[tag >> 3].append(varint())
        elif tag & 7 == 1:
            found[tag >> 3].append(data[at : at + 8])
            at += 8
        else:
            size = varint()
            found[tag >> 3].append(data[at : at + size])
            at += size
    return found


def test_a_packet_is_to_the_byte_what_perfetto_takes() -> None:
    """A slice's begin at 5 ns on track 7 has the bytes that its published field numbers make (8, 10, 11; 9, 11, 23)."""
    file = io.BytesIO()
    write(file, [], [Event(7, "begin", 5e-9, "x")])

    assert bytes.fromhex("0a0e 4005 5001 5a08 4801 5807 ba010178") == file.getvalue()


def test_perfetto_reads_it(run: fedsim.Run, tmp_path: Path) -> None:
    """Perfetto's own classes read what was written: tracks with parents, a counter's value, flows, annotations."""
    pb2 = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2", reason="the package perfetto is not installed")
    found = fedsim.export(run, "perfetto", tmp_path / "out")
    trace = pb2.Trace()
    trace.ParseFromString((found.folder / FILE).read_bytes())
    tracks = {p.track_descriptor.uuid: p.track_descriptor for p in trace.packet if p.HasField("track_descriptor")}
    events = [p.track_event for p in trace.packet if p.HasField("track_event")]
    values = [e.double_counter_value for e in events if e.type == 4 and tracks[e.track_uuid].name == "central accuracy"]
    starts, ends = ({flow for e in events for flow in getattr(e, name)} for name in ("flow_ids", "terminating_flow_ids"))

    assert run.series("accuracy")["value"].tolist() == values
    assert 1 == trace.packet[0].sequence_flags and {1} == {p.trusted_packet_sequence_id for p in trace.packet}
    assert ends == starts and len(starts) == len(run.tasks) + sum(map(len, run.versions.merged))
    assert {"B", ""} == {t.counter.unit_name for t in tracks.values() if t.HasField("counter")}


def test_slices_are_the_tasks(run: fedsim.Run, tmp_path: Path) -> None:
    """On each client's track slices nest; the phases of all of them last what the tasks say, to the nanosecond."""
    perfetto(run, tmp_path, tmp_path)
    packets = [fields(packet) for packet in fields((tmp_path / FILE).read_bytes())[1]]
    tracks = {t[1][0]: t for t in (fields(p[60][0]) for p in packets if 60 in p)}
    lasted, open_ = defaultdict[str, int](int), defaultdict[int, list[tuple[str, int]]](list)
    for packet in packets:
        if 11 not in packet:
            continue
        event, at = fields(packet[11][0]), packet[8][0]
        stack = open_[event[11][0]]
        if event[9] == [1]:
            assert not stack or stack[-1][1] <= at
            stack.append((event[23][0].decode(), at))
        elif event[9] == [2]:
            name, since = stack.pop()
            assert at >= since
            lasted[name] += at - since
    tasks = run.tasks
    upload = (tasks.arrived_s - tasks.computed_s).sum()
    work = (tasks.computed_s - tasks.started_s).groupby(tasks.kind).sum()

    assert not any(open_.values()) and "late" in " ".join(lasted)
    assert {f"client {n}" for n in range(6)} <= {t[2][0].decode() for t in tracks.values() if t.get(5) == [CLIENTS]}
    for name, seconds in (("upload", upload), ("training", work["train"]), ("evaluation", work["evaluate"])):
        assert math.isclose(seconds * 1e9, lasted[name], abs_tol=2 * len(tasks))


def test_tasks_that_overlap_have_tracks_of_their_own(run: fedsim.Run) -> None:
    """A client whose message waits while it works on another has a second track, so that slices do not cross; accuracy is a counter."""
    seen = Seen(run, run.tasks, run.rounds, run.metrics)
    one = seen.tasks.sort_values(["client", "sent_s"]).head(1)
    twice = pd.concat([one, one.assign(message="m999", sent_s=one.sent_s + 1e-3)], ignore_index=True)
    tracks, _, lost = traced(Seen(run, twice, run.rounds, run.metrics))

    assert 0 == lost and ["client 0", "client 0, meanwhile"] == [track.name for track in tracks if track.parent == CLIENTS]
    assert Track in {type(track) for track in tracks} and "central accuracy" in {track.name for track in tracks}


# The archive.


def test_the_crate_holds_what_it_says(run: fedsim.Run, tmp_path: Path) -> None:
    """Every file is there with the size and the hash that stand beside it, references are to what is described, and the copy is a run."""
    found = fedsim.export(run, "ro-crate", tmp_path / "out")
    metadata = json.loads((found.folder / "ro-crate-metadata.json").read_text(encoding="utf-8"))
    graph = {each["@id"]: each for each in metadata["@graph"]}
    files = [each for each in graph.values() if each["@type"] == "File"]
    root, action = graph["./"], graph["#run"]

    def refers(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [value["@id"]] if set(value) == {"@id"} else [each for item in value.values() for each in refers(item)]
        return [each for item in value for each in refers(item)] if isinstance(value, list) else []

    assert {"@id": "https://w3id.org/ro/crate/1.1"} == graph["ro-crate-metadata.json"]["conformsTo"]
    assert len(metadata["@graph"]) == len(graph) and {*refers(metadata["@graph"])} <= {*graph, "https://w3id.org/ro/crate/1.1"}
    assert {path.name for path in found.files} - {"ro-crate-metadata.json"} == {each["@id"] for each in files} == {*refers(root["hasPart"])}
    for each in files:
        content = (found.folder / each["@id"]).read_bytes()
        assert (str(len(content)), hashlib.sha256(content).hexdigest()) == (each["contentSize"], each["sha256"])
    assert "#fedsim-online" == action["instrument"]["@id"] and action["actionStatus"].endswith("/CompletedActionStatus")
    assert run.digest in {graph[name]["value"] for name in refers(root["identifier"])}
    again = fedsim.load(found.folder)
    pd.testing.assert_frame_equal(run.clients, again.clients)
    assert run.manifest["scenario_digest"] == again.manifest["scenario_digest"]
    assert run.manifest["scenario"] == load_scenario(found.folder / "scenario.toml").scenario.plain()


# Any form.


def test_runs_of_any_kind(copy: Path) -> None:
    """Runs on streams, of before some tables, and on real clients are exported, each by every form that takes nothing besides."""
    deployed = Path(__file__).parents[1] / "analysis" / "benchmarks" / "traces" / "quickstart"
    shutil.copytree(deployed, copy.with_name("deployed"))
    for folder in (copy, copy.with_name("deployed")):
        for form in FREE:
            found = fedsim.export(folder, form)

            assert folder / "export" / form == found.folder and found.files
            assert not [path for path in found.folder.parent.iterdir() if path.name.startswith(".")]
    assert "ro-crate" not in {path.name for path in (copy / "export" / "ro-crate").iterdir()}


def test_a_run_that_was_killed_is_exported_as_far_as_it_is(copy: Path) -> None:
    """Cut off in mid-run, with tasks in flight and no end in its manifest, a run is exported, and the note says what it is."""
    about = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    about |= {"status": "running", "digest": None, "metrics_digest": None, "virtual_s": 0.0}
    about["process"] = {**manifest.process(), "pid": 2**22 + 5}
    (copy / "manifest.json").write_text(json.dumps(about), encoding="utf-8")
    with closing(sqlite3.connect(copy / "journal.sqlite")) as file:
        file.execute("UPDATE tasks SET outcome = 'in flight', arrived_s = -1.0, computed_s = -1.0 WHERE rowid > 70")
        file.execute("DELETE FROM rounds WHERE rowid > 14")
        file.commit()
    for form in FREE:
        found = fedsim.export(copy, form)

        assert "was killed; this is what was recorded until then." in found.notes[0]
    crate = json.loads((copy / "export" / "ro-crate" / "ro-crate-metadata.json").read_text(encoding="utf-8"))
    assert "http://schema.org/FailedActionStatus" in {each.get("actionStatus") for each in crate["@graph"]}


def test_whole_or_not_at_all(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that breaks leaves the export of before as it was, and nothing beside it; one that works takes its place."""
    fedsim.export(copy, "csv")
    stays = copy / "export" / "csv" / "tasks.csv"
    (copy / "export" / "csv" / "old.csv").touch()

    def broken(run: fedsim.Run, folder: Path, place: Path) -> None:
        (folder / "half.csv").touch()
        raise ValueError("no <ink>")

    monkeypatch.setitem(exporters._entries, "csv", lambda: Exporter("broken", broken))
    with pytest.raises(fedsim.RunError, match="--to csv: raised ValueError: no <ink>"):
        fedsim.export(copy, "csv")
    assert stays.is_file() and ["csv"] == [path.name for path in (copy / "export").iterdir()]
    monkeypatch.undo()
    fedsim.export(copy, "csv")
    assert stays.is_file() and not (copy / "export" / "csv" / "old.csv").exists()
    with pytest.raises(fedsim.ScenarioError, match="is there already and not empty"):
        fedsim.export(copy, "csv", copy)


def test_the_command(copy: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command says where it wrote; with --json in one line; what it cannot do is a line of what would have worked."""
    monkeypatch.setitem(sys.modules, "mlflow", None)
    done, told = cli("export", copy, "--to", "csv"), cli("export", copy, "--to", "perfetto", "--json")
    line = json.loads(told.out)

    assert 0 == done.code and done.out.startswith(f"{copy}/export/csv: ") and "files" in done.out
    assert ("perfetto", [str(copy / "export" / "perfetto" / FILE)]) == (line["to"], line["files"]) and 1 == told.out.count("\n")
    for words, said in {
        (copy, "--to", "mlflow"): "--to mlflow: needs the package mlflow-skinny: pip install 'fedsim-online[mlflow]'",
        (copy, "--to", "parket"): "--to = 'parket': no such exporter. Did you mean 'parquet'?",
        (copy,): "--to: say which form. There are csv, mlflow, parquet, perfetto, ro-crate, tensorboard, wandb-offline.",
        (copy.parent, "--to", "csv"): "not a run folder",
        (copy, "--to", "csv", "--out", copy): "is there already and not empty",
        (copy, "--to", "csv", "--out", copy / "manifest.json" / "x"): "manifest.json: is a file, not a folder.",
    }.items():
        answer = cli("export", *words)

        assert 2 == answer.code and said in answer.err and 1 == answer.err.count("\n"), answer.err


def test_a_form_of_your_own(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One function in a module of one's own is a form; one that returns something else is a line."""
    (tmp_path / "mine.py").write_text(
        "from fedsim.exporting import Exporter\n\n"
        "def names():\n    return Exporter('names', lambda run, folder, place: (folder / 'name').write_text(run.name) and [str(place)])\n\n"
        "def nothing():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = fedsim.export(copy, "mine:names", tmp_path / "out")

    assert "split-digits" == (found.folder / "name").read_text() and (str(tmp_path / "out"),) == found.notes
    with pytest.raises(fedsim.ScenarioError, match="--to mine:nothing: returned a int, not an exporter"):
        fedsim.export(copy, "mine:nothing")


def test_struct_is_little_endian() -> None:
    """What ``fields`` reads of eight bytes is a double as protobuf writes it."""
    file = io.BytesIO()
    write(file, [], [Event(7, "counter", 0.0, value=0.75)])
    event = fields(fields(fields(file.getvalue())[1][0])[11][0])

    assert 0.75 == struct.unpack("<d", event[44][0])[0] and [4] == event[9]
