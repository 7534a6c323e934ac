"""What ``engine.reproducible = "everywhere"`` costs, and where it holds.

``python -m analysis.benchmarks.everywhere cost SCENARIO ... --turns 5``: each scenario by both modes, in turn, each run in a process of its
own; medians of the run's own wall time (from its first part built to its last row) and of CPU time of the process, and their ratios.

``python -m analysis.benchmarks.everywhere fuzz --models 200``: a mark of what drawn models come to after three steps, and of operations one
by one, in a process that began with its arithmetic pinned. ``--write FILE`` keeps the marks, ``--against FILE`` names what comes out
otherwise than on the machine of that file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedsim.core import pinned
from fedsim.core.children import environment

STEPS = 3


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    cost = what.add_parser("cost")
    cost.add_argument("scenarios", nargs="+")
    cost.add_argument("--set", action="append", default=[], help="KEY=VALUE, for all of them")
    cost.add_argument("--turns", type=int, default=5)
    fuzz = what.add_parser("fuzz")
    fuzz.add_argument("--models", type=int, default=200)
    fuzz.add_argument("--write", type=Path)
    fuzz.add_argument("--against", type=Path)
    one = what.add_parser("one")  # A run of the first: not for the reader.
    one.add_argument("scenario")
    one.add_argument("settings")
    asked = parser.parse_args()
    if asked.what == "cost":
        for scenario in asked.scenarios:
            _cost(scenario, asked.set, asked.turns)
    elif asked.what == "one":
        _one(asked.scenario, json.loads(asked.settings))
    elif pinned.unpinned():
        again = [sys.executable, "-m", __spec__.name, *sys.argv[1:]]
        raise SystemExit(subprocess.run(again, env=pinned.pinned(environment()), check=False).returncode)
    else:
        _fuzz(asked.models, asked.write, asked.against)


def _cost(scenario: str, settings: list[str], turns: int) -> None:
    """Print what *scenario* takes by both modes."""
    from fedsim.scenario.load import parse_overrides

    taken: dict[str, list[dict[str, float]]] = {"machine": [], "everywhere": []}
    for _ in range(turns):
        for mode, found in taken.items():
            given = json.dumps({**parse_overrides(settings), "engine.reproducible": mode})
            env = pinned.pinned(environment()) if mode == "everywhere" else environment()
            again = [sys.executable, "-m", __spec__.name, "one", scenario, given]
            done = subprocess.run(again, env=env, check=True, capture_output=True, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{scenario} {' '.join(settings)}, {turns} turns")
    for measure in ("wall_s", "cpu_s"):
        middle = {mode: statistics.median(each[measure] for each in found) for mode, found in taken.items()}
        ratios = [new[measure] / old[measure] for old, new in zip(taken["machine"], taken["everywhere"], strict=True)]
        print(f"  {measure}: machine {middle['machine']:.2f}, everywhere {middle['everywhere']:.2f};"
              f" ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def _one(scenario: str, settings: Mapping[str, Any]) -> None:
    """Run *scenario* here, in a process that began as it is to be, and print what that took: imports are not in it."""
    import fedsim
    import fedsim.session  # pyright: ignore[reportUnusedImport]

    with tempfile.TemporaryDirectory() as folder:
        began_s, cpu_s = time.perf_counter(), time.process_time()
        fedsim.run(scenario, overrides=settings, out=f"{folder}/run")
        print(json.dumps({
            "wall_s": time.perf_counter() - began_s, "cpu_s": time.process_time() - cpu_s,
            "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }))  # fmt: skip


def _fuzz(count: int, write: Path | None, against: Path | None) -> None:
    import torch

    from fedsim.learn import kernels

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rests = kernels.check("fuzz")
    marks: dict[str, str] = {f"kernels: {name}": mark for name, mark in rests["answers"].items()}
    for name, made in _operations().items():
        marks[f"operation: {name}"] = _marked(made)
    for number in range(count):
        torch.manual_seed(number)
        shape, words, model = _drawn(random.Random(number))
        marks[f"model {number}: {words}"] = _marked(lambda shape=shape, model=model, number=number: _trained(model, shape, number))
    if write:
        write.write_text(json.dumps({"kernels": rests["kernels"], "torch": torch.__version__, "marks": marks}, indent=0) + "\n")
    if against:
        before = json.loads(against.read_text())["marks"]
        common = [name for name in marks if name in before]
        other = [name for name in common if marks[name] != before[name]]
        print(f"{len(common)} compared, {len(other)} come out otherwise")
        print("\n".join(other))
    else:
        print(f"{len(marks)} marks: {hashlib.sha256(json.dumps(marks).encode()).hexdigest()}")


def _marked(made: Callable[[], Any]) -> str:
    """Return the mark of the tensors that *made* returns; of what it raised, its name."""
    import torch

    try:
        found = made()
    except Exception as error:
        return f"raised {type(error).__name__}"
    tensors = found if isinstance(found, list | tuple) else [found]
    whole = b"".join(
        (t.float() if t.dtype in (torch.bfloat16, torch.float16) else t).detach().contiguous().cpu().numpy().tobytes() for t in tensors
    )
    return hashlib.sha256(whole).hexdigest()[:16]


def _exact(*shape: int, dtype: Any = None) -> Any:
    import torch

    count = math.prod(shape)
    numbers = (torch.arange(count, dtype=torch.int64) * 7919 % 2003 - 1001).to(torch.float64) / 1024
    return numbers.reshape(shape).to(dtype or torch.float32)


def _operations() -> dict[str, Callable[[], Any]]:
    """Return operations that a model may use, by name, each of which a library may compute by kernels of its own choice."""
    import torch
    from torch.nn import functional as F

    found: dict[str, Callable[[], Any]] = {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        word = str(dtype).removeprefix("torch.")
        for n in (7, 64, 129, 300):
            a, b = _exact(n, n + 3, dtype=dtype), _exact(n + 3, n - 2, dtype=dtype)
            found[f"{word} matmul {n}"] = lambda a=a, b=b: a @ b
            found[f"{word} bmm {n}"] = lambda a=a, b=b: torch.stack([a, a * 0.5]) @ torch.stack([b, b * 0.25])
            found[f"{word} mv {n}"] = lambda a=a, b=b: a @ b[:, 0]
            found[f"{word} linear {n}"] = lambda a=a, b=b: F.linear(a, b.T.contiguous(), b[0])
        for c, size in ((1, 28), (3, 32), (16, 14), (64, 7), (130, 9)):
            x, w = _exact(4, c, size, size, dtype=dtype), _exact(32, c, 3, 3, dtype=dtype)
            found[f"{word} conv2d {c}x{size}"] = lambda x=x, w=w: F.conv2d(x, w, padding=1)
            found[f"{word} conv2d channels last {c}x{size}"] = lambda x=x, w=w: F.conv2d(x.contiguous(memory_format=torch.channels_last), w)
            found[f"{word} conv2d 1x1 {c}x{size}"] = lambda x=x, w=w: F.conv2d(x, w[:, :, :1, :1].contiguous(), stride=2)
            found[f"{word} conv_transpose2d {c}x{size}"] = lambda x=x, w=w: F.conv_transpose2d(x, w.transpose(0, 1).contiguous(), stride=2)
        q = _exact(2, 4, 33, 16, dtype=dtype)
        found[f"{word} attention"] = lambda q=q: F.scaled_dot_product_attention(q, q.flip(2), q * 0.5)
        found[f"{word} causal attention"] = lambda q=q: F.scaled_dot_product_attention(q, q.flip(2), q * 0.5, is_causal=True)
        x = _exact(33, 257, dtype=dtype)
        names = "exp exp2 expm1 log log1p log2 log10 sin cos tan asin acos atan sinh cosh tanh sigmoid erf erfc erfinv lgamma digamma"
        for name in [*names.split(), "sqrt", "rsqrt", "pow", "root"]:
            powers: Any = {"pow": lambda v: v**1.7, "root": lambda v: v**0.5}
            f: Any = powers.get(name) or getattr(torch, name)
            found[f"{word} {name}"] = lambda x=x, f=f: f(x.abs() * 0.5 + 0.25)
        for name in "gelu silu elu softplus mish hardswish selu logsigmoid".split():
            f = getattr(F, name)
            found[f"{word} {name}"] = lambda x=x, f=f: f(x)
        found |= {
            f"{word} sum": lambda x=x: [x.sum(), x.sum(0), x.sum(1), x.mean(), x.var(1), x.norm(), x.prod(1), x.cumsum(1), x.logsumexp(1)],
            f"{word} softmax": lambda x=x: [x.softmax(1), x.log_softmax(0)],
            f"{word} layer_norm": lambda x=x: F.layer_norm(x, (257,)),
            f"{word} batch_norm": lambda x=x: F.batch_norm(x, None, None, training=True),
            f"{word} group_norm": lambda x=x: F.group_norm(x[:, :256].reshape(33, 16, 4, 4), 4),
            f"{word} interpolate": lambda x=x: F.interpolate(x[None, None], scale_factor=1.7, mode="bilinear"),
            f"{word} embedding_bag": lambda x=x: F.embedding_bag(torch.arange(66).reshape(6, 11) % 33, x, mode="mean"),
            f"{word} cdist": lambda x=x: torch.cdist(x, x * 0.5),
            f"{word} einsum": lambda x=x: torch.einsum("ij,kj,ik->i", x, x, x[:, :33]),
        }  # fmt: skip
    for dtype in (torch.float32, torch.float64):
        word, s = str(dtype).removeprefix("torch."), _exact(40, 40, dtype=dtype)
        spd = s @ s.T + 40 * torch.eye(40, dtype=dtype)
        found |= {
            f"{word} svd": lambda s=s: torch.linalg.svd(s)[1], f"{word} qr": lambda s=s: torch.linalg.qr(s)[1],
            f"{word} cholesky": lambda p=spd: torch.linalg.cholesky(p), f"{word} solve": lambda p=spd, s=s: torch.linalg.solve(p, s),
            f"{word} eigh": lambda p=spd: torch.linalg.eigh(p)[0], f"{word} inv": lambda p=spd: torch.linalg.inv(p),
            f"{word} fft": lambda s=s: torch.view_as_real(torch.fft.rfft(s)), f"{word} sparse": lambda p=spd, s=s: s.to_sparse() @ p,
            f"{word} argsort": lambda s=s: (s * 0.5).flatten()[:1500].remainder(0.125).argsort(),
            f"{word} topk": lambda s=s: s.flatten().remainder(0.125).topk(50)[1],
            f"{word} randn": lambda d=dtype: torch.randn(1003, dtype=d, generator=torch.Generator().manual_seed(3)),
            f"{word} bernoulli": lambda s=s: torch.bernoulli(s.abs(), generator=torch.Generator().manual_seed(3)),
            f"{word} poisson": lambda s=s: torch.poisson(3 * s.abs(), generator=torch.Generator().manual_seed(3)),
        }  # fmt: skip
    return found


def _drawn(draw: random.Random) -> tuple[tuple[int, ...], str, Any]:
    """Return the shape of an example, words, and a model, all drawn."""
    from torch import nn

    activation = draw.choice((nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus, nn.Sigmoid))
    kind = draw.choice(("dense", "images", "images", "images", "sequence", "attention"))
    layers: list[nn.Module] = []
    if kind == "dense":
        width = shape = draw.randint(2, 300)
        for _ in range(draw.randint(1, 3)):
            layers.append(nn.Linear(width, wide := draw.randint(3, 200)))
            layers += [draw.choice((nn.Identity, nn.LayerNorm, nn.BatchNorm1d))(wide), activation()]
            width = wide
        return (shape,), f"{kind} {_words(layers)}", nn.Sequential(*layers, nn.Linear(width, 10))
    if kind == "images":
        channels, size = draw.choice((1, 3, 8)), draw.randint(7, 32)
        shape = (channels, size, size)
        for _ in range(draw.randint(1, 3)):
            groups = channels if draw.random() < 0.2 else 1
            out = channels * draw.randint(1, 3) if groups > 1 else draw.choice((4, 8, 12, 17, 32, 64))
            window, stride, dilation = draw.choice((1, 3, 5)), draw.choice((1, 1, 2)), draw.choice((1, 1, 2))
            layers.append(nn.Conv2d(channels, out, window, stride, 2, groups=groups, dilation=dilation))
            layers += [draw.choice((nn.Identity(), nn.BatchNorm2d(out), nn.GroupNorm(1, out))), activation()]
            layers += [draw.choice((nn.Identity(), nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(2, ceil_mode=True)))]
            channels = out
        return shape, f"{kind} {_words(layers)}", nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(channels * 4, 10))
    width = draw.choice((8, 12, 16, 32))
    shape = (draw.randint(3, 20), width)
    if kind == "sequence":
        inner = draw.choice((nn.GRU, nn.LSTM, nn.RNN))(width, draw.randint(4, 48), draw.randint(1, 2), batch_first=True)
        return shape, f"{kind} {type(inner).__name__} {inner.hidden_size}", _last(inner, nn.Linear(inner.hidden_size, 10))
    inner = nn.TransformerEncoderLayer(width, draw.choice((1, 2, 4)), draw.randint(8, 64), dropout=0.0, batch_first=True)
    return shape, f"{kind} {width}", nn.Sequential(inner, nn.Flatten(), nn.Linear(math.prod(shape), 10))


def _last(inner: Any, head: Any) -> Any:
    from torch import nn

    class Last(nn.Module):
        """What a recurrent net says after the last step."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = inner, head

        def forward(self, x: Any) -> Any:
            return self.head(self.inner(x)[0][:, -1])

    return Last()


def _words(layers: list[Any]) -> str:
    return ", ".join(f"{type(each).__name__}({each.extra_repr()})" for each in layers if type(each).__name__ != "Identity")


def _trained(model: Any, shape: tuple[int, ...], number: int) -> list[Any]:
    """Return what *model* comes to in a few steps of plain autograd, and what two clients' come to when their gradients are stacked."""
    import torch
    from torch.func import functional_call, grad, vmap
    from torch.nn import functional as F

    dtype = torch.float64 if number % 4 == 3 else torch.float32
    model = model.to(dtype)
    x, y = _exact(9, *shape, dtype=dtype), torch.arange(9) % 10
    found: list[Any] = []
    first = {name: value.detach().clone() for name, value in model.named_parameters()}
    for _ in range(STEPS):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
    found += [parameter.detach() for parameter in model.parameters()] + [model(x).detach()]
    if not list(model.buffers()) and "RNN" not in type(getattr(model, "inner", None)).__mro__[1].__name__:
        of_one = grad(lambda params, a, b: F.cross_entropy(functional_call(model, params, (a,)), b))
        stacked = {name: torch.stack([value, value * 0.5]) for name, value in first.items()}
        found += vmap(of_one)(stacked, torch.stack([x, x.flip(0)]), torch.stack([y, y.flip(0)])).values()
    return found


if __name__ == "__main__":
    sys.path[:0] = [os.getcwd()]
    main()
