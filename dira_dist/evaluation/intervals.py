"""How sure a figure is: 95 % intervals by drawing patients again.

Images of a patient are alike, so that drawing images again would make intervals too narrow. Groups are drawn with
replacement, and each image counts as often as its group was drawn (the cluster bootstrap; Field & Welsh, *JRSS B* 69,
2007). Ends are percentiles, a little further out than 2.5 and 97.5 where there are few groups (Hesterberg, *The
American Statistician* 69, 2015, section 4.2): else intervals would be too narrow.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Figure = Callable[[Floats], Floats]
"""From weights of the samples (R, N) to the figure under each of R weightings (R,)."""

_BLOCK_NUMBERS = 8_000_000


@dataclass(frozen=True)
class Measured:
    """A figure and the ends of its interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


class Resamples:
    """The same draws of the groups for all figures of a set.

    Args:
        groups: whom each of the N samples is of.
        draws: how many.
        seed: of the draws.
    """

    def __init__(self, groups: Sequence[str], draws: int, seed: int = 0) -> None:
        names, self._group_of = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
        self._groups, self._draws, self._seed = len(names), draws, seed

    def measure(self, figure: Figure) -> Measured:
        """The figure with its interval."""
        samples = len(self._group_of)
        value = float(figure(np.ones((1, samples)))[0])
        if np.isnan(value):
            return Measured(value, np.nan, np.nan)
        found = self.distribution(figure)
        if np.isnan(found).all():
            return Measured(value, np.nan, np.nan)
        low, high = np.nanpercentile(found, self._percentiles())
        return Measured(value, float(low), float(high))

    def _percentiles(self) -> tuple[float, float]:
        """Those whose distance is that of Student's t, and of a variance over n - 1 and not n."""
        from scipy.stats import norm, t

        groups = max(2, self._groups)
        reach = t.ppf(0.975, groups - 1) * np.sqrt(groups / (groups - 1))
        return 100 * float(norm.cdf(-reach)), 100 * float(norm.cdf(reach))

    def distribution(self, figure: Figure) -> Floats:
        """(R,) the figure under each draw."""
        generator = np.random.default_rng(self._seed)
        block = max(1, _BLOCK_NUMBERS // len(self._group_of))
        parts = []
        for start in range(0, self._draws, block):
            count = min(block, self._draws - start)
            often = generator.multinomial(self._groups, np.full(self._groups, 1 / self._groups), size=count)
            parts.append(figure(often[:, self._group_of].astype(np.float64)))
        return np.concatenate(parts)


def weighted_mean(values: Floats) -> Figure:
    """The mean of what is not NaN, as a figure."""
    known = ~np.isnan(values)

    def mean(weights: Floats) -> Floats:
        total = weights[:, known].sum(axis=1)
        undefined = np.full(len(weights), np.nan)
        return np.asarray(np.divide(weights[:, known] @ values[known], total, out=undefined, where=total > 0))

    return mean
