"""Mixed mini-batches: realised counts, shares in the long run, and the gradient of a mix (METHODS A15)."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedsim.client.kept import Kept
from fedsim.client.program import Order
from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.core.types import IntArray
from fedsim.learn import batching, mixing
from fedsim.learn.job import Job
from fedsim.learn.mixing import Mixing
from fedsim.learn.work import Start, Task
from fedsim.scenario.build import build
from fedsim.scenario.load import load
from tests.theory.test_minibatches import gradients, left

HELD = (50, 30, 15, 4, 1)
"""Examples of a client by source; source 2 is called 7, so that numbers and places differ."""
CALLED = np.array([0, 1, 7, 3, 4])
SOURCES = np.random.default_rng(1).permutation(np.repeat(CALLED, HELD))
JOB = Job(epochs=3, batch_size=20, mixing=Mixing("label", temperature=2.0))


def task(job: Job, sources: IntArray = SOURCES, client: int = 0) -> Task:
    positions = np.arange(100, 100 + len(sources))
    return Task(client, 0, job, Start({}), positions, Key(3).fold("client", client, "task", 0), sources=sources)


def counted(job: Job, one: Task) -> IntArray:
    """Return how many examples of each source 0 to 7 every batch of a task has. Shapes: -> (steps, 8)."""
    assert one.sources is not None
    order = batching.orders(job, [one])[0]
    return np.stack([np.bincount(one.sources[part - 100], minlength=8) for part in np.split(order, np.cumsum(one.sizes)[:-1])])


@pytest.mark.parametrize("draw", ["exact", "multinomial"])
def test_shares_in_the_long_run(draw: Any) -> None:
    """Shares are n^(1/T) over many batches: chi-square p > 0.001 against the theory, and p < 0.001 against another temperature."""
    for temperature in (1.0, 2.0, 1e6):
        job = replace(JOB, epochs=60, mixing=Mixing("label", temperature=temperature, draw=draw))
        found = counted(job, task(job)).sum(0)[CALLED]
        wanted, other = (np.array(HELD) ** (1 / t) for t in (temperature, 1.5 * temperature if temperature < 9 else 2.0))

        assert stats.chisquare(found, wanted / wanted.sum() * found.sum()).pvalue > 0.001
        assert stats.chisquare(found, other / other.sum() * found.sum()).pvalue < 0.001


def off(counts: IntArray, shares: Any, sizes: Any) -> float:
    """Return how far the counts of all batches so far are from their shares, at most."""
    return float(np.abs(np.cumsum(counts, axis=0) - np.cumsum(sizes)[:, None] * shares).max())


def test_counts_are_exact_in_every_batch() -> None:
    """A share that is a whole number of examples is met in each batch; any other to one example, and over all batches so far to one."""
    whole = replace(JOB, mixing=Mixing("label", (0.5, 0.2, 0.0, 0.1, 0.2)))
    thirds = replace(JOB, batch_size=10, mixing=Mixing("label", (1.0, 1.0, 0.0, 1.0)))

    assert [[10, 4, 0, 2, 4, 0, 0, 0]] * 15 == counted(whole, task(whole)).tolist()
    assert {3, 4} == set(counted(thirds, task(thirds))[:, [0, 1, 3]].ravel().tolist())
    for seed in range(300):
        draw = np.random.default_rng(seed)
        shares = draw.dirichlet(np.full(int(draw.integers(1, 30)), 0.3))[None]
        sizes = draw.integers(1, 12, size=(1, 40))
        found = mixing.counts(shares, sizes, draw.random(shares.shape))
        assert found.min() >= 0 and (found.sum(2) == sizes).all()
        assert off(found[0], shares[0], sizes[0]) < 2
        assert np.abs(found[0, 0] - shares[0] * sizes[0, 0]).max() < 1
    each = np.stack([mixing.counts(shares, sizes[:, [i]], np.zeros_like(shares))[0, 0] for i in range(40)])  # Rounding is forgotten.
    assert off(each, shares[0], sizes[0]) > 2


def test_equal_shares_favour_nobody() -> None:
    """Of one example per batch among five sources alike each comes first as often, over clients; by number the first always would."""
    job = replace(JOB, epochs=0, steps=1, batch_size=1, mixing=Mixing("label", (1.0,) * 8))
    firsts = np.array([counted(job, task(job, CALLED, client))[0] for client in range(500)]).sum(0)

    assert stats.chisquare(firsts[CALLED]).pvalue > 0.001
    assert 0 == mixing.counts(np.full((500, 5), 0.2), np.ones((500, 1), dtype=np.int64), np.zeros((500, 5)))[:, 0, 1:].sum()


@pytest.mark.parametrize("draw", ["exact", "multinomial"])
@pytest.mark.parametrize("sampling", ["reshuffle", "replacement", "sequential"])
def test_what_is_read(sampling: Any, draw: Any) -> None:
    """A longer task only appends, whoever else is in the cohort; reshuffled, each source is read to its end before it begins anew."""
    job = replace(JOB, sampling=sampling, mixing=replace(JOB.mixing, draw=draw))
    tasks = [task(job), task(job, SOURCES[:33], 1), task(job, SOURCES % 3, 2), task(job, SOURCES, 3)]
    together = batching.orders(job, tasks)
    for row, one in zip(together, tasks, strict=True):
        alone = batching.orders(job, [one])[0]
        assert alone.tolist() == row[: len(alone)].tolist()
    shorter = replace(job, epochs=0.6)
    assert batching.orders(shorter, [task(shorter)])[0].tolist() == together[0, : shorter.seen(100)].tolist()
    assert together[0].tolist() != together[3].tolist()
    for source, held in zip(CALLED, HELD, strict=True):
        read = together[0][SOURCES[together[0] - 100] == source].tolist()
        passes = [sorted(read[at : at + held]) for at in range(0, len(read) - held + 1, held)]
        whole = all(each == sorted(set(each)) and len(each) == held for each in passes)
        assert whole or (sampling == "replacement" and held > 1)


def test_a_batch_is_in_no_order() -> None:
    """Sources come anywhere in a batch, as in others, so that layers that take its first half get all of them."""
    job = replace(JOB, epochs=20, mixing=Mixing("label", (1.0, 1.0)))
    halves = SOURCES[batching.orders(job, [task(job)])[0].reshape(-1, 20)[:, :10] - 100]

    assert stats.binomtest(int(halves.sum()), halves.size, 0.5).pvalue > 0.001


def test_the_gradient_of_a_mix() -> None:
    """A step goes down the sum of shares times each source's mean gradient, to 1e-12, cut or whole; that of all examples is another."""
    x, sources = gradients(100, 6) + np.arange(100)[:, None], np.repeat([0, 1, 2], [20, 30, 50])
    job = Job(epochs=0, steps=1, batch_size=100, lr=0.5, mixing=Mixing("label", (0.4, 0.6, 0.0)))  # Each is read twice.
    wanted = 0.4 * x[sources == 0].mean(0) + 0.6 * x[sources == 1].mean(0)

    for each in (job, replace(job, batch_size=25, accumulate=4)):
        assert np.abs(left(each, x, sources=sources) / -0.5 - wanted).max() < 1e-12
    assert np.abs(left(replace(job, mixing=None), x) / -0.5 - wanted).max() > 1


MIXES: dict[str, dict[str, Any]] = {
    "label": {"training.mix": {"by": "label", "temperature": 3.0}, "training.accumulate": 2},
    "multinomial": {"training.mix": {"by": "label", "shares": {"3": 1.0, "8": 2.0}, "draw": "multinomial"}, "training.drop_last": True},
    "difficulty": {"training.mix": {"by": "difficulty", "shares": [1, 2, 4]}, "training.algorithm": {"kind": "scaffold"}},
    "stream": {
        "training.mix": {"by": "label", "temperature": 9.0}, "training.rehearsal": {"kind": "union"},
        "clients.replay": {"kind": "reservoir", "capacity": 12}, "server.rounds": 3,
        "stream": {"arrivals": {"kind": "constant", "per_s": 1.0}, "trigger": {"kind": "count", "examples": 9}},
    },
}  # fmt: skip
RAGGED = {"data.partition": {"kind": "dirichlet", "alpha": 0.3}, "training.batch_size": 4}


@pytest.mark.parametrize("name", MIXES)
def test_one_digest(name: str, go: Any, hands: None) -> None:
    """A mix gives the digest that it gives client by client in two processes, and another one than batches that are not mixed."""
    settings = {**RAGGED, **MIXES[name]}
    plain = {key: value for key, value in settings.items() if key != "training.mix"}
    run = go(settings)

    assert run.digest == go({**settings, "engine.chunk": 1, "engine.workers": 2}).digest
    assert run.digest != go(plain).digest
    if name != "stream":  # How long tasks take is a matter of sizes, and of the pass that tells what is hard.
        more = run.tasks.flops - go(plain).tasks.flops
        assert ((more > 0) if name == "difficulty" else (more == 0)).all()


def test_shares_by_name(tiny: Any, tmp_path: Any) -> None:
    """Classes and groups are called what the data call them; a client's batches then have their shares."""
    rows = ["a,site,sort", *(f"{i % 9},{'north' if i % 3 else 'south'},{'cat' if i % 4 else 'dog'}" for i in range(400))]
    (tmp_path / "sites.csv").write_text("\n".join(rows))
    data = {
        "data.source": {"kind": "csv", "path": str(tmp_path / "sites.csv"), "label": "sort", "client": "site"}, "data.test_fraction": 0.2,
    }  # fmt: skip
    for by, shares in (("label", {"dog": 3.0, "cat": 1.0}), ("group", {"south": 3, "north": 1})):
        parts = build(load(tiny({**data, "training.batch_size": 8, "training.mix": {"by": by, "shares": shares}})))
        one = parts.fleet.client(2).plan(Order(parts.job, Start(parts.first)), Kept())[0]
        assert one.sources is not None and len(one.sources) > 40
        names = parts.federation.classes if by == "label" else parts.federation.domains
        found, rare = batching.orders(parts.job, [one])[0][:40].reshape(5, 8), names.index(next(iter(shares)))
        pooled = parts.federation.pooled.y if by == "label" else parts.federation.groups
        assert ((pooled[found] == rare).sum(1) == 6).all()


def mix(**settings: Any) -> dict[str, Any]:
    return {"training.mix": {"by": "label", **settings}}


STREAM = {"stream": {"arrivals": {"kind": "poisson", "per_s": 1.0}}}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "by what": ({"training.mix": {"by": "colour"}}, "training.mix.by = 'colour': must be 'label', 'group' or 'difficulty'"),
    "no source": (mix(shares={"12": 1.0}), "training.mix.shares.12: there is no such source."),
    "few": (mix(shares=[0.5, 0.5]), "training.mix.shares = [0.5, 0.5]: has 2, and there are 10 sources"),
    "nothing": (mix(shares={"3": 0.0}), "training.mix.shares = {'3': 0.0}: no source has a share."),
    "less": (mix(shares=[-1.0]), "training.mix.shares"),
    "both": (mix(shares={"3": 1.0}, temperature=2.0), "training.mix.temperature = 2: makes shares of"),
    "cold": (mix(temperature=0.0), "training.mix.temperature = 0.0: must be > 0"),
    "levels": (mix(levels=3), "training.mix.levels = 3: counts levels of difficulty"),
    "whole": ({**mix(), "training.batch_size": "full"}, "training.mix: says what a mini-batch is mixed from, and"),
    "groups": ({"training.mix": {"by": "group"}}, "training.mix.by = 'group': data.source.kind = 'digits' names no groups"),
    "stream": ({**mix(), **STREAM}, "training.mix: on a [stream] new examples come into mini-batches as they arrived"),
    "group on a stream": (
        {"training.mix": {"by": "group"}, **STREAM, "training.rehearsal": {"kind": "union"}}, "training.mix.by = 'group': data.source",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, tiny: Any) -> None:
    """A mix that cannot be had is refused by its key, with its value, in one line."""
    settings, begins = REFUSED[case]
    with pytest.raises(ScenarioError) as said:
        build(load(tiny(settings)))

    assert str(said.value).startswith(begins), said.value
    assert 1 == len(str(said.value).splitlines())
