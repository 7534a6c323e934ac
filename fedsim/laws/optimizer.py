"""Laws of update rules: a row's bits depend on that row alone, and on what was kept. Knows no optimiser; stacks rows as the engine does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.core.state import State, pack, unpack
from fedsim.laws.broken import Law, Make, alike, want
from fedsim.learn.engine.rows import Rows
from fedsim.learn.job import Job
from fedsim.learn.optim import Optimizer
from fedsim.learn.terms import Term

FORMS = {"weight": (3, 5), "kernel": (2, 3, 3, 3), "bias": (7,), "scale": ()}
"""Parameters of a model, so that sizes fill vector registers in part only."""
ROWS, STEPS = 37, 3
Terms = Callable[[], Sequence[Term]]


@dataclass(frozen=True, slots=True)
class Setting:
    """What rows start from, what came beside, their gradients step by step, and what each has of earlier tasks. Tensors (rows, ...)."""

    starts: list[Tensor]
    sent: dict[str, list[Tensor]]
    gradients: list[list[Tensor]]
    kept: list[State] = field(default_factory=list[State])

    def rows(self, chosen: Sequence[int]) -> Setting:
        """Return that of the rows *chosen*, in memory of their own."""
        picked = list(chosen)
        sent = {name: [each[picked].clone() for each in arrays] for name, arrays in self.sent.items()}
        gradients = [[each[picked].clone() for each in step] for step in self.gradients]
        return Setting([each[picked].clone() for each in self.starts], sent, gradients, [self.kept[i] for i in picked if self.kept])


def setting(down: Sequence[str] = (), rows: int = ROWS, steps: int = STEPS) -> Setting:
    """Return what *rows* rows need for *steps* steps, with extra arrays *down* from the server."""
    luck = torch.Generator().manual_seed(3)

    def drawn() -> list[Tensor]:
        return [torch.randn((rows, *form), generator=luck) for form in FORMS.values()]

    return Setting(drawn(), {name: drawn() for name in down}, [drawn() for _ in range(steps)])


def stepped(terms: Sequence[Term], given: Setting, cut: Callable[[int], Sequence[Any]] = lambda rows: [slice(0, rows)]) -> Rows:
    """Return rows that have taken all their steps, at each in the pieces that *cut* gives of them."""
    rows = Rows(terms, list(FORMS), given.starts, len(FORMS), sent=given.sent, kept=given.kept)
    for at, gradients in enumerate(given.gradients):
        for piece in cut(len(given.starts[0])):
            rows.step(piece, [each[piece].clone() for each in gradients], at, 0.1)
    return rows


def kept_of(rows: Rows, terms: Sequence[Term], steps: int) -> list[State]:
    """Return what the client of each row keeps of the terms, through bytes as between two messages."""
    names = [name for term in terms for name in term.keeps]
    return [unpack(pack(rows.kept(row, names, steps))) for row in range(len(rows.params[0]))]


def before(terms: Sequence[Term], given: Setting) -> Setting:
    """Return *given*, as a second task of clients that have some of them already trained: every third row has not."""
    kept = kept_of(stepped(terms, given), terms, len(given.gradients))
    return Setting(given.starts, given.sent, given.gradients, [{} if row % 3 == 0 else state for row, state in enumerate(kept)])


def a_row_depends_on_itself(terms: Terms, down: Sequence[str]) -> None:
    """A row alone, and among few, has the bits that it has among many: at first, and with what it keeps."""
    for words, given in (("first task", setting(down)), ("later task", before(terms(), setting(down)))):
        whole = stepped(terms(), given)
        for chosen in ([0], [4], [36], [1, 2], [5, 17, 30, 31, 8]):
            few = stepped(terms(), given.rows(chosen))
            for name, many, mine in zip(FORMS, whole.params, few.params, strict=True):
                alike(many[chosen], mine, f"{words}: rows {chosen} by themselves and not among {ROWS}: {name}")


def pieces_are_the_whole(terms: Terms, down: Sequence[str]) -> None:
    """A chunk that is stepped in halves, or in rows picked from it, has the bits of one that is stepped at once."""
    given = setting(down)
    whole = stepped(terms(), given)
    halves = stepped(terms(), given, lambda rows: [slice(0, rows // 2), slice(rows // 2, rows)])
    picked = stepped(terms(), given, lambda rows: [torch.arange(0, rows, 2), torch.arange(1, rows, 2)])
    for words, other in (("in two halves", halves), ("as even rows and odd ones", picked)):
        for name, one, two in zip(FORMS, whole.params, other.params, strict=True):
            alike(one, two, f"{ROWS} rows {words} and not at once: {name}")


def what_is_kept_goes_on(terms: Terms, down: Sequence[str]) -> None:
    """K steps, and K more with what was kept, are 2 K steps: nothing else goes from one to the other."""
    given = setting(down, rows=5, steps=2 * STEPS)
    whole = stepped(terms(), given)
    first = stepped(terms(), Setting(given.starts, given.sent, given.gradients[:STEPS]))
    chain = terms()
    second = Rows(chain, list(FORMS), given.starts, len(FORMS), sent=given.sent, kept=kept_of(first, chain, STEPS))
    for param, reached in zip(second.params, first.params, strict=True):
        param.copy_(reached)
    for at, gradients in enumerate(given.gradients[STEPS:]):
        second.step(slice(0, 5), [each.clone() for each in gradients], at, 0.1)
    for name, one, two in zip(FORMS, whole.params, second.params, strict=True):
        alike(one, two, f"{STEPS} steps and {STEPS} more with what was kept, and not {2 * STEPS}: {name}")


def a_term_hides_nothing(terms: Terms, down: Sequence[str]) -> None:
    """Terms that have trained others before do what fresh ones do."""
    used, given = terms(), setting(down)
    stepped(used, setting(down, rows=3, steps=2))
    for name, fresh, mine in zip(FORMS, stepped(terms(), given).params, stepped(used, given).params, strict=True):
        alike(fresh, mine, f"terms that have trained other rows before: {name}")


def what_goes_in_stays_as_it_is(terms: Terms, down: Sequence[str]) -> None:
    """Only a term's own state is written to; what comes out has the form of the gradient, is finite, and fresh where it says so."""
    given = setting(down)
    for term in terms():
        state = [{name: torch.zeros_like(start) for name in term.keeps} for start in given.starts]
        for at, gradients in enumerate(given.gradients):
            for i, (name, gradient) in enumerate(zip(FORMS, gradients, strict=True)):
                param, start = given.starts[i] + 0.5, given.starts[i].clone()
                sent = {extra: arrays[i] for extra, arrays in given.sent.items()}
                inputs = {"gradient": gradient, "parameter": param, "start": start, **sent}
                was = {each: tensor.clone() for each, tensor in inputs.items()}
                found = term.apply(gradient, param, start, state[i], sent, np.full(ROWS, at))
                words = f"{type(term).__name__} in step {at} on {name}"
                for each, tensor in inputs.items():
                    alike(was[each], tensor, f"{words}: the {each} that went in")
                alike((gradient.shape, gradient.dtype), (found.shape, found.dtype), f"{words}: the form of what comes out")
                held = {*map(_memory, (gradient, param, start, *sent.values(), *state[i].values()))}
                want(not getattr(term, "fresh", False) or _memory(found) not in held, f"{words}: what comes out is not fresh memory")
                want(found.isfinite().all(), f"{words}: what comes out of finite numbers is not finite")


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def operations_are_counted(terms: Terms, down: Sequence[str]) -> None:
    """A step costs a number of operations from 0, and of more parameters no fewer."""
    sizes = (0, 1, 1000, 10**9)
    for term in terms():
        flops = [float(term.flops(size)) for size in sizes]
        words = f"{type(term).__name__}: flops of {sizes} parameters are {flops}"
        want(all(0 <= each < math.inf for each in flops) and sorted(flops) == flops, words)


OF_TERMS = (
    a_row_depends_on_itself, pieces_are_the_whole, what_is_kept_goes_on, a_term_hides_nothing, what_goes_in_stays_as_it_is,
    operations_are_counted,
)  # fmt: skip


def _of_optimizers(law: Callable[[Terms, Sequence[str]], None]) -> Law:
    def asked(make: Make) -> None:
        law(lambda: _terms(make()), ())

    asked.__name__, asked.__doc__ = law.__name__, law.__doc__
    return asked


def _terms(optimizer: Optimizer) -> Sequence[Term]:
    job = Job(
        steps=STEPS, lr=optimizer.lr, momentum=getattr(optimizer, "momentum", 0.0), nesterov=getattr(optimizer, "nesterov", False),
        weight_decay=getattr(optimizer, "weight_decay", 0.0),
    )  # fmt: skip
    return optimizer.terms(job)


LAWS: dict[str, tuple[Law, ...]] = {"optimizer": tuple(_of_optimizers(law) for law in OF_TERMS)}
