"""The words of a DICOM header that may leave it: terms that the standard defines, and nothing that was typed.

Whatever is not listed here stays behind, as a surname or a record number fits into any field.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom import Dataset


def _terms(text: str) -> frozenset[str]:
    return frozenset(text.split())


# PS3.3, C.7.3.1.1.1, defined terms of Modality, retired ones of older archives included
MODALITIES = _terms("""
    AR ASMT AS AU BDUS BI BMD CD CF CFM CP CR CS CT CTPROTOCOL DD DF DG DM DMS DOC DS DX EC ECG EEG EMG EOG EPS ES FA
    FID FS GM HC HD IO IOL IVOCT IVUS KER KO LEN LP LS MA MG MR M3D MS NM OAM OCT OP OPM OPR OPT OPTBSV OPTENF OPV
    OSS OT PA PLAN POS PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV
    SEG SM SMR SR SRF ST STAIN TEXTUREMAP TG US VA VF VL XA XAPROTOCOL XC
""")

# ViewPosition: PS3.3, C.8.1.1 (CR), C.8.11.5 (DX), C.8.11.7 (mammography; PS3.16, context group 4014)
VIEW_POSITIONS = _terms("""
    AP PA LL RL RLD LLD RLO LLO LAO RAO LPO RPO LAT OBL
    CC MLO ML LM LMO SIO ISO FB XCC XCCL XCCM CV AT RM RS RI TAN MAG SPOT
""")

# ImageType: PS3.3, C.7.6.1.1.2 and the image modules' values 3 and 4
IMAGE_TYPES = _terms("""
    ORIGINAL DERIVED MIXED PRIMARY SECONDARY AXIAL LOCALIZER MPR REFORMATTED PROJECTION VOLUME NONE OTHER
    SINGLE_PLANE BIPLANE FLUOROSCOPY STATIC DYNAMIC GATED TOMO RECON WHOLE_BODY EMISSION TRANSMISSION
    ADDITION SUBTRACTION DIVISION FILTERED MEAN MEDIAN MAXIMUM MINIMUM MAX_IP MIN_IP MOSAIC M P R I
    DENSITY_MAP DIFFUSION_MAP IMAGE_ADDITION MODULUS_SUBTRACT MPR_OBLIQUE OUTPUT PHASE_MAP PHASE_SUBTRACT T1_MAP
    T2_MAP DIFFUSION ADC FA TRACE ANGIO CARDIAC PERFUSION FLOW_ENCODED FUNCTIONAL CINE SCREEN_SAVE TOMOSYNTHESIS
    GENERATED_2D WATER FAT IN_PHASE OUT_PHASE OPP_PHASE
""")


def term(dataset: "Dataset", keyword: str, allowed: frozenset[str]) -> str | None:
    """The element's value where it is one of ``allowed``, blanks and case aside; else none."""
    value = text_of(dataset, keyword).upper()
    return value if value in allowed else None


def text_of(dataset: "Dataset", keyword: str) -> str:
    """An element's value as DICOM means text: without the blanks and NULs that pad it; empty where there is none."""
    try:
        value: Any = dataset.get(keyword)
    except Exception:  # the parser raises whatever a damaged value drives it to
        return ""
    return "" if value is None else str(value).strip(" \0\t\r\n")


def image_type_of(dataset: "Dataset") -> tuple[str, ...]:
    """The words of ImageType, upper case, as they stand: for decisions, not for a shard."""
    try:
        value: Any = dataset.get("ImageType") or dataset.get("FrameType")
    except Exception:
        return ()
    many = [value] if isinstance(value, str) else (value or [])
    return tuple(str(word).strip(" \0").upper() for word in many)


def class_name(uid: str) -> str | None:
    """``CT Image Storage`` for a SOP class that the standard registers; none for a private one."""
    from pydicom.uid import UID

    known = UID(uid)
    return known.name if known.type == "SOP Class" else None


def header_terms(dataset: "Dataset") -> dict[str, Any]:
    """What a sample keeps of its header besides geometry: modality, view, object class, image type and intent."""
    terms: dict[str, Any] = {
        "modality": term(dataset, "Modality", MODALITIES),
        "view_position": term(dataset, "ViewPosition", VIEW_POSITIONS),
        "sop_class": class_name(text_of(dataset, "SOPClassUID")) if text_of(dataset, "SOPClassUID") else None,
        "presentation_intent": term(
            dataset, "PresentationIntentType", frozenset(("FOR PRESENTATION", "FOR PROCESSING"))
        ),
    }
    words = [word for word in image_type_of(dataset) if word.replace(" ", "_") in IMAGE_TYPES]
    return {name: value for name, value in (terms | {"image_type": words}).items() if value}


# ---------------------------------------------------------------- what is no sample unless it is asked for

_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66"  # .4 Segmentation, .5 surface, .7 label map, .8 height map
_NO_PICTURES = {
    "1.2.840.10008.5.1.4.1.1.481.2": "dose",
    "1.2.840.10008.5.1.4.1.1.481.3": "report",  # structures and plans have no pixels, where they do not lie
    "1.2.840.10008.5.1.4.1.1.481.5": "report",
}
_CAPTURES = frozenset(
    ("SCREEN SAVE", "SCREEN_SAVE", "SCREENSHOT", "DOSE", "DOSE REPORT", "DOSE_INFO", "DOSEREPORT", "REPORT")
)
_PREFIXES = {
    _SEGMENTATION: "segmentation",
    "1.2.840.10008.5.1.4.1.1.88": "report",
    "1.2.840.10008.5.1.4.1.1.104": "report",
    "1.2.840.10008.5.1.4.1.1.11.": "report",
}

KINDS_LEFT_OUT = {
    "segmentation": "a segmentation (SEG)",
    "dose": "a dose grid (RTDOSE)",
    "localizer": "a localizer",
    "report": "a report or screen capture",
    "for-processing": "the FOR PROCESSING twin of an image FOR PRESENTATION",
}


def kind_of_object(dataset: "Dataset") -> str | None:
    """Which of :data:`KINDS_LEFT_OUT` an object is by its class and image type; none for an image like any other."""
    uid, modality = text_of(dataset, "SOPClassUID"), text_of(dataset, "Modality").upper()
    words = image_type_of(dataset)
    if uid in _NO_PICTURES:
        return _NO_PICTURES[uid]
    for prefix, kind in _PREFIXES.items():
        if uid == prefix or uid.startswith(prefix.rstrip(".") + "."):
            return kind
    if modality == "SEG":
        return "segmentation"
    if modality == "RTDOSE":
        return "dose"
    if any(word.startswith("LOCALI") or word in ("SCOUT", "TOPOGRAM", "SURVEY") for word in words):
        return "localizer"
    return "report" if _CAPTURES.intersection(words) or modality in ("SR", "DOC", "KO", "PR") else None
