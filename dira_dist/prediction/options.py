"""The options of ``dira-dist predict`` and ``dira-dist embed``."""

from typing import Annotated, Literal

from pydantic import Field

from dira_dist.config import Section
from dira_dist.data.ingest.intensity import Intensity
from dira_dist.data.ingest.slices import Axis

Flips = Literal["none", "horizontal", "both"]
Pool = Literal["patient", "study", "folder", "file"]


class EmbedOptions(Section):
    """How files are read, and who computes."""

    device: Annotated[str | None, Field(description="cpu, cuda or cuda:1; none: a GPU where there is one")] = None
    batch: Annotated[int, Field(ge=1, description="images at once")] = 32
    processes: Annotated[
        int | None, Field(ge=1, description="that share the files; none: one per core on the CPU, one on a GPU")
    ] = None
    names: Annotated[
        Literal["files", "keys"],
        Field(description="rows and files by their path below SOURCE, which may hold a name, or by salted key"),
    ] = "files"
    salt_file: Annotated[str | None, Field(description="secret behind the keys; none: one per user, made once")] = None
    content: Annotated[
        Literal["images", "slices"] | None,
        Field(description="DICOM files by themselves, or as slices of their series; none: as the model was trained"),
    ] = None
    axis: Annotated[
        Axis | None, Field(description="along which volumes are cut; none: as the model was trained, else axial")
    ] = None
    intensity: Annotated[
        Intensity | None, Field(description="values to grey, see shard; none: as the model was trained, else window")
    ] = None
    include: Annotated[tuple[str, ...], Field(description="kinds of files that are left out otherwise, see shard")] = ()
    max_raster_mpx: Annotated[
        float, Field(gt=0, description="flat images of more megapixels are named, not decoded")
    ] = 512.0
    volume_budget_gib: Annotated[float, Field(gt=0, description="larger volumes are named, not read")] = 2.0


class PredictOptions(EmbedOptions):
    """The same, and what is written."""

    masks: Annotated[
        Literal["auto", "plain", "none"],
        Field(
            description="auto: DICOM-SEG for DICOM, NIfTI for other volumes, PNG for other images; plain: NIfTI and "
            "PNG for DICOM, too; none: the table alone"
        ),
    ] = "auto"
    overlays: Annotated[bool, Field(description="pictures of the masks over their images, for people")] = False
    heatmaps: Annotated[
        bool,
        Field(description="of a classifier: where it sees each class that it says is there (Grad-CAM), and boxes"),
    ] = False
    flips: Annotated[
        Flips,
        Field(
            description="the mean with the mirrored image: horizontal, both ways, or none; leave it where left and "
            "right matter"
        ),
    ] = "none"
    pool: Annotated[
        Pool | None,
        Field(description="a second table of a classifier: mean and largest per patient, study, folder or file"),
    ] = None
