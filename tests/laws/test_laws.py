"""Laws in ``fedsim.laws``: all of ours keep them, each rejects what was made to break it, and one call holds a stranger's to them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.client.reactions import Adapt
from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.core.state import State, pack, unpack
from fedsim.core.types import IntArray
from fedsim.data.river import sea
from fedsim.data.source import Examples, Pool
from fedsim.data.stream import Stream
from fedsim.data.stream.trigger import Enough
from fedsim.laws import LAWS, Broken, ask, hold
from fedsim.learn.algorithms import Ended, FedAvg
from fedsim.learn.algorithms.scaffold import Scaffold
from fedsim.learn.clipping import Norm
from fedsim.learn.stopping import Patience
from fedsim.learn.terms import Momentum
from fedsim.scenario.kinds import slots
from fedsim.strategy.pacing import Wait

FILES = {"idx", "npz", "csv", "csv_stream", "windows", "river", "openml"}
"""Sources that read: what they give is in test_sources and its like."""
ELSEWHERE = {
    "partition", "replay", "compute", "network", "ram", "energy", "failure", "loader", "availability", "arrivals", "detector", "codec",
    "executor",
}  # fmt: skip
"""Nouns whose kinds are held to their laws in files of their own."""
NEEDED: dict[str, dict[str, dict[str, Any]]] = {
    "source": {
        **{name: {"examples_per_client": 20} for name in ("sea", "stagger", "agrawal", "hyperplane", "random_rbf_drift", "led")},
        "counted": {"examples": 20, "sigma": 0.5},
    },
    "trigger": {"count": {"examples": 3}, "time": {"every_s": 4.0}, "count_or_time": {"examples": 3, "every_s": 4.0}},
    "order": {"class_incremental": {"tasks": [[3, 1], [0, 4]]}},
    "labels": {"constant": {"delay_s": 3.0, "missing": 0.3}, "exponential": {"delay_s": 4.0}},
    "change": {
        "classes": {"groups": [[0, 1], [2, 3], [4]]}, "swap_labels": {"pairs": [[0, 1]]}, "boundary": {"thresholds": [0.4, 0.6]},
        "rotate": {"degrees": 90.0}, "scale": {"factor": 2.0}, "noise": {"sigma": 0.5}, "variants": {"of": [0, 3]},
    },
    "schedule": {
        "abrupt": {"at_s": [20.0, 40.0]}, "gradual": {"at_s": [20.0], "width_s": 9.0}, "incremental": {"begin_s": 10.0, "end_s": 40.0},
        "recurring": {"period_s": 9.0, "concepts": 3},
    },
    "onset": {"staggered": {"step_s": 5.0, "spread_s": 9.0}, "subset": {"fraction": 0.5}},
    "optimizer": {
        "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True, "state": "keep"},
        "adam": {"state": "keep"}, "adamw": {"state": "keep"}, "lars": {"lr": 1.0, "weight_decay": 0.1, "state": "keep"},
        "rmsprop": {"momentum": 0.5, "centered": True, "state": "keep"}, "lamb": {"state": "keep"},
        "adagrad": {"lr_decay": 0.1, "initial_accumulator_value": 0.1, "state": "keep"},
    },
    "objective": {"classification": {"label_smoothing": 0.1, "class_weights": [1.0, 2.0, 0.5, *[1.0] * 6, 9.0]}},
    "clipping": {"norm": {"bound": 0.5}, "value": {"bound": 0.01}},
    "reaction": {"adapt": {"buffer": "shrink", "lr_factor": 2.0, "lr_steps": 8}}, "stopping": {"patience": {"epochs": 1}},
    "lr_schedule": {
        "step": {"size": 10.0}, "multistep": {"milestones": [3, 10, 100]}, "exponential": {"rate": 0.96, "per": 10.0},
        "cosine": {"over": 100}, "cosine_restarts": {"first": 10.0, "times": 2, "floor": 0.1}, "polynomial": {"over": 100.0, "power": 0.9},
        "one_cycle": {"over": 100},
    },
    "pacing": {
        "deadline": {"seconds": 9.0}, "over_selection": {"take": 0.77}, "minimum_fraction": {"fraction": 0.8, "seconds": 9.0},
        "adaptive": {"first_s": 20.0},
    },
    "controller": {"plateau": {"patience": 2}}, "batch_policy": {"growing": {"every": 2, "clock": "version"}},
}  # fmt: skip
SPREAD = {"rehearsal", "stopping", "objective", "clipping", "batch_policy"}
"""Nouns of which every kind is run by two workers here; models, optimisers and algorithms are elsewhere."""
CASES = [
    (noun, name, law)
    for noun in LAWS
    if noun not in ELSEWHERE
    for name in slots()[noun].registry
    if name not in FILES
    for law in LAWS[noun]
    if law != "one_digest" or noun in SPREAD
]


@pytest.mark.parametrize(("noun", "name", "law"), CASES)
def test_every_kind_of_ours_keeps_every_law(noun: str, name: str, law: str, hands: None) -> None:
    """Each registered kind keeps the laws of its noun."""
    given = {"source": sea(Key(11), examples_per_client=90)} if name == "variants" else {}
    hold(noun, name, NEEDED.get(noun, {}).get(name, {}), laws=[law], **given)


def test_executors_keep_their_law(hands: None) -> None:
    """Ours give the digest of this process, and a law that asked for another would be broken."""
    assert ["it_computes_what_this_process_does"] == hold("executor", "processes", around={"engine.workers": 2})
    assert ["it_computes_what_this_process_does"] == hold("executor", "local")


def test_every_noun_has_laws() -> None:
    """What a scenario can name by kind has laws, every one of them."""
    assert set(slots()) == set(LAWS)


# Wrong ones, each in one thing.


@dataclass
class Momentous:
    """Momentum whose gradient is *bent*, or whose *flops* are others."""

    bent: Callable[..., Tensor] = Momentum(0.9).apply
    count: float = 2.0
    keeps: tuple[str, ...] = ("momentum",)

    def apply(self, *given: Any) -> Tensor:
        return self.bent(*given)

    def flops(self, parameters: int) -> float:
        return self.count * parameters


@dataclass
class Ruled:
    """An optimiser of one term."""

    term: Any
    lr: float = 0.1
    state: str = "keep"

    def terms(self, job: Any) -> tuple[Any, ...]:
        return (self.term,)


def by_the_largest(gradient: Tensor, param: Tensor, start: Tensor, state: Any, sent: Any, step: Any) -> Tensor:
    return gradient / gradient.abs().max()  # Of all rows.


def in_place(gradient: Tensor, param: Tensor, start: Tensor, state: Any, sent: Any, step: Any) -> Tensor:
    return gradient.mul_(0.5)


def by_the_place(gradient: Tensor, param: Tensor, start: Tensor, state: Any, sent: Any, step: Any) -> Tensor:
    return gradient * torch.arange(1.0, len(gradient) + 1).view(-1, *[1] * (gradient.ndim - 1))


class Held(Momentous):
    """Says that its state is fresh memory."""

    fresh = True


def by_the_norm_of_all(gradient: Tensor, param: Tensor, start: Tensor, state: Any, sent: Any, step: Any) -> Tensor:
    return gradient * (param.norm() / gradient.norm())  # LARS with the norms of all clients together.


class Together(Norm):
    """Clips by the norm of all clients together."""

    def clipped(self, gradients: list[Tensor]) -> list[Tensor]:
        total = sum((each * each).sum() for each in gradients)
        return [each * min(1.0, self.bound / float(total) ** 0.5) for each in gradients]


class InPlace(Norm):
    """Writes to what it is given."""

    def clipped(self, gradients: list[Tensor]) -> list[Tensor]:
        return [each.clamp_(-self.bound, self.bound) for each in gradients]


class Stretches(Norm):
    """Brings every gradient to the bound, small ones too."""

    def clipped(self, gradients: list[Tensor]) -> list[Tensor]:
        return [each * (self.bound / each.flatten(1).norm(dim=1)).view(-1, *[1] * (each.ndim - 1)) for each in gradients]


class Remembers(Momentous):
    """Keeps a sum of what it saw in itself, and not in the state."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[Any, Tensor] = {}

    def apply(self, *given: Any) -> Tensor:
        form = given[0].shape[1:]
        self.seen[form] = self.seen.get(form, torch.zeros(())) + given[0].mean()
        return given[0] + self.seen[form]


class Unkept(Momentous):
    """Momentum under a name that it does not say that it keeps, for each shape of gradients."""

    keeps = ()

    def __init__(self) -> None:
        super().__init__()
        self.moments: dict[Any, Tensor] = {}

    def apply(self, *given: Any) -> Tensor:
        gradient, at = given[0], int(given[-1][0])
        form = gradient.shape
        self.moments[form] = gradient.clone() if at == 0 else self.moments.get(form, 0 * gradient) * 0.9 + gradient
        return self.moments[form]


@dataclass(frozen=True)
class Answers(FedAvg):
    """FedAvg that keeps a number called ``told``, and *ends* its tasks otherwise."""

    ends: Callable[..., Ended] = lambda *_: Ended()
    keeps: tuple[str, ...] = ("told",)

    def finish(self, *given: Any) -> Ended:
        return self.ends(*given)


def counted() -> Answers:
    calls: list[int] = []

    def ends(*_: Any) -> Ended:
        calls.append(0)
        return Ended(kept={"told/weight": np.array([float(len(calls))])})

    return Answers(ends=ends)


def keeps_more(*_: Any) -> Ended:
    return Ended(kept={"more/weight": np.zeros(1)})


@dataclass(frozen=True)
class Served(Scaffold):
    """SCAFFOLD with another server."""

    half: Any = None

    def server(self, clients: int) -> Any:
        return self.half(super().server(clients))


class Half:
    """A server's half, handed on."""

    weights = "uniform"

    def __init__(self, inner: Any) -> None:
        self.inner, self.rounds = inner, 0

    def begin(self, params: Any) -> Any:
        return self.inner.begin(params)

    def before(self, *given: Any) -> Any:
        return self.inner.before(*given)

    def after(self, *given: Any) -> Any:
        return self.inner.after(*given)


class Widens(Half):
    def after(self, *given: Any) -> Any:
        model, state = super().after(*given)
        return {name: array.astype(np.float64) for name, array in model.items()}, state


class CountsRounds(Half):
    def after(self, *given: Any) -> Any:
        self.rounds += 1
        model, state = super().after(*given)
        return {name: array * np.float32(0.9**self.rounds) for name, array in model.items()}, state


class TakesTheLast(Half):
    def after(self, start: Any, average: Any, updates: Any, state: Any) -> Any:
        return dict(updates[-1].params), state


class Impatient(Patience):
    """Stops by how often it was asked."""

    def stops(self, losses: Any) -> bool:
        ASKED.append(0)
        return len(ASKED) % 3 == 0


ASKED: list[int] = []


class Late:
    """A trigger that is *bent*."""

    def __init__(self, bent: Callable[[float, float], float]) -> None:
        self.bent = bent

    def ready_s(self, stream: Stream, until_s: float, now: float) -> float:
        return self.bent(Enough(3).ready_s(stream, until_s, now), now)


class Drifts(Late):
    """A trigger that takes longer each time that it is asked."""

    def __init__(self) -> None:
        self.times = 0

    def ready_s(self, stream: Stream, until_s: float, now: float) -> float:
        self.times += 1
        return Enough(self.times).ready_s(stream, until_s, now)


class ByTheBatch(Adapt):
    """A reaction whose factor depends on the other steps that are asked about."""

    def lr_scale(self, steps: IntArray) -> Any:
        return 1.0 + np.arange(len(steps))


@dataclass
class Timed:
    """A schedule whose factors are *bent*."""

    bent: Callable[[Any], Any]

    def factor(self, times: Any) -> Any:
        return self.bent(times)


class Counting:
    """A controller that goes by how often it was asked, and changes more than it says."""

    metrics = ("loss",)

    def __init__(self, changes: tuple[str, ...] = ("epochs",), step: int = 1) -> None:
        self.changes, self.asked, self.step = changes, 1, step

    def first(self) -> State:
        return {"best": np.array(1.0)}

    def next(self, state: State, version: int, metrics: Any) -> Any:
        self.asked += self.step
        return state, {"epochs": self.asked}


class Overwriting(Counting):
    """A controller that writes to the state that it is given."""

    def next(self, state: State, version: int, metrics: Any) -> Any:
        state["best"] = state["best"] / 2
        return state, {"epochs": 1}


@dataclass
class Sizes:
    """A policy whose sizes and states are *bent*."""

    bent: Callable[[int, Any], Any] = lambda ordered, situation: ordered
    keeps: Callable[[State, int], Any] = lambda kept, size: {}
    needs: tuple[str, ...] = ("trace",)
    clocks: tuple[str, ...] = ()

    def size(self, ordered: int, situation: Any, kept: State) -> Any:
        return self.bent(ordered, situation)

    def learned(self, kept: State, size: int, statistics: Any) -> Any:
        return self.keeps(kept, size)


@dataclass
class Hasty:
    """A pacing whose waits, and what it keeps, are *bent*."""

    bent: Callable[[State, int], Any] = lambda state, asked: Wait(10.0)
    keeps: Callable[[State, Any], Any] = lambda state, lasted: state

    def first(self) -> State:
        return {"at_s": np.array(10.0)}

    def wait(self, state: State, asked: int) -> Any:
        return self.bent(state, asked)

    def learned(self, state: State, lasted: Any) -> Any:
        return self.keeps(state, lasted)


class Wearying(Hasty):
    """A pacing that goes by how often it was asked."""

    asked = 0

    def wait(self, state: State, asked: int) -> Any:
        self.asked += 1
        return Wait(float(self.asked))


def creeping(state: State, lasted: Any) -> State:
    """Go by those alone that were in time, which are ever fewer."""
    return {"at_s": np.array(0.1 + float(np.median(lasted.took_s)) if len(lasted.took_s) else 0.1)}


def until(state: State, asked: int) -> Wait:
    return Wait(float(state["at_s"]))


class Restless(Sizes):
    """A policy that keeps its state in itself."""

    asked = 0

    def size(self, ordered: int, situation: Any, kept: State) -> int:
        self.asked += 1
        return ordered + self.asked


def dice(**_: Any) -> Pool:
    rng = np.random.default_rng()
    return Pool(Examples(rng.random((9, 2), dtype=np.float32), rng.integers(2, size=9)), outputs=2)


def of(term: Any) -> Callable[..., Any]:
    return lambda: Ruled(term() if isinstance(term, type) else term)


WRONG: dict[tuple[str, str], list[Callable[..., Any]]] = {
    ("optimizer", "pieces_are_the_whole"): [of(Momentous(by_the_largest)), of(Momentous(by_the_place))],
    ("optimizer", "what_is_kept_goes_on"): [of(Unkept), of(Remembers)],
    ("optimizer", "a_term_hides_nothing"): [of(Remembers)],
    ("optimizer", "what_goes_in_stays_as_it_is"): [
        of(Momentous(in_place)), of(Momentous(lambda gradient, *_: gradient / 0)), of(Held()),
    ],
    ("optimizer", "operations_are_counted"): [of(Momentous(count=-1.0)), of(Momentous(count=np.nan))],
    ("optimizer", "a_row_depends_on_itself"): [
        of(Momentous(by_the_largest)), of(Momentous(by_the_place)), of(Momentous(by_the_norm_of_all)),
    ],
    ("clipping", "a_row_is_clipped_by_itself"): [lambda: Together(1.0), lambda: InPlace(1.0)],
    ("clipping", "clipping_lengthens_nothing"): [lambda: Stretches(1.0)],
    ("algorithm", "finish_gives_what_it_says"): [
        lambda: Answers(ends=keeps_more), lambda: Answers(ends=lambda *_: Ended(metrics={"x": 1.0})),
        lambda: Answers(ends=lambda *_: Ended(kept={"told/weight": np.array(["a"])})),
    ],
    ("algorithm", "finish_is_pure"): [counted],
    ("algorithm", "the_server_keeps_forms"): [lambda: Served(half=Widens)],
    ("algorithm", "the_server_is_pure"): [lambda: Served(half=CountsRounds)],
    ("algorithm", "the_order_of_replies_does_not_matter"): [lambda: Served(half=TakesTheLast)],
    ("stopping", "stopping_follows_from_losses"): [lambda: Impatient(1, 0.0)],
    ("trigger", "it_holds_when_it_says"): [lambda: Late(lambda ready, now: ready - 1.0), lambda: Late(lambda ready, now: ready + 1.0)],
    ("trigger", "what_is_left_is_enough"): [lambda: Late(lambda ready, now: np.inf), lambda: Late(lambda ready, now: now)],
    ("trigger", "a_trigger_hides_nothing"): [Drifts],
    ("lr_schedule", "a_time_has_one_factor"): [
        lambda: Timed(lambda times: np.arange(len(times))), lambda: Timed(lambda times: 1.0 - times),
        lambda: Timed(lambda times: np.ones(1)),
        lambda: Timed(lambda times: np.full(len(times), np.random.random())), lambda: Timed(lambda times: np.exp(-times, out=times)),
    ],
    ("controller", "what_it_wants_follows_from_its_state"): [Counting, Overwriting, lambda: Counting(("lr_factor",), 0)],
    ("batch_policy", "a_size_follows_from_what_is_kept"): [
        Restless, lambda: Sizes(lambda ordered, situation: 0), lambda: Sizes(lambda ordered, situation: ordered / 3),
        lambda: Sizes(keeps=lambda kept, size: {"size": size}), lambda: Sizes(needs=("loss",)),
        lambda: Sizes(keeps=lambda kept, size: kept.update(n=np.ones(1)) or {}), lambda: Sizes(lambda *_: 1 + np.random.randint(9)),
    ],
    ("batch_policy", "it_goes_by_the_clocks_that_it_names"): [
        lambda: Sizes(lambda ordered, situation: ordered + situation.when.version),
        lambda: Sizes(lambda ordered, situation: ordered + int(situation.when.now_s), clocks=("version", "round")),
    ],
    ("pacing", "how_it_waits_follows_from_its_state"): [
        Wearying, lambda: Hasty(keeps=lambda state, lasted: state.update(n=np.ones(1)) or {}),
        lambda: Hasty(keeps=lambda state, lasted: {"at": lasted.asked}), lambda: Hasty(lambda *_: Wait(1.0 + np.random.random())),
    ],
    ("pacing", "a_wait_can_be_over"): [
        lambda: Hasty(lambda *_: Wait(0.0)), lambda: Hasty(lambda *_: Wait(enough=0)), lambda: Hasty(lambda *_: 30.0),
        lambda: Hasty(lambda *_: Wait(enough=2, least=3)), lambda: Hasty(lambda *_: Wait(float("nan"))),
    ],
    ("pacing", "slower_replies_do_not_shorten_the_wait"): [lambda: Hasty(until, creeping)],
    ("reaction", "a_step_has_one_rate"): [lambda at: ByTheBatch()],
    ("source", "a_source_is_a_function_of_its_key"): [dice],
}  # fmt: skip


@pytest.mark.parametrize(("noun", "law", "wrong"), [(*case, wrong) for case, wrongs in WRONG.items() for wrong in wrongs])
def test_the_law_has_teeth(noun: str, law: str, wrong: Callable[..., Any]) -> None:
    """The law rejects what was made to break it."""
    with pytest.raises(Broken, match=rf"(breaks|held to) the law '{law}'"):
        ask(LAWS[noun][law], wrong)


MINE = """
import numpy as np
from fedsim.client.detectors import Never
from fedsim.core.keys import Key
from fedsim.data.stream.change import Noise
from fedsim.data.stream.drift import abrupt, synchronous
from fedsim.data.stream.labelling import constant
from fedsim.data.stream.order import AsIs
from fedsim.learn.objectives import Classification
from fedsim.learn.rehearsal import Way

CALLS = []

def again():
    CALLS.append(0)
    return float(len(CALLS))

class Hides:
    way = Way(numeric=True, draws=0)
    def replayed(self, fresh, share):
        return 0
    def beside(self, new, sizes, fresh):
        return 0, 0
    def begin(self, kept, lesson):
        return again()
    def gradients(self, step, work):
        loss = work * step.loss()
        return loss, step.gradients(loss)
    def end(self, lesson, work):
        return {}

class Means(Classification):
    def sums(self, outputs, targets):
        return {n: v / len(targets) if n == "loss" else v for n, v in super().sums(outputs, targets).items()}

class Halves(Classification):
    def mass(self, targets):
        return super().mass(targets) / 2 + 1

class Order(AsIs):
    def items(self, client, positions, labels):
        return np.roll(np.arange(len(positions)), int(again())), np.zeros(len(positions), int)

class Labels:
    def times(self, client, arrived_s):
        return arrived_s + again()

class Change:
    concepts, whole = 0, False
    def alter(self, client, places, examples, amounts):
        return type(examples)(examples.x + np.float32(again()), examples.y)

class Schedule:
    concepts = 0
    def amounts(self, since_s, draws, concepts):
        return (since_s > 10 + again()).astype(float)
    def changes_s(self, since_s, concepts):
        return np.array([10 + again()])

class Onset:
    def begins_s(self, client):
        return again()
"""
STRANGERS = [
    ("rehearsal", "Hides", "a_client_goes_on_from_what_it_keeps"), ("rehearsal", "Hides", "one_digest"),
    ("objective", "Means", "sums_add_up"), ("objective", "Halves", "mass_weighs_means"),
    *((noun, noun.title(), "whenever_asked_the_same") for noun in ("order", "labels", "change", "schedule", "onset")),
]  # fmt: skip


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have mine.py in the folder."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("noun", "name", "law"), STRANGERS)
def test_a_strangers_is_held_to_them(noun: str, name: str, law: str, mine: None) -> None:
    """A kind of a reader's own that counts for itself, or whose sums are none, is rejected in one line, by its name and the law's."""
    with pytest.raises(Broken, match=rf"^{noun} 'mine:{name}' breaks the law '{law}': [^\n]+$"):
        hold(noun, f"mine:{name}", laws=[law])


def test_what_there_is_not_is_said() -> None:
    """A noun, a law or a kind that there is not is one line with what there is."""
    for asked in (("replays", "ring", []), ("replay", "ring", ["capacity_is_exceeded"]), ("compute", "constnat", [])):
        with pytest.raises((ScenarioError, Broken), match="Did you mean"):
            hold(asked[0], asked[1], laws=asked[2])


def test_laws_hold_without_asserts(mine: None) -> None:
    """Under ``python -O`` a broken law is told, too."""
    code = "import fedsim\ntry: fedsim.laws.hold('order', 'mine:Order')\nexcept fedsim.FedsimError as e: print(e)"
    said = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, check=True).stdout

    assert "order 'mine:Order' breaks the law 'whenever_asked_the_same'" in said


def test_a_state_keeps_arrays_without_dimensions() -> None:
    """A parameter without dimensions has a state without dimensions, in bytes too: found by the laws of algorithms."""
    assert () == unpack(pack({"scale": np.array(1.5)}))["scale"].shape
