"""``dira-dist pull``: weights from the registry, a run or a checkpoint, under another library's names."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors.torch import load_file
from torch import Tensor

from dira_dist.config import RequestError
from dira_dist.data.store import MissingObjectError, open_store
from dira_dist.export import Format, export, save_weights
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.model_files import FACTS, read_facts
from dira_dist.tracking.publish import network_state
from dira_dist.tracking.registry import ADDRESS_FORMS, fetch
from dira_dist.training.state import CHECKPOINT_FILES, BrokenCheckpointError, read_checkpoint

Channels = Literal[1, 3]


@dataclass(frozen=True)
class Pulled:
    """Weights on this disk.

    Attributes:
        path: the safetensors file.
        sha256: its digest.
        loading_lines: Python that loads it strictly.
    """

    path: Path
    sha256: str
    loading_lines: str


def pull(
    model: str,
    dest: Path | str,
    *,
    format: str = "torchvision",  # noqa: A002 (the word of the command line)
    in_channels: int | None = None,
    tracking_uri: str | None = None,
) -> Pulled:
    """Bring weights here as a plain state dict.

    Args:
        model: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, ``runs:/RUN_ID``, or a checkpoint's folder or prefix.
        dest: folder; the file in it is named after encoder and format.
        format: ``torchvision`` or ``timm`` (the encoder), or ``smp`` (encoder and decoder).
        in_channels: 1 or 3; the model's own if none.
        tracking_uri: MLflow; ``MLFLOW_TRACKING_URI`` if none.

    Raises:
        RequestError: for an unknown model, version, alias or format, or an encoder that the library does not have.
    """
    chosen, channels = _known_format(format), _known_channels(in_channels)
    dest = Path(dest)
    if dest.exists() and not dest.is_dir():
        raise RequestError(f"{dest}: is a file; give a folder")
    with tempfile.TemporaryDirectory() as scratch:
        if model.startswith(("models:", "runs:")):
            state, facts = _from_registry(model, Path(scratch), TrackingConfig(uri=tracking_uri))
        else:
            state, facts = _from_checkpoint(model, Path(scratch))
    own: Channels = facts["in_channels"]
    exported = export(state, facts["encoder"], chosen, channels or own)
    path = dest / f"{facts['encoder']}-{chosen}.safetensors"
    dest.mkdir(parents=True, exist_ok=True)
    digest = save_weights(exported.state, path, {"names": chosen, "encoder": facts["encoder"]})
    return Pulled(path, digest, exported.loading_lines(path))


def _known_format(name: str) -> Format:
    for known in get_args(Format):
        if name == known:
            found: Format = known
            return found
    raise RequestError(f"--format {name!r}: allowed are {', '.join(get_args(Format))}")


def _known_channels(count: int | None) -> Channels | None:
    allowed: dict[int | None, Channels | None] = {None: None, 1: 1, 3: 3}
    if count in allowed:
        return allowed[count]
    raise RequestError(f"--in-channels {count}: allowed are 1 (grey) and 3; leave it out for the model's own")


def _from_registry(address: str, scratch: Path, config: TrackingConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    folder = fetch(address, scratch, config, only=("unet.safetensors", FACTS))
    return load_file(folder / "unet.safetensors"), read_facts(folder)


def _from_checkpoint(address: str, scratch: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    store = open_store(address)
    try:
        for name in CHECKPOINT_FILES:
            (scratch / name).write_bytes(store.read_bytes(name))
        checkpoint = read_checkpoint(scratch)
    except (MissingObjectError, BrokenCheckpointError) as error:
        raise RequestError(f"{address}: neither a model ({ADDRESS_FORMS}) nor a checkpoint: {error}") from error
    return network_state(checkpoint, "unet"), checkpoint.job["model"]
