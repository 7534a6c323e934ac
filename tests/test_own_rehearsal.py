"""A reader's own rehearsal, replay policy and reaction are used: what they say trains, here and in workers, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.core.errors import FedsimError
from fedsim.learn.rehearsal import rehearsals
from fedsim.preview import preview
from fedsim.scenario.build import build
from fedsim.scenario.load import load

Go = Callable[..., Any]

OWN = '''
from dataclasses import dataclass
import numpy as np
from fedsim.data.replay import Drawn
from fedsim.learn.rehearsal import Way
from fedsim.learn.rehearsal.er import Er

@dataclass(frozen=True)
class Pull:
    """A pull to what was received, of *strength*, which grows by *growth* with each task of the client."""
    strength: float = 0.5
    growth: float = 0.0
    way = Way(numeric=True, draws=0)
    def replayed(self, fresh, share):
        return 0
    def beside(self, new, sizes, fresh):
        return 0, 0
    def begin(self, kept, lesson):
        return int(kept["tasks"][0]) if kept else 0
    def gradients(self, step, work):
        pulls = [((leaf - start) ** 2).sum() for leaf, start in zip(step.leaves, step.lesson.start)]
        loss = step.loss() + self.strength * (1 + self.growth * work) / 2 * sum(pulls)
        return loss, step.gradients(loss)
    def end(self, lesson, work):
        return {"tasks": np.array([work + 1])}

@dataclass(frozen=True)
class Drag:
    """The same pull, as losses that are traced, without growth; *wrong* names a mistake."""
    strength: float = 0.5
    wrong: str = ""
    way = Way(numeric=True, draws=0)
    def replayed(self, fresh, share):
        return 0
    def beside(self, new, sizes, fresh):
        return 0, 0
    def begin(self, kept, lesson):
        return [start.numpy() for start in lesson.start]
    def recalled(self, turn, work):
        return work
    def losses(self, seen):
        pulls = [((leaf - start) ** 2).sum() for leaf, start in zip(seen.leaves, seen.recalled)]
        loss = seen.loss() + self.strength / 2 * sum(pulls)
        return loss if self.wrong == "losses" else [loss]
    def followed(self, gradients):
        return gradients[0][1:] if self.wrong == "followed" else gradients[0]
    def noted(self, turn, outputs, work):
        pass
    def end(self, lesson, work):
        return {}

@dataclass(frozen=True)
class Still:
    """No steps at all, forward passes to pay for."""
    passes: int = 0
    way = Way(numeric=True, draws=1)
    def replayed(self, fresh, share):
        return fresh
    def beside(self, new, sizes, fresh):
        return self.passes * new, 0
    def begin(self, kept, lesson):
        return None
    def gradients(self, step, work):
        return step.loss(), [0 * leaf.detach() for leaf in step.leaves]
    def end(self, lesson, work):
        return {}

def plain(ratio: float = 0.5, mix: str = "concat"):
    return Er(ratio, mix)

@dataclass(frozen=True)
class Half:
    way = Way(numeric=True)
    def replayed(self, fresh, share):
        return 0
    def beside(self, new, sizes, fresh):
        return 0, 0

@dataclass(frozen=True)
class Twice:
    """Experience replay from two draws."""
    draws: int = 2
    @property
    def way(self):
        return Way(draws=self.draws)
    def replayed(self, fresh, share):
        return 3
    def beside(self, new, sizes, fresh):
        return 0, 0

def text():
    return "er"

class Raises:
    replayed = beside = None
    @property
    def way(self):
        raise KeyError("boo")

@dataclass(frozen=True)
class Lossy:
    """The last items, drawn from the newest; it is told losses and keeps them."""
    capacity: int = 9
    few: bool = False
    needs = frozenset({"losses"})
    candidates = 0
    def empty(self):
        return {"items": np.zeros(0, np.int64), "worst": np.zeros(0)}
    def add(self, state, new, key, numbers=None):
        both = {"items": np.append(state["items"], new.items), "worst": np.append(state["worst"], numbers["losses"])}
        return {name: array[-self.capacity:] for name, array in both.items()}
    def draw(self, state, count, key, now):
        slots = np.argsort(-state["worst"], kind="stable")[:1 if self.few else count]
        return Drawn(slots, state["items"][slots], np.ones(len(slots)))
    def update(self, state, slots, numbers):
        worst = state["worst"].copy()
        worst[slots] = numbers
        return {**state, "worst": worst}
    def held(self, state):
        return state["items"]

@dataclass(frozen=True)
class Forget:
    """At an alarm the oldest half goes; a rate three times as high for ten steps."""
    factor: float = 3.0
    keep_share: float = 0.5
    replay_share = None
    tell = False
    def lr_scale(self, steps):
        return np.where(steps < 10, self.factor, 1.0)
'''
STREAM: dict[str, Any] = {
    "stream": {"arrivals": {"kind": "constant", "per_s": 1.0}, "trigger": {"kind": "count", "examples": 9}}, "clients.count": 3,
    "server.rounds": 3, "training.batch_size": 4, "engine.dtype": "float64",
}  # fmt: skip
MEMORY = {"clients.replay": {"kind": "fifo", "capacity": 9}}
ALARMS = {"clients.detector": {"kind": "page_hinkley", "min_instances": 2, "threshold": 0.2, "only_worse": False}}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, go: Go, hands: None) -> Go:
    """Return ``go`` on streams, beside OWN."""
    (tmp_path / "own_rehearsal.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return lambda more: go({**STREAM, **more})


def rehearsing(kind: str, **settings: Any) -> dict[str, Any]:
    return {"training.rehearsal": {"kind": f"own_rehearsal:{kind}", **settings}}


def apart(one: Any, two: Any) -> float:
    """Return how far the final models of two runs are apart."""
    theirs = two.model().state_dict()
    return max(float((value - theirs[name]).abs().max()) for name, value in one.model().state_dict().items())


def test_an_own_loss_trains(mine: Go) -> None:
    """A pull to what was received is FedProx's, to rounding; without strength it is none, and does not come near."""
    proximal = mine({"server.strategy": {"kind": "FedProx", "proximal_mu": 0.5}})
    own, none, stacked = (mine(rehearsing(kind, strength=strength)) for kind, strength in (("Pull", 0.5), ("Pull", 0.0), ("Drag", 0.5)))

    assert apart(proximal, own) < 1e-6 < 1e-4 < apart(proximal, none)
    assert 0.0 < apart(own, stacked) < 1e-6


def test_own_steps_are_the_only_ones(mine: Go, tiny: Callable[..., dict[str, Any]]) -> None:
    """A method whose gradients are zero leaves the model as it was, and pays for the passes that it says it takes."""
    still, paying = (mine({**MEMORY, **rehearsing("Still", passes=passes)}) for passes in (0, 10**6))
    first = build(load(tiny({**STREAM, **MEMORY, **rehearsing("Still")}))).first

    assert all(np.allclose(value.numpy(), first[name], rtol=0, atol=1e-12) for name, value in still.model().state_dict().items())
    assert still.manifest["virtual_s"] < paying.manifest["virtual_s"]


CASES = {
    "keeps": rehearsing("Pull", growth=1.0), "traced": rehearsing("Drag"),
    "replays": {**MEMORY, **rehearsing("Still")}, "two draws": {**MEMORY, **rehearsing("Twice")},
    "policy": {"clients.replay": {"kind": "own_rehearsal:Lossy"}},
    "policy, der": {"clients.replay": {"kind": "own_rehearsal:Lossy"}, "training.rehearsal": {"kind": "der"}},
    "reaction": {**MEMORY, **ALARMS, "clients.reaction": {"kind": "own_rehearsal:Forget"}},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_own_kinds_go_to_workers(name: str, mine: Go) -> None:
    """What is a reader's own travels with its checks: two workers give the digest of none."""
    assert 1 == len({mine({**CASES[name], "engine.workers": workers}).digest for workers in (1, 2)})


def test_what_own_kinds_say_counts(mine: Go) -> None:
    """What a method keeps, a second draw, a policy's losses and a reaction's factor each change what is trained."""
    pairs = [
        (rehearsing("Pull", growth=growth) for growth in (0.0, 1.0)),
        ({**MEMORY, **rehearsing("Twice", draws=draws)} for draws in (1, 2)),
        ({"clients.replay": {"kind": kind, "capacity": 9}} for kind in ("own_rehearsal:Lossy", "fifo")),
        ({**MEMORY, **ALARMS, "clients.reaction": {"kind": "own_rehearsal:Forget", "factor": factor}} for factor in (1.0, 3.0)),
    ]
    for pair in pairs:
        assert 2 == len({mine(more).digest for more in pair})


def test_ours_by_another_way_are_ours(mine: Go) -> None:
    """A function that returns a method of ours trains by that method, with its settings."""
    settings = {"ratio": 0.25, "mix": "sum"}
    ways = [rehearsing("plain", **settings), {"training.rehearsal": {"kind": "er", **settings}}]

    assert 1 == len({mine({**MEMORY, **way}).digest for way in ways})


WRONG = {
    "text": (rehearsing("text"), "returned a str, not a Rehearsal"),
    "raises": (rehearsing("Raises"), "own_rehearsal:Raises': raised KeyError: 'boo'"),
    "half": (rehearsing("Half"), "says that it is numeric, and has no begin"),
    "share": (rehearsing("plain", ratio=1.0), "training.rehearsal.ratio = 1.0: must be"),
    "mix": (rehearsing("plain", mix="foo"), "its way gives a mix of 'foo', expected one of concat, sum, ace"),
    "nothing told": ({**rehearsing("Pull"), "clients.replay": {"kind": "own_rehearsal:Lossy"}}, "tells no policy the losses"),
    "no share": ({**MEMORY, **ALARMS, **rehearsing("Pull"), "clients.reaction": {"kind": "adapt", "replay_share": 0.5}}, "has no effect"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_at_the_door(name: str, mine: Go, tiny: Callable[..., dict[str, Any]]) -> None:
    """A method that is none, or half of one, or goes with nothing that is there, is one line before anything runs."""
    more, said = WRONG[name]
    with pytest.raises(FedsimError) as raised:
        preview(load(tiny({**STREAM, **more})))

    assert said in str(raised.value), str(raised.value)


TRACED = {"losses": "its losses() gives float64 of shape (), expected a list", "followed": "its followed() gives a list of 1, expected"}


@pytest.mark.parametrize(("wrong", "said"), TRACED.items())
def test_a_traced_answer_that_is_none_is_one_line(wrong: str, said: str, mine: Go) -> None:
    """What a method of one's own says of losses and gradients is looked at where it is traced, and named by its own word."""
    with pytest.raises(FedsimError) as raised:
        mine(rehearsing("Drag", wrong=wrong))

    assert said in str(raised.value), str(raised.value)


def test_too_few_from_a_policy_is_its_own_fault(mine: Go) -> None:
    """A policy that is told numbers and draws fewer than was foretold is named, and no defect of ours is."""
    with pytest.raises(FedsimError, match=r"clients\.replay: 1 examples are replayed beside 4 new ones, where 4 were foretold"):
        mine({"clients.replay": {"kind": "own_rehearsal:Lossy", "few": True}})


def test_without_its_checks_a_half_method_is_let_in(monkeypatch: pytest.MonkeyPatch, mine: Go, tiny: Callable[..., dict[str, Any]]) -> None:
    """The law of the door has teeth: a registry without its look at the whole lets a numeric method without steps through."""
    monkeypatch.setattr(rehearsals, "gives", replace(rehearsals.gives, looked=None))  # pyright: ignore[reportArgumentType]

    assert np.isfinite(preview(load(tiny({**STREAM, **rehearsing("Half")}))).round_s)
