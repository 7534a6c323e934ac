"""Laws over every codec: its size is what its forms foretell, the strategy sees plain arrays, and a run has one digest."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.serverapp.strategy import FedAvg

import fedsim
from clients.client_app import app as client_app
from fedsim.codec import codecs
from fedsim.codec.bfloat16 import Bfloat16, rounded, widened
from fedsim.core.errors import FedsimError, RunError
from fedsim.flower import compat, records
from fedsim.flower.decode import coded
from fedsim.laws import LAWS, Broken, ask, hold
from fedsim.learn.engine.queue import here
from fedsim.scenario.build import build
from fedsim.scenario.kinds import slots
from fedsim.scenario.load import load
from fedsim.sim.grid import VirtualGrid

slots()  # Importing registers.
Go = Callable[..., fedsim.Run]


@pytest.mark.parametrize("law", LAWS["codec"])
@pytest.mark.parametrize("kind", list(codecs))
def test_every_codec_keeps_every_law(kind: str, law: str) -> None:
    """Forms follow from forms, decoding gives arrays of the old ones, and nothing is hidden or written to."""
    hold("codec", kind, laws=[law])


class Wrong(Bfloat16):
    """bfloat16, with one thing wrong."""

    def __init__(self, way: str) -> None:
        object.__setattr__(self, "way", way)
        object.__setattr__(self, "times", [])

    def encode(self, params: Any, kept: Any) -> Any:
        if self.way == "writes":  # type: ignore[attr-defined]
            for array in params.values():
                array[...] = 0
        encoded, kept = super().encode(params, kept)
        if self.way == "packs zeros":  # type: ignore[attr-defined]
            encoded = {name: array[array != 0] for name, array in encoded.items()}
        self.times.append(0)  # type: ignore[attr-defined]
        return encoded, {"times": np.array([len(self.times)])} if self.way == "hides" else {}  # type: ignore[attr-defined]

    def decode(self, params: Any, forms: Any) -> Any:
        decoded = super().decode(params, forms)
        if self.way == "drifts":  # type: ignore[attr-defined]
            decoded = {name: (array * 1.1).astype(array.dtype) for name, array in decoded.items()}
        return decoded


WRONG = {
    "what_travels_was_foretold": "packs zeros", "decoding_loses_nothing_more": "drifts", "a_codec_hides_nothing": "hides",
    "what_goes_in_stays_as_it_is": "writes",
}  # fmt: skip


@pytest.mark.parametrize("law", LAWS["codec"])
def test_the_law_has_teeth(law: str) -> None:
    """A size that depends on values, a decoding that goes on losing, a codec that counts for itself or writes: each is rejected."""
    with pytest.raises(Broken, match=f"breaks the law '{law}'"):
        ask(LAWS["codec"][law], lambda: Wrong(WRONG[law]))


def test_bfloat16_is_torchs() -> None:
    """Bit for bit, over random bit patterns, ties and the edges of the range; truncating, a wrong way, is told apart."""
    bits = np.random.default_rng(1).integers(0, 2**32, 200_000, dtype=np.uint32)
    edges = np.array([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x00000001, 0x80000000, 0x7F800000, 0x3F808001], np.uint32)
    floats = np.concatenate([bits, edges]).view(np.float32)
    floats = floats[~np.isnan(floats)]
    theirs = torch.from_numpy(floats).to(torch.bfloat16).view(torch.uint16).numpy()

    assert np.array_equal(rounded(floats), theirs)
    assert not np.array_equal((floats.view(np.uint32) >> 16).astype(np.uint16), theirs)
    assert np.isnan(widened(rounded(np.array([np.nan, -np.nan], np.float32)))).all()


BOTH = {"down": {"kind": "bfloat16"}, "up": {"kind": "bfloat16"}}
WAYS = {"down": {"down": BOTH["down"]}, "up": {"up": BOTH["up"]}, "both": BOTH}


@pytest.mark.parametrize("way", sorted(WAYS))
def test_one_digest_and_half_the_bytes(way: str, go: Go, hands: None) -> None:
    """With two workers as with one; the way that is encoded takes half the payload, and the time follows from it."""
    model = {"model": {"kind": "mlp", "hidden": [32]}, "training.algorithm": {"kind": "scaffold"}}
    settings = {"server.rounds": 3, "codec": WAYS[way], **model}
    one, two = go(settings), go({**settings, "engine.workers": 2})
    plain = go({**settings, "codec": {"up": {"kind": "plain"}}})

    assert one.digest == two.digest != plain.digest
    assert go({**settings, "codec": None}).digest == plain.digest  # A codec that does nothing moves no byte.
    for name, half in (("down_bytes", way != "up"), ("up_bytes", way != "down")):
        assert (one.tasks[name].sum() / plain.tasks[name].sum() < 0.6) == half
    assert one.manifest["virtual_s"] < plain.manifest["virtual_s"]
    assert {str(array.dtype) for array in one.params().values()} == {"float32"}


class Seen(FedAvg):
    """Looks at what it is given."""

    types: set[str] = set()  # noqa: RUF012

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        Seen.types |= {array.dtype for reply in replies for array in reply.content["arrays"].values()}  # pyright: ignore
        return super().aggregate_train(server_round, replies)


def test_a_strategy_sees_plain_arrays(go: Go) -> None:
    """Whatever travels, a strategy of the reader's gets the model's own type, in float64 too, and so does the next client."""
    for dtype in ("float32", "float64"):
        Seen.types = set()
        run = go({"server.strategy": {"kind": f"{__name__}:Seen"}, "server.rounds": 2, "codec": BOTH, "engine.dtype": dtype})

        assert {dtype} == Seen.types == {str(array.dtype) for array in run.params().values()}


class Deaf:
    """Hears nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def test_a_real_client_sends_the_same_bytes(scenario_file: Any) -> None:
    """Our ClientApp, given what the wrapper sends, answers with the arrays that the simulated client sends."""
    path = scenario_file({"codec": BOTH})
    parts = build(load(path))
    inner = VirtualGrid(parts.fleet, here(parts.engine), Deaf())
    grid = coded(inner, parts.fleet.coding)
    config = records.job_config(parts.job)
    config["server-round"] = 1
    message = Message(RecordDict({"arrays": compat.array_record(parts.first), "config": config}), records.node_of(0), "train")
    sent = next(iter(coded(inner, parts.fleet.coding)._encoded([message])))  # type: ignore[attr-defined]
    theirs = client_app(sent, Context(1, records.node_of(0), {"partition-id": 0}, RecordDict(), {"scenario": str(path)}))
    ours = next(iter(grid.send_and_receive([message], timeout=1e6)))

    assert {"uint16"} == {array.dtype for array in theirs.content["arrays"].values()} == {a.dtype for a in sent.content["arrays"].values()}
    assert {"float32"} == {array.dtype for array in ours.content["arrays"].values()}
    decoded = parts.fleet.coding.got_up(records.params_of(theirs.content["arrays"]))  # type: ignore[union-attr]
    assert all(np.array_equal(decoded[name], array.numpy()) for name, array in ours.content["arrays"].items())


OWN = """
import numpy as np
from fedsim.codec.bfloat16 import Bfloat16

class Own(Bfloat16):
    def __init__(self, how): object.__setattr__(self, "how", how)
    __slots__ = ("how",)
    def forms(self, forms):
        return dict(forms) if self.how == "lies" else Bfloat16.forms(self, forms)
    def decode(self, params, forms):
        return {"nothing": {}, "bits": params}.get(self.how) if self.how in ("nothing", "bits") else Bfloat16.decode(self, params, forms)
    def encode(self, params, kept):
        if self.how == "raises":
            raise KeyError("boo")
        params, _ = Bfloat16.encode(self, params, kept)
        return (params, {"told": kept.get("told", np.zeros(1)) + 1}) if self.how == "keeps" else (params, {})

def own(how=""):
    return Own(how)
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have mine.py in the folder."""
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("how", ["lies", "raises", "nothing", "bits"])
def test_a_wrong_codec_is_named(how: str, mine: None, go: Go) -> None:
    """One that encodes to another size than it foretold, or raises: one line, by the key."""
    with pytest.raises(FedsimError, match=r"^codec\.up\.kind = 'mine:own': its (en|de)code\(\) (gives|raised KeyError)[^\n]*$"):
        go({"codec": {"up": {"kind": "mine:own", "how": how}}})


def test_a_strangers_codec_is_used_and_keeps(mine: None, go: Go) -> None:
    """It gives what the one it descends from gives, whether it keeps something or not."""
    kinds = ({"kind": "bfloat16"}, {"kind": "mine:own"}, {"kind": "mine:own", "how": "keeps"})

    assert 1 == len({go({"codec": {"up": kind}}).digest for kind in kinds})


def shrinks(message: Message, context: Context, app: Any) -> Message:
    """A client mod that sends half precision."""
    reply = app(message, context)
    arrays = {name: array.numpy().astype(np.float16) for name, array in reply.content["arrays"].items()}
    reply.content["arrays"] = compat.array_record(arrays)
    return reply


def test_a_mod_that_changes_sizes_is_told_what_it_changed(tiny: Any) -> None:
    """Its name, the array, and what would have worked."""
    parts = build(load(tiny({})))
    grid = VirtualGrid(parts.fleet, here(parts.engine), Deaf(), mods=[shrinks])
    content = RecordDict({"arrays": compat.array_record(parts.first), "config": records.job_config(parts.job)})
    with pytest.raises(RunError, match=r"a client mod \(shrinks\) changed the size of the reply.*\('float16', .*'float32'.*codec"):
        grid.send_and_receive([Message(content, records.node_of(0), "train")], timeout=1e6)
