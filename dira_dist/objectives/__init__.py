"""Losses and discriminative methods. Every file here that defines a :class:`MethodSection` is a method to choose."""

from functools import reduce
from importlib import import_module
from operator import or_
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from dira_dist.objectives.adversarial import (
    AdversarialConfig,
    Opponent,
    adversarial_loss,
    discriminator_input,
    discriminator_loss,
)
from dira_dist.objectives.collectives import GlobalBatch
from dira_dist.objectives.method import Method, MethodSection
from dira_dist.objectives.restorative import RestorativeConfig, restorative_loss


def _discover() -> dict[str, type[MethodSection]]:
    """Sections of all methods by name, from the files of this folder: a further method is a further file."""
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return {section.model_fields["name"].default: section for section in MethodSection.__subclasses__()}


METHODS = _discover()

if TYPE_CHECKING:  # a union put together at run time is no type to a checker, and its members' base class is
    MethodConfig = MethodSection
else:
    MethodConfig = Annotated[reduce(or_, METHODS.values()), Field(discriminator="name")]


def default_method() -> MethodSection:
    """MoCo-v2 with the published settings."""
    return METHODS["moco_v2"].model_validate({})


__all__ = [
    "METHODS",
    "AdversarialConfig",
    "GlobalBatch",
    "Method",
    "MethodConfig",
    "MethodSection",
    "Opponent",
    "RestorativeConfig",
    "adversarial_loss",
    "default_method",
    "discriminator_input",
    "discriminator_loss",
    "restorative_loss",
]
