"""What this project uses of Optuna that is not public, with its reason."""

from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution


def holds(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a distribution may draw a value; Optuna asks itself so in ``enqueue_trial``, and offers no public way."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices  # Optuna raises here for what is none of them
    return distribution._contains(distribution.to_internal_repr(value))
