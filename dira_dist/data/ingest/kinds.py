"""What the files of a source are that are not read, in words, by the end of their names."""

from pathlib import PurePosixPath

_BESIDE = "lies beside images as notes and tables do"
_FORM = "in a form that is not read"
_KINDS: tuple[tuple[str, str, bool], ...] = (
    (".zip .tar .tgz .gz .tbz2 .bz2 .txz .xz .zst .7z .rar", "is an archive; unpack it to have its files read", True),
    (".mp4 .avi .mov .mkv .wmv .mpg .mpeg .m4v .webm", "is a film; export its frames as PNG", True),
    (".svs .ndpi .scn .mrxs .bif .vsi .czi .lif .vms .qptiff .nd2", f"is an image of a microscope {_FORM}", True),
    (".mhd .raw .nhdr .mgz .mgh .mnc .par .rec .v .hdf5 .h5 .mat .npy .npz", f"may hold images {_FORM}", True),
    (
        ".heic .heif .avif .psd .dng .cr2 .nef .exr .pgm .ppm .pbm .pnm .tga",
        f"is an image {_FORM}; export it as PNG",
        True,
    ),
    (".ico .pcx .eps .ps .svg .xcf .ai", f"is an image {_FORM}; export it as PNG", True),
    (".txt .csv .tsv .json .jsonl .xml .yaml .yml .toml .md .rst .html .htm .log .pdf .doc .docx .odt", _BESIDE, False),
    (".rtf .xls .xlsx .ods .py .m .r .sh .ipynb .ini .cfg .db .sqlite .parquet .pkl", _BESIDE, False),
    (".md5 .sha1 .sha256 .sum .url .lnk .bib .tex .bval .bvec", _BESIDE, False),
)
_PLAIN_NAMES = ("license", "readme", "notice", "changelog", "checksums", "makefile", "dicomdir", "thumbs.db")

LEFT_OUT_RASTERS = {
    "bmp": (".bmp", ".dib"),
    "gif": (".gif",),
    "webp": (".webp",),
    "jpeg2000": (".jp2", ".j2k", ".jpx", ".jpf", ".j2c"),
}


def left_out_raster(name: str) -> str | None:
    """Which kind of :data:`LEFT_OUT_RASTERS` a file's name says it is: seldom an original, so read when asked for."""
    suffix = PurePosixPath(name.lower()).suffix
    return next((kind for kind, suffixes in LEFT_OUT_RASTERS.items() if suffix in suffixes), None)


def why_ignored(key: str) -> tuple[str, bool]:
    """Why a file is not read, as the end of a sentence about it; and whether it may hold images that are lost so."""
    name = PurePosixPath(key).name.lower()
    raster = left_out_raster(name)
    if raster:
        return f"is a {raster.upper()} image, seldom an original; --include {raster} reads such files", True
    for suffixes, reason, minded in _KINDS:
        if name.endswith(tuple(suffixes.split())):
            return reason, minded
    if name.startswith(_PLAIN_NAMES):
        return _BESIDE, False
    return "is of no kind that is read, by its name and its first bytes", True
