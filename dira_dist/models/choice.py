"""The networks that a job can name: ``model: {name: unet3d}``. Without a name it is the 2D U-Net."""

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Discriminator, Tag, TypeAdapter, ValidationError

from dira_dist.config import RequestError, dotted
from dira_dist.models.backbone import BackboneSection
from dira_dist.models.monai_networks import BasicUNetConfig, DynUNetConfig, SegResNetConfig
from dira_dist.models.unet import UNetConfig
from dira_dist.models.unet3d import UNet3dConfig

MODELS: dict[str, type[BackboneSection]] = {
    section.model_fields["name"].default: section
    for section in (UNetConfig, UNet3dConfig, SegResNetConfig, BasicUNetConfig, DynUNetConfig)
}


def name_of(model: Any) -> Any:
    """The name in a section of a job file, or of a section that was read."""
    default = UNetConfig.model_fields["name"].default
    return model.get("name", default) if isinstance(model, Mapping) else getattr(model, "name", None)


if TYPE_CHECKING:  # a union put together at run time is no type to a checker, and its members' base class is
    ModelConfig = BackboneSection
else:
    ModelConfig = Annotated[
        reduce(or_, (Annotated[section, Tag(name)] for name, section in MODELS.items())),
        Discriminator(
            name_of,
            custom_error_type="unknown_model",
            custom_error_message=f"a name among {', '.join(MODELS)}",
        ),
    ]


def read_model(values: Mapping[str, Any]) -> BackboneSection:
    """The section of a network as it was recorded in a job or a model, held to what a job file may say.

    Raises:
        RequestError: it says something else.
    """
    try:
        section: BackboneSection = TypeAdapter(ModelConfig).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ": ".join(filter(None, ("the recorded network", dotted(first["loc"]))))
        raise RequestError(f"{place}: {first['msg']}") from None
    return section
