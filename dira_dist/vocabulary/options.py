"""The options of ``dira-dist words``."""

from typing import Annotated

from pydantic import Field

from dira_dist.config import Section
from dira_dist.data.ingest.content_filters import ContentFilter
from dira_dist.data.ingest.options import CubeSize, Margin


class WordsOptions(Section):
    """How many words there are, where they lie, and what is cut of them. Defaults are the published ones, as shares."""

    words: Annotated[int, Field(ge=2, le=10_000, description="how many there are")] = 44
    nearest: Annotated[
        int | None,
        Field(
            ge=2,
            description="patients that each word is cut of, the reference among them; none: 45 % of the patients, 200 "
            "at most. Of further parts the same share",
        ),
    ] = None
    cube: Annotated[CubeSize, Field(description="sides x,y,z of a cube in voxels, 64,64,32 as published")] = (
        64,
        64,
        32,
    )
    sizes: Annotated[
        int,
        Field(
            ge=1,
            le=32,
            description="cubes of a word and patient: one of the cube's own sides, the others off its centre and "
            "larger or smaller in x and y, resized to it; of parts after the first one",
        ),
    ] = 3
    scale: Annotated[
        float, Field(ge=1, le=4, description="how many times larger or smaller those others are at most")
    ] = 1.25
    shift: Annotated[
        float, Field(ge=0, lt=1, description="how far off they are in x and y at most, as a share of the cube's sides")
    ] = 0.15625
    margin: Annotated[
        Margin, Field(description="shares of a volume's sides x,y,z, at both ends, that no word reaches into")
    ] = (0.0, 0.0, 0.0)
    apart: Annotated[
        float, Field(ge=0, lt=1, description="least distance of two words' places, in shares of a volume's sides")
    ] = 0.05
    content_filter: Annotated[
        ContentFilter | None,
        Field(
            description="which places are words, by the reference's cube: lung, or above:VALUE,SHARE, see shard; "
            "none: all that hold more than one value"
        ),
    ] = None
    split: Annotated[
        dict[str, float] | None,
        Field(
            description="share of patients of each part, for example train 0.9, val 0.1; references are of the first"
        ),
    ] = None
    seed: Annotated[int, Field(ge=0, description="of references, places, sizes and the split")] = 0
    device: Annotated[str | None, Field(description="cpu, cuda or cuda:1; none: a GPU where there is one")] = None
