"""What a reader's own model, objective, source or strategy may get wrong: refused at the door, by the word of who is at fault."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.core.errors import ScenarioError
from fedsim.scenario.build import build
from fedsim.scenario.load import load

OWN = """
import numpy as np
import torch
import torch.nn.functional as F
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg
from torch import nn
from fedsim.data.source import Examples, Pool
from fedsim.learn.objectives import Classification

GROUPS = {
    "text": np.array(["a", "b", "c"] * 20), "list": ["a", "b", "c"] * 20, "gaps": np.full(60, np.nan), "negative": np.arange(60) - 1,
    "right": np.arange(60) % 3, "": None,
}

def source(key, groups="", times=""):
    draw = np.random.default_rng(0)
    times_s = np.where(np.arange(60) == 7, np.inf, 1.0) if times else None
    return Pool(Examples(draw.integers(0, 16, (60, 6)), draw.integers(0, 3, 60)), outputs=3, groups=GROUPS[groups], times_s=times_s)

class Each:
    shape, outputs = (6,), 3
    def __init__(self, how, whole):
        self.how, self.whole, self.draw = how, whole, np.random.default_rng(0)
        self.buffer = np.zeros((20, 6), np.float32)
    def sizes(self, clients):
        return np.full(len(clients), 20)
    def client(self, client):
        draw = self.draw if self.how == "one after the other" else np.random.default_rng(client)
        x, y = draw.integers(0, 16, (20, 6)).astype("float32"), draw.integers(0, 3, 20)
        if self.how == "one buffer":
            self.buffer[:] = x
            x = self.buffer
        x, y = {
            "other end": (x.astype(">f8"), y.astype(">i2")), "small": (x.astype("float16"), y.astype("uint8")), "long": (x.astype("longdouble"), y),
            "whole": (x.astype("int32"), y), "columns": (np.asfortranarray(x), y[::1]), "truths": (x.astype("float32"), y.astype("int8")),
            "masked": (np.ma.masked_greater(x, 3), y),
        }.get(self.how, (x, y))
        return Examples(x, y)

def each(key, how="", whole=False):
    return Each(how, whole)

def pool(key, how=""):
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 2, (60, 6)), draw.integers(0, 3, 60)
    forms = {"truths": x.astype(bool), "other end": x.astype(">f4"), "small": x.astype("float16"), "": x.astype("float32"), "whole": x.astype("uint8")}
    test = Examples(x[:9].astype("uint8"), y[:9].astype(">i4")) if how else Examples(x[:9].astype("float32"), y[:9])
    return Pool(Examples(forms[how], y.astype("int16")), outputs=3, test=test)

def fields(key, which):
    draw = np.random.default_rng(0)
    words = {"classes": tuple(range(3)), "files": None, "outputs": np.int64(3), "text": "3", "times_s": np.arange(60) - 9.0}
    about = {"outputs": 3, ("outputs" if which == "text" else which): words[which]}
    return Pool(Examples(draw.normal(size=(60, 6)), draw.integers(0, 3, 60)), **about)

def sgd(lr=None, momentum=0.0, weight_decay=0.0, nesterov=False):
    from fedsim.learn.optim import Sgd
    return Sgd(np.float32(0.1) if lr is None else lr, momentum, weight_decay, nesterov)

def rehearsal(ratio=0.5, mix="concat"):
    from fedsim.learn.rehearsal.er import Er
    return Er(ratio, mix)

class Lazy(nn.Module):
    def __init__(self, shape, outputs):
        super().__init__()
        self.e, self.o = nn.Embedding(17, 4), nn.LazyLinear(outputs)
    def forward(self, x):
        return self.o(self.e(x).flatten(1))

class Raises(nn.Module):
    def __init__(self, shape, outputs, what, when="forward"):
        super().__init__()
        self.o, self.what = nn.Linear(6, outputs), {"ends": GeneratorExit, "exits": SystemExit}[what]
        if when == "made":
            raise self.what
    def forward(self, x):
        raise self.what

class Nan(nn.Linear):
    def __init__(self, shape, outputs):
        super().__init__(6, outputs)
    def forward(self, x):
        return super().forward(x.float()) * float("nan")

class Unlike(nn.Linear):
    def __init__(self, shape, outputs, how):
        super().__init__(6, outputs, device="meta" if how == "meta" else None)
        if how == "unseeded":
            self.weight.data = torch.from_numpy(np.random.default_rng().normal(size=(outputs, 6)).astype("float32"))
        if how == "kept":
            self.register_buffer("luck", torch.from_numpy(np.random.default_rng().normal(size=3)).float(), persistent=False)
        if how == "numpy":
            self.bias.data = torch.from_numpy(np.random.normal(size=outputs).astype("float32"))
        if how == "after":
            self.weight.register_post_accumulate_grad_hook(print)
        if how == "default":
            torch.set_default_dtype(torch.float64)
        self.how = how
    def forward(self, x):
        if self.how == "grows" and not hasattr(self, "late"):
            self.late = nn.Parameter(torch.zeros(1))
        x = x.float()
        return super().forward(x + torch.rand(1) + np.random.rand() if self.how == "draws" else x)

class FromNan(Classification):
    def loss(self, outputs, targets):
        return super().loss(outputs, targets) * float("nan")

class Counts(Classification):
    def scores(self, sums):
        return {**super().scores(sums), "rounds": 3.0}

class Asks(FedAvg):
    def __init__(self, what, **kwargs):
        super().__init__(**kwargs)
        self.what = what
    def configure_train(self, *given):
        asked = list(super().configure_train(*given))
        if self.what == "nobody":
            asked[0].metadata.dst_node_id = 7
        return ["me"] if self.what == "text" else asked
    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        return (ArrayRecord({n: Array(a.numpy() * np.nan) for n, a in arrays.items()}) if self.what == "makes nan" else arrays), metrics

class Polls:
    def available(self, clients, now):
        return np.zeros(len(clients), bool)
    def next_change(self, clients, now):
        return now + 60.0

def scripted(shape, outputs):
    return torch.jit.script(nn.Linear(6, outputs))

class Objective:
    def __init__(self, bad=""):
        self.bad = bad
    def loss(self, outputs, targets):
        if self.bad == "loss raises":
            raise ValueError("no")
        return {"loss is None": None, "loss is a number": 1.0}.get(self.bad, F.cross_entropy(outputs, targets, reduction="none" if self.bad == "loss has a row" else "mean"))
    def sums(self, outputs, targets):
        if self.bad == "sums raise":
            raise ValueError("no")
        each = F.cross_entropy(outputs, targets, reduction="none")
        good = {"loss": each.sum(), "examples": torch.tensor(len(targets))}
        return {"sums are None": None, "sums have a row": {**good, "loss": each}, "sums have no name": {**good, 3: each.sum()}}.get(self.bad, good)
    def each(self, outputs, targets):
        each = F.cross_entropy(outputs, targets, reduction="none")
        return {"each is longer": each.repeat(3), "each is complex": each.to(torch.complex64), "each is None": None}.get(self.bad, each)
    def scores(self, sums):
        return {"loss": sums["loss"] / sums["examples"], **({3: 1.0} if self.bad == "scores have no name" else {})}

class Subclass(Classification):
    def each(self, outputs, targets):
        return super().each(outputs, targets).repeat(2)

class Imaginary(FedAvg):
    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        return ArrayRecord({name: Array(array.numpy() + 1j) for name, array in arrays.items()}), metrics

class Nobody(FedAvg):
    def configure_train(self, *given):
        return []
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Return a function of overrides that gives the tiny scenario beside OWN, on integers of a source of its own."""
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)

    def table(overrides: dict[str, Any]) -> dict[str, Any]:
        return tiny(
            {
                **({} if "data" in overrides else {"data.source": {"kind": "mine:source"}}),
                "clients.count": 3,
                "server.rounds": 1,
                **overrides,
            }
        )

    return table


def refused(table: dict[str, Any]) -> str:
    """Return the line with which *table* is refused before anything runs."""
    with pytest.raises(ScenarioError) as raised:
        build(load(table))
    return str(raised.value)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("loss raises", "its loss() raised ValueError: no"), ("loss is None", "its loss() gives a NoneType"),
        ("loss is a number", "its loss() gives a float"), ("loss has a row", "its loss() gives float32 of shape (2,)"),
        ("sums raise", "its sums() raised ValueError: no"), ("sums are None", "its sums() gives a NoneType"),
        ("sums have a row", "its sums() gives float32 of shape (2,), expected a number for 'loss'"), ("sums have no name", "its sums() names one 3"),
        ("each is longer", "its each() gives float32 of shape (6,)"), ("each is complex", "its each() gives complex64"),
        ("each is None", "its each() gives a NoneType"),
    ],
)  # fmt: skip
def test_an_objective_is_at_fault_by_its_own_name(bad: str, said: str, mine: Callable[..., dict[str, Any]]) -> None:
    """A method that raises, or gives something else, is named with the reader's word; the model is not blamed."""
    stream = {"stream.arrivals": {"kind": "constant", "per_s": 1.0}} if bad.startswith("each") else {}
    line = refused(mine({"training.objective": {"kind": "mine:Objective", "bad": bad}, **stream}))

    assert line.startswith("training.objective.kind = 'mine:Objective': ") and said in line


def test_a_subclass_of_ours_is_tried_as_well(mine: Callable[..., dict[str, Any]]) -> None:
    """What a reader changes of our own objective is the reader's."""
    line = refused(mine({"training.objective": {"kind": "mine:Subclass"}, "stream.arrivals": {"kind": "constant", "per_s": 1.0}}))

    assert line.startswith("training.objective.kind = 'mine:Subclass': its each() gives float32 of shape (4,)")


def test_a_right_objective_runs(mine: Callable[..., dict[str, Any]], go: Any) -> None:
    """The same objective with nothing wrong about it scores a run; a score without a name is refused."""
    run = go(mine({"training.objective": {"kind": "mine:Objective"}, "stream.arrivals": {"kind": "constant", "per_s": 1.0}}))

    assert 0 < run.final["loss"] < 100
    assert "a score is named 3" in refused(mine({"training.objective": {"kind": "mine:Objective", "bad": "scores have no name"}}))


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ("text", "groups is <U1, expected whole numbers"),
        ("list", "groups is <U1"),
        ("gaps", "groups is float64"),
        ("negative", "groups[0] = -1"),
    ],
)
def test_groups_are_numbers(groups: str, said: str, mine: Callable[..., dict[str, Any]]) -> None:
    """Whose an example is, and when it came, are numbers that say so."""
    table = {"data.partition": {"kind": "natural"}, "data.source.groups": groups}

    assert said in refused(mine(table))
    assert build(load(mine({**table, "data.source.groups": "right"}))).federation.count == 3
    assert "times_s[7] = inf" in refused(mine({"data.source.times": "late"}))


@pytest.mark.parametrize("what", ["ends", "exits"])
@pytest.mark.parametrize("when", ["made", "forward"])
def test_what_ends_a_process_is_one_line(what: str, when: str, mine: Callable[..., dict[str, Any]]) -> None:
    """A GeneratorExit or SystemExit of a model is told of like any other error, wherever it comes from."""
    line = refused(mine({"model": {"kind": "mine:Raises", "what": what, "when": when}}))

    assert line.startswith("model.kind = 'mine:Raises'") and ("GeneratorExit" if what == "ends" else "SystemExit") in line


def test_lazy_layers_settle_on_what_the_data_are(mine: Callable[..., dict[str, Any]], go: Any) -> None:
    """A lazy layer behind an embedding takes its size from whole numbers; the model is read back too."""
    run = go(mine({"model": {"kind": "mine:Lazy"}}))

    assert (3, 24) == run.model().state_dict()["o.weight"].shape


def test_a_scripted_module_is_told_what_to_return(mine: Callable[..., dict[str, Any]]) -> None:
    """torch.jit's modules cannot take a client's parameters: the line says what can."""
    assert "Return the module itself, without torch.jit" in refused(mine({"model": {"kind": "mine:scripted"}}))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("kept", "'luck' comes out otherwise when it is built again"),
        ("unseeded", "'weight' comes out otherwise when it is built again"), ("meta", "parameter 'weight' lies on torch's 'meta' device"),
        ("after", "parameter 'weight' has a hook after its gradient's accumulation"), ("grows", "makes the parameter 'late' in its forward()"),
    ],
)  # fmt: skip
def test_a_model_that_is_not_the_same_for_all_is_refused(how: str, said: str, mine: Callable[..., dict[str, Any]]) -> None:
    """What cannot be repeated, sent or called is named before anything runs."""
    assert said in refused(mine({"model": {"kind": "mine:Unlike", "how": how}}))


@pytest.mark.parametrize("how", ["numpy", "default", "draws"])
def test_what_draws_from_global_generators_repeats(how: str, mine: Callable[..., dict[str, Any]], go: Any) -> None:
    """First parameters, and draws while a model is evaluated, come again; torch's default precision is left alone."""
    np.random.seed()
    torch.seed()
    one, two = (go(mine({"model": {"kind": "mine:Unlike", "how": how}})) for _ in range(2))

    assert (one.digest, one.final) == (two.digest, two.final)
    assert torch.float32 == torch.get_default_dtype()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"training.objective": {"kind": "mine:FromNan"}}, "its loss() gives nan for finite outputs"),
        ({"training.objective": {"kind": "mine:Counts"}}, "a score is named 'rounds'"),
        ({"server.strategy": {"kind": "mine:Asks", "what": "text"}}, "configure_train gave a str among its messages"),
        ({"server.strategy": {"kind": "mine:Asks", "what": "makes nan"}}, "aggregate_train of 'mine:Asks' gave 'weight' with numbers that are"),
        ({"clients.availability": {"kind": "mine:Polls"}}, "next_change has promised another answer 10,000 times"),
    ],
)  # fmt: skip
def test_who_is_to_blame_is_named(table: dict[str, Any], said: str, mine: Callable[..., dict[str, Any]], go: Any) -> None:
    """No learning rate, no deadline and no client is, where an objective, a strategy or an availability is at fault."""
    with pytest.raises(fedsim.FedsimError) as raised:
        go(mine({"model": {"kind": "mine:Unlike", "how": ""}, **table}))

    assert said in str(raised.value)


def test_messages_to_nobody_are_noted(mine: Callable[..., dict[str, Any]], go: Any) -> None:
    """A node that is not there is answered for as Flower does, and the run says which are."""
    run = go(mine({"model": {"kind": "mine:Unlike", "how": ""}, "server.strategy": {"kind": "mine:Asks", "what": "nobody"}}))

    assert "A message went to a node that is not there, 7: nodes are 1000 to 1002" in run.manifest["notes"][0]


def test_a_loss_that_is_nan_from_the_start_is_no_divergence(mine: Callable[..., dict[str, Any]], go: Any) -> None:
    """Before anything is trained, no learning rate is to blame."""
    with pytest.raises(fedsim.RunError, match="round 0: loss of the global model is nan before anything was trained"):
        go(mine({"model": {"kind": "mine:Nan"}}))


def test_a_strategy_keeps_the_kind_of_number(mine: Callable[..., dict[str, Any]], go: Any) -> None:
    """Imaginary parts are not dropped without a word; a strategy that asks nobody is said to."""
    with pytest.raises(fedsim.RunError, match="aggregate_train gave '1.weight' as complex64; the model has float32"):
        go(mine({"server.strategy": {"kind": "mine:Imaginary"}}))
    run = go(mine({"server.strategy": {"kind": "mine:Nobody"}}))
    assert any("Not one client was ever asked" in note for note in run.manifest["notes"])
    assert "server.strategy.fraction_train = 0.0: must be > 0" in refused(
        mine({"server.strategy": {"kind": "FedAvg", "fraction_train": 0.0}})
    )


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("stream.items", 99_999_999_999, "stream.items = 99999999999: what comes to one client alone takes 4,000.0 GB"),
        ("clients.availability", {"kind": "diurnal", "slot_s": 1e-320}, "clients.availability.slot_s = 1e-320: must be >= 0.001"),
    ],
)
def test_numbers_that_no_machine_takes_are_refused(key: str, value: Any, said: str, mine: Callable[..., dict[str, Any]]) -> None:
    """Sizes and times beyond reach are named with their key and value, and nothing is tried."""
    stream = {"stream.arrivals": {"kind": "constant", "per_s": 1.0}} if "stream" in key else {}

    assert said in refused(mine({**stream, key: value}))


@pytest.mark.parametrize("kind", ["constant", "poisson"])
def test_what_never_comes_is_said(kind: str, mine: Callable[..., dict[str, Any]], recwarn: pytest.WarningsRecorder) -> None:
    """A rate at which an item would come at infinity is refused, in our words and not in numpy's."""
    line = refused(mine({"stream.arrivals": {"kind": kind, "per_s": 1e-320}}))

    assert "stream.arrivals: item" in line and "would come at inf s" in line and not list(recwarn)


def test_one_setting_of_a_default_can_be_set(tiny: Callable[..., dict[str, Any]]) -> None:
    """--set reaches into a table that stands where the file says nothing."""
    table = tiny()
    del table["clients"]["compute"]
    made = [
        load(table, {"clients.compute.overhead_s": 0.25, **more}).scenario.clients.compute
        for more in ({}, {"clients.compute.kind": "lognormal"})
    ]

    assert [{"kind": "constant", "gflops": 5.0, "overhead_s": 0.25}, {"kind": "lognormal", "overhead_s": 0.25}] == made


@pytest.mark.parametrize("how", ["other end", "small", "long", "whole", "columns", "truths", "one buffer"])
def test_examples_are_numbers_in_whatever_form(how: str, mine: Callable[..., dict[str, Any]], go: Any) -> None:
    """Byte order, width, layout and a buffer that is used again change no bit of what a generator's examples train."""
    digests = [
        go(mine({"data": {"source": {"kind": "mine:each", "how": form}, "test_fraction": 0.3}, "engine.chunk": 2})).digest
        for form in ("", how)
    ]

    assert digests[0] == digests[1]


@pytest.mark.parametrize("how", ["truths", "other end", "small", "whole"])
def test_a_pool_is_numbers_in_whatever_form(how: str, mine: Callable[..., dict[str, Any]], go: Any) -> None:
    """The same of a pool, whose test part may have another form."""
    digests = [go(mine({"data.source": {"kind": "mine:pool", "how": form}})).digest for form in ("", how)]

    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("how", "said"), [("masked", "x is a masked array"), ("one after the other", "client(0) gives other examples when it is asked again")]
)
def test_what_is_no_function_of_the_client_is_refused(how: str, said: str, mine: Callable[..., dict[str, Any]]) -> None:
    """A mask is not lost without a word, and who is made first makes no difference."""
    line = refused(mine({"data": {"source": {"kind": "mine:each", "how": how}, "test_fraction": 0.3}}))

    assert line.startswith("data.source.kind = 'mine:each': client(0)") and said in line


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("classes", "classes is (0, 1, 2), expected a tuple of names"),
        ("files", "files is None"),
        ("times_s", "times_s[0] = -9.0"),
        ("text", "its outputs are '3'"),
    ],
)
def test_fields_of_a_pool_are_what_they_are(name: str, said: str, mine: Callable[..., dict[str, Any]]) -> None:
    """What a run could not be read back with is refused; numpy's whole number of outputs is one."""
    assert said in refused(mine({"data.source": {"kind": "mine:fields", "which": name}}))
    assert 3 == build(load(mine({"data.source": {"kind": "mine:fields", "which": "outputs"}}))).federation.outputs


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lr": -1.0}, "its lr is -1.0"),
        ({"momentum": 2.0}, "its momentum is 2.0"),
        ({"weight_decay": -0.1}, "its weight_decay"),
        ({"nesterov": True}, "its nesterov"),
    ],
)
def test_settings_of_an_own_optimizer_are_in_range(given: dict[str, Any], said: str, mine: Callable[..., dict[str, Any]], go: Any) -> None:
    """What sgd refuses, a kind of the reader's own may not choose either; a float32 is a number."""
    assert said in refused(mine({"training.optimizer": {"kind": "mine:sgd", **given}}))
    assert "done" == go(mine({"training.optimizer": {"kind": "mine:sgd"}})).status
    stream = {"stream.arrivals": {"kind": "constant", "per_s": 1.0}}
    assert "training.rehearsal.ratio = 1.0: must be" in refused(mine({**stream, "training.rehearsal": {"kind": "mine:rehearsal", "ratio": 1.0}}))
    assert "its way gives a mix of 'foo', expected one of concat, sum, ace" in refused(mine({**stream, "training.rehearsal": {"kind": "mine:rehearsal", "mix": "foo"}}))
