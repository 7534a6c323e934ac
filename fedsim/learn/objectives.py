"""What a model is trained and scored on: a loss for one batch, and sums from which scores over any set follow.

Scores come from sums over examples, never from means of batch means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.core import answers
from fedsim.core.errors import FedsimError, RunError, door
from fedsim.core.registry import Registry
from fedsim.core.types import Range
from fedsim.learn.work import Mix

IGNORED = -100
"""The target that cross-entropy leaves out (``ignore_index``)."""


class Objective(Protocol):
    """A learning task. Targets may be classes, numbers or token sequences: only the objective looks inside.

    Two methods more are asked for where it has them. ``mass(targets) -> Tensor`` is what the mean over a batch is divided by, when that
    is not the number of targets: then ``loss * mass`` adds up over the parts of a batch. ``parts(outputs, targets) -> Tensor`` is what
    each example adds to that sum, when training goes by something else than ``each``. Shapes: (b, ...) -> (); -> (b,).
    """

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over a batch, a scalar that can be differentiated."""
        ...

    def sums(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return additive sums over a batch, ``examples`` among them."""
        ...

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each example; wanted on streams only. Shapes: (b, ...), (b, ...) -> (b,)."""
        ...

    def scores(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return the scores that *sums* (added up over batches) amount to; ``loss`` is always one of them."""
        ...


objectives: Registry[Callable[..., Objective]] = Registry(
    "objective", key="training.objective", gives=answers.Gives("an Objective", ("loss", "sums", "scores"))
)


TAKEN = ("rounds", "scored_round")
"""What a run's final figures are called beside its scores."""


def scores_of(objective: Objective, sums: Mapping[str, float], wrong: type[FedsimError] = RunError) -> dict[str, float]:
    """Return the scores that *sums* amount to, NaN where one is undefined: a share of no example at all.

    >>> scores_of(Classification(), {"loss": 3.0, "correct": 0.0, "examples": 0.0})["accuracy"]
    nan
    """
    with np.errstate(all="ignore"), door("training.objective.kind", "its scores() raised", wrong=wrong):
        # numpy's numbers divide by zero as IEEE 754 says; Python's raise.
        scores = cast(Mapping[Any, float], objective.scores({n: np.float64(v) for n, v in sums.items()}))
        if unnamed := [name for name in scores if not isinstance(name, str)]:
            raise TypeError(f"a score is named {unnamed[0]!r}, expected text")
        if taken := [name for name in scores if name in TAKEN or not name.isprintable()]:
            raise ValueError(f"a score is named {taken[0]!r}, expected printable text other than {' and '.join(map(repr, TAKEN))}")
        return {name: float(value) for name, value in scores.items()}


class Classification:
    """Cross-entropy over classes; scores are the mean loss and the share of correct answers.

    With *label_smoothing*, or *class_weights*, one for each class, training goes by another loss, that of ``torch.nn.CrossEntropyLoss``.
    Scores (and what policies of replay, or early stopping, are told of examples) are plain all the same, so that losses can be compared
    between runs that differ in these; ``train_loss`` is the loss that was trained on.
    """

    label_smoothing: float = 0.0
    class_weights: Sequence[float] = ()

    def __init__(self, label_smoothing: float = 0.0, class_weights: Sequence[float] = ()) -> None:
        self.label_smoothing, self.class_weights = label_smoothing, tuple(class_weights)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy. Shapes: outputs (b, classes), targets (b,) -> ()."""
        if self._plain:
            return F.cross_entropy(outputs, targets)
        return F.cross_entropy(outputs, targets, weight=self._weights(outputs), label_smoothing=self.label_smoothing)

    def mass(self, targets: Tensor) -> Tensor:
        """Return what the mean loss is divided by, in float64: the number of targets that count, or the sum of their classes' weights.

        >>> Classification(class_weights=(1.0, 3.0)).mass(torch.tensor([0, 1, 1]))
        tensor(7., dtype=torch.float64)
        """
        counted = (targets != IGNORED).double()
        if self.class_weights:
            weights = torch.tensor(self.class_weights, dtype=torch.float64, device=targets.device)
            counted = counted * weights[targets.clamp(min=0)]
        return counted.sum()

    def parts(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return what each example adds to the sum behind the mean loss. Shapes: outputs (b, classes), targets (b,) -> (b,)."""
        if self._plain:
            return self.each(outputs, targets)
        weights = self._weights(outputs)
        return F.cross_entropy(outputs, targets, weight=weights, label_smoothing=self.label_smoothing, reduction="none")

    def sums(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return summed loss, number correct, number of examples."""
        return {
            "loss": F.cross_entropy(outputs, targets, reduction="sum"),
            "correct": (outputs.argmax(-1) == targets).sum(),
            "examples": torch.tensor(targets.numel()),
        }

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each example's cross-entropy. Shapes: outputs (b, classes), targets (b,) -> (b,)."""
        return F.cross_entropy(outputs, targets, reduction="none")

    def scores(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return accuracy and loss.

        >>> Classification().scores({"loss": 3.0, "correct": 1.0, "examples": 4.0})
        {'accuracy': 0.25, 'loss': 0.75}
        """
        return {"accuracy": sums["correct"] / sums["examples"], "loss": sums["loss"] / sums["examples"]}

    @property
    def _plain(self) -> bool:
        return not self.label_smoothing and not self.class_weights

    def _weights(self, outputs: Tensor) -> Tensor | None:
        if not self.class_weights:
            return None
        # Where products are bfloat16 losses are float32, and so are weights.
        return outputs.new_tensor(self.class_weights, dtype=torch.promote_types(outputs.dtype, torch.float32))


class Mixed:
    """The loss of a mini-batch whose first *fresh* examples are new and the rest replayed: the sum of two means.

    With the mix "ace" new examples are told apart only from the classes that are new there (Caccia et al. 2022).
    """

    def __init__(self, objective: Objective, fresh: int, mix: Mix) -> None:
        self._objective, self._fresh, self._mix = objective, fresh, mix
        self.each, self.sums, self.scores = objective.each, objective.sums, objective.scores

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the mean losses. Shapes: outputs (b, ...), targets (b, ...) -> ()."""
        n = self._fresh
        new = outputs[:n]
        if self._mix == "ace":
            # Not F.one_hot: it looks at the largest target, which no trace can.
            present = (targets[:n, None] == torch.arange(outputs.shape[-1], device=targets.device)).any(0)
            new = torch.where(present, new, ABSENT)
        loss = self._objective.loss(new, targets[:n])
        return loss if n == len(targets) else loss + self._objective.loss(outputs[n:], targets[n:])


def mass_of(objective: Objective, whole_targets: bool = True) -> Callable[[Tensor], Tensor] | None:
    """Return what gives the number by which the mean over a batch of targets is divided; None where that is how many there are.

    An objective says so itself by a ``mass(targets)``. *whole_targets* promises that none is cross-entropy's ignore_index.
    """
    own = getattr(objective, "mass", None)
    counts = isinstance(objective, Classification) and type(objective).mass is Classification.mass and not objective.class_weights
    if counts and whole_targets:
        return None
    return own


ABSENT = -1e9
"""The logit of a class that is not to be compared with: its softmax is 0, and its gradient too."""


Smoothing = Annotated[float, Range(ge=0, lt=1, why="the share of each label that is spread over all classes; 0.1 is usual")]
Weight = Annotated[float, Range(gt=0, why="how much the examples of a class count; 1 is plain")]


@objectives.register("classification")
def classification(*, label_smoothing: Smoothing = 0.0, class_weights: Sequence[Weight] = ()) -> Objective:
    """Cross-entropy; accuracy and loss are reported.

    Training may go by smoothed labels (Szegedy et al. 2016, arXiv:1512.00567) and weighed classes, as ``torch.nn.CrossEntropyLoss``
    has them; what is reported stays plain cross-entropy.
    """
    return Classification(label_smoothing, class_weights)
