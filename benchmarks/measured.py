"""Hold the cost of a batch of calls, and compare the costs of two contestants."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Hold the cost per call of one batch, in seconds."""

    wall: float
    cpu: float


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Hold a ratio: the median of the sittings, and the lowest and highest of them."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:5.2f} ({self.low:.2f}-{self.high:.2f})"


Sitting = tuple[Sequence[Batch], Sequence[Batch]]
"""The batches of one contestant and those of the other, round by round, on one set of connections."""


def compared(sittings: Sequence[Sitting], cost: Callable[[Batch], float]) -> Spread:
    """Return the first contestant's cost as a multiple of the second's, each ratio taken within its round."""
    medians = [median(cost(one) / cost(two) for one, two in zip(own, other, strict=True)) for own, other in sittings]
    return Spread(median=median(medians), low=min(medians), high=max(medians))


def typical(sittings: Sequence[Sequence[Batch]], cost: Callable[[Batch], float]) -> float:
    """Return the median cost of a call over all sittings, in microseconds."""
    return median(cost(batch) for sitting in sittings for batch in sitting) * 1e6
