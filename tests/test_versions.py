"""Versions: which results each model took in, for servers with rounds and without; what is told of old folders."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, Result
from pandas.testing import assert_frame_equal

import fedsim
from fedsim.report.page import write_report
from fedsim.score import influence

Go = Callable[..., fedsim.Run]
STREAM: dict[str, Any] = {
    "clients.count": 3, "server.rounds": 4, "clients.compute.sigma": 1.0,
    "stream": {"arrivals": {"kind": "poisson", "per_s": 2.0}, "trigger": {"kind": "count", "examples": 6}},
}  # fmt: skip


def took(run: fedsim.Run) -> list[tuple[int, list[str]]]:
    """Return each version and the messages whose results it took in."""
    return [(row.version, [f"m{number:09d}" for number in row.merged]) for row in run.versions.itertuples()]


def test_a_version_takes_in_a_rounds_results(go: Go) -> None:
    """With rounds each version is made at the end of one, of what arrived in it; the last one too, which nobody is sent."""
    run = go({"server.rounds": 3, "server.round_timeout_s": 1.15, "evaluate.federated_fraction": 0.5})
    tasks, rounds = run.tasks, run.rounds
    trains = tasks[(tasks.kind == "train") & (tasks.outcome == "arrived")]
    expected = [(turn, trains[trains["round"] == turn].sort_values("client").message.tolist()) for turn in (1, 2, 3)]

    assert [(0, []), *expected] == took(run)
    assert [0.0, *rounds[rounds.kind == "train"].ended_s] == run.versions.now_s.tolist()
    assert 0 < len(trains) < len(tasks[tasks.kind == "train"])


def test_what_rounds_tell_of_old_folders_is_what_is_told_now(go: Go) -> None:
    """Versions that follow from round rows, as for folders that have no others, are those on record."""
    run = go({**STREAM, "server.round_timeout_s": 6.0})
    derived = influence.told_by_rounds(run.tasks, run.rounds)

    def sorted_(frame: Any) -> Any:
        return frame.assign(merged=[sorted(numbers.tolist()) for numbers in frame.merged])

    assert_frame_equal(sorted_(run.versions), sorted_(derived))


class EveryOther(FedAvg):
    """Makes nothing of the replies of even rounds."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        return (None, None) if server_round % 2 == 0 else super().aggregate_train(server_round, replies)


def test_what_nothing_was_made_of_is_in_no_version(go: Go) -> None:
    """Results of rounds in which a strategy aggregates nothing are merged nowhere, now or later."""
    run = go({"server.rounds": 4, "server.strategy": {"kind": f"{__name__}:EveryOther"}})
    merged = [set(run.tasks[run.tasks.message.isin(messages)]["round"]) for _, messages in took(run)]

    assert [set(), {1}, {3}] == merged


class Polls(FedAvg):
    """A server without rounds: it mixes each reply in as it comes, and asks that client again, with the model as it is then."""

    def start(self, grid: Any, initial_arrays: ArrayRecord, num_rounds: int = 3, *args: Any, **kwargs: Any) -> Result:
        model, config, evaluate_fn = dict(initial_arrays), kwargs["train_config"], kwargs["evaluate_fn"]
        evaluate_fn(0, initial_arrays)

        def ask(node: int) -> Message:
            return Message(RecordDict({"arrays": ArrayRecord(model), "config": config}), node, "train")

        waiting = list(grid.push_messages([ask(node) for node in grid.get_node_ids()]))
        for number in range(1, 3 * num_rounds + 1):
            for reply in grid.pull(waiting, 60.0, enough=1):
                waiting.remove(reply.metadata.reply_to_message_id)
                if reply.has_error():
                    continue
                theirs = reply.content["arrays"]
                model = {name: Array((array.numpy() + theirs[name].numpy()) / 2) for name, array in model.items()}
                waiting += grid.push_messages([ask(reply.metadata.src_node_id)])
            if number % 3 == 0:
                evaluate_fn(number // 3, ArrayRecord(model))
        return Result(ArrayRecord(model), {}, {}, {0: MetricRecord({})})


def test_a_server_without_rounds_has_versions(go: Go) -> None:
    """Each reply that such a server mixes in makes a version, when it is handed over; no row of a round is needed for it."""
    run = go({**STREAM, "server.strategy": {"kind": f"{__name__}:Polls"}})
    tasks, versions = run.tasks, run.versions
    arrived = tasks[tasks.outcome == "arrived"]

    assert 0 == len(run.rounds)
    assert [(0, []), *((i + 1, [message]) for i, message in enumerate(arrived.message))] == took(run)
    assert [0.0, *arrived.arrived_s] == versions.now_s.tolist()


def test_freshness_needs_no_rounds(go: Go) -> None:
    """Influence and freshness of a server without rounds count by versions: all its clients' ages are known, and never negative."""
    run = go({**STREAM, "server.strategy": {"kind": f"{__name__}:Polls"}})
    merged = influence.merges(run.tasks, run.versions)
    arrived = merged[merged.outcome == "arrived"]
    found = run.freshness()

    assert (arrived.merged > arrived.carried).all() and (arrived.merged_s >= arrived.arrived_s).all()
    assert {-1} == set(merged[merged.outcome != "arrived"].merged)
    assert np.isfinite(found.mean_age_s).all() and (found.mean_age_s > 0).all() and (found.merged > 0).all()
    assert write_report(run).is_file()
