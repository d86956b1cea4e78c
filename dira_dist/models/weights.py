"""Initial weights from a file, every key accounted for: loaded, or named as left out, or refused."""

import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dira_dist.config import RequestError
from dira_dist.files import check_not_compressed
from dira_dist.models.backbone import Backbone

CLASSIFIER_PREFIXES = ("fc.", "_fc.", "classifier.", "head.", "head_fc.", "last_linear.")
ENCODER_PREFIXES = ("", "encoder.", "encoder.model.")
WEIGHT_FILES = (".pt", ".pth", ".tar", ".safetensors")
"""How the names of files end that hold weights."""
_SHOWN = 5


@dataclass(frozen=True)
class LoadedWeights:
    """What became of a file's keys: ``loaded``, by the network's names, and ``left_out``, by the file's."""

    loaded: tuple[str, ...]
    left_out: tuple[str, ...]


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file or of a plain torch file, which may keep them under ``state_dict``.

    Raises:
        RequestError: no such file, or a file that holds more than tensors, numbers and text.
    """
    file = Path(path)
    if not file.is_file():
        raise RequestError(f"no file of weights at {file}: give the path of a .pt, .pth or .safetensors file")
    if file.suffix == ".safetensors":
        return load_file(file)
    try:
        check_not_compressed(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise RequestError(
            f"{file} is no plain file of weights: save a state dict, with torch.save(model.state_dict(), ...)"
        ) from error
    state = content
    if isinstance(content, dict):
        state = next((content[name] for name in ("state_dict", "model") if name in content), content)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise RequestError(
            f"{file} holds no state dict: allowed are tensors by name, at the top, under `state_dict` or under `model`"
        )
    return state


def load_weights(network: Backbone, weights: Mapping[str, Tensor]) -> LoadedWeights:
    """Copies ``weights`` into the network: a whole U-Net's, or an encoder's in smp's, torchvision's or timm's names.

    A classifier's keys are left out. A first convolution of 3 channels is summed to 1, and of 1 channel spread over 3.
    A file of an encoder leaves decoder and head at random.

    Raises:
        RequestError: keys that the network lacks, keys that the file lacks, or shapes that differ.
    """
    prefix = _best_prefix(network, weights)
    target = network.state_dict()
    renamed = {prefix + name: tensor for name, tensor in weights.items()}
    left_out = {name for name in renamed if name not in target and _is_classifier(name.removeprefix(prefix))}
    matched = {name: tensor for name, tensor in renamed.items() if name not in left_out}
    _refuse("has keys that the network lacks", matched.keys() - target.keys())
    _refuse("lacks keys of the network", _required(target, matched) - matched.keys())
    fitted = {name: fit_weight(name, tensor, target[name]) for name, tensor in matched.items()}
    nn.Module.load_state_dict(network, fitted, strict=False)
    return LoadedWeights(tuple(sorted(fitted)), tuple(sorted(name.removeprefix(prefix) for name in left_out)))


def _best_prefix(network: Backbone, weights: Mapping[str, Tensor]) -> str:
    names = network.state_dict().keys()
    return max(ENCODER_PREFIXES, key=lambda prefix: sum(prefix + name in names for name in weights))


def _is_classifier(name: str) -> bool:
    return name.startswith(CLASSIFIER_PREFIXES)


def _required(target: Mapping[str, Tensor], matched: Mapping[str, Tensor]) -> set[str]:
    """All of the encoder; where the file has any of decoder or head, all of them; counters of batches may lack."""
    whole = any(not name.startswith("encoder.") for name in matched)
    return {
        name for name in target if (whole or name.startswith("encoder.")) and not name.endswith("num_batches_tracked")
    }


def _refuse(problem: str, names: Iterable[str]) -> None:
    found = sorted(names)
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise RequestError(
            f"the file of weights {problem}: {', '.join(found[:_SHOWN])}{more}. Give a file of the same encoder, "
            "in the names of segmentation_models_pytorch, torchvision or timm"
        )


def fit_weight(name: str, tensor: Tensor, target: Tensor) -> Tensor:
    """Grey and RGB first convolutions answer alike to a grey image repeated to 3 channels."""
    if tensor.shape == target.shape:
        return tensor
    if tensor.ndim == target.ndim >= 4 and tensor.shape[2:] == target.shape[2:]:
        if (tensor.shape[1], target.shape[1]) == (3, 1):
            return tensor.sum(dim=1, keepdim=True)
        if (tensor.shape[1], target.shape[1]) == (1, 3):
            return tensor.expand_as(target) / 3
    raise RequestError(
        f"the weights of {name} have shape {tuple(tensor.shape)}, the network's {tuple(target.shape)}: give a file "
        "of the same encoder, with the same decoder channels"
    )
