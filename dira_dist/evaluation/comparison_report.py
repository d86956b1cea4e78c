"""A comparison in words: a table, the calibration beside it, and a sentence for each start that claims no more."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dira_dist.evaluation.comparison import ComparedCell, ComparedStarts, Estimate


@dataclass(frozen=True)
class ComparisonWords:
    """What a comparison's report calls things.

    Attributes:
        figure: by which starts are compared.
        images: that were learned from, by fraction.
        rates: the learning rate of each start and fraction.
        of_method: starts with a pretraining for each seed; of all others a sentence is about this one model.
    """

    figure: str
    images: Mapping[float, int]
    rates: Mapping[tuple[str, float], float]
    of_method: frozenset[str] = frozenset()

    def labels(self, fraction: float) -> str:
        """As ``0.1 of the labels (120 images)``."""
        return f"{fraction:.3g} of the labels ({self.images[fraction]:,} images)"


def comparison_table(found: ComparedStarts, words: ComparisonWords) -> Iterator[str]:
    """Markdown: a row for each fraction and start."""
    first = found.starts[0]
    head = ["labels", "images", "start", "rate", f"{words.figure}, mean", "spread", f"against {first}", "p"]
    yield _row(head)
    yield _row(["---:", "---:", "---", "---:", "---", "---:", "---", "---:"])
    for fraction in found.fractions:
        for cell in (each for each in found.cells if each.fraction == fraction):
            difference = "" if cell.difference is None else cell.difference.signed
            yield _row(
                [
                    f"{fraction:.3g}",
                    f"{words.images[fraction]:,}",
                    cell.start,
                    f"{words.rates[cell.start, fraction]:g}",
                    cell.mean.text,
                    f"{cell.spread:.3f}",
                    difference,
                    _chance(cell.p_corrected),
                ]
            )


def calibration_table(
    calibration: Mapping[str, Mapping[tuple[str, float], Estimate]], found: ComparedStarts
) -> Iterator[str]:
    """Markdown: how far probabilities are from what is true, by start and fraction; nothing where there are none."""
    if not calibration:
        return
    yield _row(["labels", "start", *calibration])
    yield _row(["---:", "---", *("---" for _ in calibration)])
    for fraction in found.fractions:
        for start in found.starts:
            yield _row([f"{fraction:.3g}", start, *(figures[start, fraction].text for figures in calibration.values())])


def sentences(found: ComparedStarts, words: ComparisonWords) -> dict[str, str]:
    """For each start but the first, what can be said of it, by its name.

    A factor of labels is claimed only where the start is told apart from the first one, in the same direction.
    """
    return {start: _sentence(found, words, start) for start in found.starts[1:]}


def _sentence(found: ComparedStarts, words: ComparisonWords, start: str) -> str:
    first = found.starts[0]
    subject = f"the method {start}" if start in words.of_method else f"this model ({start})"
    apart = [cell for cell in found.of(start) if cell.differs]
    efficiency = found.efficiency.get(start)
    if not apart:
        return f"no difference could be shown between {subject} and {first}{_largest(found.of(start), words)}"
    claims = []
    if (
        efficiency is not None
        and efficiency.is_sure
        and all((_value(cell) > 0) == (efficiency.times.value > 1) for cell in apart)
    ):
        claims.append(_factor(efficiency.times, first, f"{words.figure} of {efficiency.level:g}"))
    claims += [_claim(cell, words, first) for cell in apart]
    rest = [cell for cell in found.of(start) if not cell.differs]
    text = f"{subject} {'; it '.join(claims)}"
    if rest:
        text += f"; no difference could be shown with {_and([f'{cell.fraction:.3g}' for cell in rest])} of the labels"
    return text


def _factor(times: Estimate, first: str, reached: str) -> str:
    fewer = times.value >= 1
    value, low, high = times.value, times.low, times.high
    if not fewer:
        value, low, high = 1 / value, 1 / high, 1 / low
    amount = f"{value:.1f} [{low:.1f}, {high:.1f}] times {'fewer labels than' if fewer else 'as many labels as'}"
    return f"needs {amount} {first} for {_an(reached)}"


def _an(reached: str) -> str:
    return f"{'an' if reached.startswith('AUROC') else 'a'} {reached}"


def _claim(cell: ComparedCell, words: ComparisonWords, first: str) -> str:
    way = "better" if _value(cell) > 0 else "worse"
    assert cell.difference is not None
    by = f"{words.figure} {cell.difference.signed}, p {_chance(cell.p_corrected)}"
    return f"is {way} than {first} with {words.labels(cell.fraction)}: {by}"


def _largest(cells: Sequence[ComparedCell], words: ComparisonWords) -> str:
    """How large a difference there may be all the same, where it was largest."""
    known = [cell for cell in cells if cell.difference is not None and not math.isnan(cell.difference.low)]
    if not known:
        return ""
    cell = max(known, key=lambda cell: abs(_value(cell)))
    assert cell.difference is not None
    return f" (largest: {words.figure} {cell.difference.signed} with {words.labels(cell.fraction)})"


def _value(cell: ComparedCell) -> float:
    return 0.0 if cell.difference is None else cell.difference.value


def _chance(p: float) -> str:
    if math.isnan(p):
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
