"""How sure a figure is: 95 % intervals by drawing patients again.

Images of a patient are alike, so that drawing images again would make intervals too narrow. Groups are drawn with
replacement, and each image counts as often as its group was drawn (the cluster bootstrap; Field & Welsh, *JRSS B* 69,
2007). Ends are percentiles, a little further out than 2.5 and 97.5 where there are few groups (Hesterberg, *The
American Statistician* 69, 2015, section 4.2): else intervals would be too narrow. Few they are, too, where few
have what a figure is of: an AUROC of 8 positive patients among 100 is as sure as those 8 allow; and where some groups
are much larger than others: then a mean hangs on fewer than there are (the effective number of clusters; Carter,
Schnepel & Steigerwald, *Review of Economics and Statistics* 99, 2017).

Over 2,500 simulated sets of patients with one to six images, ends so found hold the truth in 93 to 94 % with 15
patients, and in 94 to 95 % with 30 and with 120. Percentiles that are moved for bias and skew (BCa) hold a share or a
skewed mean in one more of a hundred there, and a symmetric mean in one less.

Two models that were measured on the same samples are compared by the figure ``first(weights) - second(weights)``: each
draw is of the same patients for both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Figure = Callable[[Floats], Floats]
"""From weights of the samples (R, N) to the figure under each of R weightings (R,)."""

_BLOCK_NUMBERS = 8_000_000
_FEWEST = 1.01  # below two, all that was drawn is inside


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
        sizes = np.bincount(self._group_of, minlength=1).astype(np.float64)
        self._evenness = float(sizes.sum() ** 2 / (sizes**2).sum() / max(1, len(names))) if len(names) else 1.0

    def measure(self, figure: Figure) -> Measured:
        """The figure with its interval, see :meth:`measure_all`."""
        return self.measure_all({"": figure})[""]

    def measure_all(
        self, figures: Mapping[str, Figure], telling: Mapping[str, int] | None = None
    ) -> dict[str, Measured]:
        """Each figure with its interval, the same draws for all.

        Args:
            figures: by name.
            telling: how many groups a figure hangs on, such as those that are positive; all where it does not say. Of
                one alone there is no interval: it tells nothing of others.
        """
        once = np.ones((1, len(self._group_of)))
        values = {name: float(figure(once)[0]) for name, figure in figures.items()}
        counts = {name: (telling or {}).get(name, self._groups) for name in figures}
        known = {name: each for name, each in figures.items() if not np.isnan(values[name]) and counts[name] > 1}
        drawn = self.distributions(known) if known else {}
        ends = {name: self._ends(found, counts[name] * self._evenness) for name, found in drawn.items()}
        return {name: Measured(value, *ends.get(name, (np.nan, np.nan))) for name, value in values.items()}

    @classmethod
    def _ends(cls, found: Floats, groups: float) -> tuple[float, float]:
        if np.isnan(found).all():
            return np.nan, np.nan
        low, high = np.nanpercentile(found, cls._percentiles(groups))
        return float(low), float(high)

    @staticmethod
    def _percentiles(groups: float) -> tuple[float, float]:
        """Those whose distance is that of Student's t, and of a variance over n - 1 and not n.

        Args:
            groups: effective number of them, which need not be whole.
        """
        from scipy.stats import norm, t

        groups = max(groups, _FEWEST)
        reach = t.ppf(0.975, groups - 1) * np.sqrt(groups / (groups - 1))
        return 100 * float(norm.cdf(-reach)), 100 * float(norm.cdf(reach))

    def distributions(self, figures: Mapping[str, Figure]) -> dict[str, Floats]:
        """(R,) each figure under each draw; drawn once for all of them."""
        generator = np.random.default_rng(self._seed)
        block = max(1, _BLOCK_NUMBERS // len(self._group_of))
        parts: dict[str, list[Floats]] = {name: [] for name in figures}
        for start in range(0, self._draws, block):
            count = min(block, self._draws - start)
            often = generator.multinomial(self._groups, np.full(self._groups, 1 / self._groups), size=count)
            weights = often[:, self._group_of].astype(np.float64)
            for name, figure in figures.items():
                parts[name].append(figure(weights))
        return {name: np.concatenate(found) for name, found in parts.items()}


def all_or_none(measured: Measured, groups: int) -> Measured:
    """A share that is 0 or 1, with the ends of Clopper & Pearson (*Biometrika* 26, 1934), each group one trial.

    Drawing again what is all alike tells nothing: five of five would seem to be sure. Other shares stay as they are.

    Args:
        measured: the share.
        groups: how many it is of.
    """
    if measured.value not in (0, 1) or not groups:
        return measured
    least = float(0.025 ** (1 / groups))
    return Measured(1.0, least, 1.0) if measured.value else Measured(0.0, 0.0, 1 - least)


def weighted_mean(values: Floats) -> Figure:
    """The mean of what is not NaN, as a figure."""
    known = ~np.isnan(values)

    def mean(weights: Floats) -> Floats:
        total = weights[:, known].sum(axis=1)
        undefined = np.full(len(weights), np.nan)
        return np.asarray(np.divide(weights[:, known] @ values[known], total, out=undefined, where=total > 0))

    return mean
