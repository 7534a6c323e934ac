"""How the numbers of a step are computed: activations computed again move no bit, and products of bfloat16 are autocast's."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_engine import OUTPUTS, SHAPE, net
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node

import fedsim
from fedsim.core.errors import ScenarioError
from fedsim.learn.arithmetic import PLAIN, Arithmetic
from fedsim.learn.engine import recompute as passing
from fedsim.learn.engine.noise import masks_of
from fedsim.learn.engine.recompute import recompute
from fedsim.learn.engine.step import Step, compile_step
from fedsim.learn.engine.trace import trace
from fedsim.learn.footprint import count
from fedsim.learn.models import travelling
from fedsim.learn.objectives import Classification

AGAIN, LOWER = Arithmetic(checkpointing=True), Arithmetic("bfloat16")
X, Y = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.arange(6) % OUTPUTS


def step_of(model: nn.Module, arithmetic: Arithmetic, plain: bool = True) -> Step:
    step = compile_step(model, Classification(), X, Y, plain=plain, whole_targets=True, arithmetic=arithmetic)
    assert not step.note  # Compiled, and not left to torch.
    return step


def after(step: Step, model: nn.Module, rows: int, plain: bool = True) -> list[Tensor]:
    """Return what three steps leave in each of *rows* clients, parameters and losses, or one step's gradients."""
    params = [p.detach().expand(rows, *p.shape).clone() for p in travelling(model).values()]
    x, y = X.expand(rows, *X.shape).contiguous(), Y.expand(rows, *Y.shape).contiguous()
    masks = [torch.ones(rows, *mask.shape) for mask in step.masks]
    with torch.no_grad():
        opened = step.open(params)
        found = [step.run(opened, x, y, masks, -0.5) for _ in range(3 if plain else 1)]
        return [*params, *(step.close(head) for head, _ in found), *found[0][1]]


@pytest.mark.parametrize("name", ["mlp", "two relus", "cnn", "attention", "recurrent", "batch norm", "dropout"])
def test_activations_computed_again_move_no_bit(name: str) -> None:
    """With checkpointing a step has the very bits that it has without, stacked or not."""
    model = net(name, torch.float32)
    rows = 1 if name == "cnn" else 3
    kept, again = (after(step_of(model, arithmetic), model, rows) for arithmetic in (PLAIN, AGAIN))
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def deep() -> nn.Module:
    """Return thirty equal layers, of which memory is nearly all activations."""
    return nn.Sequential(nn.Flatten(), *(layer for _ in range(30) for layer in (nn.Linear(64, 64), nn.Tanh())), nn.Linear(64, OUTPUTS))


def peak(graph: Graph) -> int:
    """Return the most bytes that the values of *graph* take at once, each until its last reader; views are what they look at."""
    nodes = list(graph.nodes)
    base: dict[Node, Node] = {}
    for node in nodes:
        if any(each.alias_info is not None for each in getattr(getattr(node.target, "_schema", None), "returns", ())):
            source = node.all_input_nodes[0]
            base[node] = base.get(source, source)
    ends: dict[Node, int] = {}
    for at, node in enumerate(nodes):
        ends |= {base.get(source, source): at for source in node.all_input_nodes}
    held, most = 0, 0
    for at, node in enumerate(nodes):
        held += size(node)
        most = max(most, held)
        held -= sum(size(source) for source, end in ends.items() if end == at)
    return most


def size(node: Node) -> int:
    value = node.meta.get("val")
    fresh = node.op == "call_function" and isinstance(value, Tensor)
    views = any(each.alias_info is not None for each in getattr(getattr(node.target, "_schema", None), "returns", ()))
    return value.numel() * value.element_size() if fresh and not views else 0


def test_memory_falls_as_the_root_of_depth() -> None:
    """Thirty layers keep about a third of the activations: 2 sqrt(30) of 30, and what one segment computes again."""
    x = torch.rand(512, *SHAPE)
    graph = trace(deep(), Classification(), x, torch.arange(512) % OUTPUTS, (), None).graph
    before = peak(graph)
    recompute(graph)
    graph.lint()
    assert 0.3 < peak(graph) / before < 0.5


@pytest.mark.parametrize("depth", [2, 8, 16, 64])
@pytest.mark.parametrize("kind", [nn.ReLU, nn.Tanh])
def test_a_chain_counts_the_root_of_its_depth(depth: int, kind: type[nn.Module]) -> None:
    """The footprint of n equal layers has n of their outputs an example; with checkpointing at most twice the root of n, and that root."""

    def sample(examples: int) -> tuple[Tensor, Tensor]:
        return torch.rand(examples, 64), torch.arange(examples) % OUTPUTS

    chain = nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(64, 64), kind())), nn.Linear(64, OUTPUTS))
    beside = 4 * (64 + OUTPUTS) + 8  # Features and target, and what the loss reads.
    kept, again = (count(chain, Classification(), sample, arithmetic).example - beside for arithmetic in (PLAIN, AGAIN))
    assert kept == depth * 4 * 64
    assert 0.7 * depth**0.5 <= again / (4 * 64) <= 2 * depth**0.5


class Watched(Interpreter):
    """Runs a graph, lets go of what was read for the last time, and knows the most bytes that *values* took at once after *since*."""

    def __init__(self, module: GraphModule, values: set[str], since: str) -> None:
        super().__init__(module)
        self.values, self.since, self.most, self.passed = values, since, 0, False

    def run(self, *args: Any, **more: Any) -> Any:
        self.given = {each.untyped_storage().data_ptr() for each in args}
        return super().run(*args, **more)

    def run_node(self, n: Node) -> Any:
        if self.passed:  # Before n: what is there has been waiting.
            there = [each.untyped_storage() for node, each in self.env.items() if node.name in self.values and isinstance(each, Tensor)]
            live = {each.data_ptr(): each.nbytes() for each in there if each.data_ptr() not in self.given}
            self.most = max(self.most, sum(live.values()))
        self.passed = self.passed or n.name == self.since
        return super().run_node(n)


@pytest.mark.parametrize("name", ["mlp", "two relus", "cnn", "batch norm", "deep"])
def test_what_is_counted_is_what_is_there(name: str) -> None:
    """The bytes that a checkpointed gradient is said to keep are those of the tensors that wait while it runs, to what a loss takes."""
    model = deep() if name == "deep" else net(name, torch.float32)
    module = trace(model, Classification(), X, Y, masks_of(model, X), None)
    graph = module.graph
    loss = next(node for node in graph.nodes if node.op == "output").args[0][-1]
    backward = {node.name for node in graph.nodes if node.op == "call_function" and node not in passing._before(loss)}
    said = recompute(graph)
    module.recompile()
    values = {node.name for node in graph.nodes if node.op == "call_function"} - backward
    ran = Watched(module, values, loss.name)
    ran.run(*(t.detach() for t in travelling(model).values()), X, Y, *(torch.ones_like(mask) for mask in masks_of(model, X)))
    assert ran.most > 0
    assert said == pytest.approx(ran.most, abs=16 * 6)


def test_what_draws_or_writes_is_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout that draws for itself keeps its mask: computed again it would be another. Without the rule, the test fails."""

    class Draws(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(*(nn.Linear(64, 64) for _ in range(6)))
            self.outer = nn.Linear(64, OUTPUTS)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            for layer in self.inner:
                x = torch.tanh(layer(x)) * torch.bernoulli(torch.full_like(x, 0.5))
            return self.outer(x)

    def draws() -> int:
        graph = trace(Draws(), Classification(), X, Y, (), None).graph
        recompute(graph)
        return sum(torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) for node in graph.nodes)

    assert draws() == 6
    stays = passing._stays
    monkeypatch.setattr(passing, "_stays", lambda node, segments: "bernoulli" not in str(node.target) and stays(node, segments))
    assert draws() > 6


@pytest.mark.parametrize("name", ["mlp", "cnn", "attention", "batch norm"])
def test_products_are_autocasts(name: str) -> None:
    """Gradients are those of torch.autocast, to bfloat16's rounding and not to float32's; parameters and losses stay float32."""
    model = net(name, torch.float32)
    rows = 1 if name == "cnn" else 3
    count = len(list(model.parameters()))
    lower, full = (after(step_of(model, arithmetic, plain=False), model, rows, plain=False) for arithmetic in (LOWER, PLAIN))
    *rest, loss = lower[:-count]
    gradients = lower[-count:]
    with torch.autocast("cpu", torch.bfloat16):
        theirs = F.cross_entropy(model(X), Y)
    theirs.backward()
    assert loss.dtype == torch.float32 and all(value.dtype == torch.float32 for value in (*rest, *gradients))
    assert float(loss[0]) == pytest.approx(theirs.item(), rel=1e-2)
    moved = 0.0
    for ours, param, exact in zip(gradients, model.parameters(), full[-count:], strict=True):
        assert param.grad is not None
        scale = float(param.grad.abs().max())
        assert float((ours[0] - param.grad).abs().max()) <= 0.02 * scale
        assert all(torch.equal(ours[0], row) for row in ours)  # A row's bits do not depend on the others.
        moved = max(moved, float((ours[0] - exact[0]).abs().max()) / scale)
    assert moved > 1e-4  # Nobody lowers nothing.


def _products(graph: Graph) -> Iterator[torch.dtype]:
    for node in graph.nodes:
        if "mm" in str(node.target):
            yield node.meta["val"].dtype


def test_every_product_is_lowered() -> None:
    """Forward and backward, all matrix products of an MLP are of bfloat16, and none without."""
    model = net("mlp", torch.float32)
    kinds = {lower: set(_products(trace(model, Classification(), X, Y, masks_of(model, X), None, lower).graph)) for lower in (PLAIN, LOWER)}
    assert kinds == {PLAIN: {torch.float32}, LOWER: {torch.bfloat16}}


def test_a_run_says_so_and_pays_for_it(go: Callable[..., fedsim.Run]) -> None:
    """Checkpointing keeps every number and takes a forward pass more; bfloat16 moves numbers, and not the clock."""
    plain, again, lower = go({}), go({"training.checkpointing": True}), go({"engine.precision": "bfloat16"})
    tasks = [run.tasks[run.tasks["kind"] == "train"] for run in (plain, again, lower)]
    assert tasks[0]["result"].tolist() == tasks[1]["result"].tolist() != tasks[2]["result"].tolist()
    assert tasks[0]["arrived_s"].tolist() == tasks[2]["arrived_s"].tolist()
    more = (tasks[1]["flops"] - tasks[0]["flops"]) / tasks[0]["flops"]
    assert ((more > 0.3) & (more < 0.5)).all()  # 1/3 but for the first layer, whose inputs want no gradient.
    assert plain.manifest["scenario_digest"] != again.manifest["scenario_digest"]


def test_products_cannot_be_lowered_from_float64(go: Callable[..., fedsim.Run]) -> None:
    """That is refused by its name."""
    with pytest.raises(ScenarioError, match=r"engine.precision = 'bfloat16': lowers products of float32, and engine.dtype = 'float64'"):
        go({"engine.precision": "bfloat16", "engine.dtype": "float64"})
