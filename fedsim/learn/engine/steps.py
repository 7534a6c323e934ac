"""The compiled steps of an engine, each by the kind of batches it is for; compiled when they are first asked for. Knows no task."""

from __future__ import annotations

from functools import partial

from torch import nn

from fedsim.learn.arithmetic import Arithmetic
from fedsim.learn.engine import stored
from fedsim.learn.engine.aims import Form
from fedsim.learn.engine.eager import remembers
from fedsim.learn.engine.spread import compile_spread
from fedsim.learn.engine.step import Step, compile_step
from fedsim.learn.engine.templates import Templates
from fedsim.learn.engine.together import Together
from fedsim.learn.engine.updates import Kind as Batched
from fedsim.learn.kept import Kept
from fedsim.learn.objectives import Mixed, Objective
from fedsim.learn.store import Store
from fedsim.learn.work import Mix

PROBED_BATCHES = 2
"""Batches of real examples, drawn at random, that a compiled step is tried on besides the first."""
Kind = tuple[int, int, bool, str, *tuple[Form, ...]]
"""What a step is compiled for: the size of batches, how many of it are new (or what sequences are cut to), whether the update is plain
SGD, and how new examples and remembered ones count: a Mix, or a method of rehearsal in words, and shapes of what it recalls."""
REHEARSING = "rehearsing"


class Steps:
    """The steps of *model* under *objective*, tried on examples of *store*; what the model keeps between calls is left as *kept* has it.

    *many_sizes* says that batches have so many that graphs are better shared.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, store: Store, kept: Kept, arithmetic: Arithmetic, *, many_sizes: bool
    ) -> None:
        self._model, self._objective, self._store, self._kept, self._arithmetic = model, objective, store, kept, arithmetic
        self._templates = Templates(model, objective, arithmetic) if many_sizes else None
        self.known: dict[Kind, Step] = {}
        """Those that were compiled so far."""
        self._spread: dict[Kind, Step] = {}  # For rows with rates of their own.

    @property
    def notes(self) -> set[str]:
        """Return why steps are not compiled, where they are not."""
        return {step.note for step in self.known.values() if step.note}

    def of(self, kind: tuple[int, int], plain: bool, mix: Mix = "concat", *, spread: bool = False) -> Step:
        """Return the step for batches of (size, new ones); the second is 0 where it makes no difference.

        Where all have one loss it is what sequences are cut to. *spread* is for rows with rates of their own.
        """
        steps = self._spread if spread else self.known
        if (*kind, plain, mix) not in steps:
            cut = kind[1] if mix == "concat" else 0
            objective = self._objective if mix == "concat" else Mixed(self._objective, kind[1], mix)
            templates = self._templates if mix == "concat" and not cut else None  # These are of whole sequences.
            steps[*kind, plain, mix] = self._compiled(objective, kind[0], plain, templates, cut, spread=spread)
        return steps[*kind, plain, mix]

    def aimed(self, together: Together, word: str, plain: bool, kind: Batched) -> Step:
        """Return the step for batches of *kind* of tasks that rehearse *together*, which *word* stands for."""
        size, fresh, *forms = kind
        of: Kind = (size, fresh, plain, word, *forms)
        if of not in self.known:
            self.known[of] = self._compiled(together.aim(self._objective, kind), size, plain, None)
        return self.known[of]

    def _compiled(
        self, objective: Objective, size: int, plain: bool, templates: Templates | None, cut: int = 0, *, spread: bool = False
    ) -> Step:
        """Return a step compiled for batches of *size* examples, sequences *cut* to so many steps, unless to 0.

        *spread* is for rows with rates of their own.
        """
        x, y = self._store.sample(size)
        more = [self._store.sample(size, seed)[0] for seed in range(PROBED_BATCHES)]
        if cut:
            x, more = x[:, :cut].contiguous(), [each[:, :cut].contiguous() for each in more]
        # As it will run: what a GPU's products are computed in would else differ between a step and what it is compared with.
        with self._arithmetic.at_work(x.device.type):
            if self._kept.moves is None:
                self._kept.moves = remembers(self._model, self._objective, x, y, self._kept)
            before = Kept(self._model, self._objective) if self._kept.moves else self._kept  # A task may be under way.
            # Named alike, they would be taken for one.
            compiler, named = (partial(compile_spread, compile_step), {"spread": True}) if spread else (compile_step, {})
            step = stored.step(
                compiler, self._model, objective, x, y, plain=plain, whole_targets=self._store.whole_targets, more=more,
                templates=templates, remembers=self._kept.moves, arithmetic=self._arithmetic, **named,
            )  # fmt: skip
        before.back()  # Tracing and probing have called it.
        return step
