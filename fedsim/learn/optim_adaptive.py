"""Local optimisers that scale their steps: RMSprop, Adagrad, and by layers LARS and LAMB. Knows no engine; Adam stands in ``optim``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedsim.core.errors import ScenarioError
from fedsim.core.types import Array, NonNegative, Positive
from fedsim.learn import terms
from fedsim.learn.job import Job
from fedsim.learn.optim import KEEPS, Beta, Momentum, Optimizer, optimizers
from fedsim.learn.terms import Term
from fedsim.learn.terms_adaptive import Adagrad as AdagradTerm
from fedsim.learn.terms_adaptive import RmsProp as RmsPropTerm
from fedsim.learn.terms_layers import Lamb as LambTerm
from fedsim.learn.terms_layers import Lars as LarsTerm


@dataclass(frozen=True, slots=True)
class RmsProp:
    """RMSprop, as ``torch.optim.RMSprop``."""

    lr: float
    alpha: float
    eps: float
    weight_decay: float
    momentum: float
    centered: bool
    state: KEEPS

    def terms(self, job: Job) -> tuple[Term, ...]:
        """Return weight decay, RMSprop's direction, and momentum on top of it, each where there is any."""
        return (
            *((terms.WeightDecay(self.weight_decay),) if self.weight_decay else ()),
            RmsPropTerm(self.alpha, self.eps, self.centered),
            *((terms.Momentum(self.momentum),) if self.momentum else ()),
        )


@dataclass(frozen=True, slots=True)
class Adagrad:
    """Adagrad, as ``torch.optim.Adagrad``."""

    lr: float
    lr_decay: float
    eps: float
    weight_decay: float
    initial_accumulator_value: float
    state: KEEPS

    def terms(self, job: Job) -> tuple[Term, ...]:
        """Return weight decay, where there is any, and Adagrad's direction."""
        decay = (terms.WeightDecay(self.weight_decay),) if self.weight_decay else ()
        return (*decay, AdagradTerm(self.lr_decay, self.initial_accumulator_value, self.eps))


@dataclass(frozen=True, slots=True)
class Lars:
    """LARS: SGD with momentum whose rate is each layer's own."""

    lr: float
    trust: float
    momentum: float
    weight_decay: float
    exempt: bool
    state: KEEPS

    def terms(self, job: Job) -> tuple[Term, ...]:
        """Return the layers' rates, and momentum, where there is any."""
        return (
            LarsTerm(self.trust, self.weight_decay, self.exempt),
            *((terms.Momentum(self.momentum),) if self.momentum else ()),
        )


@dataclass(frozen=True, slots=True)
class Lamb:
    """LAMB: Adam whose rate is each layer's own."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    exempt: bool
    state: KEEPS

    def terms(self, job: Job) -> tuple[Term, ...]:
        """Return Adam's direction, and the layers' trust ratios."""
        return (terms.Adam(self.beta1, self.beta2, self.eps), LambTerm(self.weight_decay, self.exempt))


def check_layers(optimizer: Optimizer | None, kind: str, params: Mapping[str, Array]) -> None:
    """Refuse an optimiser that goes by layers where it exempts every one of *params*, those that are trained."""
    if isinstance(optimizer, Lars | Lamb) and optimizer.exempt and all(array.ndim < 2 for array in params.values()):
        raise ScenarioError(
            f"training.optimizer.kind = {kind!r}: scales the steps of parameters of two or more dimensions, and the model has none"
            f" ({', '.join(list(params)[:3])}{', ...' if len(params) > 3 else ''}). Set exempt = false, or take"
            f" {'sgd' if isinstance(optimizer, Lars) else 'adam'!r}, which is what would be left of it."
        )


@optimizers.register("rmsprop")
def rmsprop(
    *, lr: Positive = 0.01, alpha: Beta = 0.99, eps: Positive = 1e-8, weight_decay: NonNegative = 0.0, momentum: Momentum = 0.0,
    centered: bool = False, state: KEEPS = "reset",
) -> RmsProp:  # fmt: skip
    """Gradients divided by the root of a moving average of their squares (``torch.optim.RMSprop``).

    Reference: Hinton 2012, lecture 6e; *centered*: the variance in the place of the mean square (Graves 2013, arXiv:1308.0850).
    """
    return RmsProp(lr, alpha, eps, weight_decay, momentum, centered, state)


@optimizers.register("adagrad")
def adagrad(
    *, lr: Positive = 0.01, lr_decay: NonNegative = 0.0, eps: Positive = 1e-10, weight_decay: NonNegative = 0.0,
    initial_accumulator_value: NonNegative = 0.0, state: KEEPS = "reset",
) -> Adagrad:  # fmt: skip
    """Gradients divided by the root of the sum of all their squares (``torch.optim.Adagrad``).

    Reference: Duchi et al. 2011, JMLR 12.
    """
    return Adagrad(lr, lr_decay, eps, weight_decay, initial_accumulator_value, state)


@optimizers.register("lars")
def lars(
    *, lr: Positive, trust: Positive = 0.001, momentum: Momentum = 0.9, weight_decay: NonNegative = 0.0, exempt: bool = True,
    state: KEEPS = "reset",
) -> Lars:  # fmt: skip
    """SGD with momentum whose rate for each layer of a client is scaled by the layer's norm over its gradient's.

    Momentum is of scaled gradients and the rate outside of it, as in ``torch.optim.SGD``: with a rate that stays, the paper's.
    A layer whose parameters or gradient are all zeros takes the rate as it is. Reference: You et al. 2017, arXiv:1708.03888.
    """
    return Lars(lr, trust, momentum, weight_decay, exempt, state)


@optimizers.register("lamb")
def lamb(
    *, lr: Positive = 0.001, beta1: Beta = 0.9, beta2: Beta = 0.999, eps: Positive = 1e-6, weight_decay: NonNegative = 0.01,
    exempt: bool = True, state: KEEPS = "reset",
) -> Lamb:  # fmt: skip
    """Adam, its moving averages corrected for their begin, whose step for each layer of a client is as long as the layer's norm.

    A layer whose parameters or step are all zeros takes Adam's step as it is. Reference: You et al. 2020, arXiv:1904.00962.
    """
    return Lamb(lr, beta1, beta2, eps, weight_decay, exempt, state)
