"""Experience replay: new examples and replayed ones in one loss, which the engine compiles. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedsim.core.types import IntArray
from fedsim.learn.rehearsal import Ratio, Way, rehearsals, share_of
from fedsim.learn.work import Mix


@dataclass(frozen=True, slots=True)
class Er:
    """One loss over new and replayed examples. See ``er`` and ``er_ace``. *ratio* is the replayed share of a mini-batch."""

    ratio: float = 0.5
    mix: Mix = "concat"
    memory: bool = False

    @property
    def way(self) -> Way:
        """Return that the engine mixes."""
        return Way(self.mix, memory=self.memory)

    def replayed(self, fresh: int, share: float | None) -> int:
        """Return how many examples are replayed beside *fresh* new ones."""
        return share_of(fresh, self.ratio if share is None else share)

    def beside(self, new: int, sizes: IntArray, fresh: IntArray) -> tuple[int, int]:
        """Return that nothing passes besides mini-batches."""
        return 0, 0


@rehearsals.register("er")
def er(*, ratio: Ratio = 0.5, mix: Literal["concat", "sum"] = "concat") -> Er:
    """Experience replay: one loss over new and replayed examples, as one mean or as the sum of two.

    Without a memory this is plain training on mini-batches as they arrive. The two mixes weigh new examples differently
    while the memory fills. Reference: Chaudhry et al. 2019, arXiv:1902.10486.
    """
    return Er(ratio, mix)


@rehearsals.register("er_ace")
def er_ace(*, ratio: Ratio = 0.5) -> Er:
    """ER-ACE: new examples are compared among the classes new in the mini-batch only, replayed ones among all.

    Reference: Caccia et al. 2022, arXiv:2104.05025.
    """
    return Er(ratio, "ace", memory=True)
