"""Trying a compiled step: whether its rows come out the same in any number and place, and whether it does what torch does.

Knows steps by what they do, and models; compiles nothing, and does not know what is made of the answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedsim.core.errors import ScenarioError, reason
from fedsim.learn.arithmetic import Arithmetic
from fedsim.learn.engine.trace import gradient_of
from fedsim.learn.models import buffers, trainable
from fedsim.learn.objectives import Objective

if TYPE_CHECKING:
    from fedsim.learn.engine.step import Step

PROBES = ((0, 1), (0, 2), (1, 2), (2, 3), (0, 17), (5, 12))
"""(first row, number of rows) of the slices that must all give one and the same row. 17 rows pass through every
alignment to 64 bytes that float32 can have."""

MANY_NUMBERS = 10_000
"""Parameters from which on two draws are enough: a small model may round alike by chance, and is drawn eight times."""

PROBE_RATE = 1000.0
"""The learning rate of probes: so large that the last bit of a gradient is not lost in the parameters it changes."""

PROBE_BYTES = 2**28
"""Parameters that probing may stack; larger models are probed with fewer rows."""


Client = tuple[list[Tensor], Tensor, list[Tensor]]
"""Parameters and buffers, features and masks of one client."""


def same_bits(step: Step, client: Client, y: Tensor, plain: bool, trained: int) -> list[bool]:
    """Return, for each of PROBES, whether all its rows come out the same as all others, bit for bit.

    *trained* of what a client carries are parameters. Every row gets the same parameters and the same batch; what may differ is the
    kernel that a number of rows is given, and the alignment of a row in memory. Kernels are not chosen by value, so numbers drawn at
    random tell: another kernel would have to round all of them alike, in every draw, to go unseen.
    """
    most = most_rows(client)

    def rows(first: int, count: int) -> list[Tensor]:
        carried, bx, by, masks = stacked(client, y, first, count)
        return after(step, carried, bx, by, masks, plain, PROBE_RATE, trained)

    reference = [t[0].nan_to_num() for t in rows(0, most)]
    return [
        all(torch.equal(row.nan_to_num(), one) for many, one in zip(rows(first, min(count, most)), reference, strict=True) for row in many)
        for first, count in PROBES
    ]


def most_rows(client: Client) -> int:
    """Return how many rows like *client* probing may stack."""
    return max(3, min(17, PROBE_BYTES // sum(p.numel() * p.element_size() for p in client[0])))


def stacked(client: Client, y: Tensor, first: int, count: int) -> tuple[list[Tensor], Tensor, Tensor, list[Tensor]]:
    """Return *count* rows of *client* with the targets *y*, whose parameters begin at row *first* of their memory."""
    carried, x, masks = client
    # Cloned: contiguous() would hand out the parameters themselves where there is one row.
    mine = [p.expand(first + count, *p.shape).clone(memory_format=torch.contiguous_format)[first:] for p in carried]
    bx, by, *bm = (t.expand(count, *t.shape).contiguous() for t in (x, y, *masks))
    return mine, bx, by, bm


def probed(step: Step, model: nn.Module, real: Sequence[Tensor], y: Tensor, look: Callable[[Client], list[bool]]) -> list[list[bool]]:
    """Return what *look* says of clients of *model* that are drawn at random, with the features *real*."""
    draws = 8 if sum(p.numel() for p in trainable(model).values()) < MANY_NUMBERS else 2
    found = [look(drawn(step, model, x, seed)) for seed, x in enumerate(real)]
    if buffers(model):  # As built they may hide everything: what has seen one example knows no spread yet, and scales all to 0.
        for seed, x in enumerate(real):
            found.append(look(moved(step, model, drawn(step, model, x, seed), real[(seed + 1) % len(real)], y)))
    with suppress(Exception):  # Numbers of all sizes tell more than real ones, which may be zeros; where the model takes them.
        found += [look(drawn(step, model, normal(real[0], seed), seed)) for seed in range(draws)]
    return found


AGREES = {torch.float32: 1e-3, torch.float64: 1e-9}
"""How far a compiled step and torch's own may lie apart, relative to the largest change that it makes in a tensor."""

LOWER = 0.05
"""The same where products are of bfloat16, which has eight bits."""


def compared(
    step: Step, model: nn.Module, objective: Objective, client: Client, y: Tensor, plain: bool, arithmetic: Arithmetic
) -> bool | None:
    """Return whether *step* and torch.func agree on *client*; None where nothing is finite."""
    carried, x, masks = client
    mine, bm = ([t.clone().unsqueeze(0) for t in tensors] for tensors in (carried, masks))
    count = len(trainable(model))
    ours = after(step, mine, x.unsqueeze(0), y.unsqueeze(0), bm, plain, 0.1, count)
    try:
        *changes, loss = gradient_of(model, objective, arithmetic)(*(p.clone() for p in carried), x.clone(), y, *masks)
    except Exception as error:  # Anything a stranger's forward() may raise.
        raise ScenarioError(f"model.kind: {type(model).__name__} cannot be trained: {reason(error)}") from error
    gradients, left = changes[:count], changes[count:]  # Buffers, and what an aim shows.
    theirs = [p - 0.1 * g for p, g in zip(carried, gradients, strict=False)] if plain else list(gradients)
    theirs += [*left, loss]
    zero = torch.zeros((), dtype=loss.dtype, device=loss.device)
    zeros = [zero] * (len(theirs) - len(carried))
    begun = [*(carried if plain else [*(zero for _ in gradients), *carried[count:]]), *zeros]
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


def normal(x: Tensor, seed: int) -> Tensor:
    """Return features shaped like *x* from a normal; *x* itself where they are whole numbers, which mean something."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x) if x.is_floating_point() else x


def drawn(step: Step, model: nn.Module, x: Tensor, seed: int | None) -> Client:
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
    recalled = [torch.randn(form, generator=draw).to(x.device, params[0].dtype) for form in step.recalls]
    return [p.detach() for p in params] + kept, x, [*masks, *recalled]


def moved(step: Step, model: nn.Module, client: Client, other: Tensor, y: Tensor) -> Client:
    """Return *client* with the buffers that a step on the features *other* leaves."""
    carried, x, masks = client
    mine = [p.clone().unsqueeze(0) for p in carried]
    count = len(trainable(model))
    after(step, mine, other.unsqueeze(0), y.unsqueeze(0), [mask.unsqueeze(0) for mask in masks], True, 0.0, count)
    return [*carried[:count], *(buffer[0] for buffer in mine[count:])], x, masks


def after(
    step: Step, carried: list[Tensor], x: Tensor, y: Tensor, masks: list[Tensor], plain: bool, rate: float | Tensor, trained: int
) -> list[Tensor]:
    """Return what one step leaves: parameters (or gradients) of which there are *trained*, buffers, what it shows, losses."""
    with torch.no_grad():
        head, rest = step.run(step.open(carried), x, y, masks, -rate)
        if plain:
            return [*carried, *rest, step.close(head)]
        return [*rest[:trained], *carried[trained:], *rest[trained:], step.close(head)]
