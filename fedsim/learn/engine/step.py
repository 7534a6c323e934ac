"""The compiled step: what one chunk of clients does with one batch each, in place, as few operations as possible.

Three graphs: views of the parameters are taken once per chunk (*opening*), the *body* runs per step, and the loss is
finished for all steps at once (*closing*).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]

from fedsim.core.errors import FedsimError, ScenarioError, reason
from fedsim.learn.arithmetic import PLAIN, Arithmetic
from fedsim.learn.engine import passes
from fedsim.learn.engine.aims import Form, forms_of
from fedsim.learn.engine.eager import eager_run
from fedsim.learn.engine.nodes import aten, only_user
from fedsim.learn.engine.noise import Mask, masks_of
from fedsim.learn.engine.probing import compared, drawn, probed, same_bits
from fedsim.learn.engine.recompute import recompute
from fedsim.learn.engine.running import Close, Open, Placed, Run, single_step, stacked_step
from fedsim.learn.engine.templates import Templates
from fedsim.learn.engine.trace import (
    ROWS,
    Untraceable,
    draws_random_numbers,
    free_rows,
    has_convolution,
    normalises_batches,
    trace,
)  # fmt: skip
from fedsim.learn.models import hooks, trainable, travelling
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

    A step that is *spread* takes a rate for each of its rows, in a tensor; it is a plain one, and given two rows or more.

    *ours* says of each gradient whether its memory is its own, and read by nothing else in the step: empty where none is known to be.
    *parts* are the graphs behind a compiled step, which is *stacked* or not; None where there are none. *told* is the same as plain
    values, of a step that was made from them.

    *masks* are what Dropout layers want, after which comes what an ``Aim`` recalls, of the shapes *recalls*; such a step returns what it
    shows after its gradients, or in their place. *random* says that the step draws from torch's own generator, which must be
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
    spread: bool = False
    told: Any = None
    recalls: tuple[Form, ...] = ()


def compile_step(
    model: nn.Module, objective: Objective, x: Tensor, y: Tensor, *, plain: bool, whole_targets: bool,
    more: Sequence[Tensor] = (), templates: Templates | None = None, remembers: bool = False, arithmetic: Arithmetic = PLAIN,
) -> Step:
    """Return the step of *model* for batches shaped like *x* (b, ...) and *y* (b, ...).

    What comes out depends on them too, a little (see ``same_bits``): give every engine the same.

    *plain* says that the update is p <- p - lr g and nothing else, and so may be folded into the graph.
    *whole_targets* promises that no target is cross-entropy's ignore_index. *more* are further batches of real features, shaped
    like *x*: a step is tried on these, since a model may take nothing else. With *templates* graphs come from there: the same
    ones, sooner where there are many sizes. A model that *remembers* is left to torch.

    Convolutions on a CPU run one client at a time, whatever the chunk: grouped convolution with one client gives
    other bits there than with two, and is slower. So does any step whose rows turn out to depend on their number or
    place (batch normalisation is written as plain sums first), or which draws its own random numbers. Kernels are
    the task's own matter, never its cohort's.
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
    recalls, note, many = forms_of(objective), "", None
    if not _convolves(model, x):  # Those that do so in words of their own are told by the graph.
        try:
            many = traced(x, y, masks, rows=ROWS)
        except Untraceable as error:
            note = f"model {type(model).__name__} cannot be stacked ({error}): its clients train one at a time, which is slower."
    step: Step | None = None
    random = many is not None and draws_random_numbers(many)
    if many is not None and not random and not (x.device.type == "cpu" and has_convolution(many)):
        normalises = x.device.type == "cpu" and normalises_batches(many)
        drawing: dict[str, Any] = {"masks": masks, "recalls": recalls}
        step = _placed(dataclasses.replace(_stacked(_parts(many, model, **settings)), **drawing), model, real, y, plain)
        if step is None and normalises:
            with suppress(Untraceable):
                plainly = traced(x, y, masks, rows=ROWS, spelled=True)
                step = _placed(dataclasses.replace(_stacked(_parts(plainly, model, **settings)), **drawing), model, real, y, plain)
    if step is None:
        try:
            one = traced(x, y, masks, rows=None)
        except Untraceable as error:
            raise _Unfit(f"cannot be traced ({error})") from error
        random = draws_random_numbers(one)
        note = "" if random or (x.device.type == "cpu" and has_convolution(one)) else note
        step = _single(_parts(one, model, stacked=False, **settings))
        step = dataclasses.replace(step, masks=masks, recalls=recalls, random=random, note=note)
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
    found = probed(step, model, real, y, lambda client: same_bits(step, client, y, plain, len(trainable(model))))
    same = [all(pair) for pair in zip(*found, strict=True)]
    if not all(same[1:]):
        return None
    return step if same[0] else dataclasses.replace(step, rows="many")


def _left_to_torch(
    model: nn.Module, objective: Objective, x: Tensor, y: Tensor, plain: bool, arithmetic: Arithmetic, why: str
) -> Step:
    """Return the step by torch.nn and autograd, after trying it once."""
    run = eager_run(model, objective, plain, arithmetic)
    step = Step(list, run, lambda heads: heads, rows="one", random=True, recalls=forms_of(objective))
    note = f"model {type(model).__name__} {why}: its clients train one at a time, by torch.nn, which is slower."
    one = [t.detach().clone().unsqueeze(0) for t in travelling(model).values()]
    recalled = [one[0].new_zeros((1, *form)) for form in step.recalls]
    try:
        with seeded(0):
            step.run(step.open(one), x.unsqueeze(0), y.unsqueeze(0), recalled, 0.0)
    except ScenarioError:
        raise
    except Exception as error:  # Anything a stranger's forward() may raise.
        raise ScenarioError(
            f"model.kind: {type(model).__name__} cannot be trained on a batch of shape {tuple(x.shape)}: {reason(error)}"
        ) from error
    return dataclasses.replace(step, note=note)


def _agrees(
    step: Step, model: nn.Module, objective: Objective, real: Sequence[Tensor], y: Tensor, plain: bool, arithmetic: Arithmetic
) -> bool:
    """Return whether one step of *step* gives what torch.func gives without tracing, up to rounding, on real features.

    It would not where forward() keeps something between calls that no tensor shows. Where drawn parameters give nothing
    finite to compare (the logarithm of one), those of the model tell.
    """
    for seed in (0, None):
        agrees = compared(step, model, objective, drawn(step, model, real[0], seed), y, plain, arithmetic)
        if agrees is not None:
            return agrees
    raise _Unfit("has no finite loss on examples of the data, so that its compiled step cannot be compared with torch's")


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
        if arithmetic.graphs:
            passes.rates_as_tensors(graph, rate)
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


