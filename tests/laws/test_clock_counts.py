"""The clock sees every operation: what torch's counter leaves out is counted by shapes, or named."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.learn import flops, operations
from fedsim.learn.objectives import Classification

ROWS, TIME, INPUTS, HIDDEN, HEADS = 3, 5, 8, 16, 2


class Around(nn.Module):
    """A layer, or a function of parameters and features, as a classifier: what it puts out, flat."""

    def __init__(self, layer: nn.Module | None = None, call: Callable[[Any, Tensor], Any] | None = None, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = layer or nn.Identity()
        self.call = call or (lambda model, x: model.layer(x))
        self.p = nn.ParameterList([torch.rand(shape) + 0.1 for shape in shapes] or [torch.ones(1)])

    def forward(self, x: Tensor) -> Tensor:
        out = self.call(self, x)
        return (out[0] if isinstance(out, tuple) else out).flatten(1) * self.p[0].sum()


class ByHand(nn.Module):
    """An LSTM written as matrix products, which torch's own counter counts."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.u, self.b = nn.Linear(INPUTS, 4 * HIDDEN), nn.Linear(HIDDEN, 4 * HIDDEN), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(len(x), HIDDEN)
        for t in range(x.shape[1]):
            i, f, g, o = (self.w(x[:, t]) + self.u(h)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return h


def counted(model: nn.Module) -> flops.Flops:
    """Return what *model* costs per example of a drawn batch."""
    x = torch.rand(ROWS, TIME, INPUTS, generator=torch.Generator().manual_seed(0))
    return flops.count(model, Classification(), x, torch.arange(ROWS) % 3)


def rnn(gates: int, layers: int = 1, ways: int = 1) -> int:
    """Return the products and sums of a recurrent layer's matrices, per example."""
    first = gates * HIDDEN * (INPUTS + HIDDEN)
    later = gates * HIDDEN * (ways * HIDDEN + HIDDEN)
    return 2 * TIME * ways * (first + (layers - 1) * later)


ATTENTION = 2 * TIME * INPUTS * INPUTS * 4 + 2 * 2 * TIME * TIME * INPUTS
COSTS: dict[str, tuple[nn.Module, int]] = {
    "lstm": (Around(nn.LSTM(INPUTS, HIDDEN, batch_first=True)), rnn(4)),
    "lstm, two layers, both ways": (Around(nn.LSTM(INPUTS, HIDDEN, 2, batch_first=True, bidirectional=True)), rnn(4, 2, 2)),
    "gru": (Around(nn.GRU(INPUTS, HIDDEN, batch_first=True)), rnn(3)),
    "rnn": (Around(nn.RNN(INPUTS, HIDDEN, batch_first=True)), rnn(1)),
    "attention": (Around(nn.MultiheadAttention(INPUTS, HEADS, batch_first=True), lambda m, x: m.layer(x, x, x)[0]), ATTENTION),
    "transformer": (
        Around(nn.TransformerEncoderLayer(INPUTS, HEADS, HIDDEN, dropout=0.0, batch_first=True)),
        ATTENTION + 2 * 2 * TIME * INPUTS * HIDDEN,
    ),
    "bilinear": (Around(nn.Bilinear(INPUTS, INPUTS, 4), lambda m, x: m.layer(x, x)), 3 * TIME * INPUTS * INPUTS * 4),
    "transposed convolution": (Around(nn.ConvTranspose1d(TIME, 4, 3)), 2 * TIME * 4 * 3 * INPUTS),
    "grouped convolution": (Around(nn.Conv1d(TIME, 64 * TIME, 3, groups=TIME, padding=1)), 2 * 64 * TIME * 3 * INPUTS),
    "grouped transposed convolution": (Around(nn.ConvTranspose1d(TIME, 64 * TIME, 3, groups=TIME)), 2 * 64 * TIME * 3 * INPUTS),
    "einsum": (Around(None, lambda m, x: torch.einsum("bti,io->bto", x, m.p[1]), (1,), (INPUTS, 4)), 2 * TIME * INPUTS * 4),
    "matrix times vector": (Around(None, lambda m, x: x @ m.p[1], (1,), (INPUTS,)), 2 * TIME * INPUTS),
    "distances": (Around(None, lambda m, x: torch.cdist(x, m.p[1]), (1,), (7, INPUTS)), 3 * TIME * 7 * INPUTS),
    "distances from parameters": (Around(None, lambda m, x: torch.cdist(m.p[1], x, p=1.0), (1,), (700, INPUTS)), 3 * TIME * 700 * INPUTS),
    "distances by a product": (Around(None, lambda m, x: torch.cdist(m.p[1], x), (1,), (700, INPUTS)), 2 * TIME * 700 * (INPUTS + 2)),
    "dot attention": (
        Around(None, lambda m, x: nn.functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])),
        2 * 2 * TIME * TIME * INPUTS,
    ),
    "fourier": (Around(None, lambda m, x: torch.fft.fft(x.to(torch.complex64)).abs()), 5 * TIME * INPUTS * 3),
    "linear": (Around(nn.Linear(INPUTS, 4)), 2 * TIME * INPUTS * 4),
}  # fmt: skip


@pytest.mark.parametrize("name", COSTS)
def test_a_layer_costs_what_its_shapes_say(name: str) -> None:
    """A forward pass costs the products and sums of its shapes, and a few steps per element put out besides."""
    model, expected = COSTS[name]
    found = counted(model)
    light = 40 * TIME * max(INPUTS, HIDDEN) * 4

    assert expected <= found.forward <= expected + light, (expected, found)
    assert 1.9 * found.forward <= found.training + light
    assert found.training <= 3.5 * expected + 2 * light  # Twice the forward pass for gradients; attention takes five products for two.
    assert "" == found.note


def test_torchs_counter_alone_would_not_see_an_lstm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without our own costs the law above rejects the count of an LSTM."""
    monkeypatch.setattr(flops, "COSTS", {})

    model, expected = Around(nn.Linear(INPUTS, INPUTS), lambda m, x: COSTS["lstm"][0].layer(m.layer(x))[0]), COSTS["lstm"][1]

    assert counted(model).forward < 0.2 * expected


def test_an_lstm_costs_what_it_costs_by_hand() -> None:
    """torch's LSTM and one written as matrix products take about the same virtual time."""
    ours, by_hand = counted(COSTS["lstm"][0]), counted(ByHand())

    assert ours.training == pytest.approx(by_hand.training, rel=0.35)


def test_what_is_computed_between_layers_is_charged() -> None:
    """Activations called as functions cost what layers of the same cost, and not nothing."""
    plain = counted(Around(nn.Linear(INPUTS, 64))).forward
    busy = counted(Around(nn.Linear(INPUTS, 64), lambda m, x: m.layer(x).relu().tanh().sigmoid())).forward

    assert busy == pytest.approx(plain + 3 * flops.ELEMENTWISE / 2 * TIME * 64)


def test_a_copy_is_no_work() -> None:
    """A product with a matrix for each row costs its products: not what torch copies to broadcast them."""
    plain = counted(Around(None, lambda m, x: x @ m.p[1], (1,), (INPUTS, 70))).forward
    spread = counted(Around(None, lambda m, x: (x.unsqueeze(2) @ m.p[1]).squeeze(2).contiguous().clone(), (1,), (INPUTS, 70))).forward

    assert spread == plain


@pytest.mark.parametrize("way", ["mv", "addmv", "dot"])
def test_a_product_costs_the_same_however_it_is_written(way: str) -> None:
    """Row by row or in one: the gradient of a matrix that meets vectors is an outer product, which no operation shows."""
    ways: dict[str, Any] = {
        "mv": lambda w, r: w @ r, "addmv": lambda w, r: torch.addmv(torch.zeros(len(w)), w, r),
        "dot": lambda w, r: torch.stack([torch.dot(row, r) for row in w]),
    }  # fmt: skip
    whole = counted(Around(None, lambda m, x: x[:, 0] @ m.p[1].T, (1,), (20, INPUTS)))
    rows = counted(Around(None, lambda m, x: torch.stack([ways[way](m.p[1], r) for r in x[:, 0]]), (1,), (20, INPUTS)))

    assert (rows.forward, rows.training) == (whole.forward, whole.training)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("_linalg_svd", lambda m, x: torch.linalg.svd(x)[1]),
        ("_linalg_solve_ex", lambda m, x: torch.linalg.solve(x[:, :5, :5] + 9 * torch.eye(5), x)),
    ],
)
def test_what_cannot_be_counted_is_named(name: str, call: Any) -> None:
    """An operation that nobody counts is named in a note, though the rest of the model is counted."""
    found = counted(Around(nn.Linear(INPUTS, INPUTS), lambda m, x: call(m, m.layer(x))))

    assert f"aten.{name}" in found.note and "flops_per_example" in found.note


HEAVY = re.compile(
    r"(^|_)(addb|badd|add|b)?mm(_|$)|(^|_)(add)?mv(_|$)|(^|_)v?dot|matmul|conv|rnn|lstm|gru|attention|linalg|fft|[cp]dist|linear|solve|svd"
    r"|cholesky|(^|_)qr|inverse|(^|_)lu_|matrix_exp|(^|_)addr|einsum|ormqr|geqrf"
)
"""What has a product, a recurrence or a decomposition in its name."""


def test_no_operation_of_aten_is_free_by_mistake() -> None:
    """Walking the aten namespace: whatever has a product or a recurrence in its name is counted, or would be named."""
    free: list[str] = []
    for name in dir(torch.ops.aten):
        packet = getattr(torch.ops.aten, name, None)
        if not isinstance(packet, torch._ops.OpOverloadPacket) or not HEAVY.search(name):
            continue
        for overload in packet.overloads():
            operation = getattr(packet, overload)
            try:
                composite = torch._C._dispatch_has_kernel_for_dispatch_key(operation.name(), "CompositeImplicitAutograd")
            except RuntimeError:  # TorchScript's own, of numbers and not of tensors.
                continue
            if not composite and operations.light(operation) and not operations.counted(operation):
                free.append(str(operation))
    known = {"upsample", "thnn_fused", "linalg_check", "linalg_vector_norm", "linalg_cross", "linalg_diagonal", "powsum", "view"}

    assert [] == [name for name in free if not any(word in name for word in known)]


def layers() -> list[tuple[type[nn.Module], nn.Module]]:
    """Return every layer of torch.nn that takes a handful of steps per element, made with the first arguments that it takes."""
    rooms = (
        "activation",
        "batchnorm",
        "channelshuffle",
        "dropout",
        "instancenorm",
        "loss",
        "normalization",
        "padding",
        "pixelshuffle",
        "pooling",
        "upsampling",
    )
    found: list[tuple[type[nn.Module], nn.Module]] = []
    for kind in {
        value for value in vars(nn).values() if isinstance(value, type) and value.__module__.removeprefix("torch.nn.modules.") in rooms
    }:
        for arguments in ((), (8,), (2,), (2, 8)):
            try:
                found.append((kind, kind(*arguments)))
            except (TypeError, ValueError, AssertionError):
                continue
    return found


def seen_in(layer: nn.Module) -> set[str] | None:
    """Return what forward and backward of *layer* leave uncounted, over features it takes; None where it takes none of ours."""
    seen: set[str] | None = None
    for shape in ((4, 8), (4, 8, 6), (4, 8, 6, 6), (4, 8, 4, 4, 4)):
        for others in ((), (torch.randint(0, 8, (4,)),), (torch.rand(shape),), (torch.rand(shape), torch.ones(4))):
            x = torch.rand(shape, requires_grad=True)
            with operations.Watch() as watch:
                try:
                    out = layer(x, *others)
                    (out[0] if isinstance(out, tuple) else out).sum().backward()
                except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, AssertionError, NotImplementedError):
                    continue
            seen = (seen or set()) | watch.uncounted
    return seen


@pytest.mark.filterwarnings("ignore")
def test_no_plain_layer_of_torch_is_called_uncounted() -> None:
    """Activations, norms, pools, shuffles and losses are what the charge per element covers: no note of theirs alarms anybody."""
    tried: dict[str, set[str]] = {}
    for kind, layer in layers():
        for mode in (True, False):
            seen = seen_in(layer.train(mode))
            if seen is not None:
                tried.setdefault(kind.__name__, set()).update(seen)

    assert len(tried) > 80, sorted(tried)
    assert {} == {name: seen for name, seen in tried.items() if seen}
