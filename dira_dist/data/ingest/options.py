"""The options of ``dira-dist shard``."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from dira_dist.config import RequestError, Section
from dira_dist.data.ingest.content_filters import ContentFilter
from dira_dist.data.ingest.intensity import Intensity
from dira_dist.data.ingest.kinds import LEFT_OUT_RASTERS
from dira_dist.data.ingest.pixels import PictureMode, Side
from dira_dist.data.ingest.slices import Axis
from dira_dist.data.ingest.terms import KINDS_LEFT_OUT

Content = Literal["images", "slices", "volumes", "cubes"]
CentreFrame = Literal["voxels", "ras", "lps"]

FOLDERS = "folders"  # in place of a label table: the folder's name is the label
NOT_SAID = "window"  # the intensity of options that state none; a volume has no window of its own


def _three(given: Any) -> Any:
    """``96,96,48`` or ``96``, or the same as numbers, as three numbers along x, y and z."""
    parts = given.split(",") if isinstance(given, str) else given
    if not isinstance(parts, list | tuple):
        parts = [parts]
    if len(parts) not in (1, 3):
        raise ValueError(f"found {len(parts)} numbers; give three, along x, y and z, or one for all of them")
    return tuple(map(_number, parts)) * (3 // len(parts))


def _number(given: Any) -> Any:
    """A number as the command line has it, whole where it is; anything else as it is, for the type to refuse."""
    try:
        number = float(given) if isinstance(given, str) else given
    except ValueError as error:
        raise ValueError(f"{given!r} is no number; give three, along x, y and z, or one for all of them") from error
    return int(number) if isinstance(number, float) and number.is_integer() else number


_Side = Annotated[int, Field(ge=8, le=1024)]
_Length = Annotated[float, Field(gt=0, le=100)]
_Share = Annotated[float, Field(ge=0, lt=0.5)]
CubeSize = Annotated[tuple[_Side, _Side, _Side], BeforeValidator(_three)]
Spacing = Annotated[tuple[_Length, _Length, _Length], BeforeValidator(_three)]
Margin = Annotated[tuple[_Share, _Share, _Share], BeforeValidator(_three)]


class ShardOptions(Section):
    """How an archive becomes a shard set."""

    image_size: Annotated[
        int | None, Field(ge=8, description="side of the stored images in px; smaller ones stay; none: no resize")
    ] = 512
    side: Annotated[Side, Field(description="which side image_size means")] = "shortest"
    coding: Annotated[Literal["png", "jpeg"], Field(description="png loses nothing; jpeg is smaller, 8 bits only")] = (
        "png"
    )
    jpeg_quality: Annotated[int, Field(ge=1, le=100, description="1 to 100, where coding is jpeg")] = 95
    mode: Annotated[
        PictureMode | None,
        Field(description="8-bit grey, 16-bit grey or colour; none: the richest of all files, by their headers"),
    ] = None
    content: Annotated[
        Content | None,
        Field(
            description="images, slices of volumes, whole volumes, or cubes cut of them; none: volumes where there are "
            "only such files"
        ),
    ] = None
    intensity: Annotated[
        Intensity,
        Field(
            description="values to grey: window (the file's own), full (smallest to largest), range:LOW,HIGH in their "
            "unit, or percentiles:LOW,HIGH; of volumes: to 16 bits, where it is said"
        ),
    ] = NOT_SAID
    channels: Annotated[
        tuple[str, ...],
        Field(
            description="registered volumes of a case as channels of one sample, in this order: words of the files' "
            "names (t1,t2,flair), or a CSV file with a column case and one for each channel"
        ),
    ] = ()
    axis: Annotated[Axis, Field(description="along which slices of volumes follow each other")] = "axial"
    every: Annotated[int, Field(ge=1, description="takes every so many slices of a volume")] = 1
    include: Annotated[
        tuple[str, ...],
        Field(description=f"what is left out otherwise: {', '.join((*KINDS_LEFT_OUT, *LEFT_OUT_RASTERS))}"),
    ] = ()
    spacing_tolerance: Annotated[
        float,
        Field(gt=0, lt=0.5, description="how far a step between slices may differ from the usual, as a share of it"),
    ] = 0.05
    tilt: Annotated[
        Literal["correct", "refuse"], Field(description="slices of a tilted gantry: moved upright, or left out")
    ] = "correct"
    volume_masks: Annotated[
        Literal["match", "resample"],
        Field(description="a volume's mask must lie on it voxel by voxel, or is resampled by both headers"),
    ] = "match"
    max_raster_mpx: Annotated[
        float, Field(gt=0, description="flat images of more megapixels are named, not decoded")
    ] = 512.0
    cube: Annotated[CubeSize | None, Field(description="sides x,y,z of a cube in voxels, for content cubes")] = None
    cubes_per_volume: Annotated[int, Field(ge=1, le=10_000, description="cubes at random places of each volume")] = 32
    spacing: Annotated[
        Spacing | None, Field(description="volumes and cubes at voxels of x,y,z mm (linear); none: as they are")
    ] = None
    margin: Annotated[
        Margin, Field(description="shares of a volume's sides x,y,z, at both ends, that no random cube reaches into")
    ] = (0.0, 0.0, 0.0)
    content_filter: Annotated[
        ContentFilter | None,
        Field(
            description="which random cubes are kept: lung (the published rule for chest CT in HU), or "
            "above:VALUE,SHARE: at least that share of a cube lies above the value, or above the word mean; none: all"
        ),
    ] = None
    centres: Annotated[
        str | None,
        Field(
            description="a CSV file with columns volume, x, y, z and labels: one cube a row, in place of random ones"
        ),
    ] = None
    centres_in: Annotated[
        CentreFrame | None,
        Field(description="what its x, y, z are: indices of the file from 0, or mm in NIfTI's (ras) or DICOM's frame"),
    ] = None
    seed: Annotated[int, Field(ge=0, description="of the places of random cubes")] = 0
    volume_budget_gib: Annotated[float, Field(gt=0, description="larger volumes are named, not read")] = 2.0
    labels: Annotated[str | None, Field(description="a CSV file, or the word 'folders'")] = None
    image_column: Annotated[str, Field(description="column of the tables that names the image's file")] = "image"
    label_columns: Annotated[
        tuple[str, ...] | None, Field(description="columns that are labels; none: those with a usual name")
    ] = None
    keep_columns: Annotated[
        tuple[str, ...],
        Field(description="columns of the label table, such as sex,age,view, that ride along for figures by subgroup"),
    ] = ()
    boxes: Annotated[str | None, Field(description="a CSV file with columns x, y, width, height in px")] = None
    masks: Annotated[str | None, Field(description="a folder with a label map for each image, named like it")] = None
    split: Annotated[
        dict[str, float] | None, Field(description="share of each part, for example train 0.9, val 0.1")
    ] = None
    group_by: Annotated[
        str | None,
        Field(
            description="what stays in one part: a column of the label table, 'PatientID' (DICOM), 'folder' or 'none'; "
            "none: the patient of DICOM headers"
        ),
    ] = None
    samples_per_shard: Annotated[int | None, Field(ge=1, description="files per tar; none: chosen by their number")] = (
        None
    )
    salt_file: Annotated[str | None, Field(description="secret behind the keys; none: one per user, made once")] = None
    processes: Annotated[int | None, Field(ge=1, description="none: one per core")] = None
    strict: Annotated[
        bool,
        Field(description="refuse an archive with a file that is unreadable, or not read though it may hold images"),
    ] = False
    overwrite: Annotated[bool, Field(description="replace a set made otherwise")] = False
    append: Annotated[
        bool, Field(description="add the files that a finished set does not have yet, as its next generation")
    ] = False
    names: Annotated[
        Literal["files", "keys"] | None,
        Field(description="files on the console by name, or by salted key; none: by key in a job of Ray or Kubernetes"),
    ] = None
    report: Annotated[str | None, Field(description="file for the JSON report; it names files, so keep it private")] = (
        None
    )

    @property
    def max_raster_px(self) -> int:
        """The most pixels of one flat image."""
        return int(self.max_raster_mpx * 1e6)

    @property
    def volume_budget_bytes(self) -> int:
        """The budget of one volume."""
        return int(self.volume_budget_gib * 2**30)

    @field_validator("include")
    @classmethod
    def _known(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        for kind in kinds:
            if kind not in (*KINDS_LEFT_OUT, *LEFT_OUT_RASTERS):
                known = ", ".join((*KINDS_LEFT_OUT, *LEFT_OUT_RASTERS))
                raise ValueError(f"{kind!r} is no kind of file that is left out; choose of {known}")
        return kinds


def check_content(options: ShardOptions) -> None:
    """Refuses options that do not go together.

    Raises:
        RequestError: with the remedy.
    """
    if options.append and options.overwrite:
        raise RequestError("append with overwrite: the one keeps what is there, the other does not; say one of them.")
    if options.channels and options.content not in ("slices", "volumes", "cubes"):
        raise RequestError(
            "channels: they are registered volumes; say --content slices, --content volumes or --content cubes."
        )
    if options.content == "cubes":
        if options.cube is None:
            raise RequestError("content cubes: of which size? Say --cube X,Y,Z in voxels, for example --cube 64,64,32.")
        if (options.centres is None) != (options.centres_in is None):
            raise RequestError(
                "centres and centres_in go together: a table says where cubes lie, and --centres-in what its numbers "
                "are: voxels (indices of the file, from 0), ras (mm in NIfTI's frame) or lps (mm in DICOM's and ITK's)."
            )
        if options.centres is not None and options.content_filter is not None:
            raise RequestError(
                "content_filter with centres: a table says which cubes are taken; leave one of them out."
            )
        return
    if options.cube is not None or options.centres is not None:
        raise RequestError(
            f"{'cube' if options.cube is not None else 'centres'} with content {options.content}: cubes are cut with "
            "--content cubes."
        )
    if options.spacing is not None and options.content != "volumes":
        raise RequestError(f"spacing with content {options.content}: say --content volumes or --content cubes.")


def parse_split(text: str) -> dict[str, float]:
    """``train=0.9,val=0.1`` as a mapping.

    Raises:
        RequestError: it is written otherwise.
    """
    split: dict[str, float] = {}
    for piece in text.split(","):
        name, equals, share = piece.partition("=")
        try:
            split[name.strip()] = float(share)
        except ValueError:
            equals = ""
        if not equals or not name.strip():
            raise RequestError(f"split {text!r}: write it as name=share,name=share, for example train=0.9,val=0.1.")
    return split


def check_split(split: Mapping[str, float]) -> None:
    """Raises RequestError where the shares are not positive or do not sum to 1, or a name makes no folder."""
    total = sum(split.values())
    if abs(total - 1) > 1e-6 or any(share <= 0 for share in split.values()):
        shares = ", ".join(f"{name}={share:g}" for name, share in split.items())
        raise RequestError(f"split {shares}: the shares must be positive and sum to 1; these sum to {total:g}.")
    for name in split:
        if not name.replace("-", "").replace("_", "").isalnum():
            raise RequestError(f"split: {name!r} names a folder; use letters, digits, '-' and '_'.")
