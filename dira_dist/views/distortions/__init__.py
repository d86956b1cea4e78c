"""What the network has to undo, by name: ``views.distortion: {name: models_genesis}``. Without a name it is DiRA's."""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Discriminator, Tag

from dira_dist.views.distortions.dira import DiraDistortion
from dira_dist.views.distortions.models_genesis import ModelsGenesis
from dira_dist.views.distortions.rubik import Rubik
from dira_dist.views.distortions.section import DistortionSection, name_of
from dira_dist.views.distortions.transvw import TransVW

DISTORTIONS: dict[str, type[DistortionSection[Any]]] = {
    section.model_fields["name"].default: section for section in (DiraDistortion, ModelsGenesis, TransVW, Rubik)
}

if TYPE_CHECKING:  # a union put together at run time is no type to a checker, and its members' base class is
    DistortionConfig = DistortionSection[Any]
else:
    DistortionConfig = Annotated[
        reduce(or_, (Annotated[section, Tag(name)] for name, section in DISTORTIONS.items())),
        Discriminator(
            name_of,
            custom_error_type="unknown_distortion",
            custom_error_message=f"a name among {', '.join(DISTORTIONS)}",
        ),
    ]

__all__ = [
    "DISTORTIONS",
    "DiraDistortion",
    "DistortionConfig",
    "DistortionSection",
    "ModelsGenesis",
    "Rubik",
    "TransVW",
]
