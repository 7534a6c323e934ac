"""The compiled step: what one chunk of clients does with one batch each, in place, as few operations as possible.

Three graphs: views of the parameters are taken once per chunk (*opening*), the *body* runs per step, and the loss is
finished for all steps at once (*closing*).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]

from fedsim.core.errors import FedsimError, ScenarioError, reason
from fedsim.learn.arithmetic import PLAIN, Arithmetic
from fedsim.learn.engine import passes
from fedsim.learn.engine.eager import eager_run
from fedsim.learn.engine.nodes import aten, only_user
from fedsim.learn.engine.noise import Mask, masks_of
from fedsim.learn.engine.recompute import recompute
from fedsim.learn.engine.running import Close, Open, Placed, Run, single_step, stacked_step
from fedsim.learn.engine.templates import Templates
from fedsim.learn.engine.trace import (
    ROWS,
    Untraceable,
    draws_random_numbers,
    free_rows,
    gradient_of,
    has_convolution,
    trace,
)  # fmt: skip
from fedsim.learn.models import buffers, hooks, trainable, travelling
from fedsim.learn.objectives import Objective
from fedsim.learn.seeded import seeded


@dataclass(frozen=True, slots=True)
class Step:
    """A training step for batches of one shape. Shapes: parameters, buffers and batches are (rows, ...).

    ``open(carried)`` returns what ``run`` wants in the place of parameters and buffers. ``run(views, x, y, masks, rate)``
    does a step; buffers change in place, and with plain SGD so do the parameters (*rate* is minus the learning rate) and
    no gradients are returned. Its first result stands for the loss: ``close`` turns such results, stacked over steps,
    into losses.

    *rows* is how many it may be given for a row's bits not to depend on the others: any number, two or *many*, or
    just *one* at a time, in memory of its own. Measured on torch 2.13 with MKL: a product of odd sizes takes another
    kernel for a batch of one matrix than for many, and other kernels again by the alignment of a row.

    *ours* says of each gradient whether its memory is its own, and read by nothing else in the step: empty where none is known to be.
    *parts* are the graphs behind a compiled step, which is *stacked* or not; None where there are none. *told* is the same as plain
    values, of a step that was made from them.

    *masks* are what Dropout layers want. *random* says that the step draws from torch's own generator, which must be
    seeded for it. *note* says why the step is not a compiled one; empty otherwise.
    """

    open: Open
    run: Run
    close: Close
    rows: Placed = "any"
    masks: tuple[Mask, ...] = ()
    random: bool = False
    note: str = ""
    ours: tuple[bool, ...] = ()
    parts: tuple[GraphModule, GraphModule, GraphModule] | None = None
    stacked: bool = False
    told: Any = None


PROBES = ((0, 1), (0, 2), (1, 2), (2, 3), (0, 17), (5, 12))
"""(first row, number of rows) of the slices that must all give one and the same row. 17 rows pass through every
alignment to 64 bytes that float32 can have."""

MANY_NUMBERS = 10_000
"""Parameters from which on two draws are enough: a small model may round alike by chance, and is drawn eight times."""

PROBE_RATE = 1000.0
"""The learning rate of probes: so large that the last bit of a gradient is not lost in the parameters it changes."""

PROBE_BYTES = 2**28
"""Parameters that probing may stack; larger models are probed with fewer rows."""


def compile_step(
    model: nn.Module, objective: Objective, x: Tensor, y: Tensor, *, plain: bool, whole_targets: bool,
    more: Sequence[Tensor] = (), templates: Templates | None = None, remembers: bool = False, arithmetic: Arithmetic = PLAIN,
) -> Step:
    """Return the step of *model* for batches shaped like *x* (b, ...) and *y* (b, ...).

    What comes out depends on them too, a little (see ``_same_bits``): give every engine the same.

    *plain* says that the update is p <- p - lr g and nothing else, and so may be folded into the graph.
    *whole_targets* promises that no target is cross-entropy's ignore_index. *more* are further batches of real features, shaped
    like *x*: a step is tried on these, since a model may take nothing else. With *templates* graphs come from there: the same
    ones, sooner where there are many sizes. A model that *remembers* is left to torch.

    Convolutions on a CPU run one client at a time, whatever the chunk: grouped convolution with one client gives
    other bits there than with two, and is slower. So does any step whose rows turn out to depend on their number or
    place, or which draws its own random numbers. Kernels are the task's own matter, never its cohort's.
    A model that cannot be traced, or whose graph gives other numbers than torch itself, is left to torch.
    Raises ScenarioError when the model cannot be trained.
    """
    settings: dict[str, Any] = {"plain": plain, "whole_targets": whole_targets, "arithmetic": arithmetic}
    by_torch = partial(_left_to_torch, model, objective, x, y, plain, arithmetic)
    if hooks(model):
        return by_torch("has hooks on the gradients of its parameters")
    if remembers:
        return by_torch("keeps something between calls that what it puts out depends on")
    try:
        try:
            return _compiled(model, objective, x, y, (x, *more), templates, **settings)
        except _Unfit:
            if templates is None or not templates.known:
                raise
            # A model that decides by the batch size may have other operations at this one.
            return _compiled(model, objective, x, y, (x, *more), None, **settings)
    except _Unfit as error:
        return by_torch(str(error))
    except (FedsimError, KeyboardInterrupt):
        raise
    except Exception as error:  # Whatever a graph may raise that torch itself may not: torch has the last word.
        return by_torch(f"cannot be compiled ({reason(error)})")


class _Unfit(Exception):
    """The model is to be left to torch; the words say why, after the model's name."""


def _compiled(
    model: nn.Module, objective: Objective, x: Tensor, y: Tensor, real: Sequence[Tensor], templates: Templates | None, *,
    plain: bool, whole_targets: bool, arithmetic: Arithmetic,
) -> Step:  # fmt: skip
    """Return the compiled step of ``compile_step``, tried on the batches *real*. Raises _Unfit where there is none."""
    settings: dict[str, Any] = {"plain": plain, "whole_targets": whole_targets, "arithmetic": arithmetic}
    masks = tuple(masks_of(model, x))
    traced = partial(trace, model, objective, arithmetic=arithmetic) if templates is None else templates.trace
    note, many = "", None
    if not _convolves(model, x):  # Those that do so in words of their own are told by the graph.
        try:
            many = traced(x, y, masks, rows=ROWS)
        except Untraceable as error:
            note = f"model {type(model).__name__} cannot be stacked ({error}): its clients train one at a time, which is slower."
    step: Step | None = None
    random = many is not None and draws_random_numbers(many)
    if many is not None and not random and not (x.device.type == "cpu" and has_convolution(many)):
        step = _placed(dataclasses.replace(_stacked(_parts(many, model, **settings)), masks=masks), model, real, y, plain)
    if step is None:
        try:
            one = traced(x, y, masks, rows=None)
        except Untraceable as error:
            raise _Unfit(f"cannot be traced ({error})") from error
        random = draws_random_numbers(one)
        note = "" if random or (x.device.type == "cpu" and has_convolution(one)) else note
        step = dataclasses.replace(_single(_parts(one, model, stacked=False, **settings)), masks=masks, random=random, note=note)
    if not random and not _agrees(step, model, objective, real, y, plain, arithmetic):
        raise _Unfit("gives other numbers than torch itself when its step is compiled")
    return step


def _convolves(model: nn.Module, x: Tensor) -> bool:
    """Return whether *model* has layers because of which it trains one at a time on a CPU."""
    return x.device.type == "cpu" and any(isinstance(layer, _ConvNd) for layer in model.modules())


def _placed(step: Step, model: nn.Module, real: Sequence[Tensor], y: Tensor, plain: bool) -> Step | None:
    """Return *step* with what its rows may be, told by probing; None where only one at a time will do."""
    if y.device.type != "cpu":
        return step  # No promise of bits is made there: the manifest says so.
    small = sum(p.numel() for p in trainable(model).values()) < MANY_NUMBERS
    draws = 8 if small else 2
    found = [_same_bits(step, _drawn(step, model, x, seed), y, plain) for seed, x in enumerate(real)]
    if buffers(model):  # As built they may hide everything: what has seen one example knows no spread yet, and scales all to 0.
        for seed, x in enumerate(real):
            moved = _moved(step, model, _drawn(step, model, x, seed), real[(seed + 1) % len(real)], y)
            found.append(_same_bits(step, moved, y, plain))
    with suppress(Exception):  # Numbers of all sizes tell more than real ones, which may be zeros; where the model takes them.
        found += [_same_bits(step, _drawn(step, model, _normal(real[0], seed), seed), y, plain) for seed in range(draws)]
    same = [all(pair) for pair in zip(*found, strict=True)]
    if not all(same[1:]):
        return None
    return step if same[0] else dataclasses.replace(step, rows="many")


def _left_to_torch(
    model: nn.Module, objective: Objective, x: Tensor, y: Tensor, plain: bool, arithmetic: Arithmetic, why: str
) -> Step:
    """Return the step by torch.nn and autograd, after trying it once."""
    step = Step(list, eager_run(model, objective, plain, arithmetic), lambda heads: heads, rows="one", random=True)
    note = f"model {type(model).__name__} {why}: its clients train one at a time, by torch.nn, which is slower."
    one = [t.detach().clone().unsqueeze(0) for t in travelling(model).values()]
    try:
        with seeded(0):
            step.run(step.open(one), x.unsqueeze(0), y.unsqueeze(0), (), 0.0)
    except ScenarioError:
        raise
    except Exception as error:  # Anything a stranger's forward() may raise.
        raise ScenarioError(
            f"model.kind: {type(model).__name__} cannot be trained on a batch of shape {tuple(x.shape)}: {reason(error)}"
        ) from error
    return dataclasses.replace(step, note=note)


_Client = tuple[list[Tensor], Tensor, list[Tensor]]
"""Parameters and buffers, features and masks of one client."""


def _same_bits(step: Step, client: _Client, y: Tensor, plain: bool) -> list[bool]:
    """Return, for each of PROBES, whether all its rows come out the same as all others, bit for bit.

    Every row gets the same parameters and the same batch; what may differ is the kernel that a number of rows is
    given, and the alignment of a row in memory. Kernels are not chosen by value, so numbers drawn at random tell:
    another kernel would have to round all of them alike, in every draw, to go unseen.
    """
    carried, x, masks = client
    most = max(3, min(17, PROBE_BYTES // sum(p.numel() * p.element_size() for p in carried)))

    def rows(first: int, count: int) -> list[Tensor]:
        # Cloned: contiguous() would hand out the parameters themselves where there is one row.
        mine = [p.expand(first + count, *p.shape).clone(memory_format=torch.contiguous_format)[first:] for p in carried]
        bx, by, *bm = (t.expand(count, *t.shape).contiguous() for t in (x, y, *masks))
        return _after(step, mine, bx, by, bm, plain, PROBE_RATE)

    reference = [t[0].nan_to_num() for t in rows(0, most)]
    return [
        all(torch.equal(row.nan_to_num(), one) for many, one in zip(rows(first, min(count, most)), reference, strict=True) for row in many)
        for first, count in PROBES
    ]


AGREES = {torch.float32: 1e-3, torch.float64: 1e-9}
"""How far a compiled step and torch's own may lie apart, relative to the largest change that it makes in a tensor."""

LOWER = 0.05
"""The same where products are of bfloat16, which has eight bits."""


def _agrees(
    step: Step, model: nn.Module, objective: Objective, real: Sequence[Tensor], y: Tensor, plain: bool, arithmetic: Arithmetic
) -> bool:
    """Return whether one step of *step* gives what torch.func gives without tracing, up to rounding, on real features.

    It would not where forward() keeps something between calls that no tensor shows. Where drawn parameters give nothing
    finite to compare (the logarithm of one), those of the model tell.
    """
    for seed in (0, None):
        agrees = _compared(step, model, objective, _drawn(step, model, real[0], seed), y, plain, arithmetic)
        if agrees is not None:
            return agrees
    raise _Unfit("has no finite loss on examples of the data, so that its compiled step cannot be compared with torch's")


def _compared(
    step: Step, model: nn.Module, objective: Objective, client: _Client, y: Tensor, plain: bool, arithmetic: Arithmetic
) -> bool | None:
    """Return whether *step* and torch.func agree on *client*; None where nothing is finite."""
    carried, x, masks = client
    mine, bm = ([t.clone().unsqueeze(0) for t in tensors] for tensors in (carried, masks))
    ours = _after(step, mine, x.unsqueeze(0), y.unsqueeze(0), bm, plain, 0.1)
    count = len(trainable(model))
    try:
        *changes, loss = gradient_of(model, objective, arithmetic)(*(p.clone() for p in carried), x.clone(), y, *masks)
    except Exception as error:  # Anything a stranger's forward() may raise.
        raise ScenarioError(f"model.kind: {type(model).__name__} cannot be trained: {reason(error)}") from error
    gradients, after = changes[:count], changes[count:]
    theirs = [p - 0.1 * g for p, g in zip(carried, gradients, strict=False)] if plain else list(gradients)
    theirs += [*after, loss]
    zero = torch.zeros((), dtype=loss.dtype, device=loss.device)
    begun = [*(carried if plain else [*(zero for _ in gradients), *carried[count:]]), zero]
    triples = [(a[0], b, start) for a, b, start in zip(ours, theirs, begun, strict=True) if b.numel() and b.isfinite().all()]
    if not triples or not theirs[-1].isfinite():
        return None
    most = max(float((b - start).abs().max()) for _, b, start in triples)
    tolerance, rounding = LOWER if arithmetic.precision else AGREES.get(loss.dtype, 1e-2), 8 * torch.finfo(loss.dtype).eps
    return all(
        float((a - b).abs().max())
        <= tolerance * (float((b - start).abs().max()) + 0.01 * most) + rounding * float(start.abs().max())
        for a, b, start in triples
    )


def _normal(x: Tensor, seed: int) -> Tensor:
    """Return features shaped like *x* from a normal; *x* itself where they are whole numbers, which mean something."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x) if x.is_floating_point() else x


def _drawn(step: Step, model: nn.Module, x: Tensor, seed: int | None) -> _Client:
    """Return a client with the features *x*: parameters and masks drawn at random, or with no *seed* the model's own."""
    draw = torch.Generator().manual_seed(seed or 0)
    shapes = trainable(model).values()
    params = [torch.randn(p.shape, generator=draw).div(math.sqrt(max(1, p.shape[-1:].numel()))).to(p) for p in shapes]
    if seed is None:
        params = [p.detach().clone() for p in shapes]
    kept = [buffer.detach().clone() for buffer in buffers(model).values()]
    masks = [
        (torch.rand(m.shape, generator=draw) < m.keep).to(x.device, params[0].dtype) / (m.keep or 1.0) for m in step.masks
    ]
    return [p.detach() for p in params] + kept, x, masks


def _moved(step: Step, model: nn.Module, client: _Client, other: Tensor, y: Tensor) -> _Client:
    """Return *client* with the buffers that a step on the features *other* leaves."""
    carried, x, masks = client
    mine = [p.clone().unsqueeze(0) for p in carried]
    _after(step, mine, other.unsqueeze(0), y.unsqueeze(0), [mask.unsqueeze(0) for mask in masks], True, 0.0)
    count = len(trainable(model))
    return [*carried[:count], *(buffer[0] for buffer in mine[count:])], x, masks


def _after(
    step: Step, carried: list[Tensor], x: Tensor, y: Tensor, masks: list[Tensor], plain: bool, rate: float
) -> list[Tensor]:
    """Return what one step leaves: parameters (or gradients), buffers, losses."""
    with torch.no_grad():
        head, gradients = step.run(step.open(carried), x, y, masks, -rate)
        kept = carried[len(gradients) :] if gradients else carried
        return [*gradients, *kept, step.close(head)] if not plain else [*carried, step.close(head)]


_Parts = tuple[GraphModule, GraphModule, GraphModule]


def _parts(
    module: GraphModule, model: nn.Module, *, plain: bool, whole_targets: bool, arithmetic: Arithmetic, stacked: bool = True
) -> _Parts:
    """Return a traced gradient as opening, body and closing, with the passes and the update in it."""
    count, carried, graph = len(trainable(model)), len(travelling(model)), module.graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_after(inputs[-1]):
        rate = graph.placeholder("rate")
    if arithmetic.checkpointing:
        recompute(graph)
    passes.clean(graph, inputs[carried + 1], whole_targets=whole_targets)
    passes.write_buffers(graph, count, inputs[count:carried])
    if plain:
        passes.update_in_place(graph, inputs[:count], rate)
    opening = passes.before_loop(graph, inputs[:carried])
    closing = passes.after_loop(graph) if stacked else []
    parts = _split(module, inputs[:carried], opening, closing)
    for part in parts if stacked else ():
        free_rows(part)
    return parts


def _stacked(parts: _Parts) -> Step:
    """Return a step that runs all its rows in one go."""
    return Step(*stacked_step(*parts), ours=_ours(parts[1]), parts=parts, stacked=True)


def _single(parts: _Parts) -> Step:
    """Return a step for exactly one row."""
    return Step(*single_step(*parts), rows="one", ours=_ours(parts[1]), parts=parts)


_MAKE = {aten.bmm.default, aten.mm.default, aten.sum.dim_IntList}
"""What makes new memory for what it puts out, and lets it be seen through nothing."""


def _ours(body: GraphModule) -> tuple[bool, ...]:
    """Return, of each gradient that *body* gives, whether it is one that nothing else reads, in memory of its own."""
    end = next(node for node in body.graph.nodes if node.op == "output")
    given = list(cast(tuple[list[Node]], end.args)[0])[:-1]
    return tuple(node.target in _MAKE and only_user(node) is end and given.count(node) == 1 for node in given)


def _split(
    module: GraphModule, params: list[Node], opening: list[Node], closing: list[Node]
) -> _Parts:
    """Cut one graph into three: views of *params*, the body, and what turns the body's head into the loss."""
    graph, early, late = module.graph, set(opening), set(closing)
    end = next(node for node in graph.nodes if node.op == "output")
    outputs = list(cast(tuple[list[Node]], end.args)[0])
    middle = [n for n in graph.nodes if n.op == "call_function" and n not in early and n not in late]
    wanted = [n for n in (*params, *opening) if any(user in middle for user in n.users)] or params[:1]
    head = closing[0].all_input_nodes[0] if closing else outputs[-1]

    def cut(inputs: list[Node], nodes: list[Node], results: list[Node], names: list[str] | None = None) -> GraphModule:
        new, moved = Graph(), dict[Node, Node]()
        for i, node in enumerate(inputs):
            moved[node] = new.placeholder(names[i] if names else node.name)
            moved[node].meta = dict(node.meta)
        for node in graph.nodes:
            if node in nodes or node.op == "get_attr":
                moved[node] = new.node_copy(node, lambda n: moved[n])
        new.output([moved[node] for node in results])
        new.eliminate_dead_code(lambda n: n.target in passes.WRITES or n.is_impure())
        return GraphModule(module, new)

    others = [n for n in graph.nodes if n.op == "placeholder" and n not in params]
    first = cut(params, opening, wanted)
    body = cut([*wanted, *others], middle, [*outputs[:-1], head])
    last = cut([head], closing, [outputs[-1]])
    return first, body, last


